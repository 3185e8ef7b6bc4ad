//! What a file holds, by its columns, and the records that can be made of it.

mod fields;

use collimate_protocol::records::{
    Comparison, ComparisonTokens, Demonstration, Message, PromptRecord, PromptText, Role,
};
use serde_json::{Map, Value};

use super::comparisons::ranks_of;
use super::dialogue::{Problem, messages, split_answer};
use super::nearest;
use fields::{alpaca, answer, completions, first, is_given, parsed, prompt, text, texts};

/// The forms in which people store demonstrations, comparisons, prompts and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// K responses with their ranks.
    Ranking,
    /// Responses with their scores.
    Scored,
    /// `completions`, each with its response and score, as UltraFeedback has them.
    UltraFeedback,
    /// Responses that nobody has ranked yet.
    Responses,
    /// A prompt with a better and a worse response, as text or as messages.
    Preference,
    /// Two whole dialogues or transcripts, as hh-rlhf has them.
    PreferredDialogue,
    /// `instruction`, `input`, `output`.
    Alpaca,
    /// A prompt and its response.
    PromptResponse,
    /// A dialogue with `role` and `content`.
    Messages,
    /// A dialogue with `from` and `value`, as ShareGPT has it.
    ShareGpt,
    /// A prompt alone.
    Prompt,
    /// An instruction alone.
    Instruction,
    /// Text to learn as it is.
    Text,
}

/// Keys of a schema: each of `required` by one of its names, and those that may be there.
struct Columns {
    schema: Schema,
    required: &'static [&'static [&'static str]],
    optional: &'static [&'static str],
}

/// In the order in which they are tried: the first whose columns are all there.
const SCHEMAS: [Columns; 13] = {
    use Schema::{
        Alpaca, Instruction, Messages, Preference, PreferredDialogue, Prompt, PromptResponse, Ranking, Responses,
        Scored, ShareGpt, Text, UltraFeedback,
    };
    const fn columns(
        schema: Schema,
        required: &'static [&'static [&'static str]],
        optional: &'static [&'static str],
    ) -> Columns {
        Columns { schema, required, optional }
    }
    [
        columns(Ranking, &[&["prompt"], &["responses"], &["ranks"]], &["tokens"]),
        columns(Scored, &[&["prompt", "instruction"], &["responses"], &["scores", "ratings"]], &[]),
        columns(UltraFeedback, &[&["prompt", "instruction"], &["completions"]], &[]),
        columns(
            Preference,
            &[&["prompt", "conversations", "messages", "question"], &["chosen"], &["rejected"]],
            &["system"],
        ),
        columns(PreferredDialogue, &[&["chosen"], &["rejected"]], &[]),
        columns(Responses, &[&["prompt"], &["responses"]], &["tokens"]),
        columns(Alpaca, &[&["instruction"], &["output"]], &["input", "system", "history"]),
        columns(PromptResponse, &[&["prompt"], &["response", "completion"]], &[]),
        columns(Messages, &[&["messages"]], &[]),
        columns(ShareGpt, &[&["conversations"]], &["system"]),
        columns(Prompt, &[&["prompt"]], &[]),
        columns(Instruction, &[&["instruction"]], &["input", "system"]),
        columns(Text, &[&["text"]], &[]),
    ]
};

/// Columns that say which rows are worth learning, or that a dialogue is more than text. To pass over them would teach
/// what nobody wants.
const REFUSED: [(&str, &str); 5] = [
    ("label", "it says which responses are good; keep those rows alone, or give comparisons"),
    ("kto_tag", "it says which responses are good; keep those rows alone, or give comparisons"),
    ("tools", "calls of tools are not supported"),
    ("images", "images are not supported"),
    ("videos", "videos are not supported"),
];

impl Schema {
    /// In words, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ranking => "rankings (prompt, responses, ranks)",
            Self::Scored => "scored responses (prompt, responses, scores)",
            Self::UltraFeedback => "scored completions (UltraFeedback)",
            Self::Responses => "responses without ranks (prompt, responses)",
            Self::Preference => "preferences (prompt, chosen, rejected)",
            Self::PreferredDialogue => "preferred dialogues (chosen, rejected, as hh-rlhf)",
            Self::Alpaca => "instructions (Alpaca)",
            Self::PromptResponse => "prompts with responses",
            Self::Messages => "dialogues (messages with role and content)",
            Self::ShareGpt => "dialogues (ShareGPT)",
            Self::Prompt | Self::Instruction => "prompts",
            Self::Text => "text",
        }
    }

    fn columns(self) -> &'static Columns {
        SCHEMAS.iter().find(|columns| columns.schema == self).expect("every schema is listed")
    }

    /// The schema of a row with these columns.
    ///
    /// # Errors
    /// Columns that no schema has: which are there, and what is the nearest.
    pub fn of(row: &Map<String, Value>) -> Problem<Self> {
        let has = |names: &&[&str]| names.iter().any(|name| is_given(row, name));
        if let Some(columns) = SCHEMAS.iter().find(|columns| columns.required.iter().all(has)) {
            return Ok(columns.schema);
        }
        let known = known_keys();
        let hint = meant_by(row.keys().map(String::as_str).filter(|key| !known.contains(key)).take(1));
        let keys: Vec<String> = row.keys().map(|key| format!("`{key}`")).collect();
        Err(format!(
            "has the keys {}, which make no known record{hint} (known: prompt and response; instruction and output; \
             messages; conversations; chosen and rejected; responses and ranks or scores; text)",
            if keys.is_empty() { "{}".to_owned() } else { keys.join(", ") }
        ))
    }

    /// Keys of the row that this schema does not read.
    pub fn unread(self, row: &Map<String, Value>) -> Vec<&str> {
        let Columns { required, optional, .. } = self.columns();
        let known = |key: &str| required.iter().any(|names| names.contains(&key)) || optional.contains(&key);
        row.keys().map(String::as_str).filter(|key| !known(key)).collect()
    }

    /// Refuses a row of another schema, one whose keys are misspelt, and one with keys that change what it means.
    fn check(self, row: &Map<String, Value>) -> Problem<()> {
        let Columns { required, optional, .. } = self.columns();
        for names in *required {
            if !names.iter().any(|name| is_given(row, name)) {
                let misspelt = row
                    .keys()
                    .find(|key| nearest(key, names.iter().copied()).is_some() && !names.contains(&key.as_str()));
                let hint = misspelt.map_or_else(String::new, |key| format!("; is it meant by `{key}`?"));
                return Err(format!("key `{}` is missing{hint}", names[0]));
            }
        }
        for key in self.unread(row).into_iter().filter(|key| is_given(row, key)) {
            if let Some((_, why)) = REFUSED.iter().find(|(name, _)| *name == key) {
                return Err(format!("key `{key}` is not supported: {why}"));
            }
            let absent = optional.iter().copied().filter(|name| !row.contains_key(*name));
            if let Some(name) = nearest(key, absent) {
                return Err(format!("unknown key `{key}`: did you mean `{name}`?"));
            }
        }
        Ok(())
    }

    /// What SFT learns from the row. Of preferences it is the better response.
    pub fn demonstration(self, row: &Map<String, Value>) -> Problem<Demonstration> {
        self.check(row)?;
        let demonstration = match self {
            Self::PromptResponse => {
                let response = text(row, first(row, &["response", "completion"]))?;
                Demonstration::Response { prompt: prompt(row, "prompt")?, response }
            }
            Self::Alpaca => {
                Demonstration::Response { prompt: PromptText::Messages(alpaca(row)?), response: text(row, "output")? }
            }
            Self::Messages | Self::ShareGpt => {
                let (key, dialogue) = self.dialogue(row)?;
                split_answer(key, dialogue.clone())?;
                Demonstration::Dialogue { messages: dialogue }
            }
            Self::Preference | Self::PreferredDialogue => {
                let (prompt, response) = answer(row, "chosen")?;
                Demonstration::Response { prompt, response }
            }
            _ => return Err(self.refused(row, "demonstrations")),
        };
        let is_empty = match &demonstration {
            Demonstration::Response { response, .. } => response.is_empty(),
            Demonstration::Dialogue { messages } => {
                messages.iter().any(|turn| turn.role == Role::Assistant && turn.content.is_empty())
            }
        };
        // Sampled responses may be empty; to demonstrate that is to teach it.
        if is_empty { Err("the response is empty".to_owned()) } else { Ok(demonstration) }
    }

    /// What the reward model learns from the row.
    pub fn comparison(self, row: &Map<String, Value>) -> Problem<Comparison> {
        self.check(row)?;
        match self {
            Self::Ranking => Ok(Comparison {
                prompt: prompt(row, "prompt")?,
                responses: texts(row, "responses")?,
                ranks: parsed(row, "ranks", "a list of ranks: whole numbers, 1 is best")?,
                tokens: tokens(row)?,
            }),
            Self::Scored => {
                let scores_key = first(row, &["scores", "ratings"]);
                let scores: Vec<f64> = parsed(row, scores_key, "a list of numbers")?;
                let responses = texts(row, "responses")?;
                if scores.len() != responses.len() {
                    let (n_responses, n_scores) = (responses.len(), scores.len());
                    return Err(format!("has {n_responses} responses and {n_scores} numbers under `{scores_key}`"));
                }
                let prompt = prompt(row, first(row, &["prompt", "instruction"]))?;
                Ok(Comparison { prompt, responses, ranks: ranks_of(&scores), tokens: None })
            }
            Self::UltraFeedback => {
                let (responses, scores) = completions(row)?;
                let prompt = match prompt(row, first(row, &["prompt", "instruction"]))? {
                    PromptText::Text(content) => PromptText::Messages(vec![Message { role: Role::User, content }]),
                    dialogue => dialogue,
                };
                Ok(Comparison { prompt, responses, ranks: ranks_of(&scores), tokens: None })
            }
            Self::Preference | Self::PreferredDialogue => {
                let (chosen_prompt, chosen) = answer(row, "chosen")?;
                let (rejected_prompt, rejected) = answer(row, "rejected")?;
                if chosen_prompt != rejected_prompt {
                    return Err("`chosen` and `rejected` answer different prompts".to_owned());
                }
                Ok(Comparison {
                    prompt: chosen_prompt,
                    responses: vec![chosen, rejected],
                    ranks: vec![1, 2],
                    tokens: None,
                })
            }
            _ => Err(self.refused(row, "comparisons")),
        }
    }

    /// What PPO samples from: of a dialogue all up to the user's last turn.
    pub fn prompt(self, row: &Map<String, Value>) -> Problem<PromptRecord> {
        self.check(row)?;
        let prompt = match self {
            Self::Prompt | Self::PromptResponse | Self::Ranking | Self::Responses => prompt(row, "prompt")?,
            Self::Scored => prompt(row, first(row, &["prompt", "instruction"]))?,
            Self::UltraFeedback => self.comparison(row)?.prompt,
            Self::Alpaca | Self::Instruction => PromptText::Messages(alpaca(row)?),
            Self::Messages | Self::ShareGpt => {
                let (key, mut dialogue) = self.dialogue(row)?;
                while dialogue.last().is_some_and(|turn| turn.role == Role::Assistant) {
                    dialogue.pop();
                }
                if dialogue.last().is_none_or(|turn| turn.role != Role::User) {
                    return Err(format!("key `{key}` holds no turn of the user's"));
                }
                PromptText::Messages(dialogue)
            }
            Self::Preference | Self::PreferredDialogue => answer(row, "chosen")?.0,
            Self::Text => return Err(self.refused(row, "prompts")),
        };
        Ok(PromptRecord { prompt })
    }

    /// Responses that are to be ranked, and their tokens. Of what is ranked already, the ranks are left out.
    pub fn responses(self, row: &Map<String, Value>) -> Problem<(PromptText, Vec<String>, Option<ComparisonTokens>)> {
        if self == Self::Responses {
            self.check(row)?;
            return Ok((prompt(row, "prompt")?, texts(row, "responses")?, tokens(row)?));
        }
        let Comparison { prompt, responses, tokens, .. } = self.comparison(row)?;
        Ok((prompt, responses, tokens))
    }

    /// Text to learn as it is.
    pub fn text(self, row: &Map<String, Value>) -> Problem<String> {
        self.check(row)?;
        if self != Self::Text {
            return Err(self.refused(row, "text"));
        }
        text(row, "text")
    }

    /// A row of another kind than is wanted, perhaps by a misspelt key.
    fn refused(self, row: &Map<String, Value>, wanted: &str) -> String {
        let hint = meant_by(self.unread(row));
        format!("is of {}, expected {wanted}{hint}", self.name())
    }

    fn dialogue(self, row: &Map<String, Value>) -> Problem<(&'static str, Vec<Message>)> {
        let key = if self == Self::ShareGpt { "conversations" } else { "messages" };
        let mut dialogue = messages(key, &row[key])?;
        if is_given(row, "system") && self == Self::ShareGpt {
            let content = text(row, "system")?;
            if !content.is_empty() {
                dialogue.insert(0, Message { role: Role::System, content });
            }
        }
        Ok((key, dialogue))
    }
}

fn tokens(row: &Map<String, Value>) -> Problem<Option<ComparisonTokens>> {
    match is_given(row, "tokens") {
        false => Ok(None),
        true => parsed(row, "tokens", "token ids of prompt and responses").map(Some),
    }
}

/// Every key that some schema requires.
fn known_keys() -> Vec<&'static str> {
    SCHEMAS.iter().flat_map(|columns| columns.required.concat()).collect()
}

/// The first of these keys that is like a known one, with what was perhaps meant by it.
fn meant_by<'a>(keys: impl IntoIterator<Item = &'a str>) -> String {
    let known = known_keys();
    let meant = keys.into_iter().find_map(|key| Some((key, nearest(key, known.iter().copied())?)));
    meant.map_or_else(String::new, |(key, name)| format!("; did you mean `{name}` by `{key}`?"))
}

#[cfg(test)]
mod tests;
