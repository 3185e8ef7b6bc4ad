//! What an update's optimiser steps add up to.

use collimate_protocol::ExperienceBatch;
use collimate_protocol::records::{Spread, TrainMetrics};

use super::learner::Found;

/// What the forward and backward passes of one minibatch found. Losses are means over the minibatch's tokens.
#[derive(Debug, Default)]
pub(super) struct StepStats {
    pub policy_loss: f64,
    pub value_loss: f64,
    pub ptx_loss: f64,
    pub policy_grad_norm: f64,
    pub value_grad_norm: f64,
    pub n_tokens: usize,
    pub n_ptx_tokens: usize,
    pub n_clipped: usize,
    pub n_masked: usize,
    pub log_ratios: Vec<f32>,
    pub off_policy_weights: Vec<f32>,
}

impl StepStats {
    /// Adds what one of its passes has found.
    pub(super) fn add(&mut self, found: Found) {
        match found {
            Found::Policy { loss, n_clipped, n_masked, log_ratios, off_policy_weights } => {
                self.policy_loss += loss;
                self.n_clipped += n_clipped;
                self.n_masked += n_masked;
                self.log_ratios.extend(log_ratios);
                self.off_policy_weights.extend(off_policy_weights);
            }
            Found::Value { loss } => self.value_loss += loss,
            Found::Text { loss } => self.ptx_loss += loss,
        }
    }
}

/// The steps of one update. Those that were skipped are counted, and leave no other trace.
#[derive(Debug, Default)]
pub(super) struct UpdateStats {
    taken: Vec<StepStats>,
    n_skipped: u64,
    lr: f64,
}

impl UpdateStats {
    pub(super) fn taken(&mut self, step: StepStats, lr: f64) {
        self.taken.push(step);
        self.lr = lr;
    }

    pub(super) fn skipped(&mut self, lr: f64) {
        self.n_skipped += 1;
        self.lr = lr;
    }

    pub(super) fn metrics(&self, batch: &ExperienceBatch) -> TrainMetrics {
        // A minibatch of empty responses has nothing to say about the policy; only its text counts.
        let with_tokens = || self.taken.iter().filter(|step| step.n_tokens > 0);
        let mean = |of: fn(&StepStats) -> f64| Spread::of(with_tokens().map(of)).mean;
        let log_ratios = || self.taken.iter().flat_map(|step| step.log_ratios.iter().map(|&x| f64::from(x)));
        let weights = self.taken.iter().flat_map(|step| step.off_policy_weights.iter().map(|&x| f64::from(x)));
        TrainMetrics {
            policy_loss: mean(|step| step.policy_loss),
            value_loss: mean(|step| step.value_loss),
            ptx_loss: Spread::of(self.taken.iter().filter(|step| step.n_ptx_tokens > 0).map(|step| step.ptx_loss)).mean,
            clip_fraction: mean(|step| step.n_clipped as f64 / step.n_tokens as f64),
            masked_share: mean(|step| step.n_masked as f64 / step.n_tokens as f64),
            approx_kl: Spread::of(log_ratios().map(|log_ratio| log_ratio.exp_m1() - log_ratio)).mean,
            ratio: Spread::of(log_ratios().map(f64::exp)),
            off_policy_weight: Spread::of(weights),
            explained_variance: explained_variance(batch),
            policy_grad_norm: Spread::of(self.taken.iter().map(|step| step.policy_grad_norm)).mean,
            value_grad_norm: mean(|step| step.value_grad_norm),
            lr: self.lr,
            n_steps: self.taken.len() as u64,
            n_skipped: self.n_skipped,
            n_ptx_tokens: self.taken.iter().map(|step| step.n_ptx_tokens as u64).sum(),
        }
    }
}

/// 1 − Var(returns − values) / Var(returns) over the batch's tokens; 0 where that has no finite value.
fn explained_variance(batch: &ExperienceBatch) -> f64 {
    let returns = || batch.experiences.iter().flat_map(|e| e.returns.iter().map(|&r| f64::from(r)));
    let values = batch.experiences.iter().flat_map(|e| e.values.iter().map(|&v| f64::from(v)));
    let errors: Vec<f64> = returns().zip(values).map(|(r, v)| r - v).collect();
    let share = 1.0 - variance(&errors) / variance(&returns().collect::<Vec<_>>());
    if share.is_finite() { share } else { 0.0 }
}

fn variance(numbers: &[f64]) -> f64 {
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / numbers.len() as f64
}
