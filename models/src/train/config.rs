//! The optimiser's settings for pretraining, SFT and the reward model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ppo_config::{check, check_counts};
use crate::error::Result;
use crate::optim::{AdamWConfig, LrSchedule, Schedule};

/// The optimiser of a stage other than PPO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// Highest learning rate.
    pub lr: f64,
    /// What the learning rate does after its warm-up: "constant", "linear" or "cosine" (both to a tenth).
    pub lr_schedule: LrSchedule,
    /// Optimiser steps over which the learning rate rises, from a tenth of its highest.
    pub warmup_steps: u64,
    /// Global norm to which the gradient is clipped; 0 turns this off.
    pub max_grad_norm: f64,
    /// Adam's decay of the gradient's mean.
    pub adam_beta1: f64,
    /// Adam's decay of the squared gradient's mean.
    pub adam_beta2: f64,
    /// Adam's epsilon.
    pub adam_eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Tokens that go through the model at once; of a model of up to 16 MiB, of which each thread takes a pass of its own,
    /// at most 512. It bounds memory and changes no result.
    pub microbatch_tokens: usize,
    /// Keeps only each block's argument for the backward pass, and computes the block once more there: less memory, about
    /// a third more time, and the same numbers to the bit. On the CPU alone.
    pub gradient_checkpointing: bool,
    /// The stage ends once this many optimiser steps in a row were skipped as not finite.
    pub max_skipped_in_a_row: usize,
}

impl Default for OptimConfig {
    /// GPT-3's optimiser (Brown et al. 2020, appendix B), with a learning rate for small models.
    fn default() -> Self {
        Self {
            lr: 1e-3,
            lr_schedule: LrSchedule::Cosine,
            warmup_steps: 20,
            max_grad_norm: 1.0,
            adam_beta1: 0.9,
            adam_beta2: 0.95,
            adam_eps: 1e-8,
            weight_decay: 0.1,
            microbatch_tokens: 2048,
            gradient_checkpointing: false,
            max_skipped_in_a_row: 5,
        }
    }
}

impl OptimConfig {
    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// Names the key, its value, and what is expected.
    pub fn validate(&self) -> Result<()> {
        let not_negative =
            [("lr", self.lr), ("max_grad_norm", self.max_grad_norm), ("weight_decay", self.weight_decay)];
        check(&not_negative, "a number of at least 0", |x| x >= 0.0 && x.is_finite())?;
        let below_one = [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)];
        check(&below_one, "a number from 0 to below 1", |x| (0.0..1.0).contains(&x))?;
        check(&[("adam_eps", self.adam_eps)], "a number above 0", |x| x > 0.0 && x.is_finite())?;
        let counts =
            [("microbatch_tokens", self.microbatch_tokens), ("max_skipped_in_a_row", self.max_skipped_in_a_row)];
        check_counts(&counts)
    }

    /// AdamW's constants.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_eps,
            weight_decay: self.weight_decay,
        }
    }

    /// The learning rate over `n_steps` optimiser steps.
    pub(super) fn schedule(&self, n_steps: u64) -> Schedule {
        Schedule { peak: self.lr, kind: self.lr_schedule, n_warmup: self.warmup_steps, n_total: n_steps }
    }
}
