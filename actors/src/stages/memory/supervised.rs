//! What pretraining, SFT and reward-model training take.

use collimate_models::Device;
use collimate_models::arch::{HeadKind, LoraConfig, ModelConfig};
use collimate_models::memory::{self, TrainingPass};
use collimate_models::passes::{side_by_side, training_tokens_at_once};
use collimate_models::train::OptimConfig;

use super::{Change, MemoryEstimate, MemoryItem, SMALL_PASS, item, trained};
use crate::device;
use crate::stages::context::StageError;
use crate::stages::inputs::ModelFiles;
use crate::stages::pretrain::PretrainConfig;
use crate::stages::reward::RewardConfig;
use crate::stages::sft::SftConfig;

/// Pretraining of such a model on passes of so many tokens.
pub fn of_pretrain(
    config: &PretrainConfig,
    model: &ModelConfig,
    device: &Device,
) -> Result<MemoryEstimate, StageError> {
    let changes =
        smaller_passes("pretrain", &config.optim, config.seq_len, |config: &mut PretrainConfig| &mut config.optim);
    MemoryEstimate::new(config, changes, |config| {
        let longest = config.seq_len;
        supervised(model, HeadKind::Language, None, &config.optim, [config.batch_size * longest, longest], device)
    })
}

/// SFT, whose longest demonstration has so many tokens.
pub fn of_sft(
    config: &SftConfig,
    files: &ModelFiles,
    longest: usize,
    device: &Device,
) -> Result<MemoryEstimate, StageError> {
    let model = &files.config;
    let changes = changes_of("sft", &config.optim, config.lora.is_none(), longest, |config: &mut SftConfig| {
        (&mut config.optim, &mut config.lora)
    });
    MemoryEstimate::new(config, changes, |config| {
        let lengths = [config.batch_size * longest, longest];
        supervised(model, HeadKind::Language, config.lora.as_ref(), &config.optim, lengths, device)
    })
}

/// Reward-model training, in whose largest comparison there are so many tokens.
pub fn of_reward(
    config: &RewardConfig,
    files: &ModelFiles,
    longest: usize,
    device: &Device,
) -> Result<MemoryEstimate, StageError> {
    let model = &files.config;
    let changes = changes_of("reward", &config.optim, config.lora.is_none(), longest, |config: &mut RewardConfig| {
        (&mut config.optim, &mut config.lora)
    });
    MemoryEstimate::new(config, changes, |config| {
        let lengths = [config.batch_size * longest, longest];
        supervised(model, HeadKind::Scalar, config.lora.as_ref(), &config.optim, lengths, device)
    })
}

/// What helps a stage that trains a model or adapters on it.
fn changes_of<C: 'static>(
    stage: &str,
    optim: &OptimConfig,
    is_full: bool,
    longest: usize,
    parts: fn(&mut C) -> (&mut OptimConfig, &mut Option<LoraConfig>),
) -> Vec<Change<C>> {
    let mut changes = smaller_passes(stage, optim, longest, move |config| parts(config).0);
    if is_full {
        let change = move |config: &mut C| *parts(config).1 = Some(LoraConfig::default());
        changes.push((format!("a [{stage}.lora] table"), Box::new(change)));
    }
    changes
}

/// What makes a pass take less.
fn smaller_passes<C: 'static>(
    stage: &str,
    optim: &OptimConfig,
    longest: usize,
    part: impl Fn(&mut C) -> &mut OptimConfig + Copy + 'static,
) -> Vec<Change<C>> {
    let mut changes: Vec<Change<C>> = Vec::new();
    if !optim.gradient_checkpointing {
        let change = move |config: &mut C| part(config).gradient_checkpointing = true;
        changes.push((format!("{stage}.optim.gradient_checkpointing = true"), Box::new(change)));
    }
    let fewer = longest.max(SMALL_PASS);
    if optim.microbatch_tokens > fewer {
        let change = move |config: &mut C| part(config).microbatch_tokens = fewer;
        changes.push((format!("{stage}.optim.microbatch_tokens = {fewer}"), Box::new(change)));
    }
    changes
}

fn supervised(
    model: &ModelConfig,
    head: HeadKind,
    lora: Option<&LoraConfig>,
    optim: &OptimConfig,
    [n_tokens, longest]: [usize; 2],
    device: &Device,
) -> Result<Vec<MemoryItem>, StageError> {
    let OptimConfig { microbatch_tokens, gradient_checkpointing, .. } = *optim;
    let n_tokens = training_tokens_at_once(model, n_tokens, microbatch_tokens, longest, gradient_checkpointing);
    let trained = trained(model, head, lora)?;
    // A reward model is read at the last token of each sequence.
    let n_rows = if head == HeadKind::Scalar { n_tokens.div_ceil(longest.max(1)) } else { n_tokens };
    let pass =
        TrainingPass { n_tokens, n_rows, by_adapters: lora.is_some(), checkpointing: optim.gradient_checkpointing };
    let of_pass = memory::pass_gradients(model, trained, lora.is_some(), device.is_cpu());
    let gradients = of_pass * side_by_side(model, gradient_checkpointing) as u64;
    let state = memory::training_state(model, head, trained, lora.is_some(), device.is_cpu());
    let device = &device::name_of(device);
    let mut items = Vec::new();
    if lora.is_some() {
        items.push(item(device, "the model, frozen", memory::weights(model, HeadKind::Language)));
    }
    let what = if lora.is_some() { "adapters" } else { "the model" };
    items.push(item(device, format!("{what} in training"), state + gradients));
    let kept = if optim.gradient_checkpointing { ", checkpointed" } else { "" };
    items.push(item(device, format!("a pass of {n_tokens} tokens{kept}"), pass.bytes(model, head)));
    Ok(items)
}
