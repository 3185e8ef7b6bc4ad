//! What SFT and reward-model training take.

use collimate_models::arch::{HeadKind, LoraConfig, ModelConfig};
use collimate_models::memory::{self, TrainingPass};
use collimate_models::train::OptimConfig;

use super::{CPU, Change, MemoryEstimate, MemoryItem, SMALL_PASS, item, trained};
use crate::stages::context::StageError;
use crate::stages::inputs::ModelFiles;
use crate::stages::reward::RewardConfig;
use crate::stages::sft::SftConfig;

/// SFT, whose longest demonstration has so many tokens.
pub fn of_sft(config: &SftConfig, files: &ModelFiles, longest: usize) -> Result<MemoryEstimate, StageError> {
    let model = &files.config;
    let changes = changes_of("sft", &config.optim, config.lora.is_none(), longest, |config: &mut SftConfig| {
        (&mut config.optim, &mut config.lora)
    });
    MemoryEstimate::new(config, changes, |config| {
        let n_tokens = config.optim.microbatch_tokens.min(config.batch_size * longest).max(longest);
        supervised(model, HeadKind::Language, config.lora.as_ref(), &config.optim, n_tokens)
    })
}

/// Reward-model training, in whose largest comparison there are so many tokens.
pub fn of_reward(config: &RewardConfig, files: &ModelFiles, longest: usize) -> Result<MemoryEstimate, StageError> {
    let model = &files.config;
    let changes = changes_of("reward", &config.optim, config.lora.is_none(), longest, |config: &mut RewardConfig| {
        (&mut config.optim, &mut config.lora)
    });
    MemoryEstimate::new(config, changes, |config| {
        let n_tokens = config.optim.microbatch_tokens.min(config.batch_size * longest).max(longest);
        supervised(model, HeadKind::Scalar, config.lora.as_ref(), &config.optim, n_tokens)
    })
}

/// What helps a stage that trains one model.
fn changes_of<C: 'static>(
    stage: &str,
    optim: &OptimConfig,
    is_full: bool,
    longest: usize,
    parts: fn(&mut C) -> (&mut OptimConfig, &mut Option<LoraConfig>),
) -> Vec<Change<C>> {
    let mut changes: Vec<Change<C>> = Vec::new();
    if !optim.gradient_checkpointing {
        let change = move |config: &mut C| parts(config).0.gradient_checkpointing = true;
        changes.push((format!("{stage}.optim.gradient_checkpointing = true"), Box::new(change)));
    }
    let fewer = longest.max(SMALL_PASS);
    if optim.microbatch_tokens > fewer {
        let change = move |config: &mut C| parts(config).0.microbatch_tokens = fewer;
        changes.push((format!("{stage}.optim.microbatch_tokens = {fewer}"), Box::new(change)));
    }
    if is_full {
        let change = move |config: &mut C| *parts(config).1 = Some(LoraConfig::default());
        changes.push((format!("a [{stage}.lora] table"), Box::new(change)));
    }
    changes
}

fn supervised(
    model: &ModelConfig,
    head: HeadKind,
    lora: Option<&LoraConfig>,
    optim: &OptimConfig,
    n_tokens: usize,
) -> Result<Vec<MemoryItem>, StageError> {
    let trained = trained(model, head, lora)?;
    let pass = TrainingPass { n_tokens, by_adapters: lora.is_some(), checkpointing: optim.gradient_checkpointing };
    let mut items = Vec::new();
    if lora.is_some() {
        items.push(item(CPU, "the model, frozen", memory::weights(model, HeadKind::Language)));
    }
    let what = if lora.is_some() { "adapters" } else { "the model" };
    // The gradients of a pass are there besides their sum.
    items.push(item(CPU, format!("{what} in training"), memory::training_state(trained) + trained));
    let kept = if optim.gradient_checkpointing { ", checkpointed" } else { "" };
    items.push(item(CPU, format!("a pass of {n_tokens} tokens{kept}"), pass.bytes(model, head)));
    Ok(items)
}
