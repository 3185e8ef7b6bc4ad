//! The formats on disk: data files that people bring, and what a run directory holds.

mod checkpoint;
mod data;
mod feedback;
mod journal;
mod rollout;
mod summary;
mod update;
mod work;

pub use checkpoint::{LedgerState, RewardModelSince};
pub use data::{Comparison, ComparisonTokens, Demonstration, Message, PromptRecord, PromptText, Role};
pub use feedback::{
    Answer, Arm, LabelName, LabelTask, LabelUse, LabeledComparison, LabeledDemonstration, LabeledPreference, Origin,
    Provenance, Ranking, SCORES, TaskKind, UsedFor, Written,
};
pub use journal::{JournaledRollout, JournaledUpdate, VersionRun};
pub use rollout::{EvaluatedPolicy, EvaluationRecord, RolloutRecord, TokenDetail};
pub use summary::{
    CollectSummary, Estimate, PolicyEvaluation, PpoSummary, PretrainSummary, RewardSummary, SampleRecord, SftSummary,
    Summary,
};
pub use update::{BatchMetrics, FlowMetrics, QueueDepth, Spread, TrainMetrics, UpdateMetrics};
pub use work::{WorkLine, WorkSums};
