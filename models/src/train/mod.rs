//! Training, step by step: what a stage does with one batch. Which batch comes next, how long it goes on, and what is
//! written where is for the caller to say.

mod config;
mod lm;
mod microbatch;
mod passes;
mod ppo_config;
mod reward;
mod setup;
pub(crate) mod state;
#[cfg(test)]
mod tests;

pub use config::OptimConfig;
pub use lm::{HeldoutNll, LmExample, LmTrainer, heldout_nll};
pub use microbatch::{NextTokens, cut_by_tokens, shuffled_minibatches};
#[cfg(test)]
pub(crate) use passes::PassGradients;
pub(crate) use passes::train_passes;
pub use ppo_config::{KlControl, OffPolicy, PpoConfig, Preset};
pub use reward::{
    PairAccuracy, RankedResponses, RewardTrainer, SequenceFeatures, pair_accuracy, score_sequences, sequence_features,
};
pub(crate) use setup::{SkipLimit, Training, check_length, detached, first_non_finite};
pub use setup::{StepMetrics, parameters_for};
pub(crate) use state::Written;
