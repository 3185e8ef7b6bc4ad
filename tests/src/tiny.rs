//! Real models small enough to train in milliseconds, and a flow of PPO-ptx around them.

use std::path::Path;
use std::sync::Arc;

use collimate::flow::{PpoFlow, PromptSupply, RunSink, SamplerFactory};
use collimate_models::arch::{HeadKind, ModelConfig, Weights};
use collimate_models::data::windows::PretrainWindows;
use collimate_models::generate::{CachePolicy, SamplingParams};
use collimate_models::roles::{
    FrozenReference, PolicySampler, PpoExperienceMaker, PpoLearner, PpoStart, RewardModelScorer,
};
use collimate_models::train::PpoConfig;
use collimate_models::{Device, rng};
use collimate_protocol::roles::{
    ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardModels, Sampler,
};
use collimate_protocol::{RewardModelId, RoleError};
use serde_json::{Value, json};

use crate::fakes::{FakeDetokenizer, hash};
use crate::scenario::boxed;

/// Tokens of the models' vocabulary.
pub const VOCAB_SIZE: u32 = 24;
/// Updates of a run: the learning rate's schedule ends with the last.
pub const N_UPDATES: u64 = 3;
/// Rollouts of an update.
pub const BATCH_SIZE: usize = 6;
/// Of everything.
pub const SEED: u64 = 9;

/// All models of a run, of one shape.
#[derive(Clone)]
pub struct Models {
    /// Their shape.
    pub config: Arc<ModelConfig>,
    /// Of policy and reference.
    pub sft: Weights,
    /// Of reward and value model.
    pub reward: Weights,
    /// What a sampler does with its cache when new weights come.
    pub cache_policy: CachePolicy,
}

impl Models {
    fn new(config: Value) -> Self {
        let config = Arc::new(ModelConfig::from_hf(Path::new("config.json"), config).unwrap());
        let weights = |head, purpose| {
            Weights::initialise(&config, head, &mut rng::for_purpose(SEED, purpose), &Device::Cpu).unwrap()
        };
        let (sft, reward) = (weights(HeadKind::Language, "sft"), weights(HeadKind::Scalar, "reward"));
        Self { config, sft, reward, cache_policy: CachePolicy::Keep }
    }

    /// Each architecture once.
    pub fn each() -> [Self; 2] {
        let gpt2 = json!({
            "model_type": "gpt2", "vocab_size": VOCAB_SIZE, "n_embd": 16, "n_head": 2, "n_layer": 2,
            "n_positions": 32, "eos_token_id": 0, "initializer_range": 0.2,
        });
        let llama = json!({
            "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24,
            "max_position_embeddings": 32, "eos_token_id": 0, "initializer_range": 0.2,
        });
        [Self::new(gpt2), Self::new(llama)]
    }

    /// A sampler.
    pub fn sampler(&self, n_slots: usize) -> PolicySampler {
        let params = SamplingParams { max_new_tokens: 10, ..SamplingParams::default() };
        PolicySampler::new(self.config.clone(), n_slots, params, SEED).unwrap().with_cache(self.cache_policy)
    }

    /// The reference.
    pub fn reference(&self) -> FrozenReference {
        FrozenReference::new(&self.config, &self.sft, 1.0).unwrap()
    }

    /// The reward model.
    pub fn scorer(&self) -> RewardModelScorer {
        RewardModelScorer::new(&self.config, &self.reward).unwrap()
    }

    /// The experience maker.
    pub fn experience_maker(&self) -> PpoExperienceMaker {
        PpoExperienceMaker::new(&objective(), &self.config, &Device::Cpu).unwrap()
    }

    /// The learner at its start.
    pub fn learner(&self) -> PpoLearner {
        PpoLearner::new(PpoStart {
            config: &objective(),
            seed: SEED,
            batch_size: BATCH_SIZE,
            n_updates: N_UPDATES,
            policy_config: &self.config,
            policy: &self.sft,
            value_config: &self.config,
            value: &self.reward,
            device: &Device::Cpu,
        })
        .unwrap()
    }

    /// Their flow: each part can be made again.
    pub fn flow(&self, n_generators: usize, sink: Box<dyn RunSink>) -> PpoFlow<Weights, PpoLearner> {
        // Fewer slots than a batch has rollouts, so that batches of rows change from step to step.
        let sampler = |idx| {
            let (models, n_slots) = (self.clone(), 2 + idx);
            let factory = boxed::<dyn Sampler<Weights>>(move || Box::new(models.sampler(n_slots)));
            SamplerFactory { factory, n_slots }
        };
        let (reference, scorer, maker, learner) = (self.clone(), self.clone(), self.clone(), self.clone());
        PpoFlow {
            prompts: prompts(),
            samplers: (0..n_generators).map(sampler).collect(),
            references: vec![boxed::<dyn ReferencePolicy>(move || Box::new(reference.reference()))],
            rewards: vec![boxed::<dyn RewardFunction>(move || Box::new(scorer.scorer()))],
            reward_models: Some(Arc::new(TinyRewardModels(self.clone()))),
            detokenizer: Arc::new(FakeDetokenizer),
            experience_maker: boxed::<dyn ExperienceMaker<Weights>>(move || Box::new(maker.experience_maker())),
            pretrain: Some(boxed::<dyn PretrainSource>(|| Box::new(text()))),
            trainer: boxed(move || Box::new(learner.learner())),
            resume: None,
            state_dir: None,
            sink,
        }
    }
}

/// Reward models of a run's shape, by name.
struct TinyRewardModels(Models);

impl TinyRewardModels {
    fn weights(&self, dir: &Path) -> Weights {
        let mut rng = rng::for_purpose(SEED, &dir.display().to_string());
        Weights::initialise(&self.0.config, HeadKind::Scalar, &mut rng, &Device::Cpu).unwrap()
    }
}

impl RewardModels for TinyRewardModels {
    fn identify(&self, dir: &Path) -> Result<RewardModelId, RoleError> {
        Ok(RewardModelId { dir: dir.to_owned(), weights: self.weights(dir).digest()? })
    }

    fn load(&self, model: &RewardModelId) -> Result<Box<dyn RewardFunction>, RoleError> {
        if self.identify(&model.dir)? != *model {
            return Err(format!("{model} is another one now").into());
        }
        Ok(Box::new(RewardModelScorer::new(&self.0.config, &self.weights(&model.dir))?))
    }
}

/// PPO's settings: with everything in it that two runs could differ by.
pub fn objective() -> PpoConfig {
    PpoConfig {
        kl_coef: 0.05,
        ptx_coef: 0.5,
        ptx_examples_per_episode: 1.0,
        n_epochs: 2,
        minibatch_size: 4,
        microbatch_tokens: 40,
        lr: 1e-2,
        value_lr: 1e-2,
        warmup_updates: 1,
        ema_decay: 0.9,
        ..PpoConfig::default()
    }
}

/// Prompts of several lengths.
pub fn prompts() -> PromptSupply {
    let prompt = |idx: u64| (0..1 + idx % 4).map(|place| token(&[1, idx, place])).collect();
    PromptSupply::new((0..8).map(prompt).collect(), SEED).unwrap()
}

/// Pretraining text.
pub fn text() -> PretrainWindows {
    let stream: Vec<u32> = (0..200).map(|place| token(&[2, place])).collect();
    PretrainWindows::new(stream, 9, 4, SEED).unwrap()
}

/// A token that does not end a response.
fn token(of: &[u64]) -> u32 {
    1 + (hash(of) % u64::from(VOCAB_SIZE - 1)) as u32
}
