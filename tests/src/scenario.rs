//! A flow of fakes, described in numbers.

use std::sync::Arc;

use collimate::flow::{Capacities, FlowConfig, FlowMode, Graph, NoSink, PpoFlow, PromptSupply, RunSink};
use collimate_protocol::roles::{PretrainSource, Sampler};

use crate::fakes::{
    FakeDetokenizer, FakeExperienceMaker, FakePretrain, FakeReference, FakeReward, FakeSampler, FakeTrainer,
    FakeWeights, Lengths, SharedLog,
};
use crate::wrap::{delayed, watched};

/// Steps after which a run of a scenario counts as never ending. The longest ones take some thousands.
const MOST_STEPS: u64 = 1_000_000;

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
        let config = FlowConfig { n_updates: 4, batch_size: 4, scorer_batch: 2, ..FlowConfig::default() };
        Self {
            config: FlowConfig { mode: FlowMode::Deterministic, ..config },
            n_prompts: 7,
            n_generators: 1,
            n_slots: 3,
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
        let sampler = |_| -> Box<dyn Sampler<FakeWeights>> {
            Box::new(FakeSampler::new(self.n_slots, self.lengths, log.clone()))
        };
        PpoFlow {
            prompts: self.prompts(),
            samplers: (0..self.n_generators).map(sampler).collect(),
            reference: Box::new(FakeReference { nan_per_mille: self.nan_per_mille }),
            reward: Box::new(FakeReward),
            detokenizer: Arc::new(FakeDetokenizer),
            experience_maker: Box::new(FakeExperienceMaker),
            pretrain: (self.n_pretrain > 0).then(|| Box::new(FakePretrain::default()) as Box<dyn PretrainSource>),
            trainer: FakeTrainer::new(self.n_pretrain, log.clone()),
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
