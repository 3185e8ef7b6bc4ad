//! A row as the model would read it.

use collimate_protocol::records::{Comparison, Demonstration, Message, PromptText, Role};
use serde::Serialize;
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::super::demonstrations::tokenize_demonstration;
use super::super::dialogue::Problem;
use super::super::framing::{prompt_tokens, response_tokens};
use super::super::records::Record;
use super::super::schema::Schema;
use crate::error::Result;
use crate::tokenizer::Tokenizer;
use crate::train::LmExample;

/// A part of a record as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The text, special tokens spelled out.
    pub text: String,
    /// Whether it is learnt, or only read.
    pub is_learnt: bool,
}

/// A row's record, of the kind that its schema is made for.
pub(super) enum Content {
    Demonstration(Demonstration),
    Comparison(Comparison),
    Prompt(PromptText),
    Text(String),
}

impl Record for Content {
    const NAME: &'static str = "record";

    fn read(schema: Schema, row: &Map<String, Value>) -> Problem<Self> {
        match schema {
            Schema::Ranking
            | Schema::Scored
            | Schema::UltraFeedback
            | Schema::Preference
            | Schema::PreferredDialogue => Comparison::read(schema, row).map(Self::Comparison),
            Schema::Alpaca | Schema::PromptResponse | Schema::Messages | Schema::ShareGpt => {
                schema.demonstration(row).map(Self::Demonstration)
            }
            Schema::Prompt | Schema::Instruction | Schema::Responses => {
                schema.prompt(row).map(|record| Self::Prompt(record.prompt))
            }
            Schema::Text => schema.text(row).map(Self::Text),
        }
    }
}

impl Content {
    /// What it asks; of text the whole.
    pub(super) fn prompt_hash(&self) -> u64 {
        hash(&match self {
            Self::Demonstration(Demonstration::Response { prompt, .. }) | Self::Prompt(prompt) => described(prompt),
            Self::Demonstration(Demonstration::Dialogue { messages }) => {
                described(&PromptText::Messages(messages[..messages.len().saturating_sub(1)].to_vec()))
            }
            Self::Comparison(comparison) => described(&comparison.prompt),
            Self::Text(text) => text.trim().to_owned(),
        })
    }

    pub(super) fn whole_hash(&self) -> u64 {
        hash(&match self {
            Self::Demonstration(demonstration) => format!("{demonstration:?}"),
            Self::Comparison(comparison) => format!("{comparison:?}"),
            Self::Prompt(prompt) => described(prompt),
            Self::Text(text) => text.trim().to_owned(),
        })
    }
}

fn hash(text: &str) -> u64 {
    xxh3_64(text.as_bytes())
}

fn described(prompt: &PromptText) -> String {
    match prompt {
        PromptText::Text(text) => text.trim().to_owned(),
        PromptText::Messages(messages) => format!("{messages:?}"),
    }
}

/// The sequences that the stages would make of it.
pub(super) fn tokenized(tokenizer: &Tokenizer, content: &Content) -> Result<Vec<LmExample>> {
    match content {
        Content::Demonstration(demonstration) => tokenize_demonstration(demonstration, tokenizer),
        Content::Comparison(comparison) => {
            let prompt = prompt_tokens(tokenizer, &comparison.prompt)?;
            let sequence = |response: &String| {
                let response = response_tokens(tokenizer, &comparison.prompt, response)?;
                Ok(LmExample::response([prompt.as_slice(), &response].concat(), prompt.len()))
            };
            comparison.responses.iter().map(sequence).collect()
        }
        Content::Prompt(prompt) => {
            let tokens = prompt_tokens(tokenizer, prompt)?;
            let n_prompt = tokens.len();
            Ok(vec![LmExample::response(tokens, n_prompt)])
        }
        Content::Text(text) => Ok(vec![LmExample::response(tokenizer.encode(text)?, 0)]),
    }
}

pub(super) fn segments(tokenizer: &Tokenizer, example: &LmExample) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut add = |tokens: &[u32], is_learnt| -> Result<()> {
        if !tokens.is_empty() {
            segments.push(Segment { text: tokenizer.decode_with_specials(tokens)?, is_learnt });
        }
        Ok(())
    };
    let mut at = 0;
    for span in &example.learnt {
        add(&example.tokens[at..span.start], false)?;
        add(&example.tokens[span.clone()], true)?;
        at = span.end;
    }
    add(&example.tokens[at..], false)?;
    Ok(segments)
}

/// The texts without a model's template.
pub(super) fn untokenized(content: &Content) -> Vec<Vec<Segment>> {
    let read = |text: String| Segment { text, is_learnt: false };
    let learnt = |text: &str| Segment { text: text.to_owned(), is_learnt: true };
    let turn = |message: &Message| Segment {
        text: format!("{:?}: {}\n", message.role, message.content),
        is_learnt: message.role == Role::Assistant,
    };
    let asked = |prompt: &PromptText| match prompt {
        PromptText::Text(text) => vec![read(text.clone())],
        PromptText::Messages(messages) => messages.iter().map(|message| read(turn(message).text)).collect(),
    };
    let answered = |prompt: &PromptText, response: &str| [asked(prompt), vec![learnt(response)]].concat();
    match content {
        Content::Demonstration(Demonstration::Response { prompt, response }) => vec![answered(prompt, response)],
        Content::Demonstration(Demonstration::Dialogue { messages }) => vec![messages.iter().map(turn).collect()],
        Content::Comparison(comparison) => {
            comparison.responses.iter().map(|response| answered(&comparison.prompt, response)).collect()
        }
        Content::Prompt(prompt) => vec![asked(prompt)],
        Content::Text(text) => vec![vec![learnt(text)]],
    }
}
