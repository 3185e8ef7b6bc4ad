//! The passes of one optimiser step, each through one model, over one microbatch.

use std::ops::Range;

use candle_core::Tensor;
use collimate_protocol::Experience;

use crate::arch::{LanguageModel, PackedSequences, ScalarModel};
use crate::error::Result;
use crate::objective::{PolicyTokens, ppo_value_loss, ptx_loss};
use crate::train::{NextTokens, PpoConfig, cut_by_tokens};

/// A rollout as the losses need it.
pub(super) struct Rollout<'a> {
    pub experience: &'a Experience,
    pub tokens: &'a [u32],
    pub proximal_logprobs: &'a [f32],
}

impl Rollout<'_> {
    fn n_prompt(&self) -> usize {
        self.experience.scored.rollout.prompt.tokens.len()
    }
}

/// Some rollouts, packed; a number for each response token of theirs, in order.
pub(super) struct Microbatch {
    next: NextTokens,
    proximal_logprobs: Vec<f32>,
    behaviour_logprobs: Vec<f32>,
    advantages: Vec<f32>,
    values: Vec<f32>,
    returns: Vec<f32>,
}

impl Microbatch {
    /// Cuts rollouts into microbatches; those without any response token are left out.
    pub fn cut(rollouts: &[Rollout<'_>], budget: usize) -> Vec<Self> {
        let runs = cut_by_tokens(rollouts.iter().map(|rollout| rollout.tokens.len()), budget);
        let microbatches = runs.into_iter().map(|run| Self::of(&rollouts[run]));
        microbatches.filter(|microbatch| !microbatch.next.targets.is_empty()).collect()
    }

    fn of(rollouts: &[Rollout<'_>]) -> Self {
        let join = |of: fn(&Experience) -> &[f32]| -> Vec<f32> {
            rollouts.iter().flat_map(|rollout| of(rollout.experience).iter().copied()).collect()
        };
        Self {
            next: NextTokens::new(rollouts.iter().map(|rollout| (rollout.tokens, rollout.n_prompt()))),
            proximal_logprobs: rollouts.iter().flat_map(|rollout| rollout.proximal_logprobs).copied().collect(),
            behaviour_logprobs: join(|experience| &experience.scored.rollout.logprobs),
            advantages: join(|experience| &experience.advantages),
            values: join(|experience| &experience.values),
            returns: join(|experience| &experience.returns),
        }
    }
}

/// Pretraining text in microbatches.
pub(super) fn cut_text(sequences: &[Vec<u32>], budget: usize) -> Vec<NextTokens> {
    let runs = cut_by_tokens(sequences.iter().map(Vec::len), budget);
    let texts = runs.into_iter().map(|run| {
        let sequences = sequences[run].iter().map(|sequence| (sequence.as_slice(), 1));
        NextTokens::new(sequences)
    });
    texts.filter(|next| !next.targets.is_empty()).collect()
}

/// One pass through a model.
#[derive(Clone, Copy)]
pub(super) enum Pass<'a> {
    /// PPO's, through the policy.
    Policy(&'a Microbatch),
    /// Through the value model.
    Value(&'a Microbatch),
    /// Pretraining text, through the policy.
    Text(&'a NextTokens),
}

/// What a pass has found. Losses are its share of the mean over the minibatch's tokens, or the text's.
pub(in crate::roles) enum Found {
    Policy { loss: f64, n_clipped: usize, n_masked: usize, log_ratios: Vec<f32>, off_policy_weights: Vec<f32> },
    Value { loss: f64 },
    Text { loss: f64 },
}

/// What passes compute with.
pub(super) struct Models<'a> {
    pub config: &'a PpoConfig,
    pub policy: &'a LanguageModel,
    pub value: &'a ScalarModel,
    /// Response tokens of the whole minibatch, by which its losses are divided.
    pub n_tokens: usize,
    /// Predicted tokens of all of the minibatch's text.
    pub n_ptx_tokens: usize,
}

impl Models<'_> {
    /// The loss to differentiate, and what is reported.
    pub fn forward(&self, pass: Pass<'_>) -> Result<(Tensor, Found)> {
        match pass {
            Pass::Policy(microbatch) => self.policy_loss(microbatch),
            Pass::Value(microbatch) => self.value_loss(microbatch),
            Pass::Text(text) => self.text_loss(text),
        }
    }

    fn policy_loss(&self, microbatch: &Microbatch) -> Result<(Tensor, Found)> {
        let NextTokens { packed, rows, targets, .. } = &microbatch.next;
        let (mut n_clipped, mut n_masked) = (0, 0);
        let (mut log_ratios, mut off_policy_weights) = (Vec::new(), Vec::new());
        let of_tokens = |tokens: Range<usize>, new_logprobs: &Tensor| {
            let policy = self.config.policy_objective().loss(&PolicyTokens {
                new_logprobs,
                proximal_logprobs: &microbatch.proximal_logprobs[tokens.clone()],
                behaviour_logprobs: &microbatch.behaviour_logprobs[tokens.clone()],
                advantages: &microbatch.advantages[tokens],
            })?;
            n_clipped += policy.n_clipped;
            n_masked += policy.n_masked;
            log_ratios.extend(policy.log_ratios);
            off_policy_weights.extend(policy.off_policy_weights);
            policy.loss * self.per_token()
        };
        let loss = self.policy.loss_at(packed, rows, targets, self.config.temperature as f32, of_tokens)?;
        let value = number(&loss)?;
        Ok((loss, Found::Policy { loss: value, n_clipped, n_masked, log_ratios, off_policy_weights }))
    }

    fn value_loss(&self, microbatch: &Microbatch) -> Result<(Tensor, Found)> {
        let (packed, rows): (&PackedSequences, _) = (&microbatch.next.packed, &microbatch.next.rows);
        let values = self.value.scalars_at(packed, rows)?;
        let clip_range = self.config.clip_range_value as f32;
        let loss = (ppo_value_loss(&values, &microbatch.values, &microbatch.returns, clip_range)? * self.per_token())?;
        let value = number(&loss)?;
        Ok(((loss * self.config.value_coef)?, Found::Value { loss: value }))
    }

    /// `ptx_coef` times the text's loss; what is reported is without it.
    fn text_loss(&self, text: &NextTokens) -> Result<(Tensor, Found)> {
        let coef = self.config.ptx_coef;
        // At temperature 1: this term is about the text, not about how responses are sampled.
        let loss = self.policy.loss_at(&text.packed, &text.rows, &text.targets, 1.0, |_, logprobs| {
            ptx_loss(logprobs, self.n_ptx_tokens, coef)
        })?;
        let value = number(&loss)? / coef;
        Ok((loss, Found::Text { loss: value }))
    }

    fn per_token(&self) -> f64 {
        1.0 / self.n_tokens as f64
    }
}

fn number(loss: &Tensor) -> Result<f64> {
    Ok(f64::from(loss.to_scalar::<f32>()?))
}
