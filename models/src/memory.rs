//! How much memory models take, worked out from their configs: bytes, in f32.
//!
//! What a training pass keeps is what its record holds when its backward pass begins: every op's arguments. The counts
//! below go through a block op by op; `tests/tests/memory.rs` holds them against what is allocated.

use crate::arch::{HeadKind, LoraConfig, Mlp, ModelConfig, Positions, Residual, linear_layers, parameter_specs};
use crate::error::Result;
use crate::kernels::{LayerCache, PackedWeight, logits_chunk_len};
use crate::passes;

pub use crate::generate::{TOKENS_PER_PASS, TOKENS_PER_STEP_PASS};

const F32: u64 = 4;

/// All parameters.
pub fn weights(config: &ModelConfig, head: HeadKind) -> u64 {
    parameter_specs(config, head).iter().map(|spec| F32 * spec.shape.iter().product::<usize>() as u64).sum()
}

/// What a generator on weights of its own copies: the matrices of the blocks, and the unembedding.
pub fn generation_weights(config: &ModelConfig) -> u64 {
    let bytes = |n_in, n_out| PackedWeight::bytes(n_in, n_out) as u64;
    let blocks: u64 = linear_layers(config).iter().map(|layer| bytes(layer.n_in, layer.n_out)).sum();
    blocks + bytes(config.hidden_dim, config.vocab_size)
}

/// What adapters add to a base, with the scalar head that is trained along with them.
///
/// # Errors
/// Settings that fit no layer.
pub fn adapters(config: &ModelConfig, head: HeadKind, lora: &LoraConfig) -> Result<u64> {
    let numbers: usize = lora.targets(config)?.iter().map(|layer| lora.r * (layer.n_in + layer.n_out)).sum();
    let scalar_head = if head == HeadKind::Scalar { config.hidden_dim + 1 } else { 0 };
    Ok(F32 * (numbers + scalar_head) as u64)
}

/// What a model takes in training of which `trained` bytes are: themselves, the sum of their gradients, Adam's two moments.
/// Of an embedding that is nothing else, gradients are summed by row where they are gathered.
pub fn training_state(config: &ModelConfig, head: HeadKind, trained: u64, by_adapters: bool, on_cpu: bool) -> u64 {
    let is_table = head == HeadKind::Scalar || !config.tied;
    let by_row = if is_table && gathers(config, by_adapters, on_cpu) {
        F32 * (config.hidden_dim * config.vocab_size) as u64
    } else {
        0
    };
    4 * trained - by_row
}

/// Gradients of `trained` bytes of numbers that one pass holds besides their sums: none where they are gathered.
pub fn pass_gradients(config: &ModelConfig, trained: u64, by_adapters: bool, on_cpu: bool) -> u64 {
    if gathers(config, by_adapters, on_cpu) { 0 } else { trained }
}

/// Whether gradients of matrices are added to their sums as they come up: those of large models on the CPU.
fn gathers(config: &ModelConfig, by_adapters: bool, on_cpu: bool) -> bool {
    on_cpu && !by_adapters && !passes::are_shared_out(config)
}

/// The keys and values of `n_slots` sequences of up to `n_positions`.
pub fn generation_cache(config: &ModelConfig, n_slots: usize, n_positions: usize) -> u64 {
    (config.n_layers * n_slots * LayerCache::bytes_for(n_positions, config.heads())) as u64
}

/// A pass that records no gradient, at its widest: an MLP's numbers beside the residual stream.
pub fn inference_pass(config: &ModelConfig, n_tokens: usize) -> u64 {
    let (c, heads) = (config.hidden_dim, config.heads());
    let attention = 2 * heads.qkv_dim() + heads.out_dim();
    F32 * (n_tokens * (2 * c + mlp_numbers(config).max(attention))) as u64
}

/// Logits of the rows that are in work at a time, of a pass with `n_rows`.
pub fn logits(config: &ModelConfig, n_rows: usize) -> u64 {
    F32 * (logits_chunk_len(config.vocab_size).min(n_rows) * config.vocab_size) as u64
}

/// A pass with its backward pass, besides the parameters' gradients.
#[derive(Clone, Copy, Debug)]
pub struct TrainingPass {
    /// Tokens that go through at once.
    pub n_tokens: usize,
    /// Rows of them whose hidden states are asked for.
    pub n_rows: usize,
    /// Whether adapters are trained on a base.
    pub by_adapters: bool,
    /// Whether only the blocks' arguments are kept.
    pub checkpointing: bool,
}

impl TrainingPass {
    /// What it takes where its backward pass is in the last block, or the one before, which all rows have gone through: of what
    /// has been differentiated nothing is kept.
    pub fn bytes(&self, config: &ModelConfig, head: HeadKind) -> u64 {
        let (c, heads) = (config.hidden_dim, config.heads());
        let block = self.kept_by_block(config);
        // Gradients of an MLP's numbers and of the residual stream, and of attention's.
        let (by_mlp, by_attention) = (mlp_numbers(config) + 3 * c, heads.out_dim() + 2 * heads.qkv_dim() + c);
        let numbers = if self.checkpointing {
            // Arguments of all blocks, and the gradient that waits for one; its own record, its argument and result once more,
            // and what the product with the gradient takes.
            self.n_tokens * ((config.n_layers + 2) * c + block + 3 * c + by_mlp)
        } else {
            // The last block goes on after its attention with the rows alone that are asked for.
            let last = self.n_tokens * block - self.n_tokens.saturating_sub(self.n_rows) * after_attention(config);
            let in_last = last + (self.n_rows * by_mlp).max(self.n_tokens * by_attention);
            let before = self.n_tokens * by_mlp;
            self.n_tokens * (config.n_layers - 1) * block + in_last.max(before)
        };
        // Embedded tokens, the last norm's result, its rows.
        let ends = self.n_tokens * 3 * c;
        let logits = match head {
            HeadKind::Language => logits(config, self.n_tokens),
            HeadKind::Scalar => 0,
        };
        F32 * (numbers + ends) as u64 + logits
    }

    /// Numbers that a block's record holds for each token, op by op.
    fn kept_by_block(&self, config: &ModelConfig) -> usize {
        let (c, heads) = (config.hidden_dim, config.heads());
        let qkv_dim = heads.qkv_dim();
        // The projection's result; once more where the results of three are joined.
        let qkv = if config.has_several_projections() { 2 * qkv_dim } else { qkv_dim };
        let normed = if config.attention.qk_norm { 2 * qkv_dim } else { 0 };
        let rotated = if matches!(config.positions, Positions::Rotary { .. }) { qkv_dim } else { 0 };
        // A norm before attention and MLP, what each gives back, and the residual stream after each.
        let stream = if config.residual == Residual::Sandwich { 8 * c } else { 6 * c };
        stream + qkv + normed + rotated + heads.out_dim() + mlp_numbers(config)
    }
}

/// Numbers that a block's record holds for each token of what comes after its attention.
fn after_attention(config: &ModelConfig) -> usize {
    let stream = if config.residual == Residual::Sandwich { 7 } else { 5 };
    stream * config.hidden_dim + mlp_numbers(config)
}

/// Numbers between an MLP's argument and its result, for each token.
fn mlp_numbers(config: &ModelConfig) -> usize {
    match config.mlp {
        Mlp::Gelu(_) => 2 * config.mlp_dim,
        Mlp::SwiGlu | Mlp::GeGlu(_) => 3 * config.mlp_dim,
    }
}
