//! Prompts that PPO samples from.

use std::path::Path;

use collimate_protocol::records::PromptRecord;

use super::framing::prompt_tokens;
use super::lines::{Lines, Record, read_lines};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

impl Record for PromptRecord {
    const NAME: &'static str = "prompt";
    const KEYS: &'static [&'static str] = &["prompt"];

    fn problem(&self) -> Option<String> {
        None
    }
}

/// Reads a prompts file.
///
/// # Errors
/// Names the file, the line, and what is wrong.
pub fn read_prompts(path: &Path) -> Result<Lines<PromptRecord>> {
    read_lines(path)
}

/// The prompts' tokens.
///
/// # Errors
/// A prompt that leaves no room for `n_response` tokens in a context of `context_len`, or that has no tokens; the line
/// is named.
pub fn tokenize_prompts(
    prompts: &Lines<PromptRecord>,
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
    use super::super::lines::tests::file;
    use super::*;

    #[test]
    fn a_prompt_that_leaves_no_room_for_its_response_is_named_by_line() {
        let file = file("{\"prompt\": \"ab\"}\n\n{\"prompt\": \"abcde\"}\n");
        let prompts = read_prompts(file.path()).unwrap();
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
