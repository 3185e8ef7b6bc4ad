//! Which task to label next: how many labelled tasks bring a reward model to the same held-out accuracy when they are
//! drawn at random, and when a reward model chooses most of them, as `collimate label prioritize` has it.
//!
//! ```text
//! collimate run examples/instructgpt.toml          # or `collimate sft`: only the SFT model is taken
//! cargo run --release -p collimate-examples --bin acquisition -- runs/instructgpt
//! ```
//!
//! For each seed the SFT model answers prompts of a pool and prompts that are held out, K times each, and the recipe's
//! gold scorer ranks the answers in the labelers' place. Each setting begins with the same tasks at random. Then, over
//! and over, a reward model is trained from the SFT model on all that is labelled, its accuracy is measured, and it
//! chooses as many tasks again. Lines of JSON come first, one for each seed, setting and number of labelled tasks; then
//! two tables.
//!
//! - `experiment`: what is sampled, trained and chosen.
//! - `tables`: what came of it.

mod experiment;
mod tables;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use collimate::process;
use collimate_models::feedback::acquisition::{AcquireBy, Acquisition, LEAST_RANDOM_SHARE};

use self::experiment::{Experiment, Protocol};
use self::tables::SettingCurves;

/// How many labelled tasks bring a reward model to the same accuracy, by how the tasks are chosen.
#[derive(Parser)]
struct Arguments {
    /// A run directory with an SFT model, whose recipe has a [reward.labeler] table.
    #[arg(default_value = "runs/instructgpt")]
    run: PathBuf,
    /// Seeds: of prompts, samples, heads and the order of training. The defaults below were settled on seed 1.
    #[arg(long, num_args = 1.., default_values_t = [2, 3, 4, 5])]
    seeds: Vec<u64>,
    /// Tasks that may be labelled.
    #[arg(long, default_value_t = 2400)]
    pool: usize,
    /// Tasks that accuracy is measured on.
    #[arg(long, default_value_t = 600)]
    heldout: usize,
    /// Tasks that are labelled first, at random.
    #[arg(long, default_value_t = 75)]
    first: usize,
    /// How often the number of labelled tasks doubles.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=16))]
    doublings: u32,
    /// Tasks in one optimiser step: fewer than in the recipe, so that few tasks make many steps.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Optimiser steps of each training at least, by as many passes as that takes; and at least the recipe's passes.
    #[arg(long, default_value_t = 200)]
    least_steps: usize,
    /// The share of tasks that is drawn at random where a reward model chooses, 0.2 to 1.
    #[arg(long, default_value_t = LEAST_RANDOM_SHARE)]
    random_share: f64,
    /// Small heads that may disagree.
    #[arg(long, default_value_t = 16)]
    heads: usize,
    /// Changes a setting of the run's recipe, as in `reward.optim.weight_decay=0`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Writes the lines of JSON there instead of to standard output.
    #[arg(long)]
    out: Option<PathBuf>,
}

const SETTINGS: [AcquireBy; 3] = [AcquireBy::Random, AcquireBy::Margin, AcquireBy::Disagreement];

fn main() -> Result<()> {
    // SAFETY: no other thread runs yet.
    unsafe { process::tune() };
    let arguments = Arguments::parse();
    let protocol = protocol(&arguments)?;
    let sizes = protocol.sizes.clone();
    let experiment = Experiment::open(&arguments.run, &arguments.set, protocol)?;
    let mut lines: Box<dyn Write> = match &arguments.out {
        Some(path) => Box::new(File::create(path).with_context(|| path.display().to_string())?),
        None => Box::new(io::stdout()),
    };

    let mut curves = SETTINGS.map(|setting| SettingCurves { setting, accuracies: Vec::new() });
    for &seed in &arguments.seeds {
        let since = Instant::now();
        let tasks = experiment.tasks(seed)?;
        let first = experiment.first(&tasks)?;
        eprintln!("seed {seed}: sampled and trained on the first tasks after {:.0} s", since.elapsed().as_secs_f64());
        for of_setting in &mut curves {
            let points = experiment.curve(&tasks, of_setting.setting, &first, |point| {
                writeln!(lines, "{}", serde_json::to_string(point)?)?;
                let (setting, n, accuracy) = (tables::name(point.setting), point.n_labeled, point.accuracy);
                let seconds = since.elapsed().as_secs_f64();
                eprintln!("seed {seed}: {setting:<12} {n:>5} labelled: {accuracy:.4} after {seconds:.0} s");
                Ok(lines.flush()?)
            })?;
            of_setting.accuracies.push(points.iter().map(|point| point.accuracy).collect());
        }
    }
    println!("\n{}\n\n{}", tables::of_accuracies(&sizes, &curves), tables::of_labels(&sizes, &curves));
    Ok(())
}

fn protocol(arguments: &Arguments) -> Result<Protocol> {
    let Arguments { pool, heldout, first, doublings, batch, least_steps, random_share, heads, .. } = *arguments;
    let sizes: Vec<usize> = (0..=doublings).map(|n| first.saturating_mul(1 << n)).collect();
    let counts = [first, heldout, batch];
    ensure!(!counts.contains(&0), "--first, --heldout and --batch must be at least 1");
    let last = sizes[sizes.len() - 1];
    ensure!(last <= pool, "--first {first} with --doublings {doublings} comes to {last} tasks, the pool has {pool}");
    for by in SETTINGS {
        let problem = Acquisition { by, random_share, n_heads: heads }.problem();
        ensure!(problem.is_none(), "{}", problem.unwrap_or_default());
    }
    Ok(Protocol {
        n_pool: pool,
        n_heldout: heldout,
        sizes,
        batch_size: batch,
        least_steps,
        random_share,
        n_heads: heads,
    })
}
