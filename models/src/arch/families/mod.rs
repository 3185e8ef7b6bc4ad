//! The families of models: what each calls its settings and its weights.
//!
//! Adding one is one file here: how its `config.json` is read and written, and its names.

mod gemma;
mod gpt1;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod llama;
mod names;
mod rope;

use serde_json::{Value, json};

pub(super) use names::{Names, QkvNames};

use super::config::{Attention, Mlp, ModelConfig, Norm, Positions, Residual};
use super::keys::Keys;
use crate::error::Result;
use crate::kernels::{Gelu, HeadShape};

/// Whose names and layout the weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Radford et al. 2018: norms after the additions.
    Gpt1,
    /// Radford et al. 2019.
    Gpt2,
    /// GPT-3's shape (Brown et al. 2020): local attention in every other layer, scores not scaled.
    GptNeo,
    /// GPT-NeoX and Pythia: attention and MLP side by side, a part of each head rotated.
    GptNeox,
    /// Llama 1 to 3, SmolLM, TinyLlama.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: Llama with a bias on queries, keys and values.
    Qwen2,
    /// Llama with a norm on queries and keys.
    Qwen3,
    /// Gemma 1.
    Gemma,
    /// The text part of Gemma 3.
    Gemma3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Gpt1,
        Self::Gpt2,
        Self::GptNeo,
        Self::GptNeox,
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma,
        Self::Gemma3,
    ];

    /// As `config.json` names it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt1 => "openai-gpt",
            Self::Gpt2 => "gpt2",
            Self::GptNeo => "gpt_neo",
            Self::GptNeox => "gpt_neox",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma => "gemma",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// The family that `config.json` names.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == model_type)
    }

    /// transformers' class.
    pub(super) fn class(self, scalar_head: bool) -> &'static str {
        match (self, scalar_head) {
            (Self::Gpt1, false) => "OpenAIGPTLMHeadModel",
            (Self::Gpt1, true) => "OpenAIGPTForSequenceClassification",
            (Self::Gpt2, false) => "GPT2LMHeadModel",
            (Self::Gpt2, true) => "GPT2ForSequenceClassification",
            (Self::GptNeo, false) => "GPTNeoForCausalLM",
            (Self::GptNeo, true) => "GPTNeoForSequenceClassification",
            (Self::GptNeox, false) => "GPTNeoXForCausalLM",
            (Self::GptNeox, true) => "GPTNeoXForSequenceClassification",
            (Self::Llama, false) => "LlamaForCausalLM",
            (Self::Llama, true) => "LlamaForSequenceClassification",
            (Self::Mistral, false) => "MistralForCausalLM",
            (Self::Mistral, true) => "MistralForSequenceClassification",
            (Self::Qwen2, false) => "Qwen2ForCausalLM",
            (Self::Qwen2, true) => "Qwen2ForSequenceClassification",
            (Self::Qwen3, false) => "Qwen3ForCausalLM",
            (Self::Qwen3, true) => "Qwen3ForSequenceClassification",
            (Self::Gemma, false) => "GemmaForCausalLM",
            (Self::Gemma, true) => "GemmaForSequenceClassification",
            (Self::Gemma3, false) => "Gemma3ForCausalLM",
            (Self::Gemma3, true) => "Gemma3TextForSequenceClassification",
        }
    }

    /// What the weights are called.
    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Gpt1 => &gpt1::NAMES,
            Self::Gpt2 => &gpt2::NAMES,
            Self::GptNeo => &gpt_neo::NAMES,
            Self::GptNeox => &gpt_neox::NAMES,
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => &llama::NAMES,
            Self::Gemma => &gemma::NAMES,
            Self::Gemma3 => &gemma::NAMES_3,
        }
    }

    /// Reads the HuggingFace form.
    pub(super) fn read(self, keys: &mut Keys<'_>) -> Result<ModelConfig> {
        match self {
            Self::Gpt1 => gpt1::read(keys),
            Self::Gpt2 => gpt2::read(keys),
            Self::GptNeo => gpt_neo::read(keys),
            Self::GptNeox => gpt_neox::read(keys),
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => llama::read(self, keys),
            Self::Gemma | Self::Gemma3 => gemma::read(self, keys),
        }
    }

    /// The HuggingFace form, but for what all families share.
    pub(super) fn write(self, config: &ModelConfig) -> Value {
        match self {
            Self::Gpt1 => gpt1::write(config),
            Self::Gpt2 => gpt2::write(config),
            Self::GptNeo => gpt_neo::write(config),
            Self::GptNeox => gpt_neox::write(config),
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => llama::write(config),
            Self::Gemma | Self::Gemma3 => gemma::write(config),
        }
    }
}

/// What a family's `read` has found out before it reads what all families share.
struct Shape {
    hidden_dim: usize,
    n_layers: usize,
    attention: Attention,
    mlp_dim: usize,
    mlp_bias: bool,
    context_len: usize,
    norm: (Norm, f64),
    residual: Residual,
    positions: Positions,
    mlp: Mlp,
    tied_by_default: bool,
}

impl Shape {
    /// Reads what all families share.
    fn into_config(self, family: Family, keys: &mut Keys<'_>) -> Result<ModelConfig> {
        let embedding_scale = match family {
            Family::Gemma | Family::Gemma3 => (self.hidden_dim as f64).sqrt(),
            _ => 1.0,
        };
        Ok(ModelConfig {
            family,
            vocab_size: keys.required_count("vocab_size")?,
            hidden_dim: self.hidden_dim,
            n_layers: self.n_layers,
            attention: self.attention,
            mlp_dim: self.mlp_dim,
            mlp_bias: self.mlp_bias,
            context_len: self.context_len,
            norm: self.norm.0,
            norm_eps: self.norm.1,
            residual: self.residual,
            positions: self.positions,
            mlp: self.mlp,
            embedding_scale,
            tied: keys.flag("tie_word_embeddings", self.tied_by_default)?,
            bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: keys.token_ids("eos_token_id")?,
            initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
            score_bias: keys.number("score_bias")?.unwrap_or(0.0),
        })
    }
}

/// Takes a GELU's name.
fn gelu(keys: &mut Keys<'_>, key: &str, default: &str) -> Result<Gelu> {
    match keys.text(key)?.as_deref().unwrap_or(default) {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Gelu::Tanh),
        "gelu" | "gelu_python" => Ok(Gelu::Erf),
        other => {
            let supported = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"].map(|name| json!(name));
            Err(keys.unsupported(key, &json!(other), &supported))
        }
    }
}

/// As transformers names it.
fn gelu_name(kind: Gelu) -> &'static str {
    match kind {
        Gelu::Tanh => "gelu_new",
        Gelu::Erf => "gelu",
    }
}

/// As many key heads as heads, which share the width among them.
fn equal_heads(keys: &Keys<'_>, hidden_dim: usize, n_heads: usize) -> Result<HeadShape> {
    if !hidden_dim.is_multiple_of(n_heads) {
        return Err(keys.bad(format!("the width {hidden_dim} is not a multiple of the number of heads {n_heads}")));
    }
    Ok(HeadShape { n_heads, n_kv_heads: n_heads, head_dim: hidden_dim / n_heads })
}

#[cfg(test)]
mod tests;
