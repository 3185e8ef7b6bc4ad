//! What one PPO update reports: a line of `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::PolicyVersion;
use crate::rollout::{ExperienceBatch, FinishReason};
use crate::ticket::TicketCounts;

/// Smallest, mean and largest of some numbers; all 0 when there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of any numbers, in one pass.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let (mut min, mut max, mut sum, mut n) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0usize);
        for number in numbers {
            min = min.min(number);
            max = max.max(number);
            sum += number;
            n += 1;
        }
        if n == 0 { Self::default() } else { Self { min, mean: sum / n as f64, max } }
    }
}

/// What a batch looked like before it was trained on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BatchMetrics {
    /// Rollouts in the batch.
    pub n_rollouts: usize,
    /// Response tokens in the batch.
    pub n_tokens: usize,
    /// Mean score of a response.
    pub score: f64,
    /// Mean over responses of the summed k1 estimate, logprobs − ref_logprobs (nats).
    pub kl: f64,
    /// Mean over tokens of k1 = −log r with r = reference / policy (nats).
    pub kl_k1: f64,
    /// Mean over tokens of k2 = (log r)² / 2.
    pub kl_k2: f64,
    /// Mean over tokens of k3 = r − 1 − log r, never negative (Schulman 2020, "Approximating KL divergence").
    pub kl_k3: f64,
    /// The coefficient of the KL penalty.
    pub kl_coef: f64,
    /// Mean entropy of the sampling distributions (nats a token).
    pub entropy: f64,
    /// Response length in tokens.
    pub length: Spread,
    /// Share of responses with no token besides the end token.
    pub empty_share: f64,
    /// Share of responses that ended by an end token.
    pub ended_share: f64,
    /// Updates between sampling and training, over tokens.
    pub staleness: Spread,
}

impl BatchMetrics {
    /// Describes a batch. Sums run in f64 in the order of the batch.
    pub fn of(batch: &ExperienceBatch) -> Self {
        let rollouts = || batch.experiences.iter().map(|experience| &experience.scored);
        let tokens = || {
            rollouts().flat_map(|scored| {
                scored
                    .rollout
                    .logprobs
                    .iter()
                    .zip(&scored.ref_logprobs)
                    .map(|(&new, &reference)| f64::from(reference) - f64::from(new))
            })
        };
        let n_rollouts = batch.experiences.len();
        let share = |n: usize| if n_rollouts == 0 { 0.0 } else { n as f64 / n_rollouts as f64 };
        Self {
            n_rollouts,
            n_tokens: rollouts().map(|scored| scored.rollout.response.len()).sum(),
            score: Spread::of(rollouts().map(|scored| f64::from(scored.score))).mean,
            kl: Spread::of(rollouts().map(|scored| f64::from(scored.sequence_kl()))).mean,
            kl_k1: Spread::of(tokens().map(|log_r| -log_r)).mean,
            kl_k2: Spread::of(tokens().map(|log_r| 0.5 * log_r * log_r)).mean,
            kl_k3: Spread::of(tokens().map(|log_r| log_r.exp_m1() - log_r)).mean,
            kl_coef: f64::from(batch.kl_coef),
            entropy: Spread::of(rollouts().flat_map(|scored| scored.rollout.entropies.iter().map(|&e| f64::from(e))))
                .mean,
            length: Spread::of(rollouts().map(|scored| scored.rollout.response.len() as f64)),
            empty_share: share(rollouts().filter(|scored| scored.rollout.response_body().is_empty()).count()),
            ended_share: share(rollouts().filter(|scored| scored.rollout.finish == FinishReason::End).count()),
            staleness: Spread::of(rollouts().flat_map(|scored| {
                scored.rollout.versions.iter().map(|&version| batch.version.staleness_of(version) as f64)
            })),
        }
    }
}

/// What the training of one batch did. Means are over all optimiser steps of the update.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainMetrics {
    /// Clipped surrogate loss a token.
    pub policy_loss: f64,
    /// Clipped value loss a token, before `value_coef`.
    pub value_loss: f64,
    /// Cross-entropy of the pretraining text (nats a token), before `ptx_coef`; 0 without PPO-ptx.
    pub ptx_loss: f64,
    /// Share of tokens whose ratio was clipped.
    pub clip_fraction: f64,
    /// Share of tokens that the policy's loss left out because of their off-policy weight.
    pub masked_share: f64,
    /// Mean of (ratio − 1) − log ratio: how far the update moved the policy (k3, nats a token).
    pub approx_kl: f64,
    /// Ratio of the new policy to the one that the loss compares it with.
    pub ratio: Spread,
    /// Off-policy weight after its cap; 1 at staleness 0.
    pub off_policy_weight: Spread,
    /// 1 − Var(returns − values) / Var(returns).
    pub explained_variance: f64,
    /// Global norm of the policy's gradient before clipping.
    pub policy_grad_norm: f64,
    /// Global norm of the value model's gradient before clipping.
    pub value_grad_norm: f64,
    /// Learning rate of the last optimiser step.
    pub lr: f64,
    /// Optimiser steps taken.
    pub n_steps: u64,
    /// Optimiser steps skipped because a loss or gradient was not finite.
    pub n_skipped: u64,
    /// Pretraining tokens trained on.
    pub n_ptx_tokens: u64,
}

/// How many items wait in a role's inbox, of how many that fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDepth {
    /// Waiting.
    pub len: usize,
    /// Fit.
    pub capacity: usize,
}

/// The flow around one update.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowMetrics {
    /// Seconds since the run's start. 0 in a deterministic run, whose records are equal bit for bit.
    pub elapsed_s: f64,
    /// Seconds this update took in the learner. 0 in a deterministic run.
    pub update_s: f64,
    /// Response tokens trained on a second since the last update. 0 in a deterministic run.
    pub tokens_per_s: f64,
    /// The ledger after the update.
    pub tickets: TicketCounts,
    /// Inbox of each role.
    pub queues: BTreeMap<String, QueueDepth>,
    /// Share of the time since the last update that each role computed. Empty in a deterministic run.
    pub busy: BTreeMap<String, f64>,
    /// Tokens a second of each role since the last update. Empty in a deterministic run.
    pub role_tokens_per_s: BTreeMap<String, f64>,
}

/// A line of `metrics.jsonl`: one PPO update.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateMetrics {
    /// The version after the update; the first update makes 1.
    pub version: PolicyVersion,
    /// The batch.
    pub batch: BatchMetrics,
    /// The training.
    pub train: TrainMetrics,
    /// The flow.
    pub flow: FlowMetrics,
}
