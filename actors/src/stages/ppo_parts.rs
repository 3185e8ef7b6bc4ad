//! What PPO is made of: models, prompts, text and scores, from the stage's settings.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use collimate_models::Device;
use collimate_models::arch::{HeadKind, LoraConfig, ModelConfig, Weights, scalar_from_language};
use collimate_models::data::corpus::Split;
use collimate_models::data::limit::TooLong;
use collimate_models::data::windows::{PretrainWindows, consecutive_windows};
use collimate_models::generate::CachePolicy;
use collimate_models::rng;
use collimate_models::roles::{FrozenReference, OwnTokens, PolicySampler, PpoExperienceMaker, PpoLearner, PpoStart};
use collimate_models::train::LmExample;
use collimate_protocol::records::PromptText;
use collimate_protocol::roles::{
    ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardModels, Sampler,
};

use super::context::{StageContext, StageError};
use super::inputs::{InputModel, ModelFiles, load_corpus};
use super::memory::{self, PromptLengths};
use super::ppo_config::{PpoSetup, PpoStageConfig, RewardTokens, RoleDevices};
use super::ppo_prompts::{Prompts, load_prompts};
use super::ppo_reward::{NO_REWARD, OtherRewardModels, RewardModel, load_reward_model, make_reward, open_reward_model};
use super::recipe::{CorpusConfig, DeviceName};
use crate::device;
use crate::flow::{Checkpoint, Factory, PpoFlow, PromptSupply, RunSink, SamplerFactory, WeightUpdates};
use crate::rundir::StageDir;

/// The flow that the stage runs.
pub type StageFlow = PpoFlow<Weights, PpoLearner>;

/// Everything that PPO and its evaluation read, loaded and checked.
pub struct PpoParts {
    /// Where the SFT model was read from.
    pub files: ModelFiles,
    /// The SFT model; a base where the stage trains adapters.
    pub sft: InputModel,
    /// The policy as it starts: the SFT model, with fresh adapters where the stage trains those; or one that was trained
    /// before.
    policy: Weights,
    /// The value model as it starts.
    value: (Arc<ModelConfig>, Weights),
    /// The same tokenizer, for those who keep it.
    pub tokenizer: Arc<collimate_models::tokenizer::Tokenizer>,
    /// The reward model, where there is one.
    reward_model: Option<RewardModel>,
    /// What the prompts of a file say, by their tokens.
    texts: HashMap<Vec<u32>, PromptText>,
    /// Prompts to sample from.
    pub prompts: Vec<Vec<u32>>,
    /// Prompts that both policies are judged on.
    pub heldout_prompts: Vec<Vec<u32>>,
    /// Text that both policies are judged on; empty without a corpus.
    pub heldout_text: Vec<LmExample>,
    /// Pretraining text, where PPO-ptx needs it.
    ptx_stream: Option<Arc<[u32]>>,
    devices: Devices,
}

/// [`RoleDevices`], opened.
struct Devices {
    /// Of roles without their own.
    default: Device,
    generators: Vec<Device>,
    reference: Device,
    reward_model: Device,
    values: Device,
    learner: Device,
}

impl Devices {
    fn open(config: &RoleDevices, default: &Device) -> Result<Self, StageError> {
        if config.generators.is_empty() {
            return Err(StageError::Setting("ppo.devices.generators names no device".into()));
        }
        let open = |name: &Option<DeviceName>| -> Result<Device, StageError> {
            name.as_ref().map_or(Ok(default.clone()), |name| Ok(device::open(&name.0)?))
        };
        Ok(Self {
            default: default.clone(),
            generators: config.generators.iter().map(|name| device::open(&name.0)).collect::<Result<_, _>>()?,
            reference: open(&config.reference)?,
            reward_model: open(&config.reward_model)?,
            values: open(&config.values)?,
            learner: open(&config.learner)?,
        })
    }
}

impl PpoParts {
    /// Loads what the settings name.
    pub fn load(
        config: &PpoStageConfig,
        sft: &Path,
        reward_model: Option<&Path>,
        corpus: Option<&CorpusConfig>,
        context: &mut StageContext<'_>,
    ) -> Result<Self, StageError> {
        check(config, reward_model)?;
        let devices = Devices::open(&config.stage.devices, &context.device)?;
        let lora = config.stage.lora.as_ref();
        let files = ModelFiles::open(sft, HeadKind::Language)?;
        let reads_own = config.stage.reward_tokens == RewardTokens::Own;
        let reward_files = reward_model.map(|dir| open_reward_model(dir, &files, reads_own)).transpose()?;
        let cut = corpus.map(|_| load_corpus(corpus, &files.tokenizer, "[ppo]")).transpose()?;
        let Prompts { train: prompts, heldout: heldout_prompts, texts } =
            load_prompts(config, &files, corpus, cut.as_ref(), context.observer)?;
        let needs_text = config.objective.ptx_sequences_per_step() > 0;
        let ptx_stream = match &cut {
            Some(cut) if needs_text => Some(Arc::from(cut.token_stream(Split::Train))),
            None if needs_text => {
                return Err(StageError::Setting(format!(
                    "ppo.ptx_coef is {}, but there is no [corpus] table with text to mix in; add one, or set \
                     ppo.ptx_coef to 0",
                    config.objective.ptx_coef
                )));
            }
            _ => None,
        };
        let heldout_text = match &cut {
            None => Vec::new(),
            Some(cut) => {
                let stream = cut.token_stream(Split::Heldout);
                consecutive_windows(&stream, config.stage.ptx_seq_len, config.stage.evaluate.n_sequences)?
                    .into_iter()
                    .map(LmExample::text)
                    .collect()
            }
        };
        let lengths = PromptLengths::of(prompts.iter().chain(&heldout_prompts));
        context.check_memory(memory::of_ppo(config, &files, reward_files.as_ref(), lengths, &devices.default)?)?;

        let mut sft = files.load(&context.device, context.precision)?;
        if lora.is_some() {
            sft = sft.into_base()?;
        }
        let reward_model = match reward_files {
            None => None,
            Some(of_it) => {
                let tokens = || OwnTokens { tokenizer: of_it.tokenizer.clone(), prompts: texts.clone() };
                Some(load_reward_model(&of_it, &files, &sft, lora, reads_own.then(tokens).map(Arc::new))?)
            }
        };
        let policy = match &config.stage.policy {
            None => start(&sft.config, HeadKind::Language, &sft.weights, lora, context.seed)?,
            Some(dir) => go_on_from(dir, HeadKind::Language, "ppo.policy", &files, &sft, lora)?.1,
        };
        let (value_config, value) = match (&config.stage.value_model, &reward_model) {
            (Some(dir), _) => go_on_from(dir, HeadKind::Scalar, "ppo.value_model", &files, &sft, lora)?,
            (None, Some(RewardModel { config, weights, own_tokens: None })) => (config.clone(), weights.clone()),
            (None, _) => {
                let mut rng = rng::for_purpose(context.seed, "scalar head");
                (sft.config.clone(), scalar_from_language(&sft.config, &sft.weights, &mut rng)?)
            }
        };
        let value = start(&value_config, HeadKind::Scalar, &value, lora, context.seed)?;
        let value = (value_config, value);
        let tokenizer = Arc::new(files.tokenizer.clone());
        Ok(Self {
            files,
            sft,
            policy,
            value,
            tokenizer,
            reward_model,
            texts,
            prompts,
            heldout_prompts,
            heldout_text,
            ptx_stream,
            devices,
        })
    }
    /// The frozen SFT model, as reference.
    pub fn reference(&self, config: &PpoStageConfig) -> Result<FrozenReference, StageError> {
        let weights = self.sft.weights.to_device(&self.devices.reference)?;
        Ok(FrozenReference::new(&self.sft.config, &weights, config.objective.temperature as f32)?)
    }

    /// The value model's shape.
    pub fn value_config(&self) -> &Arc<ModelConfig> {
        &self.value.0
    }

    /// What reads reward models that take the place of the first; `None` where the scores come from something else.
    pub fn reward_models(&self, config: &PpoStageConfig) -> Option<Arc<dyn RewardModels>> {
        let PpoSetup { builtin, process, lora, reward_tokens, .. } = &config.stage;
        if self.reward_model.is_none() || builtin.is_some() || process.is_some() {
            return None;
        }
        Some(Arc::new(OtherRewardModels {
            sft_files: self.files.clone(),
            sft: self.sft.clone(),
            lora: lora.clone(),
            tokens: *reward_tokens,
            texts: self.texts.clone(),
            device: self.devices.reward_model.clone(),
        }))
    }

    /// What gives the scores: each call makes another.
    pub fn reward(&self, config: &PpoStageConfig) -> Result<Box<dyn RewardFunction>, StageError> {
        make_reward(config, self.reward_model.as_ref(), &self.devices.reward_model)
    }

    /// Joins the roles, to go on from a checkpoint or to start anew. Each is made when it is first needed, and again after a failure.
    pub fn flow(
        &self,
        config: &PpoStageConfig,
        sink: Box<dyn RunSink>,
        resume: Option<Checkpoint>,
        context: &StageContext<'_>,
    ) -> Result<StageFlow, StageError> {
        let PpoStageConfig { stage, flow, objective } = config;
        let (value_config, value) = self.value.clone();
        let (sft, seed) = (self.sft.config.clone(), context.seed);
        let params = config.sampling();
        let sampler = |device: &Device| {
            let (sft, device, n_slots) = (sft.clone(), device.clone(), stage.n_slots);
            let cache_policy = stage.in_flight_cache;
            let factory = Factory::new(move || {
                let sampler = PolicySampler::new(sft.clone(), n_slots, params, seed)?;
                Ok(Box::new(sampler.on(&device).with_cache(cache_policy)) as Box<dyn Sampler<Weights>>)
            });
            SamplerFactory { factory, n_slots }
        };
        let devices = self.devices.generators.iter().cycle().take(stage.n_generators);
        let references = (0..stage.n_reference_scorers).map(|_| {
            let (sft, weights, device) = (sft.clone(), self.sft.weights.clone(), self.devices.reference.clone());
            let temperature = objective.temperature as f32;
            Factory::new(move || {
                let reference = FrozenReference::new(&sft, &weights.to_device(&device)?, temperature)?;
                Ok(Box::new(reference) as Box<dyn ReferencePolicy>)
            })
        });
        let rewards = (0..stage.n_reward_scorers).map(|_| {
            let (config, model) = (config.clone(), self.reward_model.clone());
            let device = self.devices.reward_model.clone();
            Factory::new(move || Ok(make_reward(&config, model.as_ref(), &device)?))
        });
        let experience_maker = {
            let (objective, values, device) = (objective.clone(), value_config.clone(), self.devices.values.clone());
            Factory::new(move || {
                let maker = PpoExperienceMaker::new(&objective, &values, &device)?;
                Ok(Box::new(maker) as Box<dyn ExperienceMaker<Weights>>)
            })
        };
        let pretrain = self.ptx_stream.clone().map(|stream| {
            let (seq_len, n_sequences) = (stage.ptx_seq_len, objective.ptx_sequences_per_step());
            Factory::new(move || {
                let windows = PretrainWindows::new(stream.clone(), seq_len, n_sequences, seed)?;
                Ok(Box::new(windows) as Box<dyn PretrainSource>)
            })
        });
        let trainer = {
            let (objective, flow, device) = (objective.clone(), flow.clone(), self.devices.learner.clone());
            let (sft, policy) = (sft.clone(), self.policy.clone());
            Factory::new(move || {
                let learner = PpoLearner::new(PpoStart {
                    config: &objective,
                    seed,
                    batch_size: flow.batch_size,
                    n_updates: flow.n_updates,
                    policy_config: &sft,
                    policy: &policy,
                    value_config: &value_config,
                    value: &value,
                    device: &device,
                })?;
                Ok(Box::new(learner))
            })
        };
        Ok(PpoFlow {
            prompts: PromptSupply::new(self.prompts.clone(), seed)?,
            samplers: devices.map(sampler).collect(),
            references: references.collect(),
            rewards: rewards.collect(),
            reward_models: self.reward_models(config),
            detokenizer: self.tokenizer.clone(),
            experience_maker,
            pretrain,
            trainer,
            resume,
            state_dir: Some(StageDir::at(&context.out_dir).checkpoints()),
            sink,
        })
    }
}

/// What can be refused before any model is read.
fn check(config: &PpoStageConfig, reward_model: Option<&Path>) -> Result<(), StageError> {
    let PpoStageConfig { stage, flow, objective } = config;
    objective.validate()?;
    flow.validate()?;
    let at_least_1 = [
        ("max_new_tokens", stage.max_new_tokens),
        ("n_generators", stage.n_generators),
        ("n_reference_scorers", stage.n_reference_scorers),
        ("n_reward_scorers", stage.n_reward_scorers),
        ("n_slots", stage.n_slots),
        ("evaluate.n_prompts", stage.evaluate.n_prompts),
        ("evaluate.n_sequences", stage.evaluate.n_sequences),
    ];
    if let Some((key, _)) = at_least_1.iter().find(|(_, n)| *n == 0) {
        return Err(StageError::Setting(format!("ppo.{key} is 0, it must be at least 1")));
    }
    if stage.too_long == TooLong::Truncate {
        return Err(StageError::Setting(
            "ppo.too_long is \"truncate\", but half a prompt is another prompt: take \"drop\" or \"refuse\"".into(),
        ));
    }
    if flow.weight_updates == WeightUpdates::BetweenRollouts && stage.in_flight_cache != CachePolicy::default() {
        return Err(StageError::Setting(
            "ppo.in_flight_cache has no effect with ppo.weight_updates = \"between_rollouts\": remove it".into(),
        ));
    }
    match (reward_model, &stage.builtin, &stage.process) {
        (_, Some(_), Some(_)) => {
            Err(StageError::Setting("[ppo.builtin] and [ppo.process] both give scores: keep one of them".into()))
        }
        (None, None, None) => Err(StageError::Setting(NO_REWARD.into())),
        _ => Ok(()),
    }
}

/// Where a model starts: from these weights as they are, or from adapters on them.
fn start(
    config: &ModelConfig,
    head: HeadKind,
    weights: &Weights,
    lora: Option<&LoraConfig>,
    seed: u64,
) -> Result<Weights, StageError> {
    match lora {
        Some(lora) if !weights.has_adapters() => {
            let purpose = format!("adapters of PPO, {head:?}");
            Ok(weights.adapted(config, head, lora, &mut rng::for_purpose(seed, &purpose))?)
        }
        _ => Ok(weights.clone()),
    }
}

/// A model that an earlier run has trained, to be trained on: by adapters, if it is one on the SFT model.
fn go_on_from(
    dir: &Path,
    head: HeadKind,
    key: &str,
    sft_files: &ModelFiles,
    sft: &InputModel,
    lora: Option<&LoraConfig>,
) -> Result<(Arc<ModelConfig>, Weights), StageError> {
    let files = ModelFiles::open(dir, head)?;
    let (this, other) = (sft_files.dir.display().to_string(), dir.display().to_string());
    sft_files.tokenizer.require_same(&this, &files.tokenizer, &other)?;
    if head == HeadKind::Language && files.config != sft_files.config {
        return Err(StageError::Setting(format!(
            "{key} is {other}, a model of another shape than the SFT model in {this}: its config.json differs"
        )));
    }
    if lora.is_none() {
        let model = files.load(sft.weights.device(), sft.weights.precision())?;
        return Ok((model.config, model.weights));
    }
    let on_sft = if files.stands_on(sft_files) { sft.with_adapters_of(&files)? } else { None };
    match (on_sft, head) {
        (Some(weights), _) => Ok((sft.config.clone(), weights)),
        (None, HeadKind::Language) => Err(StageError::Setting(format!(
            "{key} is {other}, but with [ppo.lora] it must be an adapter on the SFT model in {this}: name the folder \
             `adapter` beside the model"
        ))),
        // Whole, with the adapters that it was trained by in it: a base of its own, for new ones.
        (None, HeadKind::Scalar) => {
            let model = files.load(sft.weights.device(), sft.weights.precision())?.into_base()?;
            Ok((model.config, model.weights))
        }
    }
}
