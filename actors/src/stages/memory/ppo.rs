//! What PPO takes, role by role.

use collimate_models::Device;
use collimate_models::arch::{HeadKind, LoraConfig, ModelConfig};
use collimate_models::memory::{self, TrainingPass};
use collimate_models::passes::{side_by_side, training_tokens_at_once};

use super::{CPU, Change, MemoryEstimate, MemoryItem, SMALL_PASS, item, largest_pass, total, trained};
use crate::device;
use crate::stages::context::StageError;
use crate::stages::evaluate::REFERENCE_BATCH;
use crate::stages::inputs::ModelFiles;
use crate::stages::ppo_config::{PpoSetup, PpoStageConfig, RewardTokens};
use crate::stages::recipe::DeviceName;

/// Tokens of a stage's prompts.
#[derive(Clone, Copy, Debug)]
pub struct PromptLengths {
    longest: usize,
    mean: usize,
}

impl PromptLengths {
    /// Of these prompts.
    pub fn of<'a>(prompts: impl IntoIterator<Item = &'a Vec<u32>>) -> Self {
        let (mut longest, mut sum, mut n) = (0, 0, 0);
        for prompt in prompts {
            (longest, sum, n) = (longest.max(prompt.len()), sum + prompt.len(), n + 1);
        }
        Self { longest, mean: sum.div_ceil(n.max(1)) }
    }
}

/// PPO on prompts of these lengths. Responses are taken to be as long as they may be.
pub fn of_ppo(
    config: &PpoStageConfig,
    sft: &ModelFiles,
    reward_model: Option<&ModelFiles>,
    prompts: PromptLengths,
    device: &Device,
) -> Result<MemoryEstimate, StageError> {
    let device = device::name_of(device);
    let mut changes: Vec<Change<PpoStageConfig>> = Vec::new();
    if !config.objective.gradient_checkpointing {
        let change = |config: &mut PpoStageConfig| config.objective.gradient_checkpointing = true;
        changes.push(("ppo.gradient_checkpointing = true".into(), Box::new(change)));
    }
    let fewer = (prompts.longest + config.stage.max_new_tokens).max(SMALL_PASS);
    if config.objective.microbatch_tokens > fewer {
        let change = move |config: &mut PpoStageConfig| config.objective.microbatch_tokens = fewer;
        changes.push((format!("ppo.microbatch_tokens = {fewer}"), Box::new(change)));
    }
    let n_slots = config.stage.n_slots / 4;
    if n_slots > 0 {
        let change = move |config: &mut PpoStageConfig| config.stage.n_slots = n_slots;
        changes.push((format!("ppo.n_slots = {n_slots}"), Box::new(change)));
    }
    if config.stage.lora.is_none() {
        let change = |config: &mut PpoStageConfig| config.stage.lora = Some(LoraConfig::default());
        changes.push(("a [ppo.lora] table".into(), Box::new(change)));
    }
    MemoryEstimate::new(config, changes, |config| Ppo::new(config, sft, reward_model, prompts, &device)?.items())
}

/// PPO's sizes.
struct Ppo<'a> {
    config: &'a PpoStageConfig,
    sft: &'a ModelConfig,
    value: &'a ModelConfig,
    reward: Option<&'a ModelConfig>,
    /// Whether the reward model stands on the SFT model's weights.
    is_on_sft: bool,
    /// What is trained, and copied with each snapshot.
    policy_bytes: u64,
    value_bytes: u64,
    prompts: PromptLengths,
    /// Where roles compute that have no device of their own.
    device: &'a str,
}

impl<'a> Ppo<'a> {
    fn new(
        config: &'a PpoStageConfig,
        sft: &'a ModelFiles,
        reward_model: Option<&'a ModelFiles>,
        prompts: PromptLengths,
        device: &'a str,
    ) -> Result<Self, StageError> {
        let lora = config.stage.lora.as_ref();
        let reads_own = config.stage.reward_tokens == RewardTokens::Own;
        let value = reward_model.filter(|_| !reads_own).map_or(&sft.config, |files| &files.config);
        let is_on_sft = lora.is_some() && reward_model.is_some_and(|files| files.stands_on(sft));
        let own_adapters = reward_model.filter(|_| is_on_sft && !reads_own).map(|files| files.adapter_bytes);
        Ok(Self {
            config,
            sft: &sft.config,
            value,
            reward: reward_model.map(|files| files.config.as_ref()),
            is_on_sft,
            policy_bytes: trained(&sft.config, HeadKind::Language, lora)?,
            value_bytes: own_adapters.map_or_else(|| trained(value, HeadKind::Scalar, lora), Ok)?,
            prompts,
            device,
        })
    }

    fn longest(&self) -> usize {
        self.prompts.longest + self.config.stage.max_new_tokens
    }

    /// Tokens of one pass over so many sequences, which are cut to a budget.
    fn tokens_of(&self, n_sequences: usize, budget: usize) -> usize {
        let mean = self.prompts.mean + self.config.stage.max_new_tokens;
        largest_pass(n_sequences * mean, budget, self.longest())
    }

    /// What is there at once: all roles at work. What the judge takes before and after is given back in between, and
    /// counts where it is more.
    fn items(&self) -> Result<Vec<MemoryItem>, StageError> {
        let (models, roles, judge) = (self.models(), self.roles(), self.judge());
        let mut items = models;
        items.extend(if total(&judge) > total(&roles) { judge } else { roles });
        Ok(items)
    }

    fn lora(&self) -> bool {
        self.config.stage.lora.is_some()
    }

    fn device<'b>(&'b self, name: &'b Option<DeviceName>) -> &'b str {
        name.as_ref().map_or(self.device, |name| &name.0)
    }

    fn models(&self) -> Vec<MemoryItem> {
        let sft = memory::weights(self.sft, HeadKind::Language);
        let reward = self.reward.map_or(0, |config| memory::weights(config, HeadKind::Scalar));
        let mut items = vec![item(self.device, "the SFT model", sft)];
        if reward > 0 && !self.is_on_sft {
            items.push(item(self.device, "the reward model", reward));
        }
        if self.lora() {
            items.push(item(self.device, "adapters as they start", self.policy_bytes + self.value_bytes));
        } else {
            let PpoSetup { policy, value_model, .. } = &self.config.stage;
            if policy.is_some() {
                items.push(item(self.device, "the policy as it starts", sft));
            }
            if value_model.is_some() {
                items.push(item(self.device, "the value model as it starts", self.value_bytes));
            }
        }
        items
    }

    /// Besides the weights: caches, a pass, its logits.
    fn sampling(&self) -> u64 {
        let n_slots = self.config.stage.n_slots;
        memory::generation_cache(self.sft, n_slots, self.longest())
            + memory::inference_pass(self.sft, self.prompts.longest.max(memory::TOKENS_PER_STEP_PASS))
            + 4 * (n_slots * self.sft.vocab_size) as u64
    }

    fn roles(&self) -> Vec<MemoryItem> {
        let PpoStageConfig { stage, flow, objective } = self.config;
        let (policy, value) = (self.policy_bytes, self.value_bytes);
        let devices = &stage.devices;
        let pass_tokens = |budget: usize| self.tokens_of(flow.batch_size, budget);
        let mut items = Vec::new();
        for (idx, device) in devices.generators.iter().cycle().take(stage.n_generators).enumerate() {
            let packed = if self.lora() { 0 } else { memory::generation_weights(self.sft) };
            let bytes = packed + self.sampling();
            items.push(item(&device.0, format!("generator {idx}: cache of {} slots, a pass", stage.n_slots), bytes));
        }
        let scored = self.tokens_of(flow.scorer_batch.max(1), memory::TOKENS_PER_PASS);
        // Where a model was read, scorers share it.
        let copied = |config, head, device: &str| match self.lora() || device == self.device {
            true => 0,
            false => memory::weights(config, head),
        };
        for idx in 0..stage.n_reference_scorers {
            let device = self.device(&devices.reference);
            let bytes = copied(self.sft, HeadKind::Language, device)
                + memory::inference_pass(self.sft, scored)
                + memory::logits(self.sft, scored);
            items.push(item(device, format!("reference scorer {idx}: a pass"), bytes));
        }
        if let Some(reward) = self.reward.filter(|_| stage.builtin.is_none() && stage.process.is_none()) {
            for idx in 0..stage.n_reward_scorers {
                let device = self.device(&devices.reward_model);
                let bytes = copied(reward, HeadKind::Scalar, device) + memory::inference_pass(reward, scored);
                items.push(item(device, format!("reward scorer {idx}: a pass"), bytes));
            }
        }
        let (values, learner) = (self.device(&devices.values), self.device(&devices.learner));
        let copied = if values == learner { 0 } else { self.value_bytes };
        let bytes = copied + memory::inference_pass(self.value, pass_tokens(objective.microbatch_tokens));
        items.push(item(values, "experience buffer: a pass of the value model", bytes));

        let average = if objective.ema_decay > 0.0 { policy } else { 0 };
        let gradients = |config, trained| memory::pass_gradients(config, trained, self.lora(), learner == CPU);
        let of_pass = gradients(self.sft, policy).max(gradients(self.value, value));
        let of_passes = of_pass * side_by_side(self.sft, objective.gradient_checkpointing) as u64;
        let state = |config, head, trained| memory::training_state(config, head, trained, self.lora(), learner == CPU);
        let states = state(self.sft, HeadKind::Language, policy) + state(self.value, HeadKind::Scalar, value);
        let state = states + average + of_passes;
        items.push(item(learner, "learner: policy and value model in training", state));
        let checkpointing = objective.gradient_checkpointing;
        let n_tokens = pass_tokens(usize::MAX) + self.ptx_tokens();
        let (budget, longest) = (objective.microbatch_tokens, self.longest().max(stage.ptx_seq_len));
        let n_tokens = training_tokens_at_once(self.sft, n_tokens, budget, longest, checkpointing);
        let pass = TrainingPass { n_tokens, n_rows: n_tokens, by_adapters: self.lora(), checkpointing };
        let bytes = pass.bytes(self.sft, HeadKind::Language).max(pass.bytes(self.value, HeadKind::Scalar));
        let kept = if checkpointing { ", checkpointed" } else { "" };
        items.push(item(learner, format!("learner: a pass of {n_tokens} tokens{kept}"), bytes));
        // Training works on copies from its first step on.
        items.push(item(learner, "the published weights, while those of the next version are made", policy + value));
        items
    }

    fn ptx_tokens(&self) -> usize {
        let n_sequences = self.config.objective.ptx_sequences_per_step();
        let seq_len = self.config.stage.ptx_seq_len;
        (n_sequences * seq_len).min(self.config.objective.microbatch_tokens.max(seq_len))
    }

    fn judge(&self) -> Vec<MemoryItem> {
        let PpoStageConfig { stage, objective, .. } = self.config;
        let n_slots = stage.n_slots;
        let packed = if self.lora() { 0 } else { memory::generation_weights(self.sft) };
        let n_tokens = self.tokens_of(REFERENCE_BATCH, memory::TOKENS_PER_PASS).max(objective.microbatch_tokens);
        let scoring = memory::inference_pass(self.sft, n_tokens) + memory::logits(self.sft, n_tokens);
        vec![item(
            self.device,
            format!("judge: cache of {n_slots} slots, a pass of {n_tokens} tokens"),
            packed + self.sampling() + scoring,
        )]
    }
}
