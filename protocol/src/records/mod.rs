//! The formats on disk: data files that people bring, and what a run directory holds.

mod data;
mod summary;
mod update;

pub use data::{Comparison, ComparisonTokens, Demonstration, PromptRecord};
pub use summary::{
    Estimate, PolicyEvaluation, PpoSummary, PretrainSummary, RewardSummary, SampleRecord, SftSummary, Summary,
};
pub use update::{BatchMetrics, FlowMetrics, QueueDepth, RolloutRecord, Spread, TrainMetrics, UpdateMetrics};
