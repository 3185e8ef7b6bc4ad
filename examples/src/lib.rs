//! What the examples share: models so small that they train in seconds, and a PPO flow around them.
//!
//! - `stages`: the whole recipe as library calls, on real text (it needs nothing of this file).
//! - `own_reward`: PPO as a library call, with a reward function of your own.
//! - `embed_axum`: a PPO run inside a service of your own.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use collimate::flow::{Factory, FlowConfig, NoSink, PpoFlow, PromptSupply, SamplerFactory};
use collimate_models::arch::{HeadKind, ModelConfig, Weights, scalar_from_language};
use collimate_models::generate::SamplingParams;
use collimate_models::roles::{FrozenReference, PolicySampler, PpoExperienceMaker, PpoLearner, PpoStart};
use collimate_models::tokenizer::Tokenizer;
use collimate_models::train::PpoConfig;
use collimate_models::{Device, rng};
use collimate_protocol::RoleError;
use collimate_protocol::roles::{ExperienceMaker, ReferencePolicy, RewardFunction, Sampler};
use serde_json::json;

/// Responses that the generator samples at once.
const N_SLOTS: usize = 16;

/// What the policy continues.
pub const PROMPTS: [&str; 8] = [
    "The morning was cold and ",
    "She opened the letter and ",
    "Nobody in the village had ",
    "After the rain the garden ",
    "He had never been so ",
    "At the end of the road ",
    "The old house stood ",
    "They talked about the ",
];

/// Where a run starts: a policy that has learnt nothing, and a value model of the same shape. A real run loads an SFT
/// model and a reward model with `collimate_models::arch::load_model` instead.
#[derive(Clone)]
pub struct TinyModels {
    /// Of all models.
    pub tokenizer: Arc<Tokenizer>,
    /// Shape of all models.
    pub config: Arc<ModelConfig>,
    /// The policy's first weights; the reference keeps them.
    pub policy: Weights,
    /// The value model's first weights.
    pub value: Weights,
    /// Of everything that is random.
    pub seed: u64,
}

impl TinyModels {
    /// Two layers of width 32 over a byte-level vocabulary.
    pub fn new(seed: u64) -> Result<Self> {
        let tokenizer = Tokenizer::train_byte_level_bpe(PROMPTS, 320, &[])?;
        let config = json!({
            "model_type": "gpt2", "vocab_size": tokenizer.vocab_size(), "n_embd": 32, "n_head": 2, "n_layer": 2,
            "n_positions": 64, "bos_token_id": tokenizer.eos(), "eos_token_id": tokenizer.eos(),
        });
        let config = Arc::new(ModelConfig::from_hf(Path::new("config.json"), config)?);
        let mut rng = rng::for_purpose(seed, "tiny models");
        let policy = Weights::initialise(&config, HeadKind::Language, &mut rng, &Device::Cpu)?;
        let value = scalar_from_language(&config, &policy, &mut rng)?;
        Ok(Self { tokenizer: Arc::new(tokenizer), config, policy, value, seed })
    }

    /// Every part of a PPO run but the reward, which is yours.
    pub fn flow(&self, flow: &FlowConfig, reward: Factory<dyn RewardFunction>) -> Result<PpoFlow<Weights, PpoLearner>> {
        // No pretraining text is mixed in: these models have not learnt any that they could forget.
        let ppo = PpoConfig {
            ptx_coef: 0.0,
            kl_coef: 0.002,
            n_epochs: 2,
            minibatch_size: 8,
            lr: 5e-3,
            value_lr: 5e-3,
            warmup_updates: 2,
            ..PpoConfig::default()
        };
        let sampling =
            SamplingParams { temperature: ppo.temperature as f32, max_new_tokens: 16, ..SamplingParams::default() };
        let prompts = PROMPTS.iter().map(|prompt| self.tokenizer.encode(prompt)).collect::<Result<_, _>>()?;
        // Each part is made when it is first needed, and again after a failure.
        let (sampler, reference, maker, learner) = (self.clone(), self.clone(), self.clone(), self.clone());
        let (maker_config, flow) = (ppo.clone(), flow.clone());
        let sampler = Factory::new(move || -> Result<Box<dyn Sampler<Weights>>, RoleError> {
            Ok(Box::new(PolicySampler::new(sampler.config.clone(), N_SLOTS, sampling, sampler.seed)?))
        });
        let reference = Factory::new(move || -> Result<Box<dyn ReferencePolicy>, RoleError> {
            Ok(Box::new(FrozenReference::new(&reference.config, &reference.policy, sampling.temperature)?))
        });
        let experience_maker = Factory::new(move || -> Result<Box<dyn ExperienceMaker<Weights>>, RoleError> {
            Ok(Box::new(PpoExperienceMaker::new(&maker_config, &maker.config, &Device::Cpu)?))
        });
        Ok(PpoFlow {
            prompts: PromptSupply::new(prompts, self.seed)?,
            samplers: vec![SamplerFactory { factory: sampler, n_slots: N_SLOTS }],
            references: vec![reference],
            rewards: vec![reward],
            reward_models: None,
            detokenizer: self.tokenizer.clone(),
            experience_maker,
            pretrain: None,
            trainer: Factory::new(move || {
                Ok(Box::new(PpoLearner::new(PpoStart {
                    config: &ppo,
                    seed: learner.seed,
                    batch_size: flow.batch_size,
                    n_updates: flow.n_updates,
                    policy_config: &learner.config,
                    policy: &learner.policy,
                    value_config: &learner.config,
                    value: &learner.value,
                    device: &Device::Cpu,
                })?))
            }),
            resume: None,
            state_dir: None,
            sink: Box::new(NoSink),
        })
    }
}
