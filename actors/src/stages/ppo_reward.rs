//! What gives PPO its scores: a reward model, which may be replaced while PPO runs, a built-in function, a process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use collimate_models::Device;
use collimate_models::arch::{HeadKind, LoraConfig, ModelConfig, Weights};
use collimate_models::roles::{OwnTokens, RetokenizingScorer, RewardModelScorer};
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::records::{PromptText, RewardModelSince};
use collimate_protocol::roles::{RewardFunction, RewardModels, Unmendable};
use collimate_protocol::{RewardModelId, RoleError};

use super::context::StageError;
use super::inputs::{InputModel, ModelFiles};
use super::ppo_config::{PpoStageConfig, RewardTokens};
use crate::hub;
use crate::rewards::SubprocessReward;
use crate::rundir::reward_summary;

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
    model.ok_or_else(|| StageError::Setting(NO_REWARD.into()))?.scorer(device)
}

impl RewardModel {
    /// As what gives the scores.
    fn scorer(&self, device: &Device) -> Result<Box<dyn RewardFunction>, StageError> {
        let Self { config, weights, own_tokens } = self;
        let weights = weights.to_device(device)?;
        Ok(match own_tokens {
            None => Box::new(RewardModelScorer::new(config, &weights)?),
            Some(tokens) => Box::new(RetokenizingScorer::new(config, &weights, tokens.clone())?),
        })
    }
}

/// Config and tokenizer of the reward model, which must be the policy's tokenizer unless it reads tokens of its own.
pub fn open_reward_model(dir: &Path, sft: &ModelFiles, reads_own: bool) -> Result<ModelFiles, StageError> {
    if reads_own {
        return ModelFiles::open(dir, HeadKind::Scalar);
    }
    open_sharing(dir, &sft.dir.display().to_string(), &sft.tokenizer)
}

/// Config and tokenizer of a reward model that must read the policy's tokens; `policy` names that.
pub fn open_sharing(dir: &Path, policy: &str, tokenizer: &Tokenizer) -> Result<ModelFiles, StageError> {
    let files = ModelFiles::open(dir, HeadKind::Scalar)?;
    // Its ids would mean other words to it than to the policy.
    tokenizer.require_same(policy, &files.tokenizer, &dir.display().to_string()).map_err(|error| {
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

/// The directory of the reward model that gives the scores where PPO begins or goes on: the one that it is given, unless
/// another one took its place before the checkpoint. `None` where something else gives the scores.
pub fn in_force<'a>(
    config: &PpoStageConfig,
    given: Option<&'a Path>,
    replaced: Option<&'a RewardModelSince>,
) -> Option<&'a Path> {
    if config.stage.builtin.is_some() || config.stage.process.is_some() {
        return None;
    }
    replaced.map(|since| since.model.dir.as_path()).or(given)
}

/// What there is to say of a reward model that takes another one's place, where nothing tells that their scores are
/// comparable: Collimate's reward stage shifts the bias so that demonstrations score 0 on average (Ouyang et al. 2022), and
/// leaves its summary beside the model.
pub fn unknown_shift(dir: &Path) -> Option<String> {
    reward_summary::beside(dir).is_none().then(|| {
        format!(
            "nothing beside the reward model in {} tells that demonstrations score 0 on average, as they do by one that \
             `collimate reward` trained: before and after it, scores may differ by a constant",
            dir.display()
        )
    })
}

/// Reads reward models to take the place of the one that PPO began with.
pub struct OtherRewardModels {
    /// The SFT model, whose tokenizer they share unless they read tokens of their own.
    pub sft_files: ModelFiles,
    /// Its weights, on which those stand that are adapters on it.
    pub sft: InputModel,
    /// Where PPO trains adapters.
    pub lora: Option<LoraConfig>,
    /// In whose tokens they read.
    pub tokens: RewardTokens,
    /// What the prompts of a file say, by their tokens.
    pub texts: HashMap<Vec<u32>, PromptText>,
    /// Where they compute.
    pub device: Device,
}

impl OtherRewardModels {
    /// The model, and the hash of its weights.
    fn read(&self, dir: &Path) -> Result<(RewardModel, String), StageError> {
        let reads_own = self.tokens == RewardTokens::Own;
        let files = open_reward_model(dir, &self.sft_files, reads_own)?;
        let tokens = || OwnTokens { tokenizer: files.tokenizer.clone(), prompts: self.texts.clone() };
        let tokens = reads_own.then(tokens).map(Arc::new);
        let model = load_reward_model(&files, &self.sft_files, &self.sft, self.lora.as_ref(), tokens)?;
        let weights = model.weights.digest()?;
        Ok((model, weights))
    }
}

impl RewardModels for OtherRewardModels {
    fn identify(&self, dir: &Path) -> Result<RewardModelId, RoleError> {
        let dir = if hub::is_hub_name(dir) { dir.to_owned() } else { std::path::absolute(dir)? };
        let (_, weights) = self.read(&dir)?;
        Ok(RewardModelId { dir, weights })
    }

    fn load(&self, model: &RewardModelId) -> Result<Box<dyn RewardFunction>, RoleError> {
        let (read, weights) = self.read(&model.dir)?;
        if weights != model.weights {
            let other = format!(
                "the reward model in {} is another one now: its weights are {weights}, and the run took those of {}",
                model.dir.display(),
                model.weights
            );
            // However often it is read again.
            return Err(Unmendable(other.into()).into());
        }
        Ok(read.scorer(&self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use collimate_models::reward::BuiltinReward;
    use collimate_protocol::PolicyVersion;
    use serde_json::Value;

    use super::*;
    use crate::rundir::{StageDir, StageMarker};

    #[test]
    fn only_of_a_model_that_the_reward_stage_trained_is_it_known_where_its_scores_lie() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        let told = unknown_shift(&model).unwrap();
        assert!(told.contains(&model.display().to_string()) && told.contains("differ by a constant"), "{told}");
        let marker = |summary: Value| StageMarker { config: Value::Null, summary };
        let path = StageDir::at(dir.path()).marker();
        marker(serde_json::json!({ "n_updates": 3 })).write(&path).unwrap();
        assert!(unknown_shift(&model).is_some(), "another stage's");
        marker(serde_json::json!({ "bias": -0.25 })).write(&path).unwrap();
        assert_eq!(unknown_shift(&model), None);
    }

    #[test]
    fn the_reward_model_in_force_is_the_given_one_until_another_takes_its_place_and_none_beside_a_function() {
        let mut config = PpoStageConfig::default();
        let given = Some(Path::new("/models/a"));
        let model = RewardModelId { dir: "/models/b".into(), weights: "0f".into() };
        let replaced = RewardModelSince { model, version: PolicyVersion(3) };
        assert_eq!(in_force(&config, None, None), None);
        assert_eq!(in_force(&config, given, None), given);
        assert_eq!(in_force(&config, given, Some(&replaced)), Some(Path::new("/models/b")));
        config.stage.builtin = Some(BuiltinReward::Length { target_tokens: 3 });
        assert_eq!(in_force(&config, given, None), None, "the value model starts from it, and it scores nothing");
    }
}
