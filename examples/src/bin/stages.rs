//! The recipe's three stages as plain library calls, on the novels and the base model of this folder:
//!
//!     cargo run --release -p collimate-examples --bin stages -- [FOLDER]
//!
//! Writes one model after another to FOLDER (runs/stages), each in HuggingFace's layout. No run directory, no terminal,
//! no metrics files: those are the command line's. Takes about a minute.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use collimate::flow::{FlowConfig, NoSink};
use collimate::stages::context::{StageContext, StageObserver, StopFlag};
use collimate::stages::ppo_config::{EvaluateConfig, PpoSetup, PpoStageConfig};
use collimate::stages::recipe::CorpusConfig;
use collimate::stages::reward::{LabelerConfig, RewardConfig};
use collimate::stages::sft::SftConfig;
use collimate::stages::{ppo, reward, sft};
use collimate::view::Live;
use collimate_models::Device;
use collimate_models::arch::Precision;
use collimate_models::reward::BuiltinReward;
use collimate_models::train::{OptimConfig, PpoConfig};

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "runs/stages".to_owned()));
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = CorpusConfig { paths: vec![here.join("data/austen")], ..CorpusConfig::default() };
    let gold = BuiltinReward::Lexicon { path: here.join("data/sentiment_lexicon.tsv") };

    // Demonstrations: how the novels' paragraphs go on.
    let config = SftConfig { max_steps: 30, ..SftConfig::default() };
    let done = in_folder(&out.join("sft"), |context| sft::run(&config, &here.join("base"), Some(&corpus), context))?;
    println!("sft: {:.3} -> {:.3} nats a token", done.heldout_nll_before, done.heldout_nll);
    let sft_model = out.join("sft/model");

    // Comparisons: labelers who like kind words rank samples of the SFT model.
    let labeler = LabelerConfig { gold: gold.clone(), n_prompts: 200, k: 4, max_new_tokens: 32, temperature: 1.0 };
    let optim = OptimConfig { lr: 3e-4, ..OptimConfig::default() };
    let config = RewardConfig { labeler: Some(labeler), optim, ..RewardConfig::default() };
    let done = in_folder(&out.join("reward"), |context| reward::run(&config, &sft_model, Some(&corpus), context))?;
    println!("reward: orders {:.0} % of held-out pairs as the labelers do", 100.0 * done.heldout_accuracy);
    let reward_model = out.join("reward/model");

    // PPO-ptx against that reward model.
    let config = PpoStageConfig {
        stage: PpoSetup {
            gold: Some(gold),
            evaluate: EvaluateConfig { n_prompts: 64, n_sequences: 32, ..EvaluateConfig::default() },
            ..PpoSetup::default()
        },
        flow: FlowConfig { n_updates: 5, batch_size: 32, ..FlowConfig::default() },
        objective: PpoConfig { lr: 3e-4, value_lr: 3e-4, ptx_coef: 1.0, ema_decay: 0.0, ..PpoConfig::default() },
    };
    let done = in_folder(&out.join("ppo"), |context| {
        ppo::run(&config, &sft_model, Some(&reward_model), Some(&corpus), context, |_| Ok(Box::new(NoSink)))
    })?;
    println!("ppo: score {:.2} -> {:.2} in {} updates", done.before.score.mean, done.after.score.mean, done.n_updates);
    println!("the policy lies in {}", out.join("ppo/model").display());
    Ok(())
}

/// Does a stage in a folder of its own.
fn in_folder<S>(
    folder: &Path,
    stage: impl FnOnce(&mut StageContext<'_>) -> Result<S, collimate::stages::context::StageError>,
) -> Result<S> {
    std::fs::create_dir_all(folder)?;
    let mut context = StageContext {
        seed: 1,
        device: Device::Cpu,
        precision: Precision::F32,
        out_dir: folder.to_owned(),
        stop: StopFlag::default(),
        live: Live::default(),
        observer: &mut Phases,
        started: Instant::now(),
    };
    Ok(stage(&mut context)?)
}

/// Says what a stage is at.
struct Phases;

impl StageObserver for Phases {
    fn goes_on(&mut self, _n_done: u64) {}
    fn phase(&mut self, name: &str, n_steps: u64) {
        println!("  {name}: {n_steps} steps");
    }

    fn step(&mut self, _n_done: u64, _metrics: &[(&'static str, f64)]) {}

    fn note(&mut self, text: &str) {
        println!("  {text}");
    }

    fn warn(&mut self, text: &str) {
        println!("  warning: {text}");
    }
}
