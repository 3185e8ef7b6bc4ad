//! What a model's `config.json` says, in terms of what the decoder does.

use std::path::Path;

use serde_json::{Value, json};

use super::families::{Family, QkvNames};
use super::files::read_json;
use super::keys::Keys;
use super::specs::HeadKind;
use crate::error::{Error, Result};
use crate::kernels::{AttentionRule, Gelu, HeadShape, RopeTable};

const CONFIG_FILE: &str = "config.json";

/// How rows are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Mean and variance; gain and bias.
    Layer,
    /// Root mean square; gain alone.
    Rms,
    /// Root mean square; the gain is one more than its weight.
    RmsPlusOne,
}

/// Where the norms and the additions to the residual stream stand in a block, with A for attention and M for the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// x + A(norm x), then x + M(norm x); a norm after the last block.
    PreNorm,
    /// norm(x + A(x)), then norm(x + M(x)).
    PostNorm,
    /// x + A(norm x) + M(other norm of x); a norm after the last block.
    Parallel,
    /// x + norm A(norm x), then x + norm M(norm x); a norm after the last block.
    Sandwich,
}

/// How the frequencies of rotary positions are stretched to longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// All divided by `factor` (Chen et al. 2023).
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Llama 3.1's: long wavelengths divided by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// By how much long ones are divided.
        factor: f64,
        /// Wavelengths over `original_context_len / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths under `original_context_len / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context before stretching, in tokens.
        original_context_len: usize,
    },
}

/// Rotary positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How many numbers at the beginning of each head are rotated (even).
    pub rotary_dim: usize,
    /// Stretching.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Radians a position of each pair of rotated numbers: `rotary_dim / 2` of them.
    pub fn frequencies(&self) -> Vec<f64> {
        let plain = RopeTable::frequencies(self.rotary_dim, self.theta);
        match self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain.into_iter().map(|frequency| frequency / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => {
                let stretched = |frequency: f64| {
                    // How many times the wave fits into the original context.
                    let n_waves = original_context_len as f64 * frequency / std::f64::consts::TAU;
                    // 0 for long waves, 1 for short ones.
                    let kept = ((n_waves - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    frequency * (kept + (1.0 - kept) / factor)
                };
                plain.into_iter().map(stretched).collect()
            }
        }
    }
}

/// How a token's place enters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// A learned vector for each position is added to the embedding.
    Learned,
    /// Queries and keys are rotated.
    Rotary {
        /// In layers that see all positions, and in windowed ones unless `windowed` says otherwise.
        rope: Rope,
        /// In layers with a window, where they have their own.
        windowed: Option<Rope>,
    },
}

/// The attention of all layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Heads.
    pub heads: HeadShape,
    /// What scores are multiplied by.
    pub scale: f32,
    /// For each layer how many positions a query sees; `None`: all before it.
    pub windows: Vec<Option<usize>>,
    /// Whether the projections to queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the projection back has a bias.
    pub out_bias: bool,
    /// Whether each head of queries and keys is normalised, by a gain that all heads share, before it is rotated.
    pub qk_norm: bool,
}

impl Attention {
    /// Every layer sees all positions; scores are scaled by 1/√D; no bias, no norm.
    pub fn causal(heads: HeadShape, n_layers: usize) -> Self {
        Self {
            heads,
            scale: AttentionRule::causal(heads).scale,
            windows: vec![None; n_layers],
            qkv_bias: false,
            out_bias: false,
            qk_norm: false,
        }
    }

    /// The rule of one layer.
    pub fn rule(&self, layer_idx: usize) -> AttentionRule {
        AttentionRule { heads: self.heads, scale: self.scale, window: self.windows[layer_idx] }
    }
}

/// The shape of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// Two layers with GELU between.
    Gelu(Gelu),
    /// Gate and up, the gate through SiLU, multiplied, then down.
    SwiGlu,
    /// The same with GELU.
    GeGlu(Gelu),
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
    /// Attention.
    pub attention: Attention,
    /// Width inside the MLP.
    pub mlp_dim: usize,
    /// Whether the MLP's layers have a bias.
    pub mlp_bias: bool,
    /// The longest sequence, in tokens.
    pub context_len: usize,
    /// Normalisation.
    pub norm: Norm,
    /// Added to the variance in normalisation.
    pub norm_eps: f64,
    /// The order of norms and additions.
    pub residual: Residual,
    /// Positions.
    pub positions: Positions,
    /// MLP.
    pub mlp: Mlp,
    /// What embeddings are multiplied by; 1 for most.
    pub embedding_scale: f64,
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

/// Which head the model in this directory has, by the class that its `config.json` names: `…ForSequenceClassification`
/// has a scalar one.
pub fn head_kind_of(dir: &Path) -> Result<HeadKind> {
    let config = read_json(&dir.join(CONFIG_FILE))?;
    let class = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
    Ok(if class.ends_with("ForSequenceClassification") { HeadKind::Scalar } else { HeadKind::Language })
}

impl ModelConfig {
    /// Heads of the attention.
    pub fn heads(&self) -> HeadShape {
        self.attention.heads
    }

    /// What the embedding is called.
    pub(crate) fn embedding_name(&self) -> String {
        self.family.names().embedding()
    }

    /// Whether queries, keys and values are projected by more matrices than one, or by one that has them head by head.
    pub fn has_several_projections(&self) -> bool {
        !matches!(self.family.names().qkv, QkvNames::Joined(_))
    }

    /// Reads `config.json` in a model's directory. A key that could change the computation and is not known is an
    /// error.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::from_hf(&path, read_json(&path)?)
    }

    /// Reads the HuggingFace form; `path` is for messages.
    pub fn from_hf(path: &Path, value: Value) -> Result<Self> {
        let Value::Object(map) = value else { return Err(Error::bad_file(path, "expected a JSON object")) };
        let model_type = map.get("model_type").and_then(Value::as_str).unwrap_or("").to_owned();
        let class = map.get("architectures").and_then(|classes| classes.get(0)?.as_str()).unwrap_or("").to_owned();
        let mut keys = Keys::new(path, map);
        let Some(family) = Family::of_model_type(&model_type) else {
            let supported: Vec<&str> = Family::ALL.iter().map(|family| family.model_type()).collect();
            let supported = supported.join(", ");
            return Err(keys.bad(format!("model_type `{model_type}` is not supported (supported: {supported})")));
        };
        check_class(&keys, &class)?;
        let config = family.read(&mut keys)?;
        keys.finish()?;
        config.check().map_err(|problem| Error::bad_file(path, problem))?;
        Ok(config)
    }

    /// What no model can be.
    fn check(&self) -> std::result::Result<(), String> {
        let HeadShape { n_heads, n_kv_heads, head_dim } = self.heads();
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(format!("{n_heads} heads over {n_kv_heads} key heads: the key heads must divide the heads"));
        }
        let Positions::Rotary { rope, windowed } = self.positions else { return Ok(()) };
        match [Some(rope), windowed]
            .into_iter()
            .flatten()
            .map(|rope| rope.rotary_dim)
            .find(|dim| *dim == 0 || dim % 2 == 1 || *dim > head_dim)
        {
            None => Ok(()),
            Some(dim) => Err(format!(
                "{dim} of the {head_dim} numbers of each head are to be rotated: that must be an even number, over 0 \
                 and no more than there are"
            )),
        }
    }

    /// The HuggingFace form. `scalar_head` says that the weights are a `…ForSequenceClassification` with one label.
    pub fn to_hf(&self, scalar_head: bool) -> Value {
        let mut value = self.family.write(self);
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        let common = json!({
            "model_type": self.family.model_type(), "architectures": [self.family.class(scalar_head)],
            "vocab_size": self.vocab_size, "tie_word_embeddings": self.tied,
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
            map.insert("pad_token_id".into(), Value::Null);
        }
        value
    }
}

/// Refuses a class with another head than the two that are known: its head's weights would be missing here, or unread.
fn check_class(keys: &Keys<'_>, class: &str) -> Result<()> {
    let known = ["ForCausalLM", "LMHeadModel", "ForSequenceClassification", "Model"];
    let has_another_head = class.contains("DoubleHeads") || class.contains("ForConditionalGeneration");
    if class.is_empty() || (known.iter().any(|suffix| class.ends_with(suffix)) && !has_another_head) {
        return Ok(());
    }
    Err(keys.bad(format!(
        "`architectures` names `{class}`, which is not supported (supported: a decoder with a language model's head, \
         …ForCausalLM or …LMHeadModel, or with one score, …ForSequenceClassification)"
    )))
}
