//! Models as stages write them.

use collimate_models::arch::{HeadKind, LoraConfig, Weights, save_adapter, save_model};

use super::context::{StageContext, StageError};
use super::inputs::ModelFiles;

/// Writes what a stage has made of `start` to the stage's `model`, adapters as part of it, with the tokenizer; and
/// adapters alone to the stage's `adapter`.
pub fn save_trained(
    context: &StageContext<'_>,
    start: &ModelFiles,
    head: HeadKind,
    weights: &Weights,
    lora: Option<&LoraConfig>,
) -> Result<(), StageError> {
    save_model(&context.model_dir(), &start.config, head, weights)?;
    start.tokenizer.save(&context.model_dir())?;
    if let Some(lora) = lora {
        save_adapter(&context.adapter_dir(), &start.config, head, weights, lora, &start.name())?;
    }
    Ok(())
}
