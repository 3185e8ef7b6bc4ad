//! Tensors of a GGUF file: their names, and the order of their rows.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};

use super::metadata::Metadata;
use crate::arch::{Family, HeadKind, ModelConfig, Weights};
use crate::error::Result;

/// What each frequency of the rotary positions is divided by; not a weight.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Names of tensors outside of the blocks.
const NAMES: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Names of a block's parts.
const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The weights, in f32, with HuggingFace's names and order of rows.
pub fn read(metadata: &Metadata<'_>, reader: &mut (impl Read + Seek), config: &ModelConfig) -> Result<Weights> {
    let mut names: Vec<&String> = metadata.content().tensor_infos.keys().collect();
    names.sort_unstable();
    let mut tensors = BTreeMap::new();
    for name in names.into_iter().filter(|name| *name != ROPE_FACTORS) {
        let Some(hf_name) = hf_name(name) else {
            return Err(metadata.bad(format!("tensor `{name}` is not part of a model that is known here")));
        };
        let kind = metadata.content().tensor_infos[name].ggml_dtype;
        if !is_supported(kind) {
            return Err(metadata.bad(format!(
                "tensor `{name}` is of type {kind:?}, supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"
            )));
        }
        let damaged = |error: candle_core::Error| metadata.bad(format!("tensor `{name}` can't be read: {error}"));
        let tensor = metadata.content().tensor(reader, name, &Device::Cpu).map_err(damaged)?;
        let tensor = tensor.dequantize(&Device::Cpu)?;
        tensors.insert(hf_name, in_order(config, name, tensor)?);
    }
    let weights = Weights::new(tensors);
    weights.check(config, HeadKind::Language, Some(metadata.path()))?;
    Ok(weights)
}

fn is_supported(kind: GgmlDType) -> bool {
    use GgmlDType::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q6K, Q8_0};
    matches!(kind, F32 | F16 | BF16 | Q8_0 | Q4_0 | Q4_1 | Q4K | Q6K)
}

fn hf_name(name: &str) -> Option<String> {
    if let Some((_, hf_name)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some((*hf_name).to_owned());
    }
    let (layer_idx, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, hf_part) = PARTS.iter().find(|(known, _)| *known == part)?;
    Some(format!("model.layers.{layer_idx}.{hf_part}.{kind}"))
}

/// llama.cpp rotates neighbours (2i with 2i + 1), HuggingFace the halves of a head (i with i + D/2). For Llama the
/// rows of queries and keys are stored in llama.cpp's order: within each head `(D/2, 2)` instead of `(2, D/2)`.
fn in_order(config: &ModelConfig, name: &str, tensor: Tensor) -> Result<Tensor> {
    let heads = config.heads();
    let n_heads = match name.rsplit('.').nth(1) {
        Some("attn_q") => heads.n_heads,
        Some("attn_k") => heads.n_kv_heads,
        _ => return Ok(tensor),
    };
    let n_rows = tensor.dim(0)?;
    if config.family != Family::Llama || n_rows != n_heads * heads.head_dim {
        return Ok(tensor); // of a wrong shape it is refused with all others
    }
    let n_columns = tensor.elem_count() / n_rows;
    let rows = tensor.reshape((n_heads, heads.head_dim / 2, 2, n_columns))?;
    Ok(rows.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())?)
}
