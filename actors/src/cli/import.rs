//! `collimate import` and `collimate merge`: what others wrote, to a model directory.

use std::path::Path;

use anyhow::bail;

use collimate_models::Device;
use collimate_models::arch::{Adapter, HeadKind, head_kind_of, load_model, save_model};
use collimate_models::gguf::{self, Imported};
use collimate_models::tokenizer::Tokenizer;

use crate::hub;

/// Writes the model of a GGUF file to a directory. Returns what there is to tell.
pub fn run(file: &Path, out: &Path) -> anyhow::Result<String> {
    refuse_model(out)?;
    let Imported { name, model_type, n_parameters, types, vocab_size, has_chat_template } = gguf::import(file, out)?;
    let name = name.unwrap_or_else(|| file.display().to_string());
    let types: Vec<String> = types.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let template = if has_chat_template { "with a chat template" } else { "without a chat template" };
    Ok(format!(
        "{name}: {model_type}, {:.1} M parameters, tensors {}; {vocab_size} tokens, {template}\nwritten to {}\n",
        n_parameters as f64 / 1e6,
        types.join(", "),
        out.display()
    ))
}

/// Writes a model with an adapter in its weights to a directory. Returns what there is to tell.
pub fn merge(base: &Path, adapter: &Path, out: &Path) -> anyhow::Result<String> {
    refuse_model(out)?;
    let base = hub::model_dir(base)?;
    let head = head_kind_of(&base)?;
    let (config, weights) = load_model(&base, head, &Device::Cpu)?;
    let (head, merged) = Adapter::load(adapter, &Device::Cpu)?.merged(&config, head, &weights)?;
    save_model(out, &config, head, &merged)?;
    // The adapter may have come with a tokenizer of its own.
    let tokenizer = [adapter, &base].into_iter().find(|dir| dir.join("tokenizer.json").exists());
    if let Some(dir) = tokenizer {
        Tokenizer::load(dir)?.save(out)?;
    }
    let kind = if head == HeadKind::Scalar { "a reward model" } else { "a language model" };
    Ok(format!("{kind} of {:.1} M parameters, written to {}\n", merged.n_elements() as f64 / 1e6, out.display()))
}

fn refuse_model(out: &Path) -> anyhow::Result<()> {
    if out.join("config.json").exists() {
        bail!("{} holds a model already; name another directory, or remove it first", out.display());
    }
    Ok(())
}
