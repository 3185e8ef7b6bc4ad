//! Adapters as PEFT reads them.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::{CONFIG_FILE, PREFIX, SCORE_BIAS_KEY, WEIGHTS_FILE};
use crate::arch::config::ModelConfig;
use crate::arch::files::write_json;
use crate::arch::heads::{SCORE_BIAS, SCORE_WEIGHT};
use crate::arch::lora::{A, ALL_LINEAR, LoraConfig};
use crate::arch::specs::HeadKind;
use crate::arch::weights::Weights;
use crate::durable;
use crate::error::{Error, Result};
use crate::kernels::WeightLayout;

/// Writes the adapters of weights that stand on a base, and their scalar head where they have one, so that PEFT puts
/// them on the model in `base`: a path, or a name on the hub. The directory is made if need be.
///
/// # Errors
/// The weights have no adapters, or others than `lora` asks for.
pub fn save_adapter(
    dir: &Path,
    config: &ModelConfig,
    head: HeadKind,
    weights: &Weights,
    lora: &LoraConfig,
    base: &str,
) -> Result<()> {
    weights.check(config, head, None)?;
    let targets = lora.targets(config)?;
    for target in &targets {
        let a = weights.get(&format!("{}{A}", target.name))?;
        if a.dim(0)? != lora.r {
            let name = &target.name;
            return Err(Error::invalid(format!("the adapter of `{name}` has rank {}, not {}", a.dim(0)?, lora.r)));
        }
    }
    fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))?;
    // Contiguous and on the CPU, so that safetensors' own conversion can't fail.
    let tensors: Vec<(String, Tensor)> = weights
        .iter()
        .filter(|(name, _)| *name != SCORE_BIAS)
        .map(|(name, tensor)| Ok((format!("{PREFIX}{name}"), tensor.detach().to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<_>>()?;
    // One entry: several would be written in another order each time.
    let metadata = match head {
        HeadKind::Language => ("format".to_owned(), "pt".to_owned()),
        HeadKind::Scalar => {
            (SCORE_BIAS_KEY.to_owned(), weights.get(SCORE_BIAS)?.squeeze(0)?.to_scalar::<f32>()?.to_string())
        }
    };
    durable::replace_file(&dir.join(WEIGHTS_FILE), |temporary| {
        let metadata = HashMap::from([metadata]);
        safetensors::serialize_to_file(tensors, Some(metadata), temporary).map_err(std::io::Error::other)
    })?;
    let module_of = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let modules: BTreeSet<String> = match lora.target_modules.iter().any(|target| target == ALL_LINEAR) {
        true => targets.iter().map(|target| module_of(&target.name)).collect(),
        false => lora.target_modules.iter().cloned().collect(),
    };
    let is_scalar = head == HeadKind::Scalar;
    let settings = json!({
        "peft_type": "LORA",
        "task_type": if is_scalar { "SEQ_CLS" } else { "CAUSAL_LM" },
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.use_rslora,
        "bias": "none",
        "fan_in_fan_out": config.family.names().layout == WeightLayout::InOut,
        "target_modules": modules,
        "modules_to_save": is_scalar.then(|| [SCORE_WEIGHT.trim_end_matches(".weight")]),
    });
    write_json(&dir.join(CONFIG_FILE), &settings)
}
