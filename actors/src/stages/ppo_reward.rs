//! What gives PPO its scores: a reward model, a built-in function, a process.

use std::path::Path;
use std::sync::Arc;

use collimate_models::Device;
use collimate_models::arch::{HeadKind, LoraConfig, ModelConfig, Weights};
use collimate_models::roles::{OwnTokens, RetokenizingScorer, RewardModelScorer};
use collimate_protocol::roles::RewardFunction;

use super::context::StageError;
use super::inputs::{InputModel, ModelFiles};
use super::ppo_config::PpoStageConfig;
use crate::rewards::SubprocessReward;

/// A reward model as it scores.
#[derive(Clone)]
pub struct RewardModel {
    /// Its shape.
    pub config: Arc<ModelConfig>,
    /// Its weights.
    pub weights: Weights,
    /// Where it reads in tokens of its own.
    pub own_tokens: Option<Arc<OwnTokens>>,
}

/// What is said where nothing gives scores.
pub const NO_REWARD: &str = "[ppo] has nothing that gives scores: give it a `reward_model`, a [reward] stage before it, a \
                         [ppo.builtin] table or a [ppo.process] table";

/// Makes what gives the scores.
pub fn make_reward(
    config: &PpoStageConfig,
    model: Option<&RewardModel>,
    device: &Device,
) -> Result<Box<dyn RewardFunction>, StageError> {
    if let Some(builtin) = &config.stage.builtin {
        return Ok(builtin.build()?);
    }
    if let Some(process) = &config.stage.process {
        let process = SubprocessReward::start(process).map_err(|error| StageError::Role(error.into()))?;
        return Ok(Box::new(process));
    }
    let RewardModel { config, weights, own_tokens } = model.ok_or_else(|| StageError::Setting(NO_REWARD.into()))?;
    let weights = weights.to_device(device)?;
    Ok(match own_tokens {
        None => Box::new(RewardModelScorer::new(config, &weights)?),
        Some(tokens) => Box::new(RetokenizingScorer::new(config, &weights, tokens.clone())?),
    })
}

/// Config and tokenizer of the reward model, which must be the policy's tokenizer unless it reads tokens of its own.
pub fn open_reward_model(dir: &Path, sft: &ModelFiles, reads_own: bool) -> Result<ModelFiles, StageError> {
    let files = ModelFiles::open(dir, HeadKind::Scalar)?;
    if reads_own {
        return Ok(files);
    }
    // Its ids would mean other words to it than to the policy.
    let (this, other) = (sft.dir.display().to_string(), dir.display().to_string());
    sft.tokenizer.require_same(&this, &files.tokenizer, &other).map_err(|error| {
        StageError::Setting(format!("{error}; with ppo.reward_tokens = \"own\" the reward model reads the text anew"))
    })?;
    Ok(files)
}

/// The reward model: on the SFT model's weights where it is an adapter on that and the stage trains adapters.
pub fn load_reward_model(
    files: &ModelFiles,
    sft_files: &ModelFiles,
    sft: &InputModel,
    lora: Option<&LoraConfig>,
    own_tokens: Option<Arc<OwnTokens>>,
) -> Result<RewardModel, StageError> {
    if lora.is_some()
        && files.stands_on(sft_files)
        && let Some(weights) = sft.with_adapters_of(files)?
    {
        return Ok(RewardModel { config: sft.config.clone(), weights, own_tokens });
    }
    let mut model = files.load(sft.weights.device(), sft.weights.precision())?;
    if lora.is_some() {
        model = model.into_base()?;
    }
    Ok(RewardModel { config: model.config, weights: model.weights, own_tokens })
}
