//! Demonstrations that SFT trains on.

use std::path::Path;

use collimate_protocol::records::Demonstration;

use super::framing::{check_fits, prompt_tokens, response_tokens};
use super::lines::{Lines, Record, read_lines};
use crate::error::Result;
use crate::tokenizer::Tokenizer;
use crate::train::LmExample;

impl Record for Demonstration {
    const NAME: &'static str = "demonstration";
    const KEYS: &'static [&'static str] = &["prompt", "response"];

    fn problem(&self) -> Option<String> {
        // Sampled responses may be empty; to demonstrate that is to teach it.
        self.response.is_empty().then(|| "the response is empty".to_owned())
    }
}

/// Reads a demonstrations file.
///
/// # Errors
/// Names the file, the line, and what is wrong.
pub fn read_demonstrations(path: &Path) -> Result<Lines<Demonstration>> {
    read_lines(path)
}

/// The demonstrations' tokens: the prompt, the response, one end token. All of the response is trained on, the end
/// token included.
///
/// # Errors
/// One that has no prompt tokens, or does not fit into `context_len` tokens; the line is named.
pub fn tokenize_demonstrations(
    demonstrations: &Lines<Demonstration>,
    tokenizer: &Tokenizer,
    context_len: usize,
) -> Result<Vec<LmExample>> {
    demonstrations.try_map(|record| {
        let mut tokens = prompt_tokens(tokenizer, &record.prompt)?;
        let n_prompt = tokens.len();
        tokens.extend(response_tokens(tokenizer, &record.response)?);
        check_fits(n_prompt, tokens.len() - n_prompt, context_len)?;
        Ok(LmExample { tokens, n_prompt })
    })
}

#[cfg(test)]
mod tests {
    use super::super::framing::tests::bytes;
    use super::super::lines::tests::file;
    use super::*;

    #[test]
    fn the_end_token_is_trained_on() {
        let file = file(r#"{"prompt": "ab", "response": "c"}"#);
        let tokenizer = bytes();
        let examples = tokenize_demonstrations(&read_demonstrations(file.path()).unwrap(), &tokenizer, 4).unwrap();
        let abc = tokenizer.encode("abc").unwrap();
        assert_eq!(examples.len(), 1);
        assert_eq!(examples[0].n_prompt, 2);
        assert_eq!(examples[0].tokens, [abc[0], abc[1], abc[2], tokenizer.eos()]);
    }

    #[test]
    fn what_can_not_be_learnt_is_named_by_line() {
        let good = r#"{"prompt": "ab", "response": "c"}"#;
        let long = file(format!("{good}\n{}", r#"{"prompt": "ab", "response": "cd"}"#));
        let demonstrations = read_demonstrations(long.path()).unwrap();
        let message = tokenize_demonstrations(&demonstrations, &bytes(), 4).unwrap_err().to_string();
        assert!(message.contains(":2: the prompt has 2 tokens and the response 3: 5 in all"), "{message}");

        let empty = file(format!("{good}\n{}", r#"{"prompt": "ab", "response": ""}"#));
        let message = read_demonstrations(empty.path()).unwrap_err().to_string();
        assert!(message.ends_with(":2: the response is empty"), "{message}");
    }
}
