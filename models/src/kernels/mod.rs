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
mod gemm;
mod linear;
mod logprobs;
mod norm;
mod product;
mod rope;
pub(crate) mod simd;
mod storage;
#[cfg(test)]
mod testing;
mod tile;
mod transpose;

pub use activation::{gelu, silu_mul};
pub use cached_attention::{CacheRow, LayerCache, cached_attention};
pub use causal_attention::causal_attention;
pub use linear::linear;
pub use logprobs::token_logprobs;
pub use norm::{layer_norm, rms_norm};
pub use rope::rope;

use candle_core::Tensor;

/// How a linear layer's weight lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `(in, out)`, as GPT-2's `Conv1D` has it.
    InOut,
    /// `(out, in)`, as `nn.Linear` has it.
    OutIn,
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

/// Which activation stands between the two layers of a plain MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// The tanh approximation, `gelu_new` (Hendrycks and Gimpel 2016), as GPT-2 has it.
    Tanh,
    /// x Φ(x) by the error function.
    Erf,
}

/// cos and sin of the rotary positions (Su et al. 2021), for positions `0..n_positions`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `(n_positions, head_dim / 2)`, row by row: cos(position · theta^(−2i/D)).
    pub cos: Vec<f32>,
    /// The same for sin.
    pub sin: Vec<f32>,
    /// Width of a head, D.
    pub head_dim: usize,
}

impl RopeTable {
    /// The table for a head of `head_dim` (even) and base `theta`. Angles are computed in f64.
    pub fn new(head_dim: usize, n_positions: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let (mut cos, mut sin) = (Vec::with_capacity(n_positions * half), Vec::with_capacity(n_positions * half));
        for position in 0..n_positions {
            for i in 0..half {
                let angle = position as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        Self { cos, sin, head_dim }
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
