//! Lines of the JSONL files that the stages read.

use serde::{Deserialize, Serialize};

/// A line of a demonstrations file: what SFT trains on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demonstration {
    /// What was asked.
    pub prompt: String,
    /// What a person answered.
    pub response: String,
}

/// A line of a comparisons file: K responses to one prompt, ranked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// What was asked.
    pub prompt: String,
    /// 2 to 9 responses.
    pub responses: Vec<String>,
    /// For each response its rank; 1 is best, equal ranks are a tie.
    pub ranks: Vec<u32>,
}

/// A line of a prompts file: what PPO samples from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptRecord {
    /// What is asked.
    pub prompt: String,
}
