//! Demonstrations that SFT trains on.

use std::path::Path;

use collimate_protocol::records::Demonstration;
use serde_json::{Map, Value};

use super::dialogue::Problem;
use super::framing::{dialogue_examples, prompt_tokens, response_tokens};
use super::limit::{Fitted, LengthLimit};
use super::records::{Record, stream};
use super::schema::Schema;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::train::LmExample;

impl Record for Demonstration {
    const NAME: &'static str = "demonstration";

    fn read(schema: Schema, row: &Map<String, Value>) -> Problem<Self> {
        schema.demonstration(row)
    }
}

/// The examples of a file one by one, as the limit takes them, with the index of the demonstration that each is of.
/// Responses are trained on, each with its end token, and nothing else. A dialogue makes one example or several: see
/// [`dialogue_examples`].
///
/// # Errors
/// One that has no prompt tokens, or that the limit refuses; the line is named.
pub fn stream_examples(
    path: &Path,
    tokenizer: &Tokenizer,
    limit: LengthLimit,
) -> Result<impl Iterator<Item = Result<(usize, Fitted<LmExample>)>> + use<>> {
    let (path, tokenizer) = (path.to_owned(), tokenizer.clone());
    let examples = stream::<Demonstration>(&path)?.enumerate().map(move |(idx, record)| {
        let (line, record) = record?;
        let located = |error: Error| Error::bad_line(&path, line, error.to_string());
        let examples = tokenize_demonstration(&record, &tokenizer).map_err(located)?;
        let fitted = examples.into_iter().map(|example| Ok((idx, limit.fit(example).map_err(located)?)));
        fitted.collect::<Result<Vec<_>>>()
    });
    Ok(examples.flat_map(|examples| match examples {
        Ok(examples) => examples.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }))
}

/// What is learnt of one demonstration, however long.
pub fn tokenize_demonstration(record: &Demonstration, tokenizer: &Tokenizer) -> Result<Vec<LmExample>> {
    match record {
        Demonstration::Response { prompt, response } => {
            let mut tokens = prompt_tokens(tokenizer, prompt)?;
            let n_prompt = tokens.len();
            tokens.extend(response_tokens(tokenizer, prompt, response)?);
            Ok(vec![LmExample::response(tokens, n_prompt)])
        }
        Demonstration::Dialogue { messages } => dialogue_examples(tokenizer, messages),
    }
}

#[cfg(test)]
mod tests {
    use super::super::framing::tests::bytes;
    use super::super::records::Records;
    use super::super::records::tests::file;
    use super::*;

    /// The examples of whole demonstrations.
    fn tokenize_demonstrations(
        demonstrations: &Records<Demonstration>,
        tokenizer: &Tokenizer,
        context_len: usize,
    ) -> Result<Vec<LmExample>> {
        let examples = demonstrations.try_map(|record| {
            let examples = tokenize_demonstration(record, tokenizer)?;
            let limit = LengthLimit::context(context_len);
            examples.iter().try_for_each(|example| limit.fit(example.clone()).map(drop))?;
            Ok(examples)
        })?;
        Ok(examples.into_iter().flatten().collect())
    }

    #[test]
    fn the_end_token_is_trained_on() {
        let file = file(r#"{"prompt": "ab", "response": "c"}"#);
        let tokenizer = bytes();
        let examples = tokenize_demonstrations(&Records::read(file.path()).unwrap(), &tokenizer, 4).unwrap();
        let abc = tokenizer.encode("abc").unwrap();
        assert_eq!(examples, [LmExample::response(vec![abc[0], abc[1], abc[2], tokenizer.eos()], 2)]);
    }

    #[test]
    fn what_can_not_be_learnt_is_named_by_line() {
        let good = r#"{"prompt": "ab", "response": "c"}"#;
        let long = file(format!("{good}\n{}", r#"{"prompt": "ab", "response": "cd"}"#));
        let demonstrations = Records::read(long.path()).unwrap();
        let message = tokenize_demonstrations(&demonstrations, &bytes(), 4).unwrap_err().to_string();
        assert!(message.contains(":2: the prompt has 2 tokens and the response 3: 5 in all"), "{message}");

        let empty = file(format!("{good}\n{}", r#"{"prompt": "ab", "response": ""}"#));
        let message = Records::<Demonstration>::read(empty.path()).unwrap_err().to_string();
        assert!(message.ends_with(":2: the response is empty"), "{message}");
    }
}
