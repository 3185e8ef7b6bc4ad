//! `pretrain`: raw text to tokenizer and base model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use collimate_models::arch::{HeadKind, ModelConfig, Weights, save_model};
use collimate_models::data::corpus::{Corpus, Split, read_paragraphs, split_by_index};
use collimate_models::data::windows::{PretrainWindows, consecutive_windows};
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_models::train::{LmExample, LmTrainer, OptimConfig, heldout_nll};
use collimate_protocol::records::PretrainSummary;

use super::context::{StageContext, StageError};
use super::memory;
use super::recipe::CorpusConfig;
use super::training_file::TrainingFile;

/// Held-out windows that the final NLL is taken over.
const N_HELDOUT_WINDOWS: usize = 256;

/// Raw text to tokenizer and base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainConfig {
    /// A directory with a tokenizer to use. Without it, a byte-level BPE is trained on the corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens of the vocabulary to train; unused with `tokenizer`.
    pub vocab_size: usize,
    /// The model's shape.
    pub model: ModelShape,
    /// Tokens of a training sequence.
    pub seq_len: usize,
    /// Sequences in one optimiser step.
    pub batch_size: usize,
    /// Optimiser steps.
    pub n_steps: u64,
    /// The optimiser.
    pub optim: OptimConfig,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            tokenizer: None,
            vocab_size: 2048,
            model: ModelShape::default(),
            seq_len: 128,
            batch_size: 32,
            n_steps: 1000,
            optim: OptimConfig { lr: 2e-3, ..OptimConfig::default() },
        }
    }
}

/// Which architecture's names and layout a new model has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShapeFamily {
    /// LayerNorm, learned positions, GELU.
    Gpt2,
    /// RMSNorm, rotary positions, grouped heads, SwiGLU.
    #[default]
    Llama,
}

/// The shape of a new model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelShape {
    /// "llama" or "gpt2".
    pub family: ShapeFamily,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the residual stream; a multiple of n_heads.
    pub hidden_dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides n_heads. GPT-2 has as many as query heads.
    pub n_kv_heads: usize,
    /// Width inside the MLP.
    pub mlp_dim: usize,
    /// The longest sequence, in tokens.
    pub context_len: usize,
    /// Whether the unembedding is the embedding.
    pub tied: bool,
}

impl Default for ModelShape {
    fn default() -> Self {
        Self {
            family: ShapeFamily::Llama,
            n_layers: 4,
            hidden_dim: 192,
            n_heads: 4,
            n_kv_heads: 4,
            mlp_dim: 512,
            context_len: 256,
            tied: true,
        }
    }
}

impl ModelShape {
    fn to_config(&self, tokenizer: &Tokenizer) -> Result<ModelConfig, StageError> {
        let bad = |problem: String| Err(StageError::Setting(format!("pretrain.model: {problem}")));
        let counts = [self.n_layers, self.hidden_dim, self.n_heads, self.n_kv_heads, self.mlp_dim, self.context_len];
        if counts.contains(&0) {
            return bad("every size must be at least 1".into());
        }
        if !self.hidden_dim.is_multiple_of(self.n_heads) || !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return bad(format!(
                "hidden_dim {} must be a multiple of n_heads {}, and n_heads of n_kv_heads {}",
                self.hidden_dim, self.n_heads, self.n_kv_heads
            ));
        }
        let head_dim = self.hidden_dim / self.n_heads;
        if self.family == ShapeFamily::Llama && !head_dim.is_multiple_of(2) {
            return bad(format!("hidden_dim / n_heads is {head_dim}, but rotary positions need an even width"));
        }
        if self.family == ShapeFamily::Gpt2 && self.n_kv_heads != self.n_heads {
            return bad(format!("gpt2 needs n_kv_heads = n_heads = {}, found {}", self.n_heads, self.n_kv_heads));
        }
        let common = json!({
            "vocab_size": tokenizer.vocab_size(), "tie_word_embeddings": self.tied, "bos_token_id": tokenizer.bos(),
            "eos_token_id": tokenizer.eos(), "initializer_range": 0.02,
        });
        let mut shape = match self.family {
            ShapeFamily::Llama => json!({
                "model_type": "llama", "hidden_size": self.hidden_dim, "num_hidden_layers": self.n_layers,
                "num_attention_heads": self.n_heads, "num_key_value_heads": self.n_kv_heads,
                "intermediate_size": self.mlp_dim, "max_position_embeddings": self.context_len,
                "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
            }),
            ShapeFamily::Gpt2 => json!({
                "model_type": "gpt2", "n_embd": self.hidden_dim, "n_layer": self.n_layers, "n_head": self.n_heads,
                "n_inner": self.mlp_dim, "n_positions": self.context_len, "layer_norm_epsilon": 1e-5,
            }),
        };
        let (map, common) = (shape.as_object_mut(), common.as_object().cloned());
        map.expect("an object literal").extend(common.expect("an object literal"));
        Ok(ModelConfig::from_hf(Path::new("pretrain.model"), shape)?)
    }
}

/// Trains the tokenizer and the base model.
pub fn run(
    config: &PretrainConfig,
    corpus: Option<&CorpusConfig>,
    context: &mut StageContext<'_>,
) -> Result<PretrainSummary, StageError> {
    let corpus = corpus.ok_or_else(|| StageError::Setting("[pretrain] needs a [corpus] table with `paths`".into()))?;
    let paragraphs = read_paragraphs(&corpus.paths)?;
    let tokenizer = match &config.tokenizer {
        Some(dir) => Tokenizer::load(dir)?,
        None => {
            context.observer.phase("tokenizer", 1);
            let (train, _) = split_by_index(paragraphs.iter().map(String::as_str).collect(), corpus.heldout_share);
            let tokenizer = Tokenizer::train_byte_level_bpe(train, config.vocab_size, &[])?;
            context.observer.step(1, &[]);
            tokenizer
        }
    };
    let corpus = Corpus::new(&paragraphs, &tokenizer, corpus.heldout_share)?;
    let model_config = Arc::new(config.model.to_config(&tokenizer)?);
    if config.seq_len > model_config.context_len {
        return Err(StageError::Setting(format!(
            "pretrain.seq_len is {}, longer than the model's context_len {}",
            config.seq_len, model_config.context_len
        )));
    }
    let heldout: Vec<LmExample> =
        consecutive_windows(&corpus.token_stream(Split::Heldout), config.seq_len, N_HELDOUT_WINDOWS)?
            .into_iter()
            .map(LmExample::text)
            .collect();
    let mut windows =
        PretrainWindows::new(corpus.token_stream(Split::Train), config.seq_len, config.batch_size, context.seed)?;

    context.check_memory(memory::of_pretrain(config, &model_config, &context.device)?)?;
    let mut rng = rng::for_purpose(context.seed, "initial weights");
    let weights = Weights::initialise(&model_config, HeadKind::Language, &mut rng, &context.device)?
        .with_precision(context.precision);
    let n_parameters = weights.n_elements() as u64;
    let mut trainer = LmTrainer::new(&model_config, &weights, &config.optim, config.n_steps)?;
    let mut n_tokens = 0;
    context.observer.phase("pretrain", config.n_steps);
    let (mut file, n_done) = TrainingFile::open(context, |path| trainer.restore(path))?;
    context.check_stop()?;
    for step_idx in 0..config.n_steps {
        let batch: Vec<LmExample> = windows.draw().into_iter().map(LmExample::text).collect();
        if step_idx < n_done {
            n_tokens += batch.iter().map(|example| example.tokens.len() as u64 - 1).sum::<u64>();
            continue;
        }
        let step = trainer.step(&batch)?;
        n_tokens += step.n_tokens as u64;
        let metrics =
            [("loss", step.loss), ("grad_norm", step.grad_norm), ("lr", step.lr), ("tokens", n_tokens as f64)];
        context.observer.step(step_idx + 1, &metrics);
        file.after_step(context, |path| trainer.save_state(path))?;
    }
    let nll = heldout_nll(&trainer.model()?, &heldout, config.optim.microbatch_tokens)?;
    save_model(&context.model_dir(), &model_config, HeadKind::Language, &trainer.weights()?)?;
    tokenizer.save(&context.model_dir())?;
    file.remove()?;
    Ok(PretrainSummary { heldout_nll: nll.mean, n_tokens, n_parameters, elapsed_s: context.elapsed_s() })
}
