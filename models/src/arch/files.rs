//! Model directories in HuggingFace's layout: `config.json`, `model.safetensors` or shards, and
//! `generation_config.json`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::config::ModelConfig;
use super::heads::{SCORE_BIAS, SCORE_WEIGHT};
use super::keys::token_ids;
use super::safetensors_file::read_safetensors;
use super::specs::{HeadKind, Initial, ParameterSpec, parameter_specs};
use super::weights::Weights;
use crate::durable;
use crate::error::{Error, Result};
use crate::kernels;
use crate::rng::{self, SeededRng};

const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const GENERATION_FILE: &str = "generation_config.json";
/// What most families call the unembedding.
const COMMON_UNEMBEDDING: &str = "lm_head.weight";

/// Reads a model's directory. Every tensor that the config asks for must be there in the shape it asks for, and no
/// other, so that nothing of the file is left out unseen; f16 and bf16 become f32.
///
/// With [`HeadKind::Scalar`] the head must be in the file: a head made up here would be random. Its bias is
/// `score_bias` of `config.json`.
pub fn load_model(dir: &Path, head: HeadKind, device: &Device) -> Result<(Arc<ModelConfig>, Weights)> {
    let config = load_config(dir)?;
    let (path, mut tensors) = read_tensors(dir, device)?;
    rename_older(&config, &mut tensors);
    if head == HeadKind::Scalar && !tensors.contains_key(SCORE_WEIGHT) {
        return Err(Error::bad_file(
            &path,
            format!(
                "tensor `{SCORE_WEIGHT}` is missing: this is no reward or value model (a language model gets its \
                 scalar head by reward model training)"
            ),
        ));
    }
    if head == HeadKind::Scalar {
        let bias = Tensor::new(&[config.score_bias as f32], device)?;
        if tensors.insert(SCORE_BIAS.into(), bias).is_some() {
            let problem = format!("has a tensor `{SCORE_BIAS}`; the bias belongs into `config.json` as `score_bias`");
            return Err(Error::bad_file(&path, problem));
        }
    }
    tensors.retain(|name, _| !is_harmless(&config, name));
    let weights = Weights::new(tensors);
    weights.check(&config, head, Some(&path))?;
    Ok((Arc::new(config), weights))
}

/// Reads a model's config: `config.json`, with the end tokens of `generation_config.json` where that names some.
pub fn load_config(dir: &Path) -> Result<ModelConfig> {
    let mut config = ModelConfig::load(dir)?;
    if let Some(ids) = generation_end_tokens(dir)? {
        config.eos_token_ids = ids;
    }
    Ok(config)
}

/// Writes a model's directory, which is made if need be. Each file is whole or absent after a crash. `score.bias`
/// goes to `config.json`, in place of the config's own `score_bias`.
pub fn save_model(dir: &Path, config: &ModelConfig, head: HeadKind, weights: &Weights) -> Result<()> {
    weights.check(config, head, None)?;
    fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))?;
    let mut config = config.clone();
    if head == HeadKind::Scalar {
        config.score_bias = f64::from(weights.get(SCORE_BIAS)?.to_vec1::<f32>()?[0]);
    }
    let specs = parameter_specs(&config, head);
    let stored = specs.iter().filter(|spec| spec.name != SCORE_BIAS);
    let tensors: Vec<(&str, Stored<'_>)> =
        stored.map(|spec| (spec.name.as_str(), Stored { weights, config: &config, spec })).collect();
    // transformers refuses a file that does not say which framework's layout it has.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    durable::replace_file(&dir.join(WEIGHTS_FILE), |temporary| {
        safetensors::serialize_to_file(tensors, Some(metadata), temporary).map_err(std::io::Error::other)
    })?;
    if head == HeadKind::Language {
        write_json(&dir.join(GENERATION_FILE), &generation_config(&config))?;
    }
    write_json(&dir.join("config.json"), &config.to_hf(head == HeadKind::Scalar))
}

/// A tensor as it is written: with its adapter in it, worked out when its turn comes, so that a model that stands on a
/// base is never there twice.
struct Stored<'a> {
    weights: &'a Weights,
    config: &'a ModelConfig,
    spec: &'a ParameterSpec,
}

impl safetensors::View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.spec.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = || -> Result<Vec<u8>> {
            let tensor = self.weights.merged(self.config, &self.spec.name)?.to_device(&Device::Cpu)?.contiguous()?;
            let numbers = kernels::numbers(&tensor)?;
            let mut bytes = Vec::with_capacity(4 * numbers.len());
            numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
            Ok(bytes)
        };
        Cow::Owned(bytes().expect("shapes were checked, and on the CPU nothing else fails"))
    }

    fn data_len(&self) -> usize {
        4 * self.spec.shape.iter().product::<usize>()
    }
}

/// A reward model's beginning: the language model (the SFT model) with its unembedding replaced by a fresh scalar
/// head whose bias is 0. The other tensors are shared, not copied.
pub fn scalar_from_language(config: &ModelConfig, language: &Weights, rng: &mut SeededRng) -> Result<Weights> {
    let mut weights = language.clone();
    weights.remove(config.family.names().unembedding);
    for spec in parameter_specs(config, HeadKind::Scalar) {
        if spec.name != SCORE_WEIGHT && spec.name != SCORE_BIAS {
            continue;
        }
        let device = weights.device();
        let tensor = match spec.initial {
            Initial::Normal(std) => rng::normal(rng, &spec.shape, std, device)?,
            Initial::Ones => Tensor::ones(spec.shape.as_slice(), DType::F32, device)?,
            Initial::Zeros => Tensor::zeros(spec.shape.as_slice(), DType::F32, device)?,
        };
        weights.insert(spec.name, tensor);
    }
    weights.check(config, HeadKind::Scalar, None)?;
    Ok(weights)
}

/// Tensors that older exporters write and no computation needs: causal masks, rotary frequencies, and the
/// unembedding of a tied model, which is the embedding again.
fn is_harmless(config: &ModelConfig, name: &str) -> bool {
    is_mask(name)
        || name.ends_with(".rotary_emb.inv_freq")
        || (config.tied && name == config.family.names().unembedding)
}

/// Causal masks. A projection's own bias has another name.
pub(super) fn is_mask(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"]
        .iter()
        .any(|mask| name.ends_with(mask))
}

/// Gives tensors the names that are written today. Checkpoints of the bare decoder, such as the original GPT-2, have
/// its names without what stands before them; some name the unembedding as most families do.
fn rename_older(config: &ModelConfig, tensors: &mut BTreeMap<String, Tensor>) {
    let names = config.family.names();
    if names.unembedding != COMMON_UNEMBEDDING
        && let Some(unembedding) = tensors.remove(COMMON_UNEMBEDDING)
    {
        tensors.entry(names.unembedding.to_owned()).or_insert(unembedding);
    }
    if !tensors.contains_key(&format!("{}.weight", names.embedding)) {
        return;
    }
    *tensors = std::mem::take(tensors)
        .into_iter()
        .map(|(name, tensor)| match name.as_str() {
            SCORE_WEIGHT => (name, tensor),
            _ if name == names.unembedding => (name, tensor),
            _ => (format!("{}.{name}", names.decoder), tensor),
        })
        .collect();
}

/// Every tensor of a directory, as f32, with the file to name in messages about them.
fn read_tensors(dir: &Path, device: &Device) -> Result<(std::path::PathBuf, BTreeMap<String, Tensor>)> {
    let (single, index) = (dir.join(WEIGHTS_FILE), dir.join(INDEX_FILE));
    let mut tensors = BTreeMap::new();
    if single.exists() {
        read_safetensors(&single, device, &mut tensors)?;
        return Ok((single, tensors));
    }
    if !index.exists() {
        let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| dir.join(name).exists());
        let hint = if pickled {
            "; `pytorch_model.bin` is not read (a pickle can run code): save it again as safetensors"
        } else {
            ""
        };
        let problem = format!("holds neither `{WEIGHTS_FILE}` nor `{INDEX_FILE}`{hint}");
        return Err(Error::bad_file(dir, problem));
    }
    let map = weight_map(&index)?;
    for shard in shards_of(&index, &map)? {
        read_safetensors(&dir.join(shard), device, &mut tensors)?;
    }
    match map.keys().find(|name| !tensors.contains_key(*name)) {
        None => Ok((index, tensors)),
        Some(name) => Err(Error::bad_file(&index, format!("tensor `{name}` is not in the shard {}", map[name]))),
    }
}

/// `weight_map` of an index of shards: for each tensor its file.
fn weight_map(index: &Path) -> Result<serde_json::Map<String, Value>> {
    match read_json(index)?.get_mut("weight_map").map(Value::take) {
        Some(Value::Object(map)) => Ok(map),
        _ => Err(Error::bad_file(index, "key `weight_map` is missing")),
    }
}

/// The files that an index of shards names, each once, in order. A name that leads out of the directory is refused.
pub fn shard_names(index: &Path) -> Result<Vec<String>> {
    let map = weight_map(index)?;
    Ok(shards_of(index, &map)?.into_iter().map(str::to_owned).collect())
}

fn shards_of<'a>(index: &Path, map: &'a serde_json::Map<String, Value>) -> Result<Vec<&'a str>> {
    let named = |(name, shard): (&String, &'a Value)| match shard.as_str() {
        Some(shard) if !shard.contains(['/', '\\']) => Ok(shard),
        _ => Err(Error::bad_file(index, format!("tensor `{name}` is said to be in {shard}, no file name"))),
    };
    let mut shards: Vec<&str> = map.iter().map(named).collect::<Result<_>>()?;
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

/// `eos_token_id` of `generation_config.json`: where it is given, transformers ends at these tokens and not at
/// those of `config.json`.
fn generation_end_tokens(dir: &Path) -> Result<Option<Vec<u32>>> {
    let path = dir.join(GENERATION_FILE);
    if !path.exists() {
        return Ok(None);
    }
    match read_json(&path)?.get("eos_token_id").filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => token_ids(value)
            .map(Some)
            .ok_or_else(|| Error::bad_file(&path, format!("`eos_token_id` is {value}, expected token ids"))),
    }
}

fn generation_config(config: &ModelConfig) -> Value {
    let mut map = serde_json::Map::new();
    if let Some(bos) = config.bos_token_id {
        map.insert("bos_token_id".into(), json!(bos));
    }
    match config.eos_token_ids.as_slice() {
        [] => {}
        [one] => _ = map.insert("eos_token_id".into(), json!(one)),
        several => _ = map.insert("eos_token_id".into(), json!(several)),
    }
    if let Some(pad) = config.eos_token_ids.first() {
        // transformers warns at every call of `generate` where there is none.
        map.insert("pad_token_id".into(), json!(pad));
    }
    map.insert("do_sample".into(), json!(true));
    Value::Object(map)
}

pub(super) fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_str(&text).map_err(|error| Error::bad_file(path, format!("broken JSON: {error}")))
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| Error::invalid(error.to_string()))?;
    text.push('\n');
    durable::write_file(path, text.as_bytes())
}

#[cfg(test)]
mod tests;
