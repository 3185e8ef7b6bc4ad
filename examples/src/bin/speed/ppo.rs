//! Updates of PPO on the threaded flow.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Result, anyhow};
use collimate::flow::{
    Factory, FlowConfig, FlowMode, PpoFlow, PromptSupply, RoleThreads, RunSink, SamplerFactory, TrainedUpdate,
};
use collimate::process;
use collimate_models::arch::{HeadKind, ModelConfig, Weights};
use collimate_models::generate::SamplingParams;
use collimate_models::roles::{
    FrozenReference, PolicySampler, PpoExperienceMaker, PpoLearner, PpoStart, RewardModelScorer,
};
use collimate_models::train::PpoConfig;
use collimate_models::{Device, rng};
use collimate_protocol::RoleError;
use collimate_protocol::roles::{Detokenizer, ExperienceMaker, ReferencePolicy, RewardFunction, Sampler};

/// Rollouts of an update, which is one epoch with one optimiser step.
const BATCH: usize = 32;
const PROMPT_LEN: usize = 32;
const RESPONSE_LEN: usize = 32;
/// Rollouts of a pass with its backward pass.
const MICROBATCH: usize = 8;
const SEED: u64 = 1;

/// Seconds of each update after the first, and the process' memory after it, with policy, value, reference and reward model
/// of this shape.
pub fn updates(
    config: &Arc<ModelConfig>,
    n_updates: usize,
    max_staleness: u64,
    n_threads: usize,
) -> Result<(Vec<f64>, Vec<u64>)> {
    let of = |head, purpose| Weights::initialise(config, head, &mut rng::for_purpose(SEED, purpose), &Device::Cpu);
    let (policy, scalar) = (of(HeadKind::Language, "policy")?, of(HeadKind::Scalar, "reward model")?);
    let objective = PpoConfig {
        minibatch_size: BATCH,
        microbatch_tokens: MICROBATCH * (PROMPT_LEN + RESPONSE_LEN),
        n_epochs: 1,
        ptx_coef: 0.0,
        ema_decay: 0.0,
        ..PpoConfig::default()
    };
    let flow_config = FlowConfig {
        mode: FlowMode::Threaded,
        n_updates: n_updates as u64 + 1,
        batch_size: BATCH,
        max_staleness,
        threads: RoleThreads {
            generator: n_threads,
            reference_scorer: n_threads,
            reward_scorer: n_threads,
            experience_buffer: n_threads,
            learner: n_threads,
        },
        ..FlowConfig::default()
    };
    let params = SamplingParams { max_new_tokens: RESPONSE_LEN, ..SamplingParams::default() };
    let updated = Arc::new(Mutex::new(Vec::new()));
    let prompts = (0..256).map(|seed| super::tokens(config, PROMPT_LEN, seed)).collect();
    let flow = PpoFlow {
        prompts: PromptSupply::new(prompts, SEED)?,
        samplers: vec![SamplerFactory { factory: sampler(config, params), n_slots: BATCH }],
        references: vec![reference(config, &policy)],
        rewards: vec![reward(config, &scalar)],
        reward_models: None,
        detokenizer: Arc::new(NoText),
        experience_maker: maker(config, &objective),
        pretrain: None,
        trainer: trainer(config, &objective, &flow_config, (policy, scalar)),
        resume: None,
        state_dir: None,
        sink: Box::new(Stopwatch(updated.clone())),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { flow.start(&flow_config).await?.wait().await }).map_err(|error| anyhow!("{error}"))?;
    let updated = updated.lock().map_err(|_| anyhow!("the flow panicked"))?;
    let seconds = updated.windows(2).map(|pair: &[Done]| (pair[1].at - pair[0].at).as_secs_f64()).collect();
    Ok((seconds, updated.iter().skip(1).map(|done| done.memory).collect()))
}

fn sampler(config: &Arc<ModelConfig>, params: SamplingParams) -> Factory<dyn Sampler<Weights>> {
    let config = config.clone();
    Factory::new(move || Ok(Box::new(PolicySampler::new(config.clone(), BATCH, params, SEED)?) as Box<_>))
}

fn reference(config: &Arc<ModelConfig>, weights: &Weights) -> Factory<dyn ReferencePolicy> {
    let (config, weights) = (config.clone(), weights.clone());
    Factory::new(move || Ok(Box::new(FrozenReference::new(&config, &weights, 1.0)?) as Box<_>))
}

fn reward(config: &Arc<ModelConfig>, weights: &Weights) -> Factory<dyn RewardFunction> {
    let (config, weights) = (config.clone(), weights.clone());
    Factory::new(move || Ok(Box::new(RewardModelScorer::new(&config, &weights)?) as Box<_>))
}

fn maker(config: &Arc<ModelConfig>, objective: &PpoConfig) -> Factory<dyn ExperienceMaker<Weights>> {
    let (config, objective) = (config.clone(), objective.clone());
    Factory::new(move || Ok(Box::new(PpoExperienceMaker::new(&objective, &config, &Device::Cpu)?) as Box<_>))
}

fn trainer(
    config: &Arc<ModelConfig>,
    objective: &PpoConfig,
    flow: &FlowConfig,
    (policy, value): (Weights, Weights),
) -> Factory<PpoLearner> {
    let (config, objective, flow) = (config.clone(), objective.clone(), flow.clone());
    Factory::new(move || {
        let start = PpoStart {
            config: &objective,
            seed: SEED,
            batch_size: flow.batch_size,
            n_updates: flow.n_updates,
            policy_config: &config,
            policy: &policy,
            value_config: &config,
            value: &value,
            device: &Device::Cpu,
        };
        Ok(Box::new(PpoLearner::new(start)?))
    })
}

/// The reward model reads tokens.
struct NoText;

impl Detokenizer for NoText {
    fn decode(&self, _: &[u32]) -> Result<String, RoleError> {
        Ok(String::new())
    }
}

/// When an update was done, and the process' memory then.
struct Done {
    at: Instant,
    memory: u64,
}

/// Looks at each update.
struct Stopwatch(Arc<Mutex<Vec<Done>>>);

impl RunSink for Stopwatch {
    fn updated(&mut self, _: &TrainedUpdate) -> Result<(), RoleError> {
        let done = Done { at: Instant::now(), memory: process::memory_in_use() };
        self.0.lock().map_err(|_| RoleError::from("a thread panicked"))?.push(done);
        Ok(())
    }
}
