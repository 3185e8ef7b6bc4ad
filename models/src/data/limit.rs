//! The longest sequences that are taken, and what becomes of longer ones.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::train::LmExample;

/// What becomes of a record that has too many tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// It ends the stage before anything is trained, with its line.
    #[default]
    Refuse,
    /// It is left out, and counted.
    Drop,
    /// Of a demonstration: its end is left out, with its end token, so that nobody learns to stop there. One of which
    /// nothing to learn is left is left out whole.
    Truncate,
}

/// The longest sequences that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthLimit {
    max_tokens: usize,
    context_len: usize,
    /// Tokens of the context that are kept free.
    n_response: usize,
    too_long: TooLong,
}

/// A record after its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitted<T> {
    /// As it was.
    Whole(T),
    /// Without its end.
    Truncated(T),
    /// Left out.
    Dropped,
}

/// How many records a limit has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LengthCounts {
    /// All records.
    pub n_records: usize,
    /// Without their ends.
    pub n_truncated: usize,
    /// Left out.
    pub n_dropped: usize,
}

impl LengthLimit {
    /// At most `max_tokens`, or where that is 0 the whole context.
    ///
    /// # Errors
    /// The model's context holds fewer.
    pub fn new(max_tokens: usize, context_len: usize, too_long: TooLong) -> Result<Self> {
        if max_tokens > context_len {
            return Err(Error::invalid(format!(
                "`max_tokens` is {max_tokens}, but the model's context holds {context_len}"
            )));
        }
        Self::leaving_room(max_tokens, context_len, 0, too_long)
    }

    /// The same for prompts, after each of which a response of up to `n_response` tokens must fit into the context.
    ///
    /// # Errors
    /// The model's context holds fewer.
    pub fn leaving_room(max_tokens: usize, context_len: usize, n_response: usize, too_long: TooLong) -> Result<Self> {
        let room = context_len.saturating_sub(n_response);
        if max_tokens > room || room == 0 {
            return Err(Error::invalid(format!(
                "prompts may have {max_tokens} tokens (0: as many as there is room for) and responses {n_response}, but \
                 the model's context holds {context_len}"
            )));
        }
        Ok(Self { max_tokens: if max_tokens == 0 { room } else { max_tokens }, context_len, n_response, too_long })
    }

    /// The whole context, and an error for what is longer.
    pub fn context(context_len: usize) -> Self {
        Self { max_tokens: context_len, context_len, n_response: 0, too_long: TooLong::Refuse }
    }

    /// The most tokens of a sequence.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// What becomes of a record whose longest sequence has so many tokens, where it can't be cut: whether it is taken.
    /// `what` tells of its tokens.
    ///
    /// # Errors
    /// It is too long, and that is refused.
    pub fn takes(&self, n_tokens: usize, what: impl FnOnce() -> String) -> Result<bool> {
        if n_tokens <= self.max_tokens {
            return Ok(true);
        }
        match self.too_long {
            TooLong::Drop => Ok(false),
            TooLong::Refuse | TooLong::Truncate => Err(self.refusal(what())),
        }
    }

    /// A demonstration as it is taken.
    ///
    /// # Errors
    /// It is too long, and that is refused.
    pub fn fit(&self, mut example: LmExample) -> Result<Fitted<LmExample>> {
        let n_tokens = example.tokens.len();
        if n_tokens <= self.max_tokens {
            return Ok(Fitted::Whole(example));
        }
        match self.too_long {
            TooLong::Refuse => {
                let what = match example.learnt.as_slice() {
                    [one] => format!(
                        "the prompt has {} tokens and the response {}: {n_tokens} in all",
                        one.start,
                        n_tokens - one.start
                    ),
                    _ => format!("the dialogue has {n_tokens} tokens"),
                };
                Err(self.refusal(what))
            }
            TooLong::Drop => Ok(Fitted::Dropped),
            TooLong::Truncate => {
                example.tokens.truncate(self.max_tokens);
                example.learnt.retain_mut(|span| {
                    span.end = span.end.min(self.max_tokens);
                    span.start < span.end
                });
                Ok(if example.learnt.is_empty() { Fitted::Dropped } else { Fitted::Truncated(example) })
            }
        }
    }

    fn refusal(&self, what: String) -> Error {
        let Self { max_tokens, context_len, n_response, .. } = *self;
        let limit = match (max_tokens + n_response < context_len, n_response) {
            (true, 0) => format!("`max_tokens` is {max_tokens}"),
            (true, _) => format!("`max_prompt_tokens` is {max_tokens}"),
            (false, 0) => format!("the model's context holds {context_len}"),
            (false, _) => format!(
                "the model's context holds {context_len}, which leaves no room for the {n_response} tokens of a response"
            ),
        };
        Error::invalid(format!("{what}, and {limit} (`too_long` says what becomes of such records)"))
    }
}

impl LengthCounts {
    /// Counts a record, and gives back what is left of it.
    pub fn count<T>(&mut self, fitted: Fitted<T>) -> Option<T> {
        self.n_records += 1;
        match fitted {
            Fitted::Whole(record) => Some(record),
            Fitted::Truncated(record) => {
                self.n_truncated += 1;
                Some(record)
            }
            Fitted::Dropped => {
                self.n_dropped += 1;
                None
            }
        }
    }

    /// What there is to tell of these records; `None` where all were taken whole.
    pub fn tell(&self, what: &str, limit: LengthLimit) -> Option<String> {
        let Self { n_records, n_truncated, n_dropped } = *self;
        if n_truncated + n_dropped == 0 {
            return None;
        }
        let max_tokens = limit.max_tokens;
        Some(format!(
            "of {n_records} {what} {} have more than {max_tokens} tokens: {n_truncated} were cut and {n_dropped} left out",
            n_truncated + n_dropped
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(max_tokens: usize, too_long: TooLong) -> LengthLimit {
        LengthLimit::new(max_tokens, 10, too_long).unwrap()
    }

    #[test]
    fn a_demonstration_that_is_too_long_is_refused_dropped_or_cut() {
        let example = LmExample { tokens: (0..8).collect(), learnt: vec![2..4, 5..8] };
        for too_long in [TooLong::Refuse, TooLong::Drop, TooLong::Truncate] {
            assert_eq!(limit(8, too_long).fit(example.clone()).unwrap(), Fitted::Whole(example.clone()));
        }
        assert_eq!(limit(7, TooLong::Drop).fit(example.clone()).unwrap(), Fitted::Dropped);
        let cut = |max_tokens| limit(max_tokens, TooLong::Truncate).fit(example.clone()).unwrap();
        assert_eq!(cut(7), Fitted::Truncated(LmExample { tokens: (0..7).collect(), learnt: vec![2..4, 5..7] }));
        assert_eq!(cut(5), Fitted::Truncated(LmExample { tokens: (0..5).collect(), learnt: vec![2..4] }));
        assert_eq!(cut(2), Fitted::Dropped);
        let message = limit(7, TooLong::Refuse).fit(example).unwrap_err().to_string();
        assert!(message.contains("the dialogue has 8 tokens, and `max_tokens` is 7"), "{message}");
        let message = LengthLimit::new(11, 10, TooLong::Drop).unwrap_err().to_string();
        assert_eq!(message, "`max_tokens` is 11, but the model's context holds 10");
    }

    #[test]
    fn what_was_changed_is_counted_and_told() {
        let mut counts = LengthCounts::default();
        assert_eq!(counts.count(Fitted::Whole(1)), Some(1));
        assert_eq!(counts.tell("prompts", limit(5, TooLong::Drop)), None);
        assert_eq!((counts.count(Fitted::Truncated(2)), counts.count::<u8>(Fitted::Dropped)), (Some(2), None));
        let told = counts.tell("prompts", limit(5, TooLong::Drop)).unwrap();
        assert_eq!(told, "of 3 prompts 2 have more than 5 tokens: 1 were cut and 1 left out");
    }
}
