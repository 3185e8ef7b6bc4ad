//! Tiny models for the tests of this crate.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use serde_json::json;

use crate::arch::{HeadKind, LoraConfig, ModelConfig, Weights};
use crate::rng;

/// Tokens of the tiny models' vocabulary.
pub const VOCAB_SIZE: usize = 17;
/// The tiny models' end token.
pub const END: u32 = 0;
/// The tiny models' context.
pub const CONTEXT_LEN: usize = 40;

/// GPT-2 with two layers.
pub fn gpt2() -> Arc<ModelConfig> {
    config(json!({
        "model_type": "gpt2", "vocab_size": VOCAB_SIZE, "n_embd": 16, "n_head": 2, "n_layer": 2,
        "n_positions": CONTEXT_LEN, "eos_token_id": END, "initializer_range": 0.3,
    }))
}

/// Llama with two layers, grouped heads, and its own unembedding.
pub fn llama() -> Arc<ModelConfig> {
    config(json!({
        "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24,
        "max_position_embeddings": CONTEXT_LEN, "eos_token_id": END, "initializer_range": 0.3,
    }))
}

/// GPT-NeoX with two layers, whose queries, keys and values lie head by head.
pub fn gpt_neox() -> Arc<ModelConfig> {
    config(json!({
        "model_type": "gpt_neox", "vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_attention_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 24, "max_position_embeddings": CONTEXT_LEN,
        "rotary_pct": 0.5, "use_parallel_residual": true, "tie_word_embeddings": false, "eos_token_id": END,
        "initializer_range": 0.3,
    }))
}

/// The same model with, or without, the embedding as its unembedding.
pub fn with_tied(config: &ModelConfig, tied: bool) -> Arc<ModelConfig> {
    Arc::new(ModelConfig { tied, ..config.clone() })
}

/// GPT-2 and Llama, tied and untied.
pub fn each_kind() -> [Arc<ModelConfig>; 4] {
    [gpt2(), with_tied(&gpt2(), false), with_tied(&llama(), true), llama()]
}

fn config(value: serde_json::Value) -> Arc<ModelConfig> {
    Arc::new(ModelConfig::from_hf(Path::new("config.json"), value).unwrap())
}

/// Weights large enough for distributions far from uniform.
pub fn weights(config: &ModelConfig, head: HeadKind, seed: u64) -> Weights {
    Weights::initialise(config, head, &mut rng::for_purpose(seed, "weights"), &Device::Cpu).unwrap()
}

/// Adapters of rank 3 on frozen weights, none of whose matrices is zero.
pub fn adapted(config: &ModelConfig, head: HeadKind, seed: u64) -> Weights {
    let base = weights(config, head, seed).into_base(config).unwrap();
    let lora = LoraConfig { r: 3, lora_alpha: 6.0, ..LoraConfig::default() };
    let mut rng = rng::for_purpose(seed, "adapters");
    let fresh = base.adapted(config, head, &lora, &mut rng).unwrap();
    let filled = fresh.iter().map(|(name, tensor)| {
        let filled = match name.ends_with(".lora_B.weight") {
            true => rng::normal(&mut rng, tensor.dims(), 0.3, &Device::Cpu).unwrap(),
            false => tensor.clone(),
        };
        (name.to_owned(), filled)
    });
    fresh.with_tensors(filled.collect())
}

/// `n` tokens, none of which is the end token.
pub fn tokens(n: usize, seed: u64) -> Vec<u32> {
    use rand::Rng;
    let mut rng = rng::for_purpose(seed, "tokens");
    (0..n).map(|_| rng.random_range(1..VOCAB_SIZE as u32)).collect()
}
