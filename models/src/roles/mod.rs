//! The models behind the actors: each implements a trait of [`collimate_protocol::roles`].

mod reference;
mod reward_model;
mod sampler;

pub use reference::FrozenReference;
pub use reward_model::RewardModelScorer;
pub use sampler::PolicySampler;
