//! The learner: trains policy and value model on experience, and the policy on pretraining text along with it.

mod passes;
mod state;

use std::path::Path;
use std::sync::Arc;

use collimate_protocol::records::TrainMetrics;
use collimate_protocol::roles::Trainer;
use collimate_protocol::{ExperienceBatch, PolicyVersion, PretrainBatch, RoleError, SettingChange, Snapshot};

pub(super) use self::passes::Found;
use self::passes::{Microbatch, Models, Pass, Rollout, cut_text};
use super::update_stats::{StepStats, UpdateStats};
use crate::Device;
use crate::arch::{HeadKind, LanguageModel, ModelConfig, ScalarModel, Weights};
use crate::error::{Error, Result};
use crate::optim::{Ema, Schedule};
use crate::passes::{in_pool, training_budget};
use crate::rng;
use crate::train::{
    NextTokens, PpoConfig, SkipLimit, Training, check_length, cut_by_tokens, detached, first_non_finite,
    parameters_for, shuffled_minibatches, train_passes,
};

/// What a learner starts from.
pub struct PpoStart<'a> {
    /// Objective and optimiser.
    pub config: &'a PpoConfig,
    /// The run's seed.
    pub seed: u64,
    /// Rollouts in one batch.
    pub batch_size: usize,
    /// Updates in all: the learning rates' schedules end with the last.
    pub n_updates: u64,
    /// Shape of the policy.
    pub policy_config: &'a Arc<ModelConfig>,
    /// The SFT model's weights.
    pub policy: &'a Weights,
    /// Shape of the value model.
    pub value_config: &'a Arc<ModelConfig>,
    /// The reward model's weights, from which the value model starts: all of them.
    pub value: &'a Weights,
    /// Where both are trained.
    pub device: &'a Device,
}

/// Policy and value model in training.
pub struct PpoLearner {
    config: PpoConfig,
    seed: u64,
    batch_size: usize,
    policy_config: Arc<ModelConfig>,
    policy_model: LanguageModel,
    /// The same weights, without a record for backward.
    policy_model_detached: LanguageModel,
    policy: Training,
    policy_schedule: Schedule,
    ema: Option<Ema>,
    value_config: Arc<ModelConfig>,
    value_model: ScalarModel,
    value: Training,
    value_schedule: Schedule,
    /// Updates to come in which the value model alone learns.
    n_value_warmup: u64,
    version: PolicyVersion,
    /// Minibatches so far, skipped ones included: where the schedules stand.
    n_minibatches: u64,
    skip_limit: SkipLimit,
    /// Whether several passes are computed at once, a thread each, rather than each by all threads.
    passes_side_by_side: bool,
}

impl PpoLearner {
    /// A learner at version 0.
    ///
    /// # Errors
    /// The settings make no sense, or a tensor is missing, of another shape, or no part of its model.
    pub fn new(start: PpoStart<'_>) -> Result<Self> {
        let config = start.config;
        config.validate()?;
        let policy = start.policy.to_device(start.device)?;
        let policy = parameters_for(start.policy_config, HeadKind::Language, &policy)?;
        let value = start.value.to_device(start.device)?;
        let value = parameters_for(start.value_config, HeadKind::Scalar, &value)?;
        let steps_per_update = config.steps_per_update(start.batch_size) as u64;
        let schedule = |peak| Schedule {
            peak,
            kind: config.lr_schedule,
            n_warmup: config.warmup_updates * steps_per_update,
            n_total: start.n_updates * steps_per_update,
        };
        let training = |config_of: &ModelConfig, head, parameters| {
            Training::new(config_of, head, parameters, config.adamw(), config.max_grad_norm)
        };
        let policy = training(start.policy_config, HeadKind::Language, policy)?;
        let value = training(start.value_config, HeadKind::Scalar, value)?;
        let passes_side_by_side = policy.passes_side_by_side(start.policy_config, config.gradient_checkpointing)
            && value.passes_side_by_side(start.value_config, config.gradient_checkpointing);
        Ok(Self {
            config: config.clone(),
            seed: start.seed,
            batch_size: start.batch_size,
            policy_config: start.policy_config.clone(),
            policy_model: policy.language_model(start.policy_config, config.gradient_checkpointing)?,
            policy_model_detached: LanguageModel::new(start.policy_config, &detached(policy.parameters()))?,
            ema: Ema::new(policy.parameters(), config.ema_decay)?,
            policy,
            policy_schedule: schedule(config.lr),
            value_config: start.value_config.clone(),
            value_model: value.scalar_model(start.value_config, config.gradient_checkpointing)?,
            value,
            value_schedule: schedule(config.value_lr),
            n_value_warmup: config.value_warmup_updates,
            version: PolicyVersion(0),
            n_minibatches: 0,
            skip_limit: SkipLimit::new(config.max_skipped_in_a_row),
            passes_side_by_side,
        })
    }

    /// Updates done.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// A real copy of the policy's averaged weights, which are what is evaluated and shipped; `None` where averaging
    /// is off.
    pub fn ema_weights(&self) -> Result<Option<Weights>> {
        self.ema.as_ref().map(Ema::weights).transpose()
    }

    fn train(&mut self, batch: &ExperienceBatch, pretrain: &[PretrainBatch]) -> Result<TrainMetrics> {
        self.check(batch, pretrain)?;
        let sequences: Vec<Vec<u32>> = batch.experiences.iter().map(|e| e.scored.rollout.sequence()).collect();
        let proximal_logprobs = self.proximal_logprobs(batch, &sequences)?;
        let mut stats = UpdateStats::default();
        let mut pretrain = pretrain.iter();
        for epoch in 0..self.config.n_epochs {
            let purpose = format!("minibatches of {}, epoch {epoch}", self.version);
            let mut rng = rng::for_purpose(self.seed, &purpose);
            for indices in shuffled_minibatches(batch.experiences.len(), self.config.minibatch_size, &mut rng) {
                let rollouts: Vec<Rollout<'_>> = indices
                    .into_iter()
                    .map(|idx| Rollout {
                        experience: &batch.experiences[idx],
                        tokens: &sequences[idx],
                        proximal_logprobs: &proximal_logprobs[idx],
                    })
                    .collect();
                self.step(&rollouts, pretrain.next(), &mut stats)?;
            }
        }
        self.version = self.version.next();
        self.n_value_warmup = self.n_value_warmup.saturating_sub(1);
        Ok(stats.metrics(batch))
    }

    fn check(&self, batch: &ExperienceBatch, pretrain: &[PretrainBatch]) -> Result<()> {
        if batch.version != self.version {
            let (made_for, version) = (batch.version, self.version);
            return Err(Error::invalid(format!("a batch was made for {made_for}, but the learner is at {version}")));
        }
        let n_needed =
            if self.config.ptx_coef > 0.0 { self.config.steps_per_update(batch.experiences.len()) } else { 0 };
        if pretrain.len() < n_needed {
            return Err(Error::invalid(format!(
                "an update of {} rollouts needs {n_needed} batches of pretraining text, but got {}",
                batch.experiences.len(),
                pretrain.len()
            )));
        }
        for experience in &batch.experiences {
            let n = experience.scored.rollout.response.len();
            let lengths = [
                experience.scored.rollout.logprobs.len(),
                experience.values.len(),
                experience.advantages.len(),
                experience.returns.len(),
            ];
            if lengths != [n; 4] {
                return Err(Error::invalid(format!(
                    "an experience has {n} response tokens, but {lengths:?} logprobs, values, advantages and returns"
                )));
            }
            let n_tokens = experience.scored.rollout.prompt.tokens.len() + n;
            check_length(&self.policy_config, n_tokens)?;
            check_length(&self.value_config, n_tokens)?;
        }
        let mut text = pretrain.iter().flat_map(|text| &text.sequences);
        text.try_for_each(|sequence| check_length(&self.policy_config, sequence.len()))
    }

    /// For each rollout its response's log-probabilities under the policy as the update finds it. Where this policy
    /// sampled the whole response, they are the recorded ones, so that the off-policy weight is exactly 1. A response
    /// with any older token is computed anew as a whole: also its fresh tokens attended to what older weights wrote.
    fn proximal_logprobs(&self, batch: &ExperienceBatch, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let rollouts = || batch.experiences.iter().map(|experience| &experience.scored.rollout);
        let mut proximal: Vec<Vec<f32>> = rollouts().map(|rollout| rollout.logprobs.clone()).collect();
        if !self.config.policy_objective().reads_proximal() {
            return Ok(proximal);
        }
        let stale: Vec<(usize, usize)> = rollouts()
            .enumerate()
            .filter(|(_, rollout)| rollout.versions.iter().any(|&version| version != self.version))
            .map(|(idx, rollout)| (idx, rollout.prompt.tokens.len()))
            .collect();
        for run in cut_by_tokens(stale.iter().map(|&(idx, _)| sequences[idx].len()), self.config.microbatch_tokens) {
            let own = &stale[run];
            let next = NextTokens::new(own.iter().map(|&(idx, n_prompt)| (sequences[idx].as_slice(), n_prompt)));
            let temperature = self.config.temperature as f32;
            let logprobs =
                self.policy_model_detached.logprobs_at(&next.packed, &next.rows, &next.targets, temperature)?.logprobs;
            for (&(idx, _), logprobs) in own.iter().zip(next.split(&logprobs.to_vec1::<f32>()?)) {
                proximal[idx] = logprobs;
            }
        }
        Ok(proximal)
    }

    /// One optimiser step of each model, or of neither.
    fn step(
        &mut self,
        rollouts: &[Rollout<'_>],
        pretrain: Option<&PretrainBatch>,
        stats: &mut UpdateStats,
    ) -> Result<()> {
        let lr = self.policy_schedule.lr(self.n_minibatches);
        let value_lr = self.value_schedule.lr(self.n_minibatches);
        self.n_minibatches += 1;
        self.policy.begin();
        self.value.begin();
        let text = pretrain.filter(|_| self.config.ptx_coef > 0.0);
        let n_predicted =
            |text: &PretrainBatch| text.sequences.iter().map(|tokens| tokens.len().saturating_sub(1)).sum();
        let mut step = StepStats {
            n_tokens: rollouts.iter().map(|rollout| rollout.proximal_logprobs.len()).sum(),
            n_ptx_tokens: text.map_or(0, n_predicted),
            ..StepStats::default()
        };
        self.accumulate(rollouts, text, &mut step)?;
        // Without any response token there is nothing to learn from a model's rollouts, so it takes no step.
        let policy_learns = self.n_value_warmup == 0 && step.n_tokens + step.n_ptx_tokens > 0;
        let value_learns = step.n_tokens > 0;
        if policy_learns {
            step.policy_grad_norm = self.policy.grad_norm()?;
        }
        if value_learns {
            step.value_grad_norm = self.value.grad_norm()?;
        }
        let broken = first_non_finite(&[
            ("the policy loss", step.policy_loss),
            ("the value loss", step.value_loss),
            ("the loss of the pretraining text", step.ptx_loss),
            ("the policy's gradient", step.policy_grad_norm),
            ("the value model's gradient", step.value_grad_norm),
        ]);
        if let Some(what) = broken {
            stats.skipped(lr);
            return self.skip_limit.skipped(what);
        }
        if policy_learns {
            self.part_policy()?;
            self.policy.step(lr, step.policy_grad_norm)?;
            if let Some(ema) = &mut self.ema {
                ema.update(self.policy.parameters())?;
            }
        }
        if value_learns {
            self.part_value()?;
            self.value.step(value_lr, step.value_grad_norm)?;
        }
        self.skip_limit.taken();
        stats.taken(step, lr);
        Ok(())
    }

    /// Parts from a published policy, which stays as it is.
    fn part_policy(&mut self) -> Result<()> {
        if self.policy.part()? {
            let config = &self.policy_config;
            self.policy_model = self.policy.language_model(config, self.config.gradient_checkpointing)?;
            self.policy_model_detached = LanguageModel::new(config, &detached(self.policy.parameters()))?;
        }
        Ok(())
    }

    /// Parts from a published value model, which stays as it is.
    fn part_value(&mut self) -> Result<()> {
        if self.value.part()? {
            self.value_model = self.value.scalar_model(&self.value_config, self.config.gradient_checkpointing)?;
        }
        Ok(())
    }

    /// Adds the gradients of a minibatch to policy and value model, a microbatch at a time.
    fn accumulate(
        &mut self,
        rollouts: &[Rollout<'_>],
        text: Option<&PretrainBatch>,
        step: &mut StepStats,
    ) -> Result<()> {
        let budget = training_budget(&self.policy_config, self.config.microbatch_tokens);
        let microbatches = Microbatch::cut(rollouts, budget);
        let texts = text.map_or(Vec::new(), |text| cut_text(&text.sequences, budget));
        let models = Models {
            config: &self.config,
            policy: &self.policy_model,
            value: &self.value_model,
            n_tokens: step.n_tokens,
            n_ptx_tokens: step.n_ptx_tokens,
        };
        let of_rollouts =
            microbatches.iter().flat_map(|microbatch| [Pass::Policy(microbatch), Pass::Value(microbatch)]);
        let passes: Vec<Pass<'_>> = of_rollouts.chain(texts.iter().map(Pass::Text)).collect();
        let (policy, value) = (&mut self.policy, &mut self.value);
        train_passes(
            &passes,
            self.passes_side_by_side,
            |pass| models.forward(*pass),
            |pass, gradients, found| {
                step.add(found);
                match pass {
                    Pass::Policy(_) | Pass::Text(_) => policy.add(gradients),
                    Pass::Value(_) => value.add(gradients),
                }
            },
        )
    }
}

impl Trainer<Weights> for PpoLearner {
    fn pretrain_batches_per_update(&self) -> usize {
        if self.config.ptx_coef > 0.0 { self.config.steps_per_update(self.batch_size) } else { 0 }
    }

    fn update(
        &mut self,
        batch: &ExperienceBatch,
        pretrain: &[PretrainBatch],
    ) -> std::result::Result<TrainMetrics, RoleError> {
        Ok(in_pool(self.passes_side_by_side, || self.train(batch, pretrain))?)
    }

    fn change(&mut self, change: SettingChange) -> std::result::Result<(), RoleError> {
        match change {
            SettingChange::Lr(lr) => self.policy_schedule.peak = lr,
            SettingChange::ValueLr(lr) => self.value_schedule.peak = lr,
            // The values are of the old one's scores.
            SettingChange::RewardModel(_) => self.n_value_warmup = self.config.value_warmup_updates,
            SettingChange::KlCoef(_) => {}
        }
        Ok(())
    }

    fn snapshot(&self) -> std::result::Result<Snapshot<Weights>, RoleError> {
        Ok(Snapshot {
            version: self.version,
            policy: Arc::new(self.policy.publish()),
            value: Arc::new(self.value.publish()),
        })
    }

    fn save_state(&self, path: &Path) -> std::result::Result<(), RoleError> {
        Ok(self.write_state(path)?)
    }

    fn restore(&mut self, path: &Path) -> std::result::Result<(), RoleError> {
        Ok(self.read_state(path)?)
    }

    fn checksum(&self) -> std::result::Result<u64, RoleError> {
        Ok(self.weights_checksum()?)
    }
}
