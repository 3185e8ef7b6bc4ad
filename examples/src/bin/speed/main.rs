//! Collimate's side of `examples/scripts/speed.py`, which runs it and its peers in turn:
//!
//! ```text
//! speed train SHAPE            a step of forward, backward and AdamW on 8 sequences of 128 tokens
//! speed generate SHAPE BATCH   64 sampled tokens after prompts of 64, for BATCH sequences at once
//! speed ragged SHAPE BATCH     the same with prompts of 16 to 64 tokens and responses of 16 to 64
//! speed ppo SHAPE K [UPDATES [THREADS]]
//!                              updates of PPO on 32 prompts x (32 + 32) tokens, with a bound of K on staleness; with
//!                              so many threads for each role by itself, or with 0, the default, for all in common
//! ```
//!
//! SHAPE is one of tiny, distil, smollm2. It prints one JSON object: the seconds of each repetition, the most memory that
//! the process has had, and for PPO what it had after each update.

mod ppo;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use collimate::process;
use collimate_models::arch::{HeadKind, ModelConfig, Weights};
use collimate_models::generate::{Engine, SamplingParams};
use collimate_models::train::{LmExample, LmTrainer, OptimConfig};
use collimate_models::{Device, rng};
use collimate_protocol::{PolicyVersion, PromptId};
use serde_json::{Value, json};

/// Repetitions that are timed, after one that warms up.
const N_TIMED: usize = 5;
const TRAIN_BATCH: usize = 8;
const TRAIN_LEN: usize = 128;
const PROMPT_LEN: usize = 64;
const RESPONSE_LEN: usize = 64;

fn main() -> Result<()> {
    // SAFETY: no other thread runs yet.
    unsafe { process::tune() };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut memory = Vec::new();
    let mut ppo = |shape: &str, k: &str, n_updates: usize, n_threads: usize| {
        let (seconds, after_updates) = ppo::updates(&config(shape)?, n_updates, number(k)? as u64, n_threads)?;
        memory = after_updates;
        anyhow::Ok(seconds)
    };
    let seconds = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["train", shape] => train(&config(shape)?)?,
        ["generate", shape, batch] => generate(&config(shape)?, number(batch)?, |_| (PROMPT_LEN, RESPONSE_LEN))?,
        ["ragged", shape, batch] => generate(&config(shape)?, number(batch)?, ragged)?,
        ["ppo", shape, k] => ppo(shape, k, N_TIMED, 0)?,
        ["ppo", shape, k, n] => ppo(shape, k, number(n)?, 0)?,
        ["ppo", shape, k, n, n_threads] => ppo(shape, k, number(n)?, number(n_threads)?)?,
        _ => {
            bail!("expected: train SHAPE, generate SHAPE BATCH, ragged SHAPE BATCH, or ppo SHAPE K [UPDATES [THREADS]]")
        }
    };
    let peak = process::peak_memory();
    println!("{}", json!({"seconds": seconds, "peak_bytes": peak, "bytes_after_updates": memory}));
    Ok(())
}

fn number(text: &str) -> Result<usize> {
    text.parse().with_context(|| format!("`{text}` is no number"))
}

/// Lengths of prompt and response of a sequence: 16 to 64 of each, as `speed.py` has them too.
fn ragged(sequence: usize) -> (usize, usize) {
    (16 + sequence * 37 % 49, 16 + sequence * 29 % 49)
}

/// The shapes of `speed.py`. None ends a response.
fn config(shape: &str) -> Result<Arc<ModelConfig>> {
    let gpt2 = |n_layer: usize, n_head: usize, n_embd: usize, vocab_size: usize| {
        json!({
            "model_type": "gpt2", "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "vocab_size": vocab_size,
            "n_positions": 256, "bos_token_id": null, "eos_token_id": null,
        })
    };
    let value: Value = match shape {
        "tiny" => gpt2(4, 4, 128, 512),
        "distil" => gpt2(6, 8, 512, 50257),
        "smollm2" => json!({
            "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
            "max_position_embeddings": 256, "rope_theta": 100000.0, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true, "bos_token_id": null, "eos_token_id": null,
        }),
        other => bail!("`{other}` is no shape: expected tiny, distil or smollm2"),
    };
    Ok(Arc::new(ModelConfig::from_hf(Path::new("config.json"), value)?))
}

fn weights(config: &ModelConfig) -> Result<Weights> {
    let mut rng = rng::for_purpose(1, "weights");
    Ok(Weights::initialise(config, HeadKind::Language, &mut rng, &Device::Cpu)?)
}

fn tokens(config: &ModelConfig, n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|place| ((seed * 7919 + place * 104_729) % config.vocab_size) as u32).collect()
}

fn timed(mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    work()?;
    let once = |_| {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    };
    (0..N_TIMED).map(once).collect()
}

fn train(config: &Arc<ModelConfig>) -> Result<Vec<f64>> {
    let optim = OptimConfig { lr: 1e-4, max_grad_norm: 0.0, weight_decay: 0.01, ..OptimConfig::default() };
    let mut trainer = LmTrainer::new(config, &weights(config)?, &optim, 1000)?;
    let batch: Vec<LmExample> = (0..TRAIN_BATCH).map(|seed| LmExample::text(tokens(config, TRAIN_LEN, seed))).collect();
    timed(|| {
        trainer.step(&batch)?;
        Ok(())
    })
}

fn generate(config: &Arc<ModelConfig>, n_slots: usize, lengths: fn(usize) -> (usize, usize)) -> Result<Vec<f64>> {
    let mut engine: Engine<usize> = Engine::new(config, &weights(config)?, PolicyVersion(0), n_slots)?;
    timed(|| {
        let mut n_expected = 0;
        for slot in 0..n_slots {
            let rng = rng::for_sample(1, PromptId(slot as u64), 0);
            let (n_prompt, max_new_tokens) = lengths(slot);
            let params = SamplingParams { max_new_tokens, ..SamplingParams::default() };
            engine.admit(slot, &tokens(config, n_prompt, slot), rng, params)?;
            n_expected += max_new_tokens;
        }
        let mut n_tokens = 0;
        while engine.n_running() > 0 {
            n_tokens += engine.step()?.iter().map(|response| response.tokens.len()).sum::<usize>();
        }
        anyhow::ensure!(n_tokens == n_expected, "{n_tokens} tokens were sampled, not {n_expected}");
        Ok(())
    })
}
