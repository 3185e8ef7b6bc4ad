//! Prompts that PPO samples from.

use collimate_protocol::records::PromptRecord;
use serde_json::{Map, Value};

use super::dialogue::Problem;
use super::framing::prompt_tokens;
use super::limit::{Fitted, LengthLimit};
use super::records::{Record, Records};
use super::schema::Schema;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

impl Record for PromptRecord {
    const NAME: &'static str = "prompt";

    fn read(schema: Schema, row: &Map<String, Value>) -> Problem<Self> {
        schema.prompt(row)
    }
}

/// The prompts' tokens.
///
/// # Errors
/// A prompt that has no tokens, or that the limit refuses, which is to leave room for a response; the line is named.
pub fn tokenize_prompts(
    prompts: &Records<PromptRecord>,
    tokenizer: &Tokenizer,
    limit: LengthLimit,
) -> Result<Vec<Fitted<Vec<u32>>>> {
    prompts.try_map(|record| {
        let tokens = prompt_tokens(tokenizer, &record.prompt)?;
        let what = || format!("the prompt has {} tokens", tokens.len());
        Ok(if limit.takes(tokens.len(), what)? { Fitted::Whole(tokens) } else { Fitted::Dropped })
    })
}

#[cfg(test)]
mod tests {
    use super::super::framing::tests::bytes;
    use super::super::limit::TooLong;
    use super::super::records::tests::file;
    use super::*;

    #[test]
    fn a_prompt_that_leaves_no_room_for_its_response_is_named_by_line() {
        let file = file("{\"prompt\": \"ab\"}\n\n{\"prompt\": \"abcde\"}\n");
        let prompts = Records::read(file.path()).unwrap();
        let limit = |n_response, too_long| LengthLimit::leaving_room(0, 8, n_response, too_long).unwrap();
        let lengths = |limit| -> Vec<Option<usize>> {
            let fitted = tokenize_prompts(&prompts, &bytes(), limit).unwrap().into_iter();
            fitted.map(|prompt| if let Fitted::Whole(tokens) = prompt { Some(tokens.len()) } else { None }).collect()
        };
        assert_eq!(lengths(limit(3, TooLong::Refuse)), [Some(2), Some(5)]);
        assert_eq!(lengths(limit(4, TooLong::Drop)), [Some(2), None]);
        let message = tokenize_prompts(&prompts, &bytes(), limit(4, TooLong::Refuse)).unwrap_err().to_string();
        let expected = format!(
            "{}:3: the prompt has 5 tokens, and the model's context holds 8, which leaves no room for the 4 tokens of a \
             response (`too_long` says what becomes of such records)",
            file.path().display()
        );
        assert_eq!(message, expected);
    }
}
