//! PPO's settings: everything about the objective and its optimiser. How many updates, how large a batch and how
//! stale it may be are the flow's settings.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::objective::{KlController, PolicyObjective};
use crate::optim::{AdamWConfig, LrSchedule};

/// How the coefficient of the KL penalty moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlControl {
    /// It stays at `kl_coef`.
    #[default]
    Fixed,
    /// It starts at `kl_coef` and is steered so that a response's KL stays near `kl_target` (Ziegler et al. 2019).
    Adaptive,
}

/// What is done about tokens that an older version sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OffPolicy {
    /// Clipped PPO as it is: the ratio is against the version that sampled, whichever it was (Schulman et al. 2017).
    Plain,
    /// Decoupled PPO: the ratio is against the learner at the start of the update, and each token is weighted by
    /// how much likelier that policy makes it than the one that sampled it, up to a cap (Hilton et al. 2022).
    #[default]
    Decoupled,
    /// The policy gradient with truncated importance weights, new against sampling policy, and no clipping (Espeholt
    /// et al. 2018).
    Truncated,
    /// Decoupled PPO that leaves out tokens whose weight lies outside of a band (Ling Team 2025).
    Masked,
}

/// PPO's objective and optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PpoConfig {
    /// What divides the logits, in sampling and in training alike. Must be above 0.
    pub temperature: f64,
    /// Coefficient of the KL penalty in the rewards: each token pays kl_coef (logprobs − ref_logprobs).
    pub kl_coef: f64,
    /// How kl_coef moves: "fixed", or "adaptive" (towards kl_target).
    pub kl_control: KlControl,
    /// With kl_control = "adaptive": the KL of a response (nats) to steer to.
    pub kl_target: f64,
    /// With kl_control = "adaptive": over how many rollouts a coefficient that is off by 20 % is corrected.
    pub kl_horizon: f64,
    /// What a response that was cut off by its length pays: it is subtracted from the score.
    pub length_cutoff_penalty: f64,
    /// Whether scores are shifted and scaled to mean 0 and deviation 1 over all rollouts so far.
    pub normalize_scores: bool,
    /// Discount of later rewards.
    pub gamma: f64,
    /// Lambda of generalised advantage estimation: 0 trusts the value model alone, 1 the rewards alone.
    pub gae_lambda: f64,
    /// Whether advantages are shifted and scaled to mean 0 and deviation 1 over the batch's tokens.
    pub whiten_advantages: bool,
    /// How far the ratio may leave 1 before the policy's gradient stops.
    pub clip_range: f64,
    /// How far a value may leave its old self before the value model's gradient stops; 0 turns this off.
    pub clip_range_value: f64,
    /// Factor of the value loss.
    pub value_coef: f64,
    /// Factor of the pretraining text's gradient, added to the policy's own (PPO-ptx); 0 is plain PPO.
    pub ptx_coef: f64,
    /// Pretraining sequences for each rollout, where ptx_coef is not 0. May be a fraction.
    pub ptx_examples_per_episode: f64,
    /// Passes over each batch.
    pub n_epochs: usize,
    /// Rollouts in one optimiser step.
    pub minibatch_size: usize,
    /// Tokens that go through the model at once; of a model of up to 16 MiB, of which each thread takes a pass of its own,
    /// at most 512. It bounds memory and changes no result.
    pub microbatch_tokens: usize,
    /// Keeps only each block's argument for the backward pass, and computes the block once more there: less memory, about
    /// a third more time, and the same numbers to the bit. On the CPU alone.
    pub gradient_checkpointing: bool,
    /// The policy's highest learning rate.
    pub lr: f64,
    /// The value model's highest learning rate.
    pub value_lr: f64,
    /// What both learning rates do after their warm-up: "constant", "linear" or "cosine".
    pub lr_schedule: LrSchedule,
    /// Updates over which both learning rates rise, from a tenth of their highest.
    pub warmup_updates: u64,
    /// Updates in which the value model alone learns: at the start, and again after the reward model was replaced.
    pub value_warmup_updates: u64,
    /// Global norm to which the gradient of each model is clipped; 0 turns this off.
    pub max_grad_norm: f64,
    /// Adam's decay of the gradient's mean.
    pub adam_beta1: f64,
    /// Adam's decay of the squared gradient's mean.
    pub adam_beta2: f64,
    /// Adam's epsilon.
    pub adam_eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Decay a step of the policy's averaged weights, which are what is evaluated and shipped; 0 ships the policy
    /// itself.
    pub ema_decay: f64,
    /// What is done about tokens that an older version sampled. "plain": nothing (clipped PPO). "decoupled": clip around
    /// the learner as the update finds it, and weight by it against the sampling policy. "truncated": no clipping, a
    /// policy gradient with capped importance weights. "masked": as decoupled, without tokens of extreme weight.
    pub off_policy: OffPolicy,
    /// With off_policy = "decoupled" or "truncated": the largest weight of a token.
    pub off_policy_weight_cap: f64,
    /// With off_policy = "masked": the smallest and the largest weight of a token that is learned from.
    pub off_policy_band: [f64; 2],
    /// The run ends once this many optimiser steps in a row were skipped as not finite.
    pub max_skipped_in_a_row: usize,
}

impl Default for PpoConfig {
    /// [`Preset::InstructGpt`], but for a smaller minibatch and fewer pretraining sequences.
    fn default() -> Self {
        Self { minibatch_size: 16, ptx_examples_per_episode: 1.0, ..Preset::InstructGpt.objective() }
    }
}

/// Settings known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Ouyang et al. 2022, appendix C.
    InstructGpt,
}

impl Preset {
    /// The preset's objective and optimiser.
    pub fn objective(self) -> PpoConfig {
        match self {
            Preset::InstructGpt => PpoConfig {
                temperature: 1.0,
                kl_coef: 0.02,
                kl_control: KlControl::Fixed,
                // Without effect while the coefficient is fixed; Ziegler et al. 2019 use these.
                kl_target: 6.0,
                kl_horizon: 10_000.0,
                length_cutoff_penalty: 0.0,
                normalize_scores: false,
                gamma: 1.0,
                gae_lambda: 0.95,
                whiten_advantages: true,
                clip_range: 0.2,
                clip_range_value: 0.2,
                value_coef: 1.0,
                ptx_coef: 27.8,
                ptx_examples_per_episode: 8.0,
                n_epochs: 1,
                minibatch_size: 64,
                microbatch_tokens: 2048,
                gradient_checkpointing: false,
                // The paper scanned the policy's learning rate and gives 9e-6 for the value model.
                lr: 5e-6,
                value_lr: 9e-6,
                lr_schedule: LrSchedule::Constant,
                warmup_updates: 10,
                value_warmup_updates: 0,
                max_grad_norm: 1.0,
                adam_beta1: 0.9,
                adam_beta2: 0.95,
                adam_eps: 1e-5,
                weight_decay: 0.0,
                ema_decay: 0.992,
                off_policy: OffPolicy::Decoupled,
                off_policy_weight_cap: 2.0,
                off_policy_band: [0.5, 2.0],
                max_skipped_in_a_row: 5,
            },
        }
    }

    /// Rollouts in one update.
    pub fn batch_size(self) -> usize {
        match self {
            Preset::InstructGpt => 512,
        }
    }

    /// Updates in all: 256k episodes.
    pub fn n_updates(self) -> u64 {
        match self {
            Preset::InstructGpt => 500,
        }
    }
}

impl PpoConfig {
    /// Refuses what makes no sense, and what would have no effect.
    ///
    /// # Errors
    /// Names the key, its value, and what is expected.
    pub fn validate(&self) -> Result<()> {
        let above_zero = [
            ("temperature", self.temperature),
            ("kl_target", self.kl_target),
            ("kl_horizon", self.kl_horizon),
            ("clip_range", self.clip_range),
            ("value_coef", self.value_coef),
            ("adam_eps", self.adam_eps),
            ("off_policy_weight_cap", self.off_policy_weight_cap),
        ];
        let not_negative = [
            ("kl_coef", self.kl_coef),
            ("length_cutoff_penalty", self.length_cutoff_penalty),
            ("clip_range_value", self.clip_range_value),
            ("ptx_coef", self.ptx_coef),
            ("ptx_examples_per_episode", self.ptx_examples_per_episode),
            ("lr", self.lr),
            ("value_lr", self.value_lr),
            ("max_grad_norm", self.max_grad_norm),
            ("weight_decay", self.weight_decay),
        ];
        let shares = [("gamma", self.gamma), ("gae_lambda", self.gae_lambda)];
        let below_one =
            [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2), ("ema_decay", self.ema_decay)];
        let counts = [
            ("n_epochs", self.n_epochs),
            ("minibatch_size", self.minibatch_size),
            ("microbatch_tokens", self.microbatch_tokens),
            ("max_skipped_in_a_row", self.max_skipped_in_a_row),
        ];
        check(&above_zero, "a number above 0", |x| x > 0.0 && x.is_finite())?;
        check(&not_negative, "a number of at least 0", |x| x >= 0.0 && x.is_finite())?;
        check(&shares, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        check(&below_one, "a number from 0 to below 1", |x| (0.0..1.0).contains(&x))?;
        check_counts(&counts)?;
        let [low, high] = self.off_policy_band;
        if !(low > 0.0 && low <= 1.0 && 1.0 <= high && high.is_finite()) {
            return Err(Error::invalid(format!(
                "`off_policy_band` is [{low}, {high}], expected two numbers with 1, the weight of what is not stale, \
                 between them"
            )));
        }
        if self.ptx_coef > 0.0 && self.ptx_sequences_per_step() == 0 {
            return Err(Error::invalid(format!(
                "`ptx_coef` is {}, but `ptx_examples_per_episode` = {} gives no pretraining sequence to a minibatch of \
                 {} rollouts; raise it, or set `ptx_coef` to 0",
                self.ptx_coef, self.ptx_examples_per_episode, self.minibatch_size
            )));
        }
        self.refuse_keys_without_effect()
    }

    fn refuse_keys_without_effect(&self) -> Result<()> {
        let default = Self::default();
        let adaptive = self.kl_control == KlControl::Adaptive;
        let has_cap = matches!(self.off_policy, OffPolicy::Decoupled | OffPolicy::Truncated);
        let clips = self.off_policy != OffPolicy::Truncated;
        let conditional = [
            ("kl_target", self.kl_target, default.kl_target, adaptive, "kl_control = \"adaptive\""),
            ("kl_horizon", self.kl_horizon, default.kl_horizon, adaptive, "kl_control = \"adaptive\""),
            (
                "off_policy_weight_cap",
                self.off_policy_weight_cap,
                default.off_policy_weight_cap,
                has_cap,
                "off_policy = \"decoupled\" or \"truncated\"",
            ),
            ("clip_range", self.clip_range, default.clip_range, clips, "an off_policy other than \"truncated\""),
        ];
        for (key, value, default, has_effect, needs) in conditional {
            if value != default && !has_effect {
                return Err(Error::invalid(format!("`{key}` = {value} has no effect without {needs}; remove it")));
            }
        }
        if self.off_policy_band != default.off_policy_band && self.off_policy != OffPolicy::Masked {
            let [low, high] = self.off_policy_band;
            return Err(Error::invalid(format!(
                "`off_policy_band` = [{low}, {high}] has no effect without off_policy = \"masked\"; remove it"
            )));
        }
        Ok(())
    }

    /// The policy's loss.
    pub fn policy_objective(&self) -> PolicyObjective {
        let (clip_range, weight_cap) = (self.clip_range as f32, self.off_policy_weight_cap as f32);
        match self.off_policy {
            OffPolicy::Plain => PolicyObjective::Plain { clip_range },
            OffPolicy::Decoupled => PolicyObjective::Decoupled { clip_range, weight_cap },
            OffPolicy::Truncated => PolicyObjective::Truncated { weight_cap },
            OffPolicy::Masked => {
                PolicyObjective::Masked { clip_range, band: self.off_policy_band.map(|weight| weight as f32) }
            }
        }
    }

    /// Pretraining sequences that join one optimiser step; 0 without PPO-ptx.
    pub fn ptx_sequences_per_step(&self) -> usize {
        if self.ptx_coef == 0.0 {
            return 0;
        }
        (self.minibatch_size as f64 * self.ptx_examples_per_episode).round() as usize
    }

    /// Optimiser steps of one update on a batch of this many rollouts.
    pub fn steps_per_update(&self, batch_size: usize) -> usize {
        self.n_epochs * batch_size.div_ceil(self.minibatch_size)
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

    /// The controller of the KL coefficient as it is before the first update.
    pub fn kl_controller(&self) -> KlController {
        match self.kl_control {
            KlControl::Fixed => KlController::Fixed { kl_coef: self.kl_coef },
            KlControl::Adaptive => {
                KlController::Adaptive { kl_coef: self.kl_coef, target: self.kl_target, horizon: self.kl_horizon }
            }
        }
    }
}

/// Refuses the first of these counts that is 0.
pub(super) fn check_counts(counts: &[(&str, usize)]) -> Result<()> {
    match counts.iter().find(|(_, n)| *n == 0) {
        None => Ok(()),
        Some((key, _)) => Err(Error::invalid(format!("`{key}` is 0, expected at least 1"))),
    }
}

/// Refuses the first of these numbers that is not as expected.
pub(super) fn check(numbers: &[(&str, f64)], expected: &str, is_good: impl Fn(f64) -> bool) -> Result<()> {
    match numbers.iter().find(|(_, number)| !is_good(*number)) {
        None => Ok(()),
        Some((key, number)) => Err(Error::invalid(format!("`{key}` is {number}, expected {expected}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preset_holds_what_the_paper_says() {
        let preset = Preset::InstructGpt;
        let config = preset.objective();
        assert_eq!((preset.batch_size(), config.minibatch_size, config.n_epochs), (512, 64, 1));
        assert_eq!((config.kl_coef, config.clip_range, config.temperature), (0.02, 0.2, 1.0));
        assert_eq!((config.ema_decay, config.ptx_coef, config.ptx_examples_per_episode), (0.992, 27.8, 8.0));
        assert_eq!((config.gamma, config.gae_lambda, config.adam_eps), (1.0, 0.95, 1e-5));
        assert_eq!(preset.n_updates() * preset.batch_size() as u64, 256_000);
        assert_eq!(config.steps_per_update(preset.batch_size()), 8);
        assert_eq!(config.ptx_sequences_per_step(), 512);
    }

    #[test]
    fn defaults_and_preset_are_valid() {
        PpoConfig::default().validate().unwrap();
        Preset::InstructGpt.objective().validate().unwrap();
    }

    #[test]
    fn a_bad_value_is_refused_by_its_key() {
        let refused = |config: PpoConfig, message: &str| {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        let good = PpoConfig::default;
        refused(PpoConfig { temperature: 0.0, ..good() }, "`temperature` is 0");
        refused(PpoConfig { lr: f64::NAN, ..good() }, "`lr` is NaN");
        refused(PpoConfig { gae_lambda: 1.5, ..good() }, "`gae_lambda` is 1.5");
        refused(PpoConfig { ema_decay: 1.0, ..good() }, "`ema_decay` is 1");
        refused(PpoConfig { minibatch_size: 0, ..good() }, "`minibatch_size` is 0");
        refused(PpoConfig { ptx_examples_per_episode: 0.0, ..good() }, "`ptx_examples_per_episode` = 0");
        refused(PpoConfig { off_policy_band: [1.5, 2.0], ..good() }, "`off_policy_band` is [1.5, 2]");
        refused(PpoConfig { off_policy_band: [0.9, 2.0], ..good() }, "`off_policy_band` = [0.9, 2] has no effect");
        let plain = PpoConfig { off_policy: OffPolicy::Plain, off_policy_weight_cap: 3.0, ..good() };
        refused(plain, "`off_policy_weight_cap` = 3 has no effect");
        let truncated = PpoConfig { off_policy: OffPolicy::Truncated, clip_range: 0.3, ..good() };
        refused(truncated, "`clip_range` = 0.3 has no effect");
        refused(PpoConfig { kl_target: 3.0, ..good() }, "`kl_target` = 3 has no effect without kl_control");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = serde_json::from_str::<PpoConfig>(r#"{"ptx_coeff": 1.0}"#).unwrap_err().to_string();
        assert!(error.contains("ptx_coeff"), "{error}");
    }

    #[test]
    fn without_ptx_its_other_settings_may_stay() {
        let config = PpoConfig { ptx_coef: 0.0, ptx_examples_per_episode: 8.0, ..PpoConfig::default() };
        config.validate().unwrap();
        assert_eq!(config.ptx_sequences_per_step(), 0);
    }
}
