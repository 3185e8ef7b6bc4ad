//! Llama, and those that differ from it in a few settings: Mistral, Qwen 2 and 3.

use serde_json::{Value, json};

use super::super::config::{Attention, Mlp, ModelConfig, Norm, Positions, Residual};
use super::super::keys::Keys;
use super::{Family, Names, QkvNames, Shape, rope};
use crate::error::Result;
use crate::kernels::{HeadShape, WeightLayout};

pub const NAMES: Names = Names {
    decoder: "model",
    embedding: "embed_tokens",
    position_embedding: None,
    block: "layers",
    attention_norm: "input_layernorm",
    qkv: QkvNames::Split(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    attention_out: "self_attn.o_proj",
    branch_norms: ["", ""],
    mlp_norm: "post_attention_layernorm",
    mlp_gate: "mlp.gate_proj",
    mlp_up: "mlp.up_proj",
    mlp_down: "mlp.down_proj",
    final_norm: Some("norm"),
    unembedding: "lm_head.weight",
    layout: WeightLayout::OutIn,
};

/// Takes the numbers of heads and their width, which is by default the model's width shared among them.
pub fn read_heads(keys: &mut Keys<'_>, hidden_dim: usize) -> Result<HeadShape> {
    let n_heads = keys.required_count("num_attention_heads")?;
    let n_kv_heads = keys.count("num_key_value_heads")?.unwrap_or(n_heads);
    let head_dim = keys.count("head_dim")?.unwrap_or(hidden_dim / n_heads);
    Ok(HeadShape { n_heads, n_kv_heads, head_dim })
}

/// Takes `layer_types`: which layers have a window. `None` where the key is absent.
pub fn read_layer_types(
    keys: &mut Keys<'_>,
    n_layers: usize,
    window: Option<usize>,
) -> Result<Option<Vec<Option<usize>>>> {
    let Some(types) = keys.texts("layer_types")? else { return Ok(None) };
    if types.len() != n_layers {
        return Err(
            keys.bad(format!("`layer_types` tells of {} layers, `num_hidden_layers` of {n_layers}", types.len()))
        );
    }
    let window_of = |layer: &String| match layer.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" => match window {
            Some(window) => Ok(Some(window)),
            None => Err(keys.bad("`layer_types` tells of sliding attention, and `sliding_window` is missing")),
        },
        other => {
            let supported = [json!("full_attention"), json!("sliding_attention")];
            Err(keys.unsupported("layer_types", &json!(other), &supported))
        }
    };
    types.iter().map(window_of).collect::<Result<_>>().map(Some)
}

/// `layer_types` as transformers writes it.
pub fn layer_types(windows: &[Option<usize>]) -> Vec<&'static str> {
    windows.iter().map(|window| if window.is_some() { "sliding_attention" } else { "full_attention" }).collect()
}

fn read_windows(family: Family, keys: &mut Keys<'_>, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match family {
        Family::Llama => None,
        _ => keys.count("sliding_window")?,
    };
    match family {
        // All layers have it, or none.
        Family::Mistral => {
            let types = read_layer_types(keys, n_layers, window)?;
            Ok(types.unwrap_or_else(|| vec![window; n_layers]))
        }
        Family::Qwen2 | Family::Qwen3 => {
            let window = if keys.flag("use_sliding_window", false)? { window } else { None };
            let first_windowed = keys.take("max_window_layers").and_then(|n| n.as_u64()).unwrap_or(28) as usize;
            let by_count = (0..n_layers).map(|i| window.filter(|_| i >= first_windowed)).collect();
            Ok(read_layer_types(keys, n_layers, window)?.unwrap_or(by_count))
        }
        _ => Ok(vec![None; n_layers]),
    }
}

pub fn read(family: Family, keys: &mut Keys<'_>) -> Result<ModelConfig> {
    let hidden_dim = keys.required_count("hidden_size")?;
    let n_layers = keys.required_count("num_hidden_layers")?;
    let heads = read_heads(keys, hidden_dim)?;
    let context_len = keys.required_count("max_position_embeddings")?;
    keys.must_be("hidden_act", &[json!("silu")])?;
    let (qkv_bias, out_bias) = match family {
        Family::Qwen2 => (true, false),
        Family::Mistral => (false, false),
        _ => {
            let has_bias = keys.flag("attention_bias", false)?;
            (has_bias, has_bias)
        }
    };
    let shape = Shape {
        hidden_dim,
        n_layers,
        attention: Attention {
            windows: read_windows(family, keys, n_layers)?,
            qkv_bias,
            out_bias,
            qk_norm: family == Family::Qwen3,
            ..Attention::causal(heads, n_layers)
        },
        mlp_dim: keys.required_count("intermediate_size")?,
        mlp_bias: family == Family::Llama && keys.flag("mlp_bias", false)?,
        context_len,
        norm: (Norm::Rms, keys.number("rms_norm_eps")?.unwrap_or(1e-6)),
        residual: Residual::PreNorm,
        positions: Positions::Rotary {
            rope: rope::read(
                keys,
                heads.head_dim,
                ["rope_theta", "partial_rotary_factor"],
                [10_000.0, 1.0],
                context_len,
            )?,
            windowed: None,
        },
        mlp: Mlp::SwiGlu,
        tied_by_default: false,
    };
    shape.into_config(family, keys)
}

pub fn write(config: &ModelConfig) -> Value {
    let Positions::Rotary { rope, .. } = config.positions else { unreachable!("Llama is rotary") };
    let (heads, attention) = (config.heads(), &config.attention);
    let mut value = json!({
        "hidden_size": config.hidden_dim, "num_attention_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads, "head_dim": heads.head_dim,
        "num_hidden_layers": config.n_layers, "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.context_len, "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps, "rope_theta": rope.theta,
    });
    let map = value.as_object_mut().expect("an object literal");
    if rope.scaling != super::super::config::RopeScaling::None {
        map.insert("rope_scaling".into(), rope::write_scaling(rope.scaling));
    }
    if rope.rotary_dim != heads.head_dim {
        map.insert("partial_rotary_factor".into(), json!(rope.rotary_dim as f64 / heads.head_dim as f64));
    }
    if matches!(config.family, Family::Llama | Family::Qwen3) {
        map.insert("attention_bias".into(), json!(attention.qkv_bias));
    }
    if config.family == Family::Llama {
        map.insert("mlp_bias".into(), json!(config.mlp_bias));
    }
    let window = attention.windows.iter().flatten().next();
    if config.family == Family::Mistral {
        map.insert("sliding_window".into(), json!(window));
    }
    if matches!(config.family, Family::Qwen2 | Family::Qwen3) {
        map.insert("use_sliding_window".into(), json!(window.is_some()));
        map.insert("sliding_window".into(), json!(window));
        let first_windowed = attention.windows.iter().position(Option::is_some).unwrap_or(config.n_layers);
        map.insert("max_window_layers".into(), json!(first_windowed));
        map.insert("layer_types".into(), json!(layer_types(&attention.windows)));
    }
    value
}
