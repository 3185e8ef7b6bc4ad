//! Prompts that PPO samples from.

use collimate_protocol::records::PromptRecord;
use serde_json::{Map, Value};

use super::dialogue::Problem;
use super::framing::prompt_tokens;
use super::records::{Record, Records};
use super::schema::Schema;
use crate::error::{Error, Result};
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
/// A prompt that leaves no room for `n_response` tokens in a context of `context_len`, or that has no tokens; the line
/// is named.
pub fn tokenize_prompts(
    prompts: &Records<PromptRecord>,
    tokenizer: &Tokenizer,
    context_len: usize,
    n_response: usize,
) -> Result<Vec<Vec<u32>>> {
    prompts.try_map(|record| {
        let tokens = prompt_tokens(tokenizer, &record.prompt)?;
        if tokens.len() + n_response > context_len {
            return Err(Error::invalid(format!(
                "the prompt has {} tokens; the model's context holds {context_len}, which leaves no room for the \
                 {n_response} tokens of a response",
                tokens.len()
            )));
        }
        Ok(tokens)
    })
}

#[cfg(test)]
mod tests {
    use super::super::framing::tests::bytes;
    use super::super::records::tests::file;
    use super::*;

    #[test]
    fn a_prompt_that_leaves_no_room_for_its_response_is_named_by_line() {
        let file = file("{\"prompt\": \"ab\"}\n\n{\"prompt\": \"abcde\"}\n");
        let prompts = Records::read(file.path()).unwrap();
        let tokens = tokenize_prompts(&prompts, &bytes(), 8, 3).unwrap();
        assert_eq!(tokens.iter().map(Vec::len).collect::<Vec<_>>(), [2, 5]);
        let message = tokenize_prompts(&prompts, &bytes(), 8, 4).unwrap_err().to_string();
        let expected = format!(
            "{}:3: the prompt has 5 tokens; the model's context holds 8, which leaves no room for the 4 tokens of a \
             response",
            file.path().display()
        );
        assert_eq!(message, expected);
    }
}
