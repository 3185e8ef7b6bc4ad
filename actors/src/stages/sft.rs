//! `sft`: base model and demonstrations to SFT model. The loss is on the responses alone.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use collimate_models::arch::{HeadKind, LoraConfig};
use collimate_models::data::limit::TooLong;
use collimate_models::rng;
use collimate_models::train::{LmTrainer, OptimConfig, heldout_nll};
use collimate_protocol::records::SftSummary;

use super::context::{StageContext, StageError};
use super::data_files::DataFiles;
use super::inputs::ModelFiles;
use super::memory;
use super::outputs::save_trained;
use super::recipe::CorpusConfig;
use super::sft_data::SftData;
use super::training_file::TrainingFile;

/// Base model and demonstrations to SFT model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {
    /// The base model's directory. Without it, the pretrain stage's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// A file of demonstrations, or a list of files and of tables { path, weight }; `collimate data check` tells what
    /// they may hold. Without it, demonstrations are cut from the corpus: how its paragraphs go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demonstrations: Option<DataFiles>,
    /// Share of a demonstrations file that is held out. (The corpus has its own share.)
    pub heldout_share: f64,
    /// Demonstrations of the files that are held at a time, and shuffled: more than there are shuffle them all alike.
    pub shuffle_buffer: usize,
    /// The most tokens of a demonstration of the files; 0 takes the model's whole context.
    pub max_tokens: usize,
    /// What becomes of demonstrations with more: "refuse", "drop" or "truncate".
    pub too_long: TooLong,
    /// Passes over the demonstrations.
    pub n_epochs: usize,
    /// Demonstrations in one optimiser step.
    pub batch_size: usize,
    /// Stop after this many optimiser steps; 0 makes all passes.
    pub max_steps: u64,
    /// Trains adapters alone, on the base model as it is. `model` then holds both as one, and `adapter` what PEFT reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// The optimiser.
    pub optim: OptimConfig,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            base: None,
            demonstrations: None,
            heldout_share: 0.05,
            shuffle_buffer: 20_000,
            max_tokens: 0,
            too_long: TooLong::default(),
            n_epochs: 1,
            batch_size: 32,
            max_steps: 0,
            lora: None,
            optim: OptimConfig { lr: 3e-4, weight_decay: 0.0, ..OptimConfig::default() },
        }
    }
}

/// Trains the SFT model from the base model in `base`.
pub fn run(
    config: &SftConfig,
    base: &Path,
    corpus: Option<&CorpusConfig>,
    context: &mut StageContext<'_>,
) -> Result<SftSummary, StageError> {
    let files = ModelFiles::open(base, HeadKind::Language)?;
    let data = match &config.demonstrations {
        Some(demonstrations) => SftData::of_files(demonstrations, config, &files)?,
        None => SftData::of_corpus(corpus, &files.tokenizer)?,
    };
    if let Some(told) = data.told() {
        context.observer.warn(told);
    }
    context.check_memory(memory::of_sft(config, &files, data.longest(), &context.device)?)?;
    let n_passes = config.n_epochs * data.n_train().div_ceil(config.batch_size);
    let n_steps = match config.max_steps {
        0 => n_passes,
        max_steps => n_passes.min(max_steps as usize),
    };
    let heldout = &data.heldout;
    let mut trainer = {
        let base = files.load(&context.device, context.precision)?;
        let start = match &config.lora {
            None => base.weights,
            Some(lora) => {
                let mut rng = rng::for_purpose(context.seed, "adapters of the SFT model");
                base.weights.into_base(&files.config)?.adapted(&files.config, HeadKind::Language, lora, &mut rng)?
            }
        };
        LmTrainer::new(&files.config, &start, &config.optim, n_steps as u64)?
    };
    let budget = config.optim.microbatch_tokens;
    let before = heldout_nll(&trainer.model()?, heldout, budget)?;
    context.observer.phase("sft", n_steps as u64);
    let (mut file, n_done) = TrainingFile::open(context, |path| trainer.restore(path))?;
    context.check_stop()?;
    for (step_idx, batch) in data.batches(config, context.seed).take(n_steps).enumerate().skip(n_done as usize) {
        let step = trainer.step(&batch?)?;
        let metrics = [("loss", step.loss), ("grad_norm", step.grad_norm), ("lr", step.lr)];
        context.observer.step(step_idx as u64 + 1, &metrics);
        file.after_step(context, |path| trainer.save_state(path))?;
    }
    let after = heldout_nll(&trainer.model()?, heldout, budget)?;
    save_trained(context, &files, HeadKind::Language, &trainer.weights()?, config.lora.as_ref())?;
    file.remove()?;
    Ok(SftSummary {
        heldout_nll_before: before.mean,
        heldout_nll: after.mean,
        n_demonstrations: data.n_train(),
        elapsed_s: context.elapsed_s(),
    })
}
