//! What the examples share: models so small that they train in seconds, and a PPO flow around them.
//!
//! - `stages`: the whole recipe as library calls, on real text (it needs nothing of this file).
//! - `own_reward`: PPO as a library call, with a reward function of your own.
//! - `embed_axum`: a PPO run inside a service of your own.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use collimate::flow::{FlowConfig, NoSink, PpoFlow, PromptSupply};
use collimate_models::arch::{HeadKind, ModelConfig, Weights, scalar_from_language};
use collimate_models::generate::SamplingParams;
use collimate_models::roles::{FrozenReference, PolicySampler, PpoExperienceMaker, PpoLearner, PpoStart};
use collimate_models::tokenizer::Tokenizer;
use collimate_models::train::PpoConfig;
use collimate_models::{Device, rng};
use collimate_protocol::roles::RewardFunction;
use serde_json::json;

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
    pub fn flow(&self, flow: &FlowConfig, reward: Box<dyn RewardFunction>) -> Result<PpoFlow<Weights, PpoLearner>> {
        let device = &Device::Cpu;
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
        let trainer = PpoLearner::new(PpoStart {
            config: &ppo,
            seed: self.seed,
            batch_size: flow.batch_size,
            n_updates: flow.n_updates,
            policy_config: &self.config,
            policy: &self.policy,
            value_config: &self.config,
            value: &self.value,
            device,
        })?;
        Ok(PpoFlow {
            prompts: PromptSupply::new(prompts, self.seed)?,
            samplers: vec![Box::new(PolicySampler::new(self.config.clone(), 16, sampling, self.seed)?)],
            reference: Box::new(FrozenReference::new(&self.config, &self.policy, sampling.temperature)?),
            reward,
            detokenizer: self.tokenizer.clone(),
            experience_maker: Box::new(PpoExperienceMaker::new(&ppo, &self.config, device)?),
            pretrain: None,
            trainer,
            sink: Box::new(NoSink),
        })
    }
}
