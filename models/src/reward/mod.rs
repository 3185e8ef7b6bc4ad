//! Built-in reward functions: rules that need no model.

mod exact_match;
mod length;
mod lexicon;
mod regex;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use collimate_protocol::roles::RewardFunction;

pub use self::exact_match::ExactMatch;
pub use self::length::LengthReward;
pub use self::lexicon::Lexicon;
pub use self::regex::RegexReward;
use crate::error::Result;

/// A built-in reward function, by `kind`. The end token is no part of the text that any of them sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum BuiltinReward {
    /// Sentiment by a word list: the sum of the words' scores over the square root of the number of words.
    Lexicon {
        /// The list: a word, a tab and its score on each line.
        path: PathBuf,
    },
    /// 1 where a regular expression is found in the response, else 0.
    Regex {
        /// The expression, in the syntax of Rust's `regex` crate.
        pattern: String,
    },
    /// 0 for a response of the target length, and less the further it is from that: minus the distance as a share of
    /// the target.
    Length {
        /// The target in tokens, the end token not counted.
        target_tokens: usize,
    },
    /// 1 where the response is an answer listed for its prompt, white space around it ignored, else 0.
    ExactMatch {
        /// The answers, a demonstrations file: a prompt may have several.
        answers: PathBuf,
    },
}

impl BuiltinReward {
    /// Makes a relative path relative to `base`.
    pub fn resolve_paths(&mut self, base: &Path) {
        if let Self::Lexicon { path } | Self::ExactMatch { answers: path } = self {
            *path = base.join(&*path);
        }
    }

    /// The function itself.
    ///
    /// # Errors
    /// Its file can't be read or holds something else, or its setting makes no sense.
    pub fn build(&self) -> Result<Box<dyn RewardFunction>> {
        Ok(match self {
            Self::Lexicon { path } => Box::new(Lexicon::load(path)?),
            Self::Regex { pattern } => Box::new(RegexReward::new(pattern)?),
            Self::Length { target_tokens } => Box::new(LengthReward::new(*target_tokens)?),
            Self::ExactMatch { answers } => Box::new(ExactMatch::load(answers)?),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use collimate_protocol::FinishReason;
    use collimate_protocol::roles::RewardRequest;
    use serde_json::json;

    use super::*;

    /// A request with this text. It has a response token for each word, and an end token.
    pub(crate) fn request(prompt: &str, response: &str) -> RewardRequest {
        let n_words = response.split_whitespace().count() as u32;
        RewardRequest {
            prompt_tokens: vec![1],
            response_tokens: (1..=n_words).chain([0]).collect(),
            prompt: prompt.to_owned(),
            response: response.to_owned(),
            finish: FinishReason::End,
        }
    }

    fn parse(value: serde_json::Value) -> std::result::Result<BuiltinReward, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_function_is_chosen_by_its_kind_and_unknown_keys_are_refused() {
        let regex = parse(json!({"kind": "regex", "pattern": "^ya?y$"})).unwrap();
        assert_eq!(regex, BuiltinReward::Regex { pattern: "^ya?y$".into() });
        let mut function = regex.build().unwrap();
        assert_eq!(function.scores(&[request("", "yay"), request("", "nay")]).unwrap(), [1.0, 0.0]);
        assert!(parse(json!({"kind": "regex", "patern": "a"})).unwrap_err().contains("unknown field `patern`"));
        assert!(parse(json!({"kind": "regexp", "pattern": "a"})).unwrap_err().contains("unknown variant `regexp`"));
    }

    #[test]
    fn relative_paths_are_those_of_the_file_that_names_them() {
        let mut lexicon = parse(json!({"kind": "lexicon", "path": "data/words.tsv"})).unwrap();
        lexicon.resolve_paths(Path::new("/recipes"));
        assert_eq!(lexicon, BuiltinReward::Lexicon { path: "/recipes/data/words.tsv".into() });
        lexicon.resolve_paths(Path::new("/elsewhere"));
        assert_eq!(lexicon, BuiltinReward::Lexicon { path: "/recipes/data/words.tsv".into() });
    }
}
