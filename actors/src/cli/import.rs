//! `collimate import`.

use std::path::Path;

use anyhow::bail;

use collimate_models::gguf::{self, Imported};

/// Writes the model of a GGUF file to a directory. Returns what there is to tell.
pub fn run(file: &Path, out: &Path) -> anyhow::Result<String> {
    if out.join("config.json").exists() {
        bail!("{} holds a model already; name another directory, or remove it first", out.display());
    }
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
