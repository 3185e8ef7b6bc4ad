//! GPT-2.

use serde_json::{Value, json};

use super::super::config::{Attention, Mlp, ModelConfig, Norm, Positions, Residual};
use super::super::keys::Keys;
use super::{Family, Names, QkvNames, Shape, equal_heads, gelu, gelu_name};
use crate::error::Result;
use crate::kernels::WeightLayout;

pub const NAMES: Names = Names {
    decoder: "transformer",
    embedding: "wte",
    position_embedding: Some("wpe"),
    block: "h",
    attention_norm: "ln_1",
    qkv: QkvNames::Joined("attn.c_attn"),
    qk_norm: ["", ""],
    attention_out: "attn.c_proj",
    branch_norms: ["", ""],
    mlp_norm: "ln_2",
    mlp_gate: "",
    mlp_up: "mlp.c_fc",
    mlp_down: "mlp.c_proj",
    final_norm: Some("ln_f"),
    unembedding: "lm_head.weight",
    layout: WeightLayout::InOut,
};

pub fn read(keys: &mut Keys<'_>) -> Result<ModelConfig> {
    let hidden_dim = keys.required_count("n_embd")?;
    let n_layers = keys.required_count("n_layer")?;
    let n_heads = keys.required_count("n_head")?;
    let heads = equal_heads(keys, hidden_dim, n_heads)?;
    keys.must_be("scale_attn_weights", &[json!(true)])?;
    keys.must_be("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
    keys.must_be("reorder_and_upcast_attn", &[json!(false)])?;
    keys.must_be("add_cross_attention", &[json!(false)])?;
    let shape = Shape {
        hidden_dim,
        n_layers,
        attention: Attention { qkv_bias: true, out_bias: true, ..Attention::causal(heads, n_layers) },
        mlp_dim: keys.count("n_inner")?.unwrap_or(4 * hidden_dim),
        mlp_bias: true,
        context_len: keys.required_count("n_positions")?,
        norm: (Norm::Layer, keys.number("layer_norm_epsilon")?.unwrap_or(1e-5)),
        residual: Residual::PreNorm,
        positions: Positions::Learned,
        mlp: Mlp::Gelu(gelu(keys, "activation_function", "gelu_new")?),
        tied_by_default: true,
    };
    shape.into_config(Family::Gpt2, keys)
}

pub fn write(config: &ModelConfig) -> Value {
    let Mlp::Gelu(kind) = config.mlp else { unreachable!("GPT-2 has a GELU MLP") };
    json!({
        "n_embd": config.hidden_dim, "n_head": config.heads().n_heads, "n_layer": config.n_layers,
        "n_inner": config.mlp_dim, "n_positions": config.context_len,
        "activation_function": gelu_name(kind), "layer_norm_epsilon": config.norm_eps,
        // transformers' defaults would be 0.1.
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    })
}
