//! Settings of a GGUF file to those of `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use super::metadata::Metadata;
use super::tensors::ROPE_FACTORS;
use crate::arch::{ModelConfig, Rope, RopeScaling};
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// llama.cpp's architectures, with the `model_type` that HuggingFace has for each.
const ARCHITECTURES: [(&str, &str); 3] = [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")];

/// The contexts that Llama 3.1 and 3.2 were stretched from, and the bounds of what counts as long and short there.
const LLAMA_3: (usize, f64, f64) = (8192, 1.0, 4.0);

/// The model that the file describes.
pub fn read(metadata: &Metadata<'_>, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let architecture = metadata.text("general.architecture")?;
    let Some((_, model_type)) = ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
        let supported = ARCHITECTURES.map(|(name, _)| name).join(", ");
        return Err(metadata.bad(format!("architecture `{architecture}` is not supported (supported: {supported})")));
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let count = |name: &str| metadata.count(&key(name));
    if metadata.optional_count(&key("expert_count"))?.is_some_and(|n| n > 0) {
        return Err(
            metadata.bad(format!("`{}` tells of a mixture of experts, which is not supported", key("expert_count")))
        );
    }
    if metadata.optional_count(&key("attention.sliding_window"))?.is_some_and(|n| n > 0) {
        return Err(metadata.bad(format!("`{}` is not supported", key("attention.sliding_window"))));
    }
    let hidden_dim = count("embedding_length")?;
    let n_heads = count("attention.head_count")?;
    let head_dim = match metadata.optional_count(&key("attention.key_length"))? {
        Some(dim) => dim,
        None => hidden_dim / n_heads.max(1),
    };
    if let Some(n) = metadata.optional_count(&key("rope.dimension_count"))?.filter(|n| *n != head_dim) {
        let name = key("rope.dimension_count");
        return Err(metadata.bad(format!("`{name}` is {n}, and heads are {head_dim} wide: parts are not supported")));
    }
    let theta = metadata.optional_number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let mut value = json!({
        "model_type": model_type,
        "vocab_size": metadata.shape("token_embd.weight")?[0],
        "hidden_size": hidden_dim,
        "num_hidden_layers": count("block_count")?,
        "num_attention_heads": n_heads,
        "num_key_value_heads": metadata.optional_count(&key("attention.head_count_kv"))?.unwrap_or(n_heads),
        "head_dim": head_dim,
        "intermediate_size": count("feed_forward_length")?,
        "max_position_embeddings": count("context_length")?,
        "rms_norm_eps": metadata.optional_number(&key("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": theta,
        "rope_scaling": rope_scaling(metadata, &architecture)?,
        "tie_word_embeddings": !metadata.has_tensor("output.weight"),
        "bos_token_id": metadata.optional_count("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": end_tokens(metadata, tokenizer)?,
    });
    if *model_type == "llama" {
        value["attention_bias"] = json!(metadata.has_tensor("blk.0.attn_q.bias"));
    }
    let config = ModelConfig::from_hf(Path::new("the settings of the GGUF file"), value)?;
    if metadata.has_tensor(ROPE_FACTORS) {
        return with_rope_factors(metadata, config, head_dim, theta);
    }
    Ok(config)
}

/// The token that ends a text, and the one that ends a turn where that is another.
fn end_tokens(metadata: &Metadata<'_>, tokenizer: &Tokenizer) -> Result<Vec<usize>> {
    let mut ids = vec![tokenizer.eos() as usize];
    ids.extend(metadata.optional_count("tokenizer.ggml.eot_token_id")?.filter(|id| !ids.contains(id)));
    Ok(ids)
}

fn rope_scaling(metadata: &Metadata<'_>, architecture: &str) -> Result<Value> {
    let key = format!("{architecture}.rope.scaling.type");
    match metadata.optional_text(&key)?.as_deref() {
        None | Some("none") => Ok(Value::Null),
        Some("linear") => {
            let factor = metadata.optional_number(&format!("{architecture}.rope.scaling.factor"))?;
            Ok(json!({"rope_type": "linear", "factor": factor}))
        }
        Some(other) => {
            Err(metadata.bad(format!("`{key}` is `{other}`, which is not supported (supported: none, linear)")))
        }
    }
}

/// Llama 3's stretching stands in the file as what each frequency is divided by. The largest is the factor; that the
/// others follow from it with Llama 3's constants is checked.
fn with_rope_factors(metadata: &Metadata<'_>, config: ModelConfig, head_dim: usize, theta: f64) -> Result<ModelConfig> {
    let file = std::fs::File::open(metadata.path()).map_err(|source| crate::Error::io(metadata.path(), source))?;
    let tensor =
        metadata.content().tensor(&mut std::io::BufReader::new(file), ROPE_FACTORS, &candle_core::Device::Cpu)?;
    let factors: Vec<f32> = tensor.dequantize(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1()?;
    let (original_context_len, low_freq_factor, high_freq_factor) = LLAMA_3;
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let scaling = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len };
    let plain = Rope { theta, rotary_dim: head_dim, scaling: RopeScaling::None }.frequencies();
    let stretched = Rope { theta, rotary_dim: head_dim, scaling }.frequencies();
    let expected = plain.iter().zip(&stretched).map(|(plain, stretched)| plain / stretched);
    let agrees = factors.len() == plain.len()
        && factors.iter().zip(expected).all(|(found, expected)| (f64::from(*found) - expected).abs() < 1e-3 * expected);
    if !agrees {
        return Err(
            metadata.bad(format!("tensor `{ROPE_FACTORS}` stretches positions in another way than Llama 3 does"))
        );
    }
    let mut value = config.to_hf(false);
    value["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
        "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context_len,
    });
    ModelConfig::from_hf(Path::new("the settings of the GGUF file"), value)
}
