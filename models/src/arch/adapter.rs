//! Low-rank adapters (Hu et al. 2021) in PEFT's format: read, merged into the weights that they were trained on or put
//! on them as a base, and written.

mod save;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::config::ModelConfig;
use super::files::read_json;
use super::heads::{SCORE_BIAS, SCORE_WEIGHT};
use super::lora::{A, B};
use super::safetensors_file::read_safetensors;
use super::specs::{HeadKind, linear_layers};
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::kernels::WeightLayout;

pub use save::save_adapter;

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of the model's own parameters.
const PREFIX: &str = "base_model.model.";

/// Settings that say nothing about what the adapter computes once its tensors are there.
const IGNORED: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
];

/// The key under which a file of adapters that Collimate wrote has the bias of its scalar head in the file's metadata:
/// PEFT's heads have none, and pass over what stands there.
const SCORE_BIAS_KEY: &str = "score_bias";

/// An adapter as PEFT writes it.
#[derive(Clone, Debug)]
pub struct Adapter {
    path: PathBuf,
    /// `base_model_name_or_path`: the model that it was trained on.
    base: Option<String>,
    /// Of its scalar head, where the file has one.
    score_bias: Option<f32>,
    alpha: f64,
    /// Other alphas, for modules whose names end in what a pattern matches.
    alpha_pattern: Vec<(Regex, f64)>,
    /// Whether the scale is alpha / √r (Kalajdzievski 2023) and not alpha / r.
    rank_stabilised: bool,
    /// By name, without PEFT's prefix.
    tensors: BTreeMap<String, Tensor>,
}

/// What an adapter does to the weights.
#[derive(Default)]
struct Changes {
    /// These take the place of the model's own: a scalar head, or embeddings that PEFT saved along with their adapter.
    replaced: BTreeMap<String, Tensor>,
    /// B A for each of these is added.
    added: BTreeMap<String, Delta>,
}

struct Delta {
    /// (out, in).
    product: Tensor,
    is_embedding: bool,
}

impl Adapter {
    /// Reads `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    /// A setting that asks for more than low-rank matrices is refused by name; so is an adapter that is a pickle.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let Value::Object(mut settings) = read_json(&path)? else {
            return Err(Error::bad_file(&path, "expected a JSON object"));
        };
        let bad = |problem: String| Error::bad_file(&path, problem);
        let kind = settings.remove("peft_type").unwrap_or_default();
        if kind != "LORA" {
            return Err(bad(format!("`peft_type` is {kind}, which is not supported (supported: \"LORA\")")));
        }
        let base = settings.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
        let alpha = settings.remove("lora_alpha").and_then(|alpha| alpha.as_f64());
        let alpha = alpha.ok_or_else(|| bad("key `lora_alpha` is missing, or no number".into()))?;
        let rank_stabilised = settings.remove("use_rslora").unwrap_or_default() == true;
        let alpha_pattern = patterns(settings.remove("alpha_pattern")).map_err(bad)?;
        settings.remove("rank_pattern"); // the tensors say it
        refuse_more(&settings).map_err(bad)?;

        let weights = dir.join(WEIGHTS_FILE);
        if !weights.exists() && dir.join("adapter_model.bin").exists() {
            let problem =
                "holds `adapter_model.bin`, which is not read (a pickle can run code): save it as safetensors";
            return Err(Error::bad_file(dir, problem));
        }
        let mut tensors = BTreeMap::new();
        let metadata = read_safetensors(&weights, device, &mut tensors)?;
        let score_bias = metadata.get(SCORE_BIAS_KEY).and_then(|bias| bias.parse().ok());
        let named = tensors.into_iter().map(|(name, tensor)| match name.strip_prefix(PREFIX) {
            Some(own) => Ok((own.to_owned(), tensor)),
            None => Err(Error::bad_file(&weights, format!("tensor `{name}` does not begin with `{PREFIX}`"))),
        });
        let tensors = named.collect::<Result<_>>()?;
        Ok(Self { path: weights, base, score_bias, alpha, alpha_pattern, rank_stabilised, tensors })
    }

    /// Whether a directory holds an adapter and not a model.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(CONFIG_FILE).exists()
    }

    /// The model that it was trained on, by the name or path that it was loaded by.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// What its tensors take.
    pub fn n_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| 4 * tensor.elem_count() as u64).sum()
    }

    /// What stands on the decoder once the adapter is there, which had `head` before.
    pub fn head(&self, head: HeadKind) -> HeadKind {
        if self.tensors.contains_key(SCORE_WEIGHT) { HeadKind::Scalar } else { head }
    }

    /// The adapter on a base ([`Weights::into_base`]), which stays as it is; `None` where it changes more than linear
    /// layers and the scalar head, so that it can only be [merged](Self::merged).
    ///
    /// # Errors
    /// A tensor of the adapter that has no place in the model, or another shape than it.
    pub fn on_base(&self, config: &ModelConfig, base: &Weights) -> Result<Option<Weights>> {
        let layers = linear_layers(config);
        let (mut tensors, mut scales) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in &self.tensors {
            if name == SCORE_WEIGHT {
                tensors.insert(name.clone(), tensor.clone());
                continue;
            }
            let Some(module) = name.strip_suffix(A).or(name.strip_suffix(B)) else { return Ok(None) };
            let Some(layer) = layers.iter().find(|layer| layer.name == module) else { return Ok(None) };
            let (a, b) = (self.tensors.get(&format!("{module}{A}")), self.tensors.get(&format!("{module}{B}")));
            let (Some(a), Some(b)) = (a, b) else {
                return Err(self.bad(format!("`{module}` has only one of `lora_A` and `lora_B`")));
            };
            let (rank, found) = (a.dim(0)?, [a.dims(), b.dims()]);
            if found != [&[rank, layer.n_in], &[layer.n_out, rank]] {
                let (n_in, n_out) = (layer.n_in, layer.n_out);
                return Err(self.bad(format!("adapts `{module}` by {found:?}, and the layer takes {n_in} to {n_out}")));
            }
            scales.insert(module.to_owned(), self.scale(module, rank));
            tensors.insert(name.clone(), tensor.clone());
        }
        if self.tensors.contains_key(SCORE_WEIGHT) {
            let bias = Tensor::new(&[self.score_bias.unwrap_or(0.0)], base.device())?;
            tensors.insert(SCORE_BIAS.into(), bias);
        }
        let weights = base.with_adapters(tensors, scales);
        weights.check(config, self.head(HeadKind::Language), Some(&self.path))?;
        Ok(Some(weights))
    }

    /// The weights with the adapter in them, and their head: an adapter that brings a scalar head makes a reward model
    /// of a language model.
    ///
    /// # Errors
    /// A tensor of the adapter that has no place in the model, or another shape than it.
    pub fn merged(&self, config: &ModelConfig, head: HeadKind, base: &Weights) -> Result<(HeadKind, Weights)> {
        let mut weights = base.clone();
        let had_head = weights.get(SCORE_BIAS).is_ok();
        let head = self.head(head);
        if self.tensors.contains_key(SCORE_WEIGHT) {
            weights.remove(config.family.names().unembedding);
            if self.score_bias.is_some() || !had_head {
                let bias = Tensor::new(&[self.score_bias.unwrap_or(0.0)], weights.device())?;
                weights.insert(SCORE_BIAS, bias);
            }
        }
        let Changes { replaced, added } = self.changes(config)?;
        for (name, tensor) in replaced {
            weights.insert(name, tensor);
        }
        for (name, Delta { product, is_embedding }) in added {
            let weight =
                weights.get(&name).map_err(|_| self.bad(format!("adapts `{name}`, which the model does not have")))?;
            if is_embedding && config.tied {
                return Err(self.bad(format!("adapts `{name}`, which is the unembedding too, and PEFT leaves that")));
            }
            let is_turned = is_embedding || config.family.names().layout == WeightLayout::InOut;
            let delta = if is_turned { product.t()? } else { product };
            if delta.dims() != weight.dims() {
                let (found, expected) = (delta.dims(), weight.dims());
                return Err(self.bad(format!("adapts `{name}` by {found:?}, and the weight is {expected:?}")));
            }
            let sum = (weight + delta)?;
            weights.insert(name, sum);
        }
        weights.check(config, head, Some(&self.path))?;
        Ok((head, weights))
    }

    fn bad(&self, problem: String) -> Error {
        Error::bad_file(&self.path, problem)
    }

    /// What becomes of each weight that the adapter touches.
    fn changes(&self, config: &ModelConfig) -> Result<Changes> {
        let mut changes = Changes::default();
        for (name, tensor) in &self.tensors {
            let (module, a, b, is_embedding) = if let Some(module) = name.strip_suffix(A) {
                (module, tensor, self.tensors.get(&format!("{module}{B}")), false)
            } else if let Some(module) = name.strip_suffix(".lora_embedding_A") {
                (module, tensor, self.tensors.get(&format!("{module}.lora_embedding_B")), true)
            } else if let Some(module) = name.strip_suffix(B).or(name.strip_suffix(".lora_embedding_B")) {
                let a = [A, ".lora_embedding_A"].map(|suffix| format!("{module}{suffix}"));
                if !a.iter().any(|name| self.tensors.contains_key(name)) {
                    return Err(self.bad(format!("tensor `{name}` has no `lora_A` beside it")));
                }
                continue;
            } else if name.contains(".lora_") {
                return Err(self.bad(format!("tensor `{name}` is of a kind of adapter that is not supported")));
            } else {
                let weight = own_name(config, &name.replace(".base_layer.", "."));
                changes.replaced.insert(weight, tensor.clone());
                continue;
            };
            let b = b.ok_or_else(|| self.bad(format!("tensor `{name}` has no `lora_B` beside it")))?;
            let (rank, columns) = (a.dim(0)?, b.dim(1)?);
            if rank != columns {
                return Err(self.bad(format!("`{module}` has the ranks {rank} and {columns}: they must be one")));
            }
            let product = (b.matmul(a)? * self.scale(module, rank))?;
            let weight = own_name(config, &format!("{module}.weight"));
            changes.added.insert(weight, Delta { product, is_embedding });
        }
        Ok(changes)
    }

    /// What B A is multiplied by.
    fn scale(&self, module: &str, rank: usize) -> f64 {
        let own = self.alpha_pattern.iter().find(|(pattern, _)| pattern.is_match(module));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        alpha / if self.rank_stabilised { (rank as f64).sqrt() } else { rank as f64 }
    }
}

/// transformers calls every family's unembedding the same in memory.
fn own_name(config: &ModelConfig, name: &str) -> String {
    if name == "lm_head.weight" { config.family.names().unembedding.to_owned() } else { name.to_owned() }
}

/// As PEFT matches them: against the end of a module's name.
fn patterns(value: Option<Value>) -> std::result::Result<Vec<(Regex, f64)>, String> {
    let map: Map<String, Value> = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(format!("`alpha_pattern` is {other}, expected an object")),
    };
    let pattern = |(key, alpha): (String, Value)| {
        let regex = Regex::new(&format!(r"^(.*\.)?({key})$")).map_err(|error| format!("`alpha_pattern`: {error}"))?;
        let alpha = alpha.as_f64().ok_or_else(|| format!("`alpha_pattern.{key}` is {alpha}, expected a number"))?;
        Ok((regex, alpha))
    };
    map.into_iter().map(pattern).collect()
}

/// Refuses settings that are on and not known here: newer ones of PEFT are off as null, false or empty.
fn refuse_more(settings: &Map<String, Value>) -> std::result::Result<(), String> {
    let is_off = |key: &str, value: &Value| {
        *value == Value::Null
            || *value == json!(false)
            || *value == json!({})
            || *value == json!([])
            || (key == "bias" && value == "none")
    };
    match settings.iter().find(|(key, value)| !IGNORED.contains(&key.as_str()) && !is_off(key, value)) {
        None => Ok(()),
        Some((key, value)) => Err(format!("`{key}` is {value}, which is not supported")),
    }
}
