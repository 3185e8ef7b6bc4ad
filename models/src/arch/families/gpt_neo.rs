//! GPT-Neo.

use serde_json::{Value, json};

use super::super::config::{Attention, Mlp, ModelConfig, Norm, Positions, Residual};
use super::super::keys::Keys;
use super::{Family, Names, QkvNames, Shape, equal_heads, gelu, gelu_name, gpt2};
use crate::error::Result;
use crate::kernels::WeightLayout;

pub const NAMES: Names = Names {
    qkv: QkvNames::Split(["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"]),
    attention_out: "attn.attention.out_proj",
    layout: WeightLayout::OutIn,
    ..gpt2::NAMES
};

pub fn read(keys: &mut Keys<'_>) -> Result<ModelConfig> {
    let hidden_dim = keys.required_count("hidden_size")?;
    let n_layers = keys.required_count("num_layers")?;
    let n_heads = keys.required_count("num_heads")?;
    let heads = equal_heads(keys, hidden_dim, n_heads)?;
    let window = keys.count("window_size")?.unwrap_or(256);
    let shape = Shape {
        hidden_dim,
        n_layers,
        attention: Attention {
            // As trained: the scores are not scaled.
            scale: 1.0,
            windows: windows(keys, n_layers, window)?,
            out_bias: true,
            ..Attention::causal(heads, n_layers)
        },
        mlp_dim: keys.count("intermediate_size")?.unwrap_or(4 * hidden_dim),
        mlp_bias: true,
        context_len: keys.required_count("max_position_embeddings")?,
        norm: (Norm::Layer, keys.number("layer_norm_epsilon")?.unwrap_or(1e-5)),
        residual: Residual::PreNorm,
        positions: Positions::Learned,
        mlp: Mlp::Gelu(gelu(keys, "activation_function", "gelu_new")?),
        tied_by_default: true,
    };
    shape.into_config(Family::GptNeo, keys)
}

/// Which layers are local: `attention_types` is a list of patterns, each with how often it is repeated. `attention_layers`
/// is the same written out, which transformers derives from it.
fn windows(keys: &mut Keys<'_>, n_layers: usize, window: usize) -> Result<Vec<Option<usize>>> {
    let derived = keys.texts("attention_layers")?;
    let layers = match keys.take("attention_types") {
        None => {
            derived.unwrap_or_else(|| ["global", "local"].into_iter().cycle().take(n_layers).map(Into::into).collect())
        }
        Some(value) => {
            let patterns: Vec<(Vec<String>, usize)> = serde_json::from_value(value.clone()).map_err(|_| {
                keys.bad(format!("`attention_types` is {value}, expected [[[\"global\", \"local\"], 12]] or the like"))
            })?;
            patterns.into_iter().flat_map(|(pattern, n)| std::iter::repeat_n(pattern, n).flatten()).collect()
        }
    };
    if layers.len() != n_layers {
        return Err(keys.bad(format!("`attention_types` tells of {} layers, `num_layers` of {n_layers}", layers.len())));
    }
    let window_of = |layer: &String| match layer.as_str() {
        "global" => Ok(None),
        "local" => Ok(Some(window)),
        other => Err(keys.unsupported("attention_types", &json!(other), &[json!("global"), json!("local")])),
    };
    layers.iter().map(window_of).collect()
}

pub fn write(config: &ModelConfig) -> Value {
    let Mlp::Gelu(kind) = config.mlp else { unreachable!("GPT-Neo has a GELU MLP") };
    let windows = &config.attention.windows;
    let layers: Vec<&str> = windows.iter().map(|window| if window.is_some() { "local" } else { "global" }).collect();
    json!({
        "hidden_size": config.hidden_dim, "num_heads": config.heads().n_heads, "num_layers": config.n_layers,
        "intermediate_size": config.mlp_dim, "max_position_embeddings": config.context_len,
        "activation_function": gelu_name(kind), "layer_norm_epsilon": config.norm_eps,
        "window_size": windows.iter().flatten().next().unwrap_or(&config.context_len),
        "attention_types": [[layers, 1]], "attention_layers": layers,
        "attention_dropout": 0.0, "embed_dropout": 0.0, "resid_dropout": 0.0,
    })
}
