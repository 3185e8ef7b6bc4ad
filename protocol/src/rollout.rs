//! The data's path, one type per hop: each hop consumes one and makes the next.
//!
//! `Prompt -> Rollout -> ReferencedRollout -> ScoredRollout -> ExperienceBatch`, with [`PretrainBatch`] from the
//! side and [`Snapshot`] on the way back. All of it stays ragged: a `Vec` per rollout, no padding, no masks.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::PolicyVersion;
use crate::ticket::Ticket;

/// A prompt, ready to be continued. Prompt source to generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// The promise it carries.
    pub ticket: Ticket,
    /// Token ids, with the beginning-of-sequence token where the model wants one. Never empty.
    pub tokens: Vec<u32>,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The policy sampled an end token; it is the response's last token.
    End,
    /// The response reached the longest length allowed; no end token was added.
    Length,
}

/// One prompt, one sampled response, and what the sampler knew. Generator to reference scorer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// What was continued.
    pub prompt: Prompt,
    /// The version that read the prompt: under whose weights the prompt's keys and values were computed.
    pub prompt_version: PolicyVersion,
    /// Sampled token ids, the end token included where there is one. May be empty: a sample with no action.
    pub response: Vec<u32>,
    /// For each response token, its log-probability (nats) under the policy that sampled it, at the sampling
    /// temperature, over the support sampled from.
    pub logprobs: Vec<f32>,
    /// For each response token, the version that sampled it.
    pub versions: Vec<PolicyVersion>,
    /// For each response token, the entropy (nats) of the distribution it was sampled from.
    pub entropies: Vec<f32>,
    /// Why it ended.
    pub finish: FinishReason,
}

impl Rollout {
    /// The oldest version that sampled one of the tokens; `None` for an empty response.
    pub fn oldest_version(&self) -> Option<PolicyVersion> {
        self.versions.iter().copied().min()
    }

    /// The response without its end token: what is decoded to text.
    pub fn response_body(&self) -> &[u32] {
        match self.finish {
            FinishReason::End => &self.response[..self.response.len().saturating_sub(1)],
            FinishReason::Length => &self.response,
        }
    }

    /// Prompt and response in one sequence.
    pub fn sequence(&self) -> Vec<u32> {
        let mut tokens = self.prompt.tokens.clone();
        tokens.extend_from_slice(&self.response);
        tokens
    }
}

/// A rollout with the reference's opinion. Reference scorer to reward scorer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferencedRollout {
    /// What was scored.
    pub rollout: Rollout,
    /// For each response token, its log-probability (nats) under the frozen SFT model at the sampling temperature.
    pub ref_logprobs: Vec<f32>,
}

/// A rollout with its score. Reward scorer to experience buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredRollout {
    /// What was scored.
    pub rollout: Rollout,
    /// See [`ReferencedRollout::ref_logprobs`].
    pub ref_logprobs: Vec<f32>,
    /// One scalar for the response, before any penalty or normalisation.
    pub score: f32,
}

impl ScoredRollout {
    /// Sum over the response of `logprobs - ref_logprobs` (nats): the k1 estimate of the KL of the response.
    pub fn sequence_kl(&self) -> f32 {
        self.rollout.logprobs.iter().zip(&self.ref_logprobs).map(|(new, reference)| new - reference).sum()
    }

    /// Whether every number in it is finite.
    pub fn is_finite(&self) -> bool {
        self.score.is_finite()
            && self.rollout.logprobs.iter().chain(&self.ref_logprobs).all(|logprob| logprob.is_finite())
    }
}

/// A rollout with advantages and returns. Every `Vec` has one element for each response token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experience {
    /// What happened.
    pub scored: ScoredRollout,
    /// Per-token rewards: the KL penalty, plus the score on the last token.
    pub rewards: Vec<f32>,
    /// The value model's estimate before each token.
    pub values: Vec<f32>,
    /// Advantages as the policy loss uses them (whitened where configured).
    pub advantages: Vec<f32>,
    /// What the value model is fitted to: raw advantages plus values.
    pub returns: Vec<f32>,
}

/// What one update trains on. Experience buffer to learner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExperienceBatch {
    /// The learner's version when it trains on this batch; the update raises it by one.
    pub version: PolicyVersion,
    /// In order of ticket id, so that no arrival order shows.
    pub experiences: Vec<Experience>,
    /// The coefficient of the KL penalty inside `rewards`.
    pub kl_coef: f32,
    /// The version of the value model that computed `values`.
    pub values_version: PolicyVersion,
}

/// Pretraining text for one optimiser step. Pretrain mixer to learner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PretrainBatch {
    /// Token sequences; each predicts its own tokens from the second on.
    pub sequences: Vec<Vec<u32>>,
}

/// Immutable weights of one version. Learner to generators (policy) and experience buffer (value); latest wins.
/// `W` is opaque here: whatever the model behind the actors calls its weights.
#[derive(Debug)]
pub struct Snapshot<W> {
    /// How many updates these weights have seen.
    pub version: PolicyVersion,
    /// The policy's weights.
    pub policy: Arc<W>,
    /// The value model's weights.
    pub value: Arc<W>,
}

impl<W> Clone for Snapshot<W> {
    fn clone(&self) -> Self {
        Self { version: self.version, policy: self.policy.clone(), value: self.value.clone() }
    }
}
