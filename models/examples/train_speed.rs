//! One training step (forward, backward, AdamW) of two small models: the fused kernels against their compositions
//! of candle's ops, in one run.
//!
//! `cargo run --release -p collimate-models --example train_speed`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{D, Device, Tensor};
use collimate_models::arch::{
    Family, HeadKind, LanguageModel, Mlp, ModelConfig, PackedSequences, Parameters, Positions, Weights,
};
use collimate_models::kernels::{AttentionRule, RopeTable, TokenLogprobs, WeightLayout, composed};
use collimate_models::optim::{AdamW, AdamWConfig, GradAccumulator};
use collimate_models::{Result, rng};
use rand::Rng;
use serde_json::json;

/// Steps of which the median is shown, after two that warm up.
const N_STEPS: usize = 9;

fn main() -> Result<()> {
    set_up_process();
    let llama = json!({
        "model_type": "llama", "vocab_size": 2048, "hidden_size": 192, "num_attention_heads": 4,
        "num_key_value_heads": 4, "num_hidden_layers": 4, "intermediate_size": 512, "max_position_embeddings": 128,
        "tie_word_embeddings": true, "eos_token_id": 0,
    });
    let gpt2 = json!({
        "model_type": "gpt2", "vocab_size": 512, "n_embd": 128, "n_head": 4, "n_layer": 4, "n_positions": 128,
        "eos_token_id": 0,
    });
    println!("{} threads; ms a step and its parts, forward / backward / AdamW", rayon::current_num_threads());
    for (name, config, n_sequences) in [("Llama d192, 32 x 128", llama, 32), ("GPT-2 d128, 8 x 128", gpt2, 8)] {
        let config = Arc::new(ModelConfig::from_hf(Path::new("config.json"), config)?);
        let batch = Batch::random(&config, n_sequences, 128);
        println!("{name}: {:.2} GFLOP a step", batch.n_flop(&config) * 1e-9);
        let fused = |weights: &Weights| -> Result<Forward> {
            let model = LanguageModel::new(&config, weights)?;
            Ok(Box::new(move |batch| model.logprobs_at(&batch.packed, &batch.rows, &batch.targets, 1.0)))
        };
        let by_composition = |weights: &Weights| -> Result<Forward> {
            let (config, weights) = (config.clone(), weights.clone());
            Ok(Box::new(move |batch| composed_logprobs(&config, &weights, batch)))
        };
        let slow = measure(&config, &batch, "composed", by_composition)?;
        let fast = measure(&config, &batch, "fused", fused)?;
        println!("  fused is {:.2} times as fast", slow / fast);
    }
    Ok(())
}

/// As the `collimate` binary does: candle reads these on every product, and freed memory is kept.
fn set_up_process() {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (name, value) in [("RAYON_NUM_THREADS", n_cores.to_string()), ("CANDLE_NUM_THREADS", "1".to_owned())] {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread runs yet.
            unsafe { std::env::set_var(name, value) };
        }
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (setting, value) in [
        (libc::M_MMAP_THRESHOLD, 65 << 20),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
        (libc::M_TOP_PAD, 256 << 20),
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: mallopt changes a number inside the allocator.
        unsafe { libc::mallopt(setting, value) };
    }
}

/// Random sequences, every next token of which is a target.
struct Batch {
    packed: PackedSequences,
    rows: Vec<u32>,
    targets: Vec<u32>,
    len: usize,
}

impl Batch {
    fn random(config: &ModelConfig, n_sequences: usize, len: usize) -> Self {
        let mut rng = rng::for_purpose(1, "tokens");
        let mut token = || rng.random_range(0..config.vocab_size as u32);
        let sequences: Vec<Vec<u32>> = (0..n_sequences).map(|_| (0..len).map(|_| token()).collect()).collect();
        let packed = PackedSequences::new(&sequences);
        let rows: Vec<u32> =
            (0..packed.n_tokens() as u32).filter(|row| !(*row as usize + 1).is_multiple_of(len)).collect();
        let targets = rows.iter().map(|row| packed.ids[*row as usize + 1]).collect();
        Self { packed, rows, targets, len }
    }

    /// Multiply-adds count as two, the backward pass as two forward ones; nothing is counted for what is computed
    /// twice.
    fn n_flop(&self, config: &ModelConfig) -> f64 {
        let (c, f, heads) = (config.hidden_dim, config.mlp_dim, config.heads());
        let mlp = match config.mlp {
            Mlp::Gelu(_) => 2 * c * f,
            Mlp::SwiGlu | Mlp::GeGlu(_) => 3 * c * f,
        };
        let weights = config.n_layers * (c * heads.qkv_dim() + heads.out_dim() * c + mlp);
        let attention = config.n_layers * self.len * heads.out_dim(); // half of T² is masked, and there are two products
        6.0 * ((weights + attention) * self.packed.n_tokens() + c * config.vocab_size * self.rows.len()) as f64
    }
}

type Forward = Box<dyn Fn(&Batch) -> Result<TokenLogprobs>>;

/// Seconds of a step.
fn measure(
    config: &Arc<ModelConfig>,
    batch: &Batch,
    name: &str,
    forward: impl Fn(&Weights) -> Result<Forward>,
) -> Result<f64> {
    let weights = Weights::initialise(config, HeadKind::Language, &mut rng::for_purpose(1, "weights"), &Device::Cpu)?;
    let parameters = Parameters::from_weights(&weights)?;
    let forward = forward(&parameters.weights())?;
    let mut gradients = GradAccumulator::new(&parameters)?;
    let constants = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let mut adamw = AdamW::new(&parameters, constants)?;
    let mut steps = Vec::new();
    let mut loss = 0.0;
    for _ in 0..N_STEPS + 2 {
        let start = Instant::now();
        let mean = forward(batch)?.logprobs.mean(D::Minus1)?.neg()?;
        loss = mean.to_scalar::<f32>()?;
        let forward_s = start.elapsed().as_secs_f64();
        gradients.clear();
        gradients.add(&parameters, vec![mean.backward()?])?;
        let backward_s = start.elapsed().as_secs_f64() - forward_s;
        adamw.step(&parameters, &gradients, 1e-3, 1.0)?;
        steps.push((start.elapsed().as_secs_f64(), forward_s, backward_s));
    }
    steps.drain(..2);
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (step_s, forward_s, backward_s) = steps[N_STEPS / 2];
    println!(
        "  {name:9} {:7.0} tokens/s {:6.1} GFLOP/s {:7.2} ms ({:.2} / {:.2} / {:.2}), loss {loss:.5}",
        batch.packed.n_tokens() as f64 / step_s,
        batch.n_flop(config) * 1e-9 / step_s,
        1e3 * step_s,
        1e3 * forward_s,
        1e3 * backward_s,
        1e3 * (step_s - forward_s - backward_s),
    );
    Ok(step_s)
}

/// What `LanguageModel::logprobs_at` computes, from `composed` alone.
fn composed_logprobs(config: &ModelConfig, weights: &Weights, batch: &Batch) -> Result<TokenLogprobs> {
    let (packed, heads) = (&batch.packed, config.heads());
    let get = |name: String| weights.get(&name);
    let rows_of = |table: &Tensor, rows: &[u32]| -> Result<Tensor> {
        Ok(table.index_select(&Tensor::from_slice(rows, rows.len(), &Device::Cpu)?, 0)?)
    };
    let attend = |qkv: &Tensor| composed::causal_attention(qkv, &packed.offsets, AttentionRule::causal(heads));
    let (embedding, hidden) = match config.family {
        Family::Gpt2 => {
            let linear = |x: &Tensor, name: String| -> Result<Tensor> {
                let (weight, bias) = (get(format!("{name}.weight"))?, get(format!("{name}.bias"))?);
                Ok(composed::linear(x, weight, WeightLayout::InOut, Some(bias))?)
            };
            let norm = |x: &Tensor, name: String| -> Result<Tensor> {
                let (weight, bias) = (get(format!("{name}.weight"))?, get(format!("{name}.bias"))?);
                Ok(composed::layer_norm(x, weight, bias, config.norm_eps)?)
            };
            let Mlp::Gelu(kind) = config.mlp else { unreachable!("GPT-2 has a GELU MLP") };
            let embedding = get("transformer.wte.weight".into())?;
            let positions = get("transformer.wpe.weight".into())?;
            let mut x = (rows_of(embedding, &packed.ids)? + rows_of(positions, &packed.positions)?)?;
            for i in 0..config.n_layers {
                let p = format!("transformer.h.{i}");
                let qkv = linear(&norm(&x, format!("{p}.ln_1"))?, format!("{p}.attn.c_attn"))?;
                x = (x + linear(&attend(&qkv)?, format!("{p}.attn.c_proj"))?)?;
                let up = linear(&norm(&x, format!("{p}.ln_2"))?, format!("{p}.mlp.c_fc"))?;
                x = (x + linear(&composed::gelu(&up, kind)?, format!("{p}.mlp.c_proj"))?)?;
            }
            (embedding, norm(&x, "transformer.ln_f".into())?)
        }
        Family::Llama => {
            let linear = |x: &Tensor, name: String| -> Result<Tensor> {
                Ok(composed::linear(x, get(format!("{name}.weight"))?, WeightLayout::OutIn, None)?)
            };
            let norm = |x: &Tensor, name: String| -> Result<Tensor> {
                Ok(composed::rms_norm(x, get(format!("{name}.weight"))?, config.norm_eps)?)
            };
            let Positions::Rotary { rope, .. } = config.positions else { unreachable!("Llama has rotary positions") };
            let table = RopeTable::new(&rope.frequencies(), &packed.positions);
            let embedding = get("model.embed_tokens.weight".into())?;
            let mut x = rows_of(embedding, &packed.ids)?;
            for i in 0..config.n_layers {
                let p = format!("model.layers.{i}");
                let normed = norm(&x, format!("{p}.input_layernorm"))?;
                let part = |name: &str| linear(&normed, format!("{p}.self_attn.{name}_proj"));
                let qkv = Tensor::cat(&[part("q")?, part("k")?, part("v")?], 1)?;
                let qkv = composed::rope(&qkv, &table, heads)?;
                x = (x + linear(&attend(&qkv)?, format!("{p}.self_attn.o_proj"))?)?;
                let normed = norm(&x, format!("{p}.post_attention_layernorm"))?;
                let part = |name: &str| linear(&normed, format!("{p}.mlp.{name}_proj"));
                let gated = composed::silu_mul(&part("gate")?, &part("up")?)?;
                x = (x + linear(&gated, format!("{p}.mlp.down_proj"))?)?;
            }
            (embedding, norm(&x, "model.norm".into())?)
        }
        other => unreachable!("no composition of {other:?} is written out here"),
    };
    let unembedding = if config.tied { embedding } else { get("lm_head.weight".into())? };
    Ok(composed::token_logprobs(&rows_of(&hidden, &batch.rows)?, unembedding, &batch.targets, 1.0)?)
}
