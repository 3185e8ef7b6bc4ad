//! What an actor asks of what computes behind it. Real models implement these in `collimate-models`; tests and
//! simulations put fakes in their place; a service brings its own [`RewardFunction`].
//!
//! All of it is synchronous and runs on the actor's compute thread.

use std::path::Path;

use crate::change::{RewardModelId, SettingChange};
use crate::ids::PolicyVersion;
use crate::records::TrainMetrics;
use crate::rollout::{ExperienceBatch, FinishReason, PretrainBatch, Prompt, Rollout, ScoredRollout, Snapshot};

/// What a role's computation fails with. The message names what was wrong; the actor adds which role it was.
pub type RoleError = Box<dyn std::error::Error + Send + Sync>;

/// An error that starting the role again will not mend: the run ends with it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unmendable(pub RoleError);

/// Samples responses, several at a time, with continuous batching: a slot that becomes free takes the next prompt.
pub trait Sampler<W>: Send {
    /// Uses these weights from the next step on. Sequences in progress go on with them.
    fn load(&mut self, snapshot: &Snapshot<W>) -> Result<(), RoleError>;

    /// How many more prompts can be admitted now.
    fn n_free_slots(&self) -> usize;

    /// How many sequences are in progress.
    fn n_running(&self) -> usize;

    /// Starts a response. Only called while a slot is free and after the first `load`.
    fn admit(&mut self, prompt: Prompt) -> Result<(), RoleError>;

    /// Samples one token for every sequence in progress; returns those that ended with it.
    fn step(&mut self) -> Result<Vec<Rollout>, RoleError>;

    /// Lets go of the weights, since nothing is in progress and other ones are likely to come before the next prompt. The
    /// next call is `load`.
    fn rest(&mut self) {}
}

/// The frozen SFT model.
pub trait ReferencePolicy: Send {
    /// For each rollout, the log-probability of each of its response tokens at the sampling temperature.
    fn logprobs(&mut self, rollouts: &[Rollout]) -> Result<Vec<Vec<f32>>, RoleError>;
}

/// What a reward function sees of a rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardRequest {
    /// The prompt's tokens.
    pub prompt_tokens: Vec<u32>,
    /// The response's tokens, the end token included where there is one.
    pub response_tokens: Vec<u32>,
    /// The prompt as text.
    pub prompt: String,
    /// The response as text, without the end token.
    pub response: String,
    /// Why the response ended.
    pub finish: FinishReason,
}

impl RewardRequest {
    /// What a reward function sees of this rollout.
    pub fn of(rollout: &Rollout, detokenizer: &dyn Detokenizer) -> Result<Self, RoleError> {
        Ok(Self {
            prompt_tokens: rollout.prompt.tokens.clone(),
            response_tokens: rollout.response.clone(),
            prompt: detokenizer.decode(&rollout.prompt.tokens)?,
            response: detokenizer.decode(rollout.response_body())?,
            finish: rollout.finish,
        })
    }
}

/// Anything that gives a response a score: a reward model, a built-in function, a subprocess, or your own.
pub trait RewardFunction: Send {
    /// One finite score for each request, in order.
    fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError>;
}

/// Reward models by name: what may be put in the place of the one that a run began with.
pub trait RewardModels: Send + Sync {
    /// Reads the reward model of a directory, and says which it is. What can't give scores in this run is refused here,
    /// while the run goes on with the one that it has.
    fn identify(&self, dir: &Path) -> Result<RewardModelId, RoleError>;

    /// Reads it again, to give scores. Its weights must still be the same.
    fn load(&self, model: &RewardModelId) -> Result<Box<dyn RewardFunction>, RoleError>;
}

/// Turns token ids into text for reward functions and samples.
pub trait Detokenizer: Send + Sync {
    /// The text of these tokens, special tokens left out.
    fn decode(&self, tokens: &[u32]) -> Result<String, RoleError>;
}

/// Turns scored rollouts into a batch with advantages and returns.
pub trait ExperienceMaker<W>: Send {
    /// Makes the batch that the learner trains on at `version`, with values under the snapshot's value weights.
    /// The rollouts come in order of ticket id.
    fn assemble(
        &mut self,
        version: PolicyVersion,
        rollouts: Vec<ScoredRollout>,
        snapshot: &Snapshot<W>,
    ) -> Result<ExperienceBatch, RoleError>;

    /// Changes a setting for the batches to come. One that is none of its own it passes over.
    fn change(&mut self, change: SettingChange) -> Result<(), RoleError>;

    /// What it has learned from the batches so far (the KL controller, statistics), as bytes that
    /// [`restore`](Self::restore) reads.
    fn state(&self) -> Result<Vec<u8>, RoleError>;

    /// Goes on from a state. Nothing has changed if it is refused.
    fn restore(&mut self, state: &[u8]) -> Result<(), RoleError>;
}

/// Cuts batches of pretraining text.
pub trait PretrainSource: Send {
    /// The batch of this number, from 0: a function of the number, so that a run can go on anywhere.
    fn batch(&mut self, idx: u64) -> Result<PretrainBatch, RoleError>;
}

/// Trains policy and value model.
pub trait Trainer<W>: Send {
    /// How many [`PretrainBatch`]es one update takes: one for each optimiser step, or 0 without PPO-ptx.
    fn pretrain_batches_per_update(&self) -> usize;

    /// One update: all epochs and minibatches of one batch.
    fn update(&mut self, batch: &ExperienceBatch, pretrain: &[PretrainBatch]) -> Result<TrainMetrics, RoleError>;

    /// Changes a setting for the updates to come. One that is none of its own it passes over.
    fn change(&mut self, change: SettingChange) -> Result<(), RoleError>;

    /// The weights as they are now, with their version: whatever is trained later, they do not change.
    fn snapshot(&self) -> Result<Snapshot<W>, RoleError>;

    /// Writes a file with the whole state after the last update (weights, optimiser, averages, counters), which
    /// [`restore`](Self::restore) reads. It is larger than the models: it should never be in memory as a whole.
    fn save_state(&self, path: &Path) -> Result<(), RoleError>;

    /// Goes on from a state. Nothing has changed if it is refused; where it can't be read to its end, some may have.
    fn restore(&mut self, path: &Path) -> Result<(), RoleError>;

    /// Checksum of policy and value model as they are now: equal bits, equal checksum.
    fn checksum(&self) -> Result<u64, RoleError>;
}
