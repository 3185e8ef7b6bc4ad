//! Gemma 1 and the text part of Gemma 3. Gemma 2 caps its logits, and is not among them.

use serde_json::{Value, json};

use super::super::config::{Attention, Mlp, ModelConfig, Norm, Positions, Residual, Rope, RopeScaling};
use super::super::keys::Keys;
use super::{Family, Names, Shape, gelu, llama, rope};
use crate::error::Result;
use crate::kernels::Gelu;

pub const NAMES: Names = llama::NAMES;

pub const NAMES_3: Names = Names {
    branch_norms: ["post_attention_layernorm", "post_feedforward_layernorm"],
    mlp_norm: "pre_feedforward_layernorm",
    ..llama::NAMES
};

pub fn read(family: Family, keys: &mut Keys<'_>) -> Result<ModelConfig> {
    let hidden_dim = keys.required_count("hidden_size")?;
    let n_layers = keys.required_count("num_hidden_layers")?;
    let heads = llama::read_heads(keys, hidden_dim)?;
    let context_len = keys.required_count("max_position_embeddings")?;
    let has_bias = keys.flag("attention_bias", false)?;
    keys.must_be("use_bidirectional_attention", &[json!(false)])?;
    let base = Attention { qkv_bias: has_bias, out_bias: has_bias, ..Attention::causal(heads, n_layers) };
    let (attention, positions, residual) = if family == Family::Gemma3 {
        keys.must_be("attn_logit_softcapping", &[])?;
        keys.must_be("final_logit_softcapping", &[])?;
        let pre_attention = keys.count("query_pre_attn_scalar")?.unwrap_or(256);
        let attention = Attention {
            scale: (1.0 / (pre_attention as f64).sqrt()) as f32,
            windows: read_windows(keys, n_layers)?,
            qk_norm: true,
            ..base
        };
        (attention, read_positions(keys, heads.head_dim, context_len)?, Residual::Sandwich)
    } else {
        let names = ["rope_theta", "partial_rotary_factor"];
        let rope = rope::read(keys, heads.head_dim, names, [10_000.0, 1.0], context_len)?;
        (base, Positions::Rotary { rope, windowed: None }, Residual::PreNorm)
    };
    let shape = Shape {
        hidden_dim,
        n_layers,
        attention,
        mlp_dim: keys.required_count("intermediate_size")?,
        mlp_bias: false,
        context_len,
        norm: (Norm::RmsPlusOne, keys.number("rms_norm_eps")?.unwrap_or(1e-6)),
        residual,
        positions,
        mlp: Mlp::GeGlu(read_activation(keys)?),
        tied_by_default: true,
    };
    shape.into_config(family, keys)
}

/// `hidden_activation` counts. Gemma 1's first checkpoints have `hidden_act: "gelu"` alone and mean the tanh
/// approximation, as transformers reads them.
fn read_activation(keys: &mut Keys<'_>) -> Result<Gelu> {
    let older = keys.text("hidden_act")?;
    match (gelu(keys, "hidden_activation", "gelu_pytorch_tanh")?, older.as_deref()) {
        (kind, None | Some("gelu" | "gelu_pytorch_tanh" | "gelu_new")) => Ok(kind),
        (_, Some(other)) => Err(keys.unsupported("hidden_act", &json!(other), &[json!("gelu_pytorch_tanh")])),
    }
}

fn read_windows(keys: &mut Keys<'_>, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.count("sliding_window")?.unwrap_or(4096);
    let patterns = [keys.count("sliding_window_pattern")?, keys.count("_sliding_window_pattern")?];
    let every = patterns.into_iter().flatten().next().unwrap_or(6);
    let by_pattern = (1..=n_layers).map(|n| (!n.is_multiple_of(every)).then_some(window)).collect();
    Ok(llama::read_layer_types(keys, n_layers, Some(window))?.unwrap_or(by_pattern))
}

fn read_positions(keys: &mut Keys<'_>, head_dim: usize, context_len: usize) -> Result<Positions> {
    let local = keys.number("rope_local_base_freq")?.unwrap_or(10_000.0);
    let mut windowed = Rope { theta: local, rotary_dim: head_dim, scaling: RopeScaling::None };
    if let Some(mut parameters) = keys.object("rope_parameters")? {
        let mut one = |key: &str| -> Result<Rope> {
            let mut inner = parameters.object(key)?.ok_or_else(|| parameters.missing(key))?;
            let rope = rope::read_parameters(&mut inner, head_dim, context_len)?;
            inner.finish()?;
            Ok(rope)
        };
        let rope = one("full_attention")?;
        windowed = one("sliding_attention")?;
        parameters.finish()?;
        return Ok(Positions::Rotary { rope, windowed: Some(windowed) });
    }
    let names = ["rope_theta", "partial_rotary_factor"];
    let rope = rope::read(keys, head_dim, names, [1_000_000.0, 1.0], context_len)?;
    Ok(Positions::Rotary { rope, windowed: Some(windowed) })
}

pub fn write(config: &ModelConfig) -> Value {
    let Positions::Rotary { rope, windowed } = config.positions else { unreachable!("Gemma is rotary") };
    let Mlp::GeGlu(kind) = config.mlp else { unreachable!("Gemma's MLP is gated by GELU") };
    let (heads, attention) = (config.heads(), &config.attention);
    let activation = if kind == Gelu::Tanh { "gelu_pytorch_tanh" } else { "gelu" };
    let mut value = json!({
        "hidden_size": config.hidden_dim, "num_attention_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads, "head_dim": heads.head_dim,
        "num_hidden_layers": config.n_layers, "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.context_len, "rms_norm_eps": config.norm_eps,
        "attention_bias": attention.qkv_bias, "rope_theta": rope.theta, "hidden_activation": activation,
    });
    let map = value.as_object_mut().expect("an object literal");
    if config.family == Family::Gemma {
        map.insert("hidden_act".into(), json!(activation));
    }
    if rope.scaling != RopeScaling::None {
        map.insert("rope_scaling".into(), rope::write_scaling(rope.scaling));
    }
    if config.family == Family::Gemma3 {
        let scale = f64::from(attention.scale);
        map.insert("query_pre_attn_scalar".into(), json!((1.0 / (scale * scale)).round() as u64));
        map.insert("sliding_window".into(), json!(attention.windows.iter().flatten().next()));
        map.insert("layer_types".into(), json!(llama::layer_types(&attention.windows)));
        map.insert("rope_local_base_freq".into(), json!(windowed.map_or(rope.theta, |rope| rope.theta)));
    }
    value
}
