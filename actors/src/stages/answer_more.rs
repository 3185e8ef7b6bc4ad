//! More responses of a run's policy to one prompt: what people compare where the run has recorded one response alone.

use std::path::Path;
use std::sync::Arc;

use collimate_models::Device;
use collimate_models::arch::{HeadKind, ModelConfig, Precision, Weights};
use collimate_models::generate::SamplingParams;
use collimate_models::roles::RewardModelScorer;
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::records::{PpoSummary, RolloutRecord};
use collimate_protocol::roles::{RewardFunction, RewardRequest};
use collimate_protocol::{PolicyVersion, Prompt, Snapshot, Ticket, TicketId};

use super::context::StageError;
use super::inputs::{InputModel, ModelFiles};
use super::ppo_reward::open_sharing;
use super::recipe::Recipe;
use super::sampling;
use crate::config;
use crate::flow::latest::Latest;
use crate::rundir::{RunDir, Stage};

/// Samples of a prompt are numbered from here on, far from those that a run trains on: each has random numbers of its own.
const FIRST_SAMPLE: u32 = 1 << 31;

/// A policy that can be asked.
#[derive(Clone, Debug)]
pub struct AnswerMore {
    /// Its shape.
    pub config: Arc<ModelConfig>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How it is sampled: as the run does.
    pub params: SamplingParams,
    /// The run's seed.
    pub seed: u64,
    /// Its weights: the newest, while the run trains them.
    pub latest: Latest<Weights>,
}

impl AnswerMore {
    /// The policy that a run has come to; `None` where its PPO has not ended.
    ///
    /// # Errors
    /// The run's recipe or its model can't be read.
    pub fn of_trained(run: &RunDir) -> Result<Option<Self>, StageError> {
        let Some(summary) = run.finished::<PpoSummary>(Stage::Ppo)? else { return Ok(None) };
        let recipe: Recipe =
            config::load(&run.config(), &[]).map_err(|error| StageError::Setting(error.to_string()))?;
        let Some(ppo) = recipe.ppo else { return Ok(None) };
        let files = ModelFiles::open(&run.stage(Stage::Ppo).model(), HeadKind::Language)?;
        let InputModel { config, weights } = files.load(&Device::Cpu, Precision::F32)?;
        let policy = Arc::new(weights);
        let version = PolicyVersion(summary.n_updates);
        Ok(Some(Self {
            config,
            tokenizer: Arc::new(files.tokenizer),
            params: ppo.sampling(),
            seed: recipe.seed,
            // Nobody reads the value weights.
            latest: Latest::new(Snapshot { version, value: policy.clone(), policy }),
        }))
    }

    /// `n` responses to the prompt of a rollout, with the version of the policy that gave them. The same version gives the
    /// same ones again.
    ///
    /// # Errors
    /// The policy can't be sampled.
    pub fn answers(&self, rollout: &RolloutRecord, n: u32) -> Result<(u64, Vec<RewardRequest>), StageError> {
        let newest = self.latest.newest();
        let (mut sampler, snapshot) =
            sampling::policy_sampler(&self.config, &newest.policy, n as usize, self.params, self.seed)?;
        let prompts = (0..n).map(|idx| Prompt {
            ticket: Ticket { id: TicketId(idx.into()), prompt_id: rollout.prompt_id, sample_idx: FIRST_SAMPLE + idx },
            tokens: rollout.prompt_tokens.clone(),
        });
        let rollouts = sampling::sample_all(&mut sampler, &snapshot, prompts.collect(), |_| {})?;
        let of = |rollout| RewardRequest::of(rollout, self.tokenizer.as_ref());
        Ok((newest.version.0, rollouts.iter().map(of).collect::<Result<_, _>>()?))
    }

    /// What a reward model that shares the policy's tokenizer makes of its responses.
    ///
    /// # Errors
    /// It can't be read, or reads other tokens.
    pub fn scores(&self, reward_model: &Path, requests: &[RewardRequest]) -> Result<Vec<f32>, StageError> {
        let files = open_sharing(reward_model, "the policy", &self.tokenizer)?;
        let InputModel { config, weights } = files.load(&Device::Cpu, Precision::F32)?;
        Ok(RewardModelScorer::new(&config, &weights)?.scores(requests)?)
    }
}
