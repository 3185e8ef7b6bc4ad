//! The operations that the decoder is made of, each differentiable in every argument that is a tensor.
//!
//! A free function for each. On the CPU in f32 it runs a fused op with its own backward; elsewhere it falls back
//! to the composition of candle's differentiable ops that stands in `composed`. candle's own fused
//! `LayerNorm`, `RmsNorm`, `softmax_last_dim`, `rope` and `sdpa` have no backward and are not used.
//!
//! Rows are independent everywhere: a row's result is the same bits whatever other rows stand in the batch.

mod activation;
mod blocks;
mod buffer;
mod cached_attention;
mod causal_attention;
mod column_sums;
pub mod composed;
mod elementwise;
mod embedding;
mod gemm;
mod join;
mod linear;
mod logprobs;
mod lora;
mod norm;
mod packed;
mod product;
mod rope;
mod row_sums;
pub(crate) mod simd;
mod storage;
mod tape;
#[cfg(test)]
pub(crate) mod testing;
mod tile;
mod transpose;
mod weight_gradients;

pub use activation::{gelu, silu_mul};
pub use cached_attention::{CacheRow, LayerCache, cached_attention};
pub use causal_attention::causal_attention;
pub use elementwise::{add, multiply};
pub use embedding::embed;
pub use join::join_columns;
pub use linear::linear;
pub use logprobs::{logits_chunk_len, token_logprobs, token_loss};
pub use lora::{FrozenLinear, lora_linear};
pub use norm::{layer_norm, rms_norm};
pub use packed::{PackedWeight, packed_linear};
pub use rope::rope;
pub(crate) use row_sums::RowSums;
pub(crate) use storage::{copied, numbers};
pub(crate) use tape::recorded;
pub(crate) use weight_gradients::{GradientSum, GradientSums, Summed, gathering_none, on_numbers};

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

/// Ops by name, and whether they read matrices, which may have another type than all else.
const OPS: [(&str, bool); 10] = [
    ("embedding", false),
    ("linear layers", true),
    ("layers with adapters", true),
    ("norms", false),
    ("activations", false),
    ("sums, products and joins", false),
    ("rotary positions", false),
    ("attention", false),
    ("log-probabilities", true),
    ("losses over tokens", true),
];

/// The ops that run as compositions of candle's there, with matrices of this type, since no fused one takes their arguments.
pub fn composed_on(device: &Device, matrices: DType) -> Vec<&'static str> {
    let is_composed = |&(_, reads_matrices): &(&str, bool)| {
        let dtype = if reads_matrices { matrices } else { DType::F32 };
        !storage::runs_fused(device, dtype)
    };
    OPS.iter().filter(|op| is_composed(op)).map(|(name, _)| *name).collect()
}

/// How a linear layer's weight lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `(in, out)`, as GPT-2's `Conv1D` has it.
    InOut,
    /// `(out, in)`, as `nn.Linear` has it.
    OutIn,
}

impl WeightLayout {
    /// The same matrix, transposed.
    pub fn flipped(self) -> Self {
        match self {
            WeightLayout::InOut => WeightLayout::OutIn,
            WeightLayout::OutIn => WeightLayout::InOut,
        }
    }
}

/// How many heads attention has and how wide they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads, H.
    pub n_heads: usize,
    /// Key and value heads, KV; divides `n_heads`. Query head h reads key head h / (H / KV).
    pub n_kv_heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
}

impl HeadShape {
    /// Columns of a packed projection: queries, keys, values: (H + 2 KV) D.
    pub fn qkv_dim(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Columns of the attention's output: H D.
    pub fn out_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }
}

/// How a layer's queries see its keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionRule {
    /// Heads.
    pub heads: HeadShape,
    /// What scores are multiplied by.
    pub scale: f32,
    /// How many positions a query sees, its own included; without a window, all up to its own.
    pub window: Option<usize>,
}

impl AttentionRule {
    /// Every query sees all positions up to its own; scores are scaled by 1/√D (Vaswani et al. 2017).
    pub fn causal(heads: HeadShape) -> Self {
        Self { heads, scale: 1.0 / (heads.head_dim as f32).sqrt(), window: None }
    }

    /// The first position that a query at `position` sees.
    pub fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Which activation stands between the two layers of a plain MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// The tanh approximation, `gelu_new` (Hendrycks and Gimpel 2016), as GPT-2 has it.
    Tanh,
    /// x Φ(x) by the error function.
    Erf,
}

/// cos and sin of the rotary positions (Su et al. 2021) of a batch's rows. A clone shares them.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `(N, rotary_dim / 2)`: cos(position · frequency i).
    pub cos: Arc<[f32]>,
    /// The same for sin.
    pub sin: Arc<[f32]>,
    /// How many numbers at the beginning of each head are rotated; the others pass unchanged.
    pub rotary_dim: usize,
}

impl RopeTable {
    /// The table of rows at these positions, for frequencies in radians a position, one for each pair of rotated
    /// numbers. Angles are computed in f64.
    pub fn new(frequencies: &[f64], positions: &[u32]) -> Self {
        let half = frequencies.len();
        let (mut cos, mut sin) =
            (Vec::with_capacity(positions.len() * half), Vec::with_capacity(positions.len() * half));
        // Sequences of a batch share most of their positions.
        let mut first_rows = HashMap::new();
        for (row, position) in positions.iter().enumerate() {
            let first_row = *first_rows.entry(position).or_insert(row);
            if first_row < row {
                cos.extend_from_within(first_row * half..(first_row + 1) * half);
                sin.extend_from_within(first_row * half..(first_row + 1) * half);
                continue;
            }
            for frequency in frequencies {
                let (s, c) = (f64::from(*position) * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Self { cos: cos.into(), sin: sin.into(), rotary_dim: 2 * half }
    }

    /// The frequencies of Su et al. 2021: theta^(−2i/D) for `rotary_dim` D.
    pub fn frequencies(rotary_dim: usize, theta: f64) -> Vec<f64> {
        (0..rotary_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / rotary_dim as f64)).collect()
    }
}

/// Log-probabilities of given tokens, with the entropy of the distributions they were read from.
#[derive(Clone, Debug)]
pub struct TokenLogprobs {
    /// `(N,)` log-softmax of the scaled logits at the target (nats).
    pub logprobs: Tensor,
    /// `(N,)` entropy of the same distribution (nats).
    pub entropies: Tensor,
}
