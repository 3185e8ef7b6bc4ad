//! What a model's `config.json` says, in terms of what the decoder does.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::weights::HeadKind;
use crate::error::{Error, Result};
use crate::kernels::{Gelu, HeadShape};

const CONFIG_FILE: &str = "config.json";

/// Whose names and layout the weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `model_type: "gpt2"`.
    Gpt2,
    /// `model_type: "llama"`.
    Llama,
}

/// Which normalisation stands before attention and MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Gain and bias.
    Layer,
    /// Gain alone.
    Rms,
}

/// How a token's place enters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// A learned vector for each position is added to the embedding.
    Learned,
    /// Queries and keys are rotated.
    Rotary {
        /// The base of the angles.
        theta: f64,
    },
}

/// The shape of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// Two layers with GELU between.
    Gelu(Gelu),
    /// Gate and up, multiplied, then down.
    SwiGlu,
}

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Names and layout of the weights.
    pub family: Family,
    /// Rows of the embedding, V.
    pub vocab_size: usize,
    /// Width of the residual stream, C.
    pub hidden_dim: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Attention heads.
    pub heads: HeadShape,
    /// Width inside the MLP.
    pub mlp_dim: usize,
    /// The longest sequence, in tokens.
    pub context_len: usize,
    /// Normalisation.
    pub norm: Norm,
    /// Added to the variance in normalisation.
    pub norm_eps: f64,
    /// Positions.
    pub positions: Positions,
    /// MLP.
    pub mlp: Mlp,
    /// Whether the unembedding is the embedding.
    pub tied: bool,
    /// The beginning-of-sequence token, where the model has one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a response.
    pub eos_token_ids: Vec<u32>,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Added to every scalar that a scalar head gives; 0 for language models.
    pub score_bias: f64,
}

/// Keys that say nothing about the computation here.
const IGNORED: &[&str] = &[
    "_name_or_path",
    "_num_labels",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "model_type",
    "task_specific_params",
    "pad_token_id",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "attention_dropout",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "gradient_checkpointing",
    "pretraining_tp",
    "n_ctx",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "tokenizer_class",
    "is_encoder_decoder",
    "chunk_size_feed_forward",
    "use_return_dict",
    "rope_interleaved",
    "is_llama_config",
    "transformers.js_config",
];

/// One token id or several; `None` where the value is neither.
pub(super) fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(items) => items.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}

struct Keys<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Keys<'_> {
    fn bad(&self, problem: String) -> Error {
        Error::bad_file(self.path, problem)
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let n = value.as_u64().filter(|&n| n > 0);
        n.map(|n| Some(n as usize)).ok_or_else(|| self.bad(format!("`{key}` is {value}, expected a positive integer")))
    }

    fn required_count(&mut self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.bad(format!("key `{key}` is missing")))
    }

    fn number(&mut self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.take(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.bad(format!("`{key}` is {value}, expected a number")))
    }

    fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.take(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.bad(format!("`{key}` is {value}, expected true or false")))
    }

    fn token_ids(&mut self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        token_ids(&value).ok_or_else(|| self.bad(format!("`{key}` is {value}, expected token ids")))
    }

    /// Refuses a key whose value asks for something that is not implemented.
    fn must_be(&mut self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.take(key) {
            Some(value) if !allowed.contains(&value) => {
                Err(self.bad(format!("`{key}` is {value}, which is not supported (supported: {allowed:?})")))
            }
            _ => Ok(()),
        }
    }

    fn finish(mut self) -> Result<()> {
        for key in IGNORED {
            self.map.remove(*key);
        }
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => {
                Err(self
                    .bad(format!("key `{key}` (= {value}) is not known for this model type, so it can't be honoured")))
            }
        }
    }
}

/// Which head the model in this directory has, by the class that its `config.json` names: `…ForSequenceClassification`
/// has a scalar one.
pub fn head_kind_of(dir: &Path) -> Result<HeadKind> {
    let config = read_json(&dir.join(CONFIG_FILE))?;
    let class = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
    Ok(if class.ends_with("ForSequenceClassification") { HeadKind::Scalar } else { HeadKind::Language })
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_str(&text).map_err(|e| Error::bad_file(path, format!("broken JSON: {e}")))
}

impl ModelConfig {
    /// Reads `config.json` in a model's directory. A key that could change the computation and is not known is an
    /// error.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::from_hf(&path, read_json(&path)?)
    }

    /// Reads the HuggingFace form; `path` is for messages.
    pub fn from_hf(path: &Path, value: Value) -> Result<Self> {
        let Value::Object(map) = value else { return Err(Error::bad_file(path, "expected a JSON object")) };
        let mut keys = Keys { path, map };
        let model_type = keys.map.get("model_type").and_then(Value::as_str).unwrap_or("").to_owned();
        let config = match model_type.as_str() {
            "gpt2" => Self::from_gpt2(&mut keys)?,
            "llama" => Self::from_llama(&mut keys)?,
            other => {
                return Err(keys.bad(format!("model_type `{other}` is not supported (supported: gpt2, llama)")));
            }
        };
        keys.finish()?;
        Ok(config)
    }

    fn from_gpt2(keys: &mut Keys<'_>) -> Result<Self> {
        let hidden_dim = keys.required_count("n_embd")?;
        let n_heads = keys.required_count("n_head")?;
        if hidden_dim % n_heads != 0 {
            return Err(keys.bad(format!("`n_embd` {hidden_dim} is not a multiple of `n_head` {n_heads}")));
        }
        let mlp = match keys.take("activation_function").as_ref().and_then(Value::as_str).unwrap_or("gelu_new") {
            "gelu_new" | "gelu_pytorch_tanh" => Gelu::Tanh,
            "gelu" => Gelu::Erf,
            other => return Err(keys.bad(format!("`activation_function` `{other}` is not supported"))),
        };
        keys.must_be("scale_attn_weights", &[json!(true)])?;
        keys.must_be("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
        keys.must_be("reorder_and_upcast_attn", &[json!(false)])?;
        keys.must_be("add_cross_attention", &[json!(false)])?;
        Ok(Self {
            family: Family::Gpt2,
            vocab_size: keys.required_count("vocab_size")?,
            hidden_dim,
            n_layers: keys.required_count("n_layer")?,
            heads: HeadShape { n_heads, n_kv_heads: n_heads, head_dim: hidden_dim / n_heads },
            mlp_dim: keys.count("n_inner")?.unwrap_or(4 * hidden_dim),
            context_len: keys.required_count("n_positions")?,
            norm: Norm::Layer,
            norm_eps: keys.number("layer_norm_epsilon", 1e-5)?,
            positions: Positions::Learned,
            mlp: Mlp::Gelu(mlp),
            tied: keys.flag("tie_word_embeddings", true)?,
            bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: keys.token_ids("eos_token_id")?,
            initializer_range: keys.number("initializer_range", 0.02)?,
            score_bias: keys.number("score_bias", 0.0)?,
        })
    }

    fn from_llama(keys: &mut Keys<'_>) -> Result<Self> {
        let hidden_dim = keys.required_count("hidden_size")?;
        let n_heads = keys.required_count("num_attention_heads")?;
        let n_kv_heads = keys.count("num_key_value_heads")?.unwrap_or(n_heads);
        let head_dim = keys.count("head_dim")?.unwrap_or(hidden_dim / n_heads);
        if n_heads % n_kv_heads != 0 || head_dim % 2 != 0 {
            return Err(keys.bad(format!(
                "{n_heads} heads of width {head_dim} over {n_kv_heads} key heads: the key heads must divide the heads, \
                 and the width must be even"
            )));
        }
        keys.must_be("hidden_act", &[json!("silu")])?;
        keys.must_be("attention_bias", &[json!(false)])?;
        keys.must_be("mlp_bias", &[json!(false)])?;
        keys.must_be("rope_scaling", &[])?;
        let theta = match keys.take("rope_parameters") {
            None => keys.number("rope_theta", 10_000.0)?,
            Some(parameters) => {
                let kind = parameters.get("rope_type").and_then(Value::as_str).unwrap_or("default");
                if kind != "default" {
                    return Err(keys.bad(format!("`rope_parameters.rope_type` `{kind}` is not supported")));
                }
                let theta = parameters.get("rope_theta").and_then(Value::as_f64);
                theta.ok_or_else(|| keys.bad("`rope_parameters.rope_theta` is missing".into()))?
            }
        };
        Ok(Self {
            family: Family::Llama,
            vocab_size: keys.required_count("vocab_size")?,
            hidden_dim,
            n_layers: keys.required_count("num_hidden_layers")?,
            heads: HeadShape { n_heads, n_kv_heads, head_dim },
            mlp_dim: keys.required_count("intermediate_size")?,
            context_len: keys.required_count("max_position_embeddings")?,
            norm: Norm::Rms,
            norm_eps: keys.number("rms_norm_eps", 1e-6)?,
            positions: Positions::Rotary { theta },
            mlp: Mlp::SwiGlu,
            tied: keys.flag("tie_word_embeddings", false)?,
            bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: keys.token_ids("eos_token_id")?,
            initializer_range: keys.number("initializer_range", 0.02)?,
            score_bias: keys.number("score_bias", 0.0)?,
        })
    }

    /// The HuggingFace form. `scalar_head` says that the weights are a `…ForSequenceClassification` with one label.
    pub fn to_hf(&self, scalar_head: bool) -> Value {
        let mut value = match self.family {
            Family::Gpt2 => json!({
                "model_type": "gpt2",
                "n_embd": self.hidden_dim, "n_head": self.heads.n_heads, "n_layer": self.n_layers,
                "n_inner": self.mlp_dim, "n_positions": self.context_len,
                "activation_function": if self.mlp == Mlp::Gelu(Gelu::Erf) { "gelu" } else { "gelu_new" },
                "layer_norm_epsilon": self.norm_eps,
                // transformers' defaults would be 0.1.
                "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
            }),
            Family::Llama => {
                let Positions::Rotary { theta } = self.positions else { unreachable!("Llama is rotary") };
                json!({
                    "model_type": "llama",
                    "hidden_size": self.hidden_dim, "num_attention_heads": self.heads.n_heads,
                    "num_key_value_heads": self.heads.n_kv_heads, "head_dim": self.heads.head_dim,
                    "num_hidden_layers": self.n_layers, "intermediate_size": self.mlp_dim,
                    "max_position_embeddings": self.context_len, "hidden_act": "silu",
                    "rms_norm_eps": self.norm_eps, "rope_theta": theta,
                    "attention_bias": false, "mlp_bias": false,
                })
            }
        };
        let class = match (self.family, scalar_head) {
            (Family::Gpt2, false) => "GPT2LMHeadModel",
            (Family::Gpt2, true) => "GPT2ForSequenceClassification",
            (Family::Llama, false) => "LlamaForCausalLM",
            (Family::Llama, true) => "LlamaForSequenceClassification",
        };
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        let common = json!({
            "architectures": [class], "vocab_size": self.vocab_size, "tie_word_embeddings": self.tied,
            "bos_token_id": self.bos_token_id, "eos_token_id": eos,
            "initializer_range": self.initializer_range, "torch_dtype": "float32",
        });
        let map = value.as_object_mut().expect("an object literal");
        map.extend(common.as_object().cloned().expect("an object literal"));
        if scalar_head {
            map.insert("num_labels".into(), json!(1));
            map.insert("id2label".into(), json!({"0": "score"}));
            map.insert("label2id".into(), json!({"score": 0}));
            map.insert("score_bias".into(), json!(self.score_bias));
            // No `pad_token_id`: were it the end token, transformers would read the score before the end token. Without
            // one it reads the last token, and refuses batches.
        }
        value
    }
}
