//! GGUF files, as llama.cpp has them, to HuggingFace's layout.
//!
//! - `metadata`: the file's settings, with the key in every error.
//! - `config`: settings to a `config.json`.
//! - `tensors`: names, and the order of rows.
//! - `tokenizer`: vocabulary and merges to a `tokenizer.json`.

mod config;
mod metadata;
mod tensors;
mod tokenizer;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;

use crate::arch::{HeadKind, save_model};
use crate::error::{Error, Result};
use metadata::Metadata;

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// `general.name`, where the file has one.
    pub name: Option<String>,
    /// As `config.json` names the family.
    pub model_type: &'static str,
    /// Parameters.
    pub n_parameters: usize,
    /// How many tensors there are of each type, the most frequent first.
    pub types: Vec<(String, usize)>,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Whether the file had a chat template.
    pub has_chat_template: bool,
}

/// Writes the model, tokenizer and chat template of a GGUF file to a directory in HuggingFace's layout, weights in f32.
///
/// Takes the families Llama (and Mistral, which llama.cpp calls the same), Qwen 2 and Qwen 3, with tensors of the
/// types F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K.
///
/// # Errors
/// Names the file and the key, tensor or type that it can't take. Nothing is written then.
pub fn import(path: &Path, out: &Path) -> Result<Imported> {
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    let mut reader = BufReader::new(file);
    let content =
        Content::read(&mut reader).map_err(|error| Error::bad_file(path, format!("is no whole GGUF file: {error}")))?;
    let metadata = Metadata::new(path, &content);
    let tokenizer = tokenizer::read(&metadata)?;
    let config = config::read(&metadata, &tokenizer)?;
    let weights = tensors::read(&metadata, &mut reader, &config)?;
    let imported = Imported {
        name: metadata.optional_text("general.name")?,
        model_type: config.family.model_type(),
        n_parameters: weights.n_elements(),
        types: metadata.types(),
        vocab_size: config.vocab_size,
        has_chat_template: tokenizer.has_chat_template(),
    };
    save_model(out, &config, HeadKind::Language, &weights)?;
    tokenizer.save(out)?;
    Ok(imported)
}
