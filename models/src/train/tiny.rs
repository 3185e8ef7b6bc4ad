//! Models small enough for unit tests, one of each kind.

use std::sync::Arc;

use crate::Device;
use crate::arch::{Family, HeadKind, Mlp, ModelConfig, Norm, Positions, Weights};
use crate::error::Result;
use crate::kernels::{Gelu, HeadShape};
use crate::rng;

/// Tokens of every tiny model.
pub(crate) const VOCAB: usize = 24;
/// Longest sequence of every tiny model.
pub(crate) const CONTEXT: usize = 32;

pub(crate) fn gpt2(tied: bool) -> Arc<ModelConfig> {
    Arc::new(ModelConfig {
        family: Family::Gpt2,
        vocab_size: VOCAB,
        hidden_dim: 16,
        n_layers: 2,
        heads: HeadShape { n_heads: 2, n_kv_heads: 2, head_dim: 8 },
        mlp_dim: 32,
        context_len: CONTEXT,
        norm: Norm::Layer,
        norm_eps: 1e-5,
        positions: Positions::Learned,
        mlp: Mlp::Gelu(Gelu::Tanh),
        tied,
        bos_token_id: None,
        eos_token_ids: vec![0],
        // Large enough that every part of the model shows in its output.
        initializer_range: 0.2,
        score_bias: 0.0,
    })
}

pub(crate) fn llama(tied: bool) -> Arc<ModelConfig> {
    Arc::new(ModelConfig {
        family: Family::Llama,
        heads: HeadShape { n_heads: 2, n_kv_heads: 1, head_dim: 8 },
        norm: Norm::Rms,
        positions: Positions::Rotary { theta: 10_000.0 },
        mlp: Mlp::SwiGlu,
        ..(*gpt2(tied)).clone()
    })
}

/// GPT-2 and Llama, tied and untied.
pub(crate) fn each_kind() -> [Arc<ModelConfig>; 4] {
    [gpt2(true), gpt2(false), llama(true), llama(false)]
}

pub(crate) fn weights(config: &ModelConfig, head: HeadKind, seed: u64) -> Result<Weights> {
    Weights::initialise(config, head, &mut rng::for_purpose(seed, "test"), &Device::Cpu)
}

/// Tokens of a sequence that depends on `seed`.
pub(crate) fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 7 + i * (seed + 3) + seed * 11) % VOCAB as u32).collect()
}
