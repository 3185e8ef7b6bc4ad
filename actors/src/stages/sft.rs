//! `sft`: base model and demonstrations to SFT model. The loss is on the responses alone.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use collimate_models::arch::{HeadKind, ModelConfig, save_model};
use collimate_models::data::Records;
use collimate_models::data::corpus::{Continuation, Split, split_by_index};
use collimate_models::data::demonstrations::tokenize_demonstrations;
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_models::train::{LmExample, LmTrainer, OptimConfig, heldout_nll, shuffled_minibatches};
use collimate_protocol::records::SftSummary;

use super::context::{StageContext, StageError};
use super::inputs::{InputModel, load_corpus};
use super::recipe::CorpusConfig;

/// Base model and demonstrations to SFT model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {
    /// The base model's directory. Without it, the pretrain stage's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// JSON lines with `prompt` and `response`. Without it, demonstrations are cut from the corpus: how its paragraphs
    /// go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demonstrations: Option<PathBuf>,
    /// Share of a demonstrations file that is held out. (The corpus has its own share.)
    pub heldout_share: f64,
    /// Passes over the demonstrations.
    pub n_epochs: usize,
    /// Demonstrations in one optimiser step.
    pub batch_size: usize,
    /// Stop after this many optimiser steps; 0 makes all passes.
    pub max_steps: u64,
    /// The optimiser.
    pub optim: OptimConfig,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            base: None,
            demonstrations: None,
            heldout_share: 0.05,
            n_epochs: 1,
            batch_size: 32,
            max_steps: 0,
            optim: OptimConfig { lr: 3e-4, weight_decay: 0.0, ..OptimConfig::default() },
        }
    }
}

/// Demonstrations in tokens, for training and held out.
pub struct Demonstrations {
    /// What SFT trains on.
    pub train: Vec<LmExample>,
    /// What it is judged by.
    pub heldout: Vec<LmExample>,
}

/// Reads demonstrations from the file, or cuts them from the corpus.
pub fn load_demonstrations(
    file: Option<&Path>,
    heldout_share: f64,
    corpus: Option<&CorpusConfig>,
    tokenizer: &Tokenizer,
    model: &ModelConfig,
) -> Result<Demonstrations, StageError> {
    let (train, heldout) = match file {
        Some(path) => {
            let records = Records::read(path)?;
            split_by_index(tokenize_demonstrations(&records, tokenizer, model.context_len)?, heldout_share)
        }
        None => {
            let cut = load_corpus(corpus, tokenizer, "cutting demonstrations")?;
            let lengths = corpus.cloned().unwrap_or_default();
            let examples = |split| -> Vec<LmExample> {
                let continuations = cut.continuations(split, lengths.prompt_tokens, lengths.response_tokens);
                continuations.iter().map(example).collect()
            };
            (examples(Split::Train), examples(Split::Heldout))
        }
    };
    if train.is_empty() || heldout.is_empty() {
        return Err(StageError::Setting(format!(
            "{} demonstrations to train on and {} held out: there must be at least one of each",
            train.len(),
            heldout.len()
        )));
    }
    Ok(Demonstrations { train, heldout })
}

fn example(continuation: &Continuation) -> LmExample {
    let tokens = [continuation.prompt.as_slice(), &continuation.response].concat();
    LmExample::response(tokens, continuation.prompt.len())
}

/// Trains the SFT model from the base model in `base`.
pub fn run(
    config: &SftConfig,
    base: &Path,
    corpus: Option<&CorpusConfig>,
    context: &mut StageContext<'_>,
) -> Result<SftSummary, StageError> {
    let base = InputModel::load(base, HeadKind::Language, context)?;
    let file = config.demonstrations.as_deref();
    let demonstrations = load_demonstrations(file, config.heldout_share, corpus, &base.tokenizer, &base.config)?;
    let Demonstrations { train, heldout } = demonstrations;

    let mut rng = rng::for_purpose(context.seed, "order of demonstrations");
    let minibatches: Vec<Vec<usize>> =
        (0..config.n_epochs).flat_map(|_| shuffled_minibatches(train.len(), config.batch_size, &mut rng)).collect();
    let n_steps = match config.max_steps {
        0 => minibatches.len(),
        max_steps => minibatches.len().min(max_steps as usize),
    };
    let mut trainer = LmTrainer::new(&base.config, &base.weights, &config.optim, n_steps as u64)?;
    let budget = config.optim.microbatch_tokens;
    let before = heldout_nll(&trainer.model()?, &heldout, budget)?;
    context.observer.phase("sft", n_steps as u64);
    for (step_idx, minibatch) in minibatches[..n_steps].iter().enumerate() {
        context.check_stop()?;
        let batch: Vec<LmExample> = minibatch.iter().map(|&idx| train[idx].clone()).collect();
        let step = trainer.step(&batch)?;
        let metrics = [("loss", step.loss), ("grad_norm", step.grad_norm), ("lr", step.lr)];
        context.observer.step(step_idx as u64 + 1, &metrics);
    }
    let after = heldout_nll(&trainer.model()?, &heldout, budget)?;
    save_model(&context.model_dir(), &base.config, HeadKind::Language, &trainer.weights()?)?;
    base.tokenizer.save(&context.model_dir())?;
    Ok(SftSummary {
        heldout_nll_before: before.mean,
        heldout_nll: after.mean,
        n_demonstrations: train.len(),
        elapsed_s: context.elapsed_s(),
    })
}
