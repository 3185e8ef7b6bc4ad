//! From scored rollouts to what the learner trains on: values, rewards, advantages, returns.

use std::sync::Arc;

use collimate_protocol::roles::ExperienceMaker;
use collimate_protocol::{
    Experience, ExperienceBatch, PolicyVersion, RoleError, ScoredRollout, SettingChange, Snapshot,
};
use serde::{Deserialize, Serialize};

use crate::Device;
use crate::arch::{ModelConfig, ScalarModel, Weights};
use crate::error::{Error, Result};
use crate::objective::{KlController, ScoreNormalizer, cut_off_score, gae, returns, rewards, whiten};
use crate::passes::over_sequences;
use crate::train::{NextTokens, PpoConfig, check_length};

/// Makes experience by the value model that a snapshot brings. Steers the KL coefficient and, where configured, keeps
/// the statistics by which scores are normalised.
pub struct PpoExperienceMaker {
    config: PpoConfig,
    value_config: Arc<ModelConfig>,
    device: Device,
    kl_controller: KlController,
    score_normalizer: ScoreNormalizer,
}

impl PpoExperienceMaker {
    /// `value_config` is the value model's, which is computed on `device`.
    pub fn new(config: &PpoConfig, value_config: &Arc<ModelConfig>, device: &Device) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config: config.clone(),
            value_config: value_config.clone(),
            device: device.clone(),
            kl_controller: config.kl_controller(),
            score_normalizer: ScoreNormalizer::default(),
        })
    }

    /// The controller of the KL coefficient as the next batch will use it.
    pub fn kl_controller(&self) -> KlController {
        self.kl_controller
    }

    /// The statistics of the scores so far.
    pub fn score_normalizer(&self) -> ScoreNormalizer {
        self.score_normalizer
    }

    fn batch(
        &mut self,
        version: PolicyVersion,
        rollouts: Vec<ScoredRollout>,
        snapshot: &Snapshot<Weights>,
    ) -> Result<ExperienceBatch> {
        rollouts.iter().try_for_each(check_rollout)?;
        let values = self.values(&rollouts, snapshot)?;
        let scores = self.scores_paid(&rollouts);
        let kl_coef = self.kl_controller.kl_coef() as f32;
        let (gamma, gae_lambda) = (self.config.gamma as f32, self.config.gae_lambda as f32);

        let mut advantages = Vec::with_capacity(rollouts.len());
        let mut experiences = Vec::with_capacity(rollouts.len());
        for ((scored, values), score) in rollouts.into_iter().zip(values).zip(scores) {
            let rewards = rewards(&scored.rollout.logprobs, &scored.ref_logprobs, kl_coef, score);
            let raw_advantages = gae(&rewards, &values, gamma, gae_lambda);
            let returns = returns(&raw_advantages, &values);
            advantages.push(raw_advantages);
            experiences.push(Experience { scored, rewards, values, advantages: Vec::new(), returns });
        }
        if self.config.whiten_advantages {
            whiten(&mut advantages);
        }
        for (experience, advantages) in experiences.iter_mut().zip(advantages) {
            experience.advantages = advantages;
        }

        // After the rewards: a batch is judged by the coefficient that stood before it.
        let n_rollouts = experiences.len();
        let kl_sum: f64 = experiences.iter().map(|experience| f64::from(experience.scored.sequence_kl())).sum();
        self.kl_controller.update(kl_sum / n_rollouts.max(1) as f64, n_rollouts);
        Ok(ExperienceBatch { version, experiences, kl_coef, values_version: snapshot.version })
    }

    /// What each rollout's last token is paid, besides the KL penalty.
    fn scores_paid(&mut self, rollouts: &[ScoredRollout]) -> Vec<f32> {
        if self.config.normalize_scores {
            self.score_normalizer.observe(rollouts.iter().map(|scored| scored.score));
        }
        let penalty = self.config.length_cutoff_penalty as f32;
        let paid = |scored: &ScoredRollout| {
            let score =
                if self.config.normalize_scores { self.score_normalizer.normalize(scored.score) } else { scored.score };
            cut_off_score(score, scored.rollout.finish, penalty)
        };
        rollouts.iter().map(paid).collect()
    }

    /// For each rollout the value before each of its response's tokens, under the snapshot's value weights.
    fn values(&self, rollouts: &[ScoredRollout], snapshot: &Snapshot<Weights>) -> Result<Vec<Vec<f32>>> {
        // Not kept: it would hold on to a snapshot that is no longer the newest.
        let model = ScalarModel::frozen(&self.value_config, &snapshot.value.to_device(&self.device)?)?;
        let sequences: Vec<(Vec<u32>, usize)> =
            rollouts.iter().map(|s| (s.rollout.sequence(), s.rollout.prompt.tokens.len())).collect();
        sequences.iter().try_for_each(|(tokens, _)| check_length(&self.value_config, tokens.len()))?;

        let lengths: Vec<usize> = sequences.iter().map(|(tokens, _)| tokens.len()).collect();
        let passes = over_sequences(model.decoder(), &lengths, self.config.microbatch_tokens, |run| {
            let next = NextTokens::new(sequences[run].iter().map(|(tokens, n_prompt)| (tokens.as_slice(), *n_prompt)));
            let before_each_target = if next.rows.is_empty() {
                Vec::new()
            } else {
                model.scalars_at(&next.packed, &next.rows)?.to_vec1::<f32>()?
            };
            Ok(next.split(&before_each_target))
        })?;
        Ok(passes.concat())
    }
}

impl ExperienceMaker<Weights> for PpoExperienceMaker {
    fn assemble(
        &mut self,
        version: PolicyVersion,
        rollouts: Vec<ScoredRollout>,
        snapshot: &Snapshot<Weights>,
    ) -> std::result::Result<ExperienceBatch, RoleError> {
        Ok(self.batch(version, rollouts, snapshot)?)
    }

    fn change(&mut self, change: SettingChange) -> std::result::Result<(), RoleError> {
        match change {
            SettingChange::KlCoef(kl_coef) => self.kl_controller.set_kl_coef(kl_coef),
            // Another scale: what was learned of the old one's scores says nothing of the new one's.
            SettingChange::RewardModel(_) => self.score_normalizer = ScoreNormalizer::default(),
            SettingChange::Lr(_) | SettingChange::ValueLr(_) => {}
        }
        Ok(())
    }

    fn state(&self) -> std::result::Result<Vec<u8>, RoleError> {
        let state = MakerState { kl_controller: self.kl_controller, score_normalizer: self.score_normalizer };
        Ok(serde_json::to_vec(&state)?)
    }

    fn restore(&mut self, state: &[u8]) -> std::result::Result<(), RoleError> {
        let state: MakerState = serde_json::from_slice(state)
            .map_err(|error| Error::invalid(format!("this is no state of an experience maker: {error}")))?;
        (self.kl_controller, self.score_normalizer) = (state.kl_controller, state.score_normalizer);
        Ok(())
    }
}

/// What a maker has learned from the batches so far.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MakerState {
    kl_controller: KlController,
    score_normalizer: ScoreNormalizer,
}

/// Refuses a rollout whose parts do not fit one another; zipping them would drop tokens without a word.
fn check_rollout(scored: &ScoredRollout) -> Result<()> {
    let rollout = &scored.rollout;
    let id = rollout.prompt.ticket.id.0;
    if rollout.prompt.tokens.is_empty() {
        return Err(Error::invalid(format!("the rollout of ticket {id} has an empty prompt")));
    }
    let lengths = [rollout.logprobs.len(), rollout.versions.len(), scored.ref_logprobs.len()];
    let n = rollout.response.len();
    if lengths != [n; 3] {
        return Err(Error::invalid(format!(
            "the rollout of ticket {id} has {n} response tokens, but {lengths:?} logprobs, versions and ref_logprobs"
        )));
    }
    Ok(())
}
