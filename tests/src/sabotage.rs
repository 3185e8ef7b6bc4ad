//! What computes behind a role, made to fail: unlike a worker that is made to fail, it is lost and made anew.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use collimate::flow::{Factory, FlowOutcome, PpoFlow, SamplerFactory};
use collimate_protocol::records::TrainMetrics;
use collimate_protocol::roles::{
    ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardRequest, Sampler, Trainer,
};
use collimate_protocol::{
    ExperienceBatch, PolicyVersion, PretrainBatch, Prompt, Role, RoleError, Rollout, ScoredRollout, SettingChange,
    Snapshot,
};

use crate::wrap::Fault;

/// When what computes behind a role fails, counted over all that are made: at the calls from `first` on, `n_times`.
#[derive(Clone, Debug)]
pub struct Sabotage {
    fault: Fault,
    first: u64,
    n_times: u64,
    n_calls: Arc<AtomicU64>,
}

impl Sabotage {
    /// Lets the first calls pass, then fails.
    pub fn new(fault: Fault, first: u64, n_times: u64) -> Self {
        Self { fault, first, n_times, n_calls: Arc::default() }
    }

    /// Whether it has struck.
    pub fn has_struck(&self) -> bool {
        self.n_calls.load(Ordering::Relaxed) > self.first
    }

    fn strike(&self) -> Result<(), RoleError> {
        let n = self.n_calls.fetch_add(1, Ordering::Relaxed);
        if !(self.first..self.first + self.n_times).contains(&n) {
            return Ok(());
        }
        match self.fault {
            Fault::Panic => resume_unwind(Box::new("injected panic")),
            Fault::Error => Err("injected error".into()),
            Fault::Stall | Fault::Hang => loop {
                std::thread::park();
            },
        }
    }
}

struct Sabotaged<E: ?Sized> {
    engine: Box<E>,
    sabotage: Sabotage,
}

impl<W: 'static> Sampler<W> for Sabotaged<dyn Sampler<W>> {
    fn load(&mut self, snapshot: &Snapshot<W>) -> Result<(), RoleError> {
        self.engine.load(snapshot)
    }

    fn n_free_slots(&self) -> usize {
        self.engine.n_free_slots()
    }

    fn n_running(&self) -> usize {
        self.engine.n_running()
    }

    fn admit(&mut self, prompt: Prompt) -> Result<(), RoleError> {
        self.engine.admit(prompt)
    }

    fn step(&mut self) -> Result<Vec<Rollout>, RoleError> {
        // After the step: what it has sampled is lost.
        let ended = self.engine.step()?;
        self.sabotage.strike()?;
        Ok(ended)
    }
}

impl ReferencePolicy for Sabotaged<dyn ReferencePolicy> {
    fn logprobs(&mut self, rollouts: &[Rollout]) -> Result<Vec<Vec<f32>>, RoleError> {
        self.sabotage.strike()?;
        self.engine.logprobs(rollouts)
    }
}

impl RewardFunction for Sabotaged<dyn RewardFunction> {
    fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
        self.sabotage.strike()?;
        self.engine.scores(requests)
    }
}

impl<W: 'static> ExperienceMaker<W> for Sabotaged<dyn ExperienceMaker<W>> {
    fn assemble(
        &mut self,
        version: PolicyVersion,
        rollouts: Vec<ScoredRollout>,
        snapshot: &Snapshot<W>,
    ) -> Result<ExperienceBatch, RoleError> {
        // After the batch: what it has learned from it is lost.
        let batch = self.engine.assemble(version, rollouts, snapshot)?;
        self.sabotage.strike()?;
        Ok(batch)
    }

    fn change(&mut self, change: SettingChange) -> Result<(), RoleError> {
        self.engine.change(change)
    }

    fn state(&self) -> Result<Vec<u8>, RoleError> {
        self.engine.state()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RoleError> {
        self.engine.restore(state)
    }
}

impl PretrainSource for Sabotaged<dyn PretrainSource> {
    fn batch(&mut self, idx: u64) -> Result<PretrainBatch, RoleError> {
        self.sabotage.strike()?;
        self.engine.batch(idx)
    }
}

/// A trainer that may fail.
#[derive(Debug)]
pub struct SabotagedTrainer<T> {
    /// The trainer.
    pub trainer: T,
    sabotage: Option<Sabotage>,
}

impl<W, T: Trainer<W>> Trainer<W> for SabotagedTrainer<T> {
    fn pretrain_batches_per_update(&self) -> usize {
        self.trainer.pretrain_batches_per_update()
    }

    fn update(&mut self, batch: &ExperienceBatch, pretrain: &[PretrainBatch]) -> Result<TrainMetrics, RoleError> {
        // After the update: the weights have changed, and are lost.
        let metrics = self.trainer.update(batch, pretrain)?;
        self.sabotage.as_ref().map_or(Ok(()), Sabotage::strike)?;
        Ok(metrics)
    }

    fn change(&mut self, change: SettingChange) -> Result<(), RoleError> {
        self.trainer.change(change)
    }

    fn snapshot(&self) -> Result<Snapshot<W>, RoleError> {
        self.trainer.snapshot()
    }

    fn save_state(&self, path: &Path) -> Result<(), RoleError> {
        self.trainer.save_state(path)
    }

    fn restore(&mut self, path: &Path) -> Result<(), RoleError> {
        self.trainer.restore(path)
    }

    fn checksum(&self) -> Result<u64, RoleError> {
        self.trainer.checksum()
    }
}

/// The flow, with what computes behind `role` made to fail.
pub fn sabotaged<W, T>(flow: PpoFlow<W, T>, role: Role, sabotage: &Sabotage) -> PpoFlow<W, SabotagedTrainer<T>>
where
    W: Send + Sync + 'static,
    T: Trainer<W> + 'static,
{
    let PpoFlow {
        prompts,
        samplers,
        references,
        rewards,
        reward_models,
        detokenizer,
        experience_maker,
        pretrain,
        trainer,
        resume,
        state_dir,
        sink,
    } = flow;
    let on = |its_role| (role == its_role).then(|| sabotage.clone());
    let sampler = |sampler: SamplerFactory<W>| SamplerFactory {
        factory: around(sampler.factory, on(Role::Generator), |engine, sabotage| {
            Box::new(Sabotaged { engine, sabotage })
        }),
        n_slots: sampler.n_slots,
    };
    let trainer_sabotage = on(Role::Learner);
    PpoFlow {
        prompts,
        samplers: samplers.into_iter().map(sampler).collect(),
        references: references
            .into_iter()
            .map(|f| around(f, on(Role::ReferenceScorer), |engine, sabotage| Box::new(Sabotaged { engine, sabotage })))
            .collect(),
        rewards: rewards
            .into_iter()
            .map(|f| around(f, on(Role::RewardScorer), |engine, sabotage| Box::new(Sabotaged { engine, sabotage })))
            .collect(),
        reward_models,
        detokenizer,
        experience_maker: around(experience_maker, on(Role::ExperienceBuffer), |engine, sabotage| {
            Box::new(Sabotaged { engine, sabotage })
        }),
        pretrain: pretrain
            .map(|f| around(f, on(Role::PretrainMixer), |engine, sabotage| Box::new(Sabotaged { engine, sabotage }))),
        trainer: Factory::new(move || {
            Ok(Box::new(SabotagedTrainer { trainer: *trainer.make()?, sabotage: trainer_sabotage.clone() }))
        }),
        resume,
        state_dir,
        sink,
    }
}

fn around<E: ?Sized + Send + 'static>(
    factory: Factory<E>,
    sabotage: Option<Sabotage>,
    wrap: fn(Box<E>, Sabotage) -> Box<E>,
) -> Factory<E> {
    let Some(sabotage) = sabotage else { return factory };
    Factory::new(move || Ok(wrap(factory.make()?, sabotage.clone())))
}

/// The outcome as it would have been of the flow itself.
pub fn unwrapped<W, T>(outcome: FlowOutcome<W, SabotagedTrainer<T>>) -> FlowOutcome<W, T> {
    let FlowOutcome { version, tickets, stopped, n_sink_failures, reward_model, elapsed_s, snapshot, trainer } =
        outcome;
    let trainer = trainer.trainer;
    FlowOutcome { version, tickets, stopped, n_sink_failures, reward_model, elapsed_s, snapshot, trainer }
}
