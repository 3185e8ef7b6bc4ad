//! Rotary positions in `config.json`: as `rope_theta` and `rope_scaling`, or both within `rope_parameters`.

use serde_json::{Value, json};

use super::super::config::{Rope, RopeScaling};
use super::super::keys::Keys;
use crate::error::Result;

/// Takes the settings of rotary positions over whole heads or, by `partial_rotary_factor`, a part of each. `theta_key`
/// is what the base is called outside of `rope_parameters`, `factor_key` the same for the part.
pub fn read(
    keys: &mut Keys<'_>,
    head_dim: usize,
    [theta_key, factor_key]: [&str; 2],
    [default_theta, default_factor]: [f64; 2],
    context_len: usize,
) -> Result<Rope> {
    let outer_theta = keys.number(theta_key)?;
    let outer_factor = keys.number(factor_key)?;
    let (mut theta, mut factor) = (None, None);
    let mut scaling = RopeScaling::None;
    // Where both stand, they say the same: transformers writes one, older ones the other.
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(mut inner) = keys.object(key)? else { continue };
        theta = inner.number("rope_theta")?.or(theta);
        factor = inner.number("partial_rotary_factor")?.or(factor);
        scaling = read_scaling(&mut inner, context_len)?;
        inner.finish()?;
    }
    let theta = theta.or(outer_theta).unwrap_or(default_theta);
    let factor = factor.or(outer_factor).unwrap_or(default_factor);
    if !(factor > 0.0 && factor <= 1.0) {
        return Err(keys.bad(format!("{factor_key} is {factor}, expected a share over 0 and up to 1")));
    }
    Ok(Rope { theta, rotary_dim: (head_dim as f64 * factor) as usize, scaling })
}

/// Takes the settings of one kind of rotary positions, all in one object.
pub fn read_parameters(inner: &mut Keys<'_>, head_dim: usize, context_len: usize) -> Result<Rope> {
    let theta = inner.required_number("rope_theta")?;
    Ok(Rope { theta, rotary_dim: head_dim, scaling: read_scaling(inner, context_len)? })
}

fn read_scaling(inner: &mut Keys<'_>, context_len: usize) -> Result<RopeScaling> {
    let kind = match (inner.text("rope_type")?, inner.text("type")?) {
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => return Ok(RopeScaling::None),
    };
    Ok(match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.required_number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.required_number("factor")?,
            low_freq_factor: inner.required_number("low_freq_factor")?,
            high_freq_factor: inner.required_number("high_freq_factor")?,
            original_context_len: inner.count("original_max_position_embeddings")?.unwrap_or(context_len),
        },
        other => {
            let supported = ["default", "linear", "llama3"].map(|name| json!(name));
            return Err(inner.unsupported("rope_type", &json!(other), &supported));
        }
    })
}

/// `rope_scaling`, as all versions of transformers read it.
pub fn write_scaling(scaling: RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context_len,
        }),
    }
}
