//! Models and lines as stages write them.

use std::path::Path;

use collimate_models::arch::{HeadKind, LoraConfig, Weights, save_adapter, save_model};
use collimate_models::durable::write_file;
use serde::Serialize;

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

/// Writes records to a file, one a line: all of them, or the file is as it was.
pub fn write_lines<T: Serialize>(path: &Path, records: &[T]) -> Result<(), StageError> {
    let mut bytes = Vec::new();
    for record in records {
        serde_json::to_writer(&mut bytes, record).expect("a record is plain data");
        bytes.push(b'\n');
    }
    Ok(write_file(path, &bytes)?)
}
