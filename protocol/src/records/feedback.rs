//! What people are asked, and what they answer.

use serde::{Deserialize, Serialize};

use super::data::{ComparisonTokens, PromptText};

/// What a labeler is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Order 2 to 9 responses.
    Rank,
    /// Say which of two responses is better.
    Compare,
    /// Write a response: a demonstration.
    Write,
}

impl TaskKind {
    /// As files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rank => "rank",
            Self::Compare => "compare",
            Self::Write => "write",
        }
    }
}

/// Where responses came from. Labelers never see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Origin {
    /// The run directory, or what else names the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The model that sampled them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<u64>,
    /// The seed of the sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The reward model in use at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_model: Option<String>,
    /// For each response the score that it gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<Vec<f32>>,
    /// For each response the version that sampled it, where not all have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<Vec<u64>>,
}

/// How it came about that a task is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// It was drawn at random: what is measured on such tasks holds for all.
    Random,
    /// A reward model has chosen it.
    Acquired,
    /// A person has chosen it among a run's rollouts.
    Picked,
}

impl Arm {
    /// As files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Acquired => "acquired",
            Self::Picked => "picked",
        }
    }
}

/// One thing to ask labelers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelTask {
    /// What to do.
    pub kind: TaskKind,
    /// What was asked.
    pub prompt: PromptText,
    /// The responses; none where one is to be written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub responses: Vec<String>,
    /// The very tokens that were sampled, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<ComparisonTokens>,
    /// Where the responses came from.
    #[serde(default)]
    pub origin: Origin,
}

/// Lowest and highest overall score of a response, as InstructGPT's labelers gave (Ouyang et al. 2022, table 3).
pub const SCORES: std::ops::RangeInclusive<u8> = 1..=7;

/// A labeler's judgement of K responses, in the task's own order of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranking {
    /// For each response its rank; 1 is best, equal ranks are a tie, the next rank counts those above.
    pub ranks: Vec<u32>,
    /// Whether none of them is acceptable.
    #[serde(default)]
    pub all_bad: bool,
    /// For each response the names of what is the matter with it.
    #[serde(default)]
    pub flags: Vec<Vec<String>>,
    /// For each response its overall quality, 1 to 7, where the labeler gave one.
    #[serde(default)]
    pub scores: Vec<Option<u8>>,
    /// In the labeler's words.
    #[serde(default)]
    pub notes: String,
}

/// A response that a labeler wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// The response.
    pub response: String,
    /// In the labeler's words.
    #[serde(default)]
    pub notes: String,
}

/// What a labeler answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// To `rank` and `compare`.
    Ranking(Ranking),
    /// To `write`.
    Written(Written),
}

/// How an answer came about: what a line of an export holds beside the answer itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Who answered.
    pub labeler: String,
    /// When: RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// 1, and one more each time the labeler changed the answer.
    pub revision: u32,
    /// How long it took, in seconds, from the task's appearance on.
    pub seconds: f64,
    /// The order in which the responses were shown: `shown[place]` is the index of a response.
    pub shown: Vec<usize>,
    /// Whether the same labeler had answered the same task before, without being told.
    pub is_repeat: bool,
    /// The ranks that are right, where they are known and the task is there to try labelers with.
    #[serde(default)]
    pub known_ranks: Option<Vec<u32>>,
    /// Where the responses came from.
    pub origin: Origin,
    /// The task: a hash of its content.
    pub task: String,
    /// How it came about that the task was asked; absent where tasks were asked in their own order.
    #[serde(default)]
    pub arm: Option<Arm>,
    /// Whether it is no labeler's answer, but the ranking that the admin settled the task by.
    #[serde(default)]
    pub settled: bool,
}

/// A line of an export of rankings. It reads as a [`Comparison`](super::Comparison) wherever one is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabeledComparison {
    /// What was asked.
    pub prompt: PromptText,
    /// The responses, in the task's own order.
    pub responses: Vec<String>,
    /// For each its rank.
    pub ranks: Vec<u32>,
    /// The tokens that were sampled, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<ComparisonTokens>,
    /// `rank` or `compare`.
    pub kind: TaskKind,
    /// Whether none of them is acceptable.
    pub all_bad: bool,
    /// For each response what is the matter with it.
    pub flags: Vec<Vec<String>>,
    /// For each response its overall quality, 1 to 7.
    pub scores: Vec<Option<u8>>,
    /// In the labeler's words.
    pub notes: String,
    /// How it came about.
    #[serde(flatten)]
    pub provenance: Provenance,
}

/// A line of an export of what labelers wrote. It reads as a [`Demonstration`](super::Demonstration) wherever one is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabeledDemonstration {
    /// What was asked.
    pub prompt: PromptText,
    /// What the labeler answered.
    pub response: String,
    /// In the labeler's words.
    pub notes: String,
    /// How it came about.
    #[serde(flatten)]
    pub provenance: Provenance,
}

/// A line of an export of pairs: one for each pair of a ranking that is no tie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabeledPreference {
    /// What was asked.
    pub prompt: PromptText,
    /// The better response.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
    /// How it came about.
    #[serde(flatten)]
    pub provenance: Provenance,
}

/// What became of a label in the training of a reward model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsedFor {
    /// The model learnt from it.
    Training,
    /// Its accuracy was measured on it.
    Heldout,
    /// It was too long.
    Nothing,
}

/// The name of a label: the very revision of a labeler's answer to a task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LabelName {
    /// The task: a hash of its content.
    pub task: String,
    /// Who answered.
    pub labeler: String,
    /// Which of that labeler's answers to it.
    pub revision: u32,
}

/// A label that a reward model read, by its [`LabelName`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelUse {
    /// The task: a hash of its content.
    pub task: String,
    /// Who answered.
    pub labeler: String,
    /// Which of that labeler's answers to it.
    pub revision: u32,
    /// What became of it.
    pub used: UsedFor,
    /// For each response, in the task's own order, the score by the reward model that came of it; none where the label
    /// was too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Vec<f32>>,
}
