//! GPT-1: `openai-gpt`.

use serde_json::{Value, json};

use super::super::config::{Attention, Mlp, ModelConfig, Norm, Positions, Residual};
use super::super::keys::Keys;
use super::{Family, Names, Shape, equal_heads, gpt2};
use crate::error::Result;
use crate::kernels::Gelu;

pub const NAMES: Names =
    Names { embedding: "tokens_embed", position_embedding: Some("positions_embed"), final_norm: None, ..gpt2::NAMES };

pub fn read(keys: &mut Keys<'_>) -> Result<ModelConfig> {
    let hidden_dim = keys.required_count("n_embd")?;
    let n_layers = keys.required_count("n_layer")?;
    let n_heads = keys.required_count("n_head")?;
    let heads = equal_heads(keys, hidden_dim, n_heads)?;
    // What this model type calls "gelu" is the tanh approximation.
    keys.must_be("afn", &[json!("gelu")])?;
    let shape = Shape {
        hidden_dim,
        n_layers,
        attention: Attention { qkv_bias: true, out_bias: true, ..Attention::causal(heads, n_layers) },
        mlp_dim: 4 * hidden_dim,
        mlp_bias: true,
        context_len: keys.required_count("n_positions")?,
        norm: (Norm::Layer, keys.number("layer_norm_epsilon")?.unwrap_or(1e-5)),
        residual: Residual::PostNorm,
        positions: Positions::Learned,
        mlp: Mlp::Gelu(Gelu::Tanh),
        tied_by_default: true,
    };
    shape.into_config(Family::Gpt1, keys)
}

pub fn write(config: &ModelConfig) -> Value {
    json!({
        "n_embd": config.hidden_dim, "n_head": config.heads().n_heads, "n_layer": config.n_layers,
        "n_positions": config.context_len, "afn": "gelu", "layer_norm_epsilon": config.norm_eps,
        // transformers' defaults would be 0.1.
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    })
}
