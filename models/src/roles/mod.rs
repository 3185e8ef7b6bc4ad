//! The models behind the actors: each implements a trait of [`collimate_protocol::roles`].

mod experience;
mod label_features;
mod learner;
mod reference;
mod reward_model;
mod sampler;
mod update_stats;

#[cfg(test)]
mod tests;

pub use experience::PpoExperienceMaker;
pub use label_features::TaskReader;
pub use learner::{PpoLearner, PpoStart};
pub use reference::FrozenReference;
pub use reward_model::{OwnTokens, RetokenizingScorer, RewardModelScorer};
pub use sampler::PolicySampler;
