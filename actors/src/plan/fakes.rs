//! What plays the models: it has the sizes that are assumed, and no weights.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use collimate_models::rng::{self, SeededRng};
use collimate_protocol::records::TrainMetrics;
use collimate_protocol::roles::{
    Detokenizer, ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardRequest, Sampler, Trainer,
};
use collimate_protocol::{
    Experience, ExperienceBatch, FinishReason, PolicyVersion, PretrainBatch, Prompt, Role, RoleError, RoleId, Rollout,
    ScoredRollout, SettingChange, Snapshot,
};
use rand::Rng;

use super::config::PlanConfig;
use super::forecast::Seen;
use crate::flow::{Factory, PpoFlow, PromptSupply, RunError, RunSink, SamplerFactory, TrainedUpdate};

/// The flow of fakes that a plan describes.
pub(super) fn flow(
    config: &PlanConfig,
    n_generators: usize,
    seen: Arc<Mutex<Seen>>,
) -> Result<PpoFlow<(), FakeTrainer>, RunError> {
    let lengths: Arc<[usize]> = config.response_tokens.as_slice().into();
    let sampler = |idx| {
        let fake = FakeSampler {
            n_slots: config.n_slots,
            lengths: lengths.clone(),
            seed: config.seed,
            version: PolicyVersion(0),
            running: Vec::new(),
            mishaps: Mishaps::new(config, RoleId { role: Role::Generator, idx }),
        };
        let factory = Factory::<dyn Sampler<()>>::new(move || Ok(Box::new(fake.clone())));
        SamplerFactory { factory, n_slots: config.n_slots }
    };
    let reference = |idx| {
        let mishaps = Mishaps::new(config, RoleId { role: Role::ReferenceScorer, idx });
        Factory::<dyn ReferencePolicy>::new(move || Ok(Box::new(FakeReference(mishaps.clone()))))
    };
    let reward = |idx| {
        let mishaps = Mishaps::new(config, RoleId { role: Role::RewardScorer, idx });
        Factory::<dyn RewardFunction>::new(move || Ok(Box::new(FakeReward(mishaps.clone()))))
    };
    let maker = Mishaps::new(config, RoleId::only(Role::ExperienceBuffer));
    let mixer = Mishaps::new(config, RoleId::only(Role::PretrainMixer));
    let trainer = Mishaps::new(config, RoleId::only(Role::Learner));
    let ptx_tokens = config.ptx_tokens_per_update();
    let text = move || Ok(Box::new(FakeText { ptx_tokens, mishaps: mixer.clone() }) as Box<dyn PretrainSource>);
    Ok(PpoFlow {
        // As many as one batch: which prompt it is makes no difference, only which sample of it.
        prompts: PromptSupply::new(vec![vec![0; config.prompt_tokens]; config.batch_size.max(1)], config.seed)?,
        samplers: (0..n_generators).map(sampler).collect(),
        references: (0..config.n_reference_scorers).map(reference).collect(),
        rewards: (0..config.n_reward_scorers).map(reward).collect(),
        reward_models: None,
        detokenizer: Arc::new(NoText),
        experience_maker: Factory::<dyn ExperienceMaker<()>>::new(move || Ok(Box::new(FakeMaker(maker.clone())))),
        pretrain: (ptx_tokens > 0).then(|| Factory::new(text)),
        trainer: Factory::new(move || {
            let mishaps = trainer.clone();
            Ok(Box::new(FakeTrainer { version: PolicyVersion(0), takes_text: ptx_tokens > 0, mishaps }))
        }),
        resume: None,
        state_dir: None,
        sink: Box::new(SeenBySink(seen)),
    })
}

/// When what computes behind a role fails; what is made anew goes on with the same sequence.
#[derive(Clone, Debug)]
struct Mishaps {
    share: f64,
    rng: Arc<Mutex<SeededRng>>,
}

impl Mishaps {
    fn new(config: &PlanConfig, role: RoleId) -> Self {
        let share = config.costs.of(role.role).map_or(0.0, |cost| cost.failure_share);
        Self { share, rng: Arc::new(Mutex::new(rng::for_purpose(config.seed, &format!("failures of {role}")))) }
    }

    fn strike(&self) -> Result<(), RoleError> {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        if self.share > 0.0 && rng.random_bool(self.share) { Err("an assumed failure".into()) } else { Ok(()) }
    }
}

#[derive(Clone, Debug)]
struct FakeSampler {
    n_slots: usize,
    lengths: Arc<[usize]>,
    seed: u64,
    version: PolicyVersion,
    /// With how many tokens each will have.
    running: Vec<(Rollout, usize)>,
    mishaps: Mishaps,
}

impl Sampler<()> for FakeSampler {
    fn load(&mut self, snapshot: &Snapshot<()>) -> Result<(), RoleError> {
        self.version = snapshot.version;
        Ok(())
    }

    fn n_free_slots(&self) -> usize {
        self.n_slots - self.running.len()
    }

    fn n_running(&self) -> usize {
        self.running.len()
    }

    fn admit(&mut self, prompt: Prompt) -> Result<(), RoleError> {
        let mut rng = rng::for_sample(self.seed, prompt.ticket.prompt_id, prompt.ticket.sample_idx);
        let n_tokens = self.lengths[rng.random_range(0..self.lengths.len())];
        let rollout = Rollout {
            prompt,
            prompt_version: self.version,
            response: Vec::with_capacity(n_tokens),
            logprobs: Vec::new(),
            versions: Vec::with_capacity(n_tokens),
            entropies: Vec::new(),
            finish: FinishReason::End,
        };
        self.running.push((rollout, n_tokens));
        Ok(())
    }

    fn step(&mut self) -> Result<Vec<Rollout>, RoleError> {
        self.mishaps.strike()?;
        for (rollout, _) in &mut self.running {
            rollout.response.push(0);
            rollout.versions.push(self.version);
        }
        let ended = self.running.extract_if(.., |(rollout, n_tokens)| rollout.response.len() == *n_tokens);
        let zeros = |n_tokens| vec![0.0; n_tokens];
        let whole = |(rollout, n_tokens): (Rollout, usize)| Rollout {
            logprobs: zeros(n_tokens),
            entropies: zeros(n_tokens),
            ..rollout
        };
        Ok(ended.map(whole).collect())
    }
}

struct FakeReference(Mishaps);

impl ReferencePolicy for FakeReference {
    fn logprobs(&mut self, rollouts: &[Rollout]) -> Result<Vec<Vec<f32>>, RoleError> {
        self.0.strike()?;
        Ok(rollouts.iter().map(|rollout| rollout.logprobs.clone()).collect())
    }
}

struct FakeReward(Mishaps);

impl RewardFunction for FakeReward {
    fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
        self.0.strike()?;
        Ok(vec![0.0; requests.len()])
    }
}

struct NoText;

impl Detokenizer for NoText {
    fn decode(&self, _: &[u32]) -> Result<String, RoleError> {
        Ok(String::new())
    }
}

struct FakeMaker(Mishaps);

impl ExperienceMaker<()> for FakeMaker {
    fn assemble(
        &mut self,
        version: PolicyVersion,
        rollouts: Vec<ScoredRollout>,
        snapshot: &Snapshot<()>,
    ) -> Result<ExperienceBatch, RoleError> {
        self.0.strike()?;
        let experience = |scored: ScoredRollout| {
            let zeros = vec![0.0; scored.rollout.response.len()];
            Experience {
                scored,
                rewards: zeros.clone(),
                values: zeros.clone(),
                advantages: zeros.clone(),
                returns: zeros,
            }
        };
        let experiences = rollouts.into_iter().map(experience).collect();
        Ok(ExperienceBatch { version, experiences, kl_coef: 0.0, values_version: snapshot.version })
    }

    fn change(&mut self, _: SettingChange) -> Result<(), RoleError> {
        Ok(())
    }

    fn state(&self) -> Result<Vec<u8>, RoleError> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), RoleError> {
        Ok(())
    }
}

struct FakeText {
    ptx_tokens: usize,
    mishaps: Mishaps,
}

impl PretrainSource for FakeText {
    fn batch(&mut self, _: u64) -> Result<PretrainBatch, RoleError> {
        self.mishaps.strike()?;
        Ok(PretrainBatch { sequences: vec![vec![0; self.ptx_tokens]] })
    }
}

/// Counts its updates.
#[derive(Debug)]
pub(super) struct FakeTrainer {
    version: PolicyVersion,
    takes_text: bool,
    mishaps: Mishaps,
}

impl Trainer<()> for FakeTrainer {
    fn pretrain_batches_per_update(&self) -> usize {
        usize::from(self.takes_text)
    }

    fn update(&mut self, batch: &ExperienceBatch, _: &[PretrainBatch]) -> Result<TrainMetrics, RoleError> {
        // What one that was made anew does again of the past does not fail again.
        if batch.version == self.version {
            self.mishaps.strike()?;
        }
        self.version = batch.version.next();
        Ok(TrainMetrics::default())
    }

    fn change(&mut self, _: SettingChange) -> Result<(), RoleError> {
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot<()>, RoleError> {
        Ok(Snapshot { version: self.version, policy: Arc::new(()), value: Arc::new(()) })
    }

    fn save_state(&self, path: &Path) -> Result<(), RoleError> {
        Ok(fs::write(path, self.version.0.to_string())?)
    }

    fn restore(&mut self, path: &Path) -> Result<(), RoleError> {
        self.version = PolicyVersion(fs::read_to_string(path)?.parse()?);
        Ok(())
    }

    fn checksum(&self) -> Result<u64, RoleError> {
        Ok(self.version.0)
    }
}

struct SeenBySink(Arc<Mutex<Seen>>);

impl RunSink for SeenBySink {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(&update.batch);
        Ok(())
    }
}
