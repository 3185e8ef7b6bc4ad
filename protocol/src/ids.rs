//! What names things: prompts, tickets, policy versions, roles.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many updates the policy has seen. 0 is the SFT policy; each update raises it by one, also an update
/// whose step was skipped because it was not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyVersion(pub u64);

impl PolicyVersion {
    /// The version after one more update.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// How many updates `sampled` lies behind this version (0 if it is newer).
    pub fn staleness_of(self, sampled: PolicyVersion) -> u64 {
        self.0.saturating_sub(sampled.0)
    }
}

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// A prompt's place in the data set of prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PromptId(pub u64);

/// The number of a ticket in order of issue, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TicketId(pub u64);

/// A role in the flow of PPO. Each is played by one actor, some by several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Issues prompts with tickets.
    PromptSource,
    /// Samples responses with the newest policy.
    Generator,
    /// Adds the frozen SFT model's log-probabilities.
    ReferenceScorer,
    /// Adds the score.
    RewardScorer,
    /// Gates by staleness; makes batches with advantages and returns.
    ExperienceBuffer,
    /// Cuts batches of pretraining text.
    PretrainMixer,
    /// Trains policy and value model, publishes snapshots.
    Learner,
    /// Writes metrics and samples to the run directory.
    Recorder,
}

impl Role {
    /// Every role, in the order of the flow.
    pub const ALL: [Role; 8] = [
        Role::PromptSource,
        Role::Generator,
        Role::ReferenceScorer,
        Role::RewardScorer,
        Role::ExperienceBuffer,
        Role::PretrainMixer,
        Role::Learner,
        Role::Recorder,
    ];

    /// The role's name as metrics and messages spell it.
    pub fn name(self) -> &'static str {
        match self {
            Role::PromptSource => "prompt_source",
            Role::Generator => "generator",
            Role::ReferenceScorer => "reference_scorer",
            Role::RewardScorer => "reward_scorer",
            Role::ExperienceBuffer => "experience_buffer",
            Role::PretrainMixer => "pretrain_mixer",
            Role::Learner => "learner",
            Role::Recorder => "recorder",
        }
    }
}

/// One of the actors that play a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoleId {
    /// The role played.
    pub role: Role,
    /// Which of the role's actors, from 0.
    pub idx: usize,
}

impl RoleId {
    /// The only, or the first, actor of a role.
    pub fn only(role: Role) -> Self {
        Self { role, idx: 0 }
    }
}

impl fmt::Display for RoleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role.name(), self.idx)
    }
}
