//! GPT-NeoX and Pythia.

use serde_json::{Value, json};

use super::super::config::{Attention, Mlp, ModelConfig, Norm, Positions, Residual};
use super::super::keys::Keys;
use super::{Family, Names, QkvNames, Shape, equal_heads, gelu, gelu_name, rope};
use crate::error::Result;
use crate::kernels::WeightLayout;

pub const NAMES: Names = Names {
    decoder: "gpt_neox",
    embedding: "embed_in",
    position_embedding: None,
    block: "layers",
    attention_norm: "input_layernorm",
    qkv: QkvNames::Interleaved("attention.query_key_value"),
    qk_norm: ["", ""],
    attention_out: "attention.dense",
    branch_norms: ["", ""],
    mlp_norm: "post_attention_layernorm",
    mlp_gate: "",
    mlp_up: "mlp.dense_h_to_4h",
    mlp_down: "mlp.dense_4h_to_h",
    final_norm: Some("final_layer_norm"),
    unembedding: "embed_out.weight",
    layout: WeightLayout::OutIn,
};

pub fn read(keys: &mut Keys<'_>) -> Result<ModelConfig> {
    let hidden_dim = keys.required_count("hidden_size")?;
    let n_layers = keys.required_count("num_hidden_layers")?;
    let n_heads = keys.required_count("num_attention_heads")?;
    let heads = equal_heads(keys, hidden_dim, n_heads)?;
    let context_len = keys.required_count("max_position_embeddings")?;
    let has_bias = keys.flag("attention_bias", true)?;
    let names = ["rotary_emb_base", "rotary_pct"];
    let shape = Shape {
        hidden_dim,
        n_layers,
        attention: Attention { qkv_bias: has_bias, out_bias: has_bias, ..Attention::causal(heads, n_layers) },
        mlp_dim: keys.required_count("intermediate_size")?,
        mlp_bias: true,
        context_len,
        norm: (Norm::Layer, keys.number("layer_norm_eps")?.unwrap_or(1e-5)),
        residual: if keys.flag("use_parallel_residual", true)? { Residual::Parallel } else { Residual::PreNorm },
        positions: Positions::Rotary {
            rope: rope::read(keys, heads.head_dim, names, [10_000.0, 0.25], context_len)?,
            windowed: None,
        },
        mlp: Mlp::Gelu(gelu(keys, "hidden_act", "gelu")?),
        tied_by_default: false,
    };
    shape.into_config(Family::GptNeox, keys)
}

pub fn write(config: &ModelConfig) -> Value {
    let Mlp::Gelu(kind) = config.mlp else { unreachable!("GPT-NeoX has a GELU MLP") };
    let Positions::Rotary { rope, .. } = config.positions else { unreachable!("GPT-NeoX is rotary") };
    json!({
        "hidden_size": config.hidden_dim, "num_attention_heads": config.heads().n_heads,
        "num_hidden_layers": config.n_layers, "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.context_len, "hidden_act": gelu_name(kind),
        "layer_norm_eps": config.norm_eps, "use_parallel_residual": config.residual == Residual::Parallel,
        "attention_bias": config.attention.qkv_bias,
        "rotary_emb_base": rope.theta, "rotary_pct": rope.rotary_dim as f64 / config.heads().head_dim as f64,
        "rope_scaling": rope::write_scaling(rope.scaling),
        "attention_dropout": 0.0, "hidden_dropout": 0.0,
    })
}
