//! Records of the files that the stages read.

use serde::{Deserialize, Serialize};

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What the assistant is told before the dialogue.
    System,
    /// Who asks.
    User,
    /// Who answers: the model.
    Assistant,
}

/// One turn of a dialogue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Whose it is.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// What a response answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PromptText {
    /// Text that the response goes on from.
    Text(String),
    /// A dialogue whose next turn is the assistant's; the model's chat template makes text of it.
    Messages(Vec<Message>),
}

impl From<&str> for PromptText {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// What SFT trains on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demonstration {
    /// One response is learnt.
    Response {
        /// What was asked.
        prompt: PromptText,
        /// What a person answered.
        response: String,
    },
    /// Every turn of the assistant's is learnt.
    Dialogue {
        /// The turns; the last is the assistant's.
        messages: Vec<Message>,
    },
}

/// A line of a comparisons file: K responses to one prompt, ranked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// What was asked.
    pub prompt: PromptText,
    /// 2 to 9 responses.
    pub responses: Vec<String>,
    /// For each response its rank; 1 is best, equal ranks are a tie.
    pub ranks: Vec<u32>,
    /// The very tokens that were sampled, where the responses come from a model with the same tokenizer: text that
    /// is encoded again may give others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<ComparisonTokens>,
}

/// The token ids of a comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonTokens {
    /// The prompt's.
    pub prompt: Vec<u32>,
    /// Each response's, the end token included where there is one.
    pub responses: Vec<Vec<u32>>,
}

/// A line of a prompts file: what PPO samples from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptRecord {
    /// What is asked.
    pub prompt: PromptText,
}
