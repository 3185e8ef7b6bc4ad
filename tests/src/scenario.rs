//! A flow of fakes, described in numbers.

use std::sync::Arc;

use collimate::flow::{
    Capacities, Factory, FlowConfig, FlowMode, Graph, NoSink, PpoFlow, PromptSupply, RestartConfig, RunSink,
    SamplerFactory,
};
use collimate_protocol::roles::{ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, Sampler};

use crate::fakes::{
    FakeDetokenizer, FakeExperienceMaker, FakePretrain, FakeReference, FakeReward, FakeRewardModels, FakeSampler,
    FakeTrainer, FakeWeights, Lengths, SharedLog,
};
use crate::wrap::{delayed, watched};

/// Steps after which a run of a scenario counts as never ending. The longest ones take some thousands.
const MOST_STEPS: u64 = 1_000_000;

/// A factory of what can always be made.
pub fn boxed<E: ?Sized + Send + 'static>(mut make: impl FnMut() -> Box<E> + Send + 'static) -> Factory<E> {
    Factory::new(move || Ok(make()))
}

/// A flow of fakes.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The flow's settings.
    pub config: FlowConfig,
    /// Different prompts.
    pub n_prompts: usize,
    /// Generators.
    pub n_generators: usize,
    /// Slots of each.
    pub n_slots: usize,
    /// Scorers of each kind.
    pub n_scorers: usize,
    /// Response lengths.
    pub lengths: Lengths,
    /// Share of samples for which the reference returns a NaN, in thousandths.
    pub nan_per_mille: u64,
    /// Batches of pretraining text an update.
    pub n_pretrain: usize,
    /// Longest delay of each worker, in the order of the flow and from the start again where there are more workers.
    /// Empty for none.
    pub delays: Vec<u64>,
    /// Of prompts and delays.
    pub seed: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        let restarts = RestartConfig { most_failures: 0, backoff_s: 0.0, ..RestartConfig::default() };
        let config = FlowConfig {
            n_updates: 4,
            batch_size: 4,
            scorer_batch: 2,
            scorer_waits_for: 1,
            restarts,
            ..FlowConfig::default()
        };
        Self {
            config: FlowConfig { mode: FlowMode::Deterministic, ..config },
            n_prompts: 7,
            n_generators: 1,
            n_slots: 3,
            n_scorers: 1,
            lengths: Lengths { min: 1, max: 9, stragglers_per_mille: 0, straggler_factor: 1 },
            nan_per_mille: 0,
            n_pretrain: 2,
            delays: Vec::new(),
            seed: 11,
        }
    }
}

impl Scenario {
    /// Six updates with two generators and hops so narrow that a role that is gone is soon felt on both sides.
    pub fn narrow(mode: FlowMode) -> Self {
        let mut scenario = Self { n_generators: 2, ..Self::default() };
        scenario.config.mode = mode;
        scenario.config.max_staleness = 2;
        scenario.config.n_updates = 6;
        scenario.config.capacities = Capacities {
            prompts: 2,
            rollouts: 1,
            referenced: 1,
            scored: 1,
            batches: 1,
            pretrain_batches: 1,
            updates: 1,
        };
        scenario
    }

    /// The prompts as the prompt source hands them out.
    pub fn prompts(&self) -> PromptSupply {
        let prompts = (0..self.n_prompts as u32).map(|n| vec![n, n + 1]).collect();
        PromptSupply::new(prompts, self.seed).expect("a scenario has prompts")
    }

    /// The flow's parts, with a sink of the test's own.
    pub fn parts_with_sink(&self, log: &SharedLog, sink: Box<dyn RunSink>) -> PpoFlow<FakeWeights, FakeTrainer> {
        let sampler = |_| {
            let (n_slots, lengths, log) = (self.n_slots, self.lengths, log.clone());
            let factory =
                boxed::<dyn Sampler<FakeWeights>>(move || Box::new(FakeSampler::new(n_slots, lengths, log.clone())));
            SamplerFactory { factory, n_slots }
        };
        let reference = FakeReference { nan_per_mille: self.nan_per_mille };
        let (n_pretrain, trainer_log) = (self.n_pretrain, log.clone());
        PpoFlow {
            prompts: self.prompts(),
            samplers: (0..self.n_generators).map(sampler).collect(),
            references: (0..self.n_scorers)
                .map(|_| boxed::<dyn ReferencePolicy>(move || Box::new(reference)))
                .collect(),
            rewards: (0..self.n_scorers).map(|_| boxed::<dyn RewardFunction>(|| Box::new(FakeReward))).collect(),
            reward_models: Some(Arc::new(FakeRewardModels::default())),
            detokenizer: Arc::new(FakeDetokenizer),
            experience_maker: boxed::<dyn ExperienceMaker<FakeWeights>>(|| Box::new(FakeExperienceMaker::default())),
            pretrain: (self.n_pretrain > 0).then(|| boxed::<dyn PretrainSource>(|| Box::new(FakePretrain))),
            trainer: boxed(move || Box::new(FakeTrainer::new(n_pretrain, trainer_log.clone()))),
            resume: None,
            state_dir: None,
            sink,
        }
    }

    /// The flow's parts.
    pub fn parts(&self, log: &SharedLog) -> PpoFlow<FakeWeights, FakeTrainer> {
        self.parts_with_sink(log, Box::new(NoSink))
    }

    /// The graph, watched and delayed, not yet running.
    pub fn graph(&self, log: &SharedLog) -> Graph<FakeWeights, FakeTrainer> {
        let graph = self.parts(log).wire(&self.config).expect("a scenario's settings make sense");
        let state = graph.state();
        let graph = graph.map_workers(watched(state, &self.config, MOST_STEPS));
        let mut worker_idx = 0;
        graph.map_workers(|worker| {
            let longest = self.delays.get(worker_idx % self.delays.len().max(1)).copied().unwrap_or(0);
            worker_idx += 1;
            delayed(worker, self.seed.wrapping_add(worker_idx as u64), longest)
        })
    }
}
