//! The tokens that stand around text: one at the beginning where the model wants it, one at the end.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// A prompt's tokens, with exactly one beginning token where the tokenizer has one.
///
/// # Errors
/// A prompt without tokens can't be continued.
pub fn prompt_tokens(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    let mut tokens = tokenizer.encode(prompt)?;
    if let Some(bos) = tokenizer.bos()
        && tokens.first() != Some(&bos)
    {
        tokens.insert(0, bos);
    }
    if tokens.is_empty() {
        return Err(Error::invalid("the prompt is empty, and the tokenizer has no beginning token to continue from"));
    }
    Ok(tokens)
}

/// A whole response's tokens: exactly one end token behind it, which is trained on like any other.
pub fn response_tokens(tokenizer: &Tokenizer, response: &str) -> Result<Vec<u32>> {
    let mut tokens = tokenizer.encode(response)?;
    if tokens.last() != Some(&tokenizer.eos()) {
        tokens.push(tokenizer.eos());
    }
    Ok(tokens)
}

/// Refuses what the model can't hold.
pub(super) fn check_fits(n_prompt: usize, n_response: usize, context_len: usize) -> Result<()> {
    let n_tokens = n_prompt + n_response;
    if n_tokens <= context_len {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the prompt has {n_prompt} tokens and the response {n_response}: {n_tokens} in all, and the model's context \
         holds {context_len}"
    )))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Ids: `<|endoftext|>` 0, then the 256 bytes in the order of GPT-2's alphabet; no merges.
    pub(in super::super) fn bytes() -> Tokenizer {
        Tokenizer::train_byte_level_bpe(["a"], 257, &[]).unwrap()
    }

    #[test]
    fn exactly_one_end_token_follows_a_response() {
        let tokenizer = bytes();
        let hi = tokenizer.encode("hi").unwrap();
        assert_eq!(hi.len(), 2);
        assert_eq!(response_tokens(&tokenizer, "hi").unwrap(), [hi[0], hi[1], 0]);
        assert_eq!(response_tokens(&tokenizer, "hi<|endoftext|>").unwrap(), [hi[0], hi[1], 0]);
        assert_eq!(response_tokens(&tokenizer, "").unwrap(), [0]);
    }

    #[test]
    fn a_prompt_without_tokens_is_refused_where_there_is_no_beginning_token() {
        let message = prompt_tokens(&bytes(), "").unwrap_err().to_string();
        assert!(message.contains("the prompt is empty"), "{message}");
    }

    #[test]
    fn exactly_one_beginning_token_stands_before_a_prompt_where_the_tokenizer_wants_one() {
        let dir = tempfile::tempdir().unwrap();
        bytes().save(dir.path()).unwrap();
        let config = r#"{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": true}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let hi = tokenizer.encode("hi").unwrap();
        assert_eq!(prompt_tokens(&tokenizer, "hi").unwrap(), [0, hi[0], hi[1]]);
        assert_eq!(prompt_tokens(&tokenizer, "<|endoftext|>hi").unwrap(), [0, hi[0], hi[1]]);
        assert_eq!(prompt_tokens(&tokenizer, "").unwrap(), [0]);
    }
}
