//! What a family calls its weights.

use crate::kernels::WeightLayout;

/// How queries, keys and values are stored.
#[derive(Clone, Copy, Debug)]
pub enum QkvNames {
    /// One matrix: all queries, all keys, all values.
    Joined(&'static str),
    /// One matrix: for each head its query, key and value.
    Interleaved(&'static str),
    /// Three.
    Split([&'static str; 3]),
}

/// What a family calls its weights. Names of a block's parts stand after `{decoder}.{block}.{layer_idx}.`, all others
/// but the unembedding's after `{decoder}.`.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// What stands before all names of the decoder.
    pub decoder: &'static str,
    /// Token embedding.
    pub embedding: &'static str,
    /// Learned positions, where there are any.
    pub position_embedding: Option<&'static str>,
    /// The list of blocks.
    pub block: &'static str,
    /// The norm before attention, or after it in [`Residual::PostNorm`](super::super::Residual::PostNorm).
    pub attention_norm: &'static str,
    /// The projections to queries, keys and values.
    pub qkv: QkvNames,
    /// The norms of queries and keys, where there are any.
    pub qk_norm: [&'static str; 2],
    /// The projection back.
    pub attention_out: &'static str,
    /// In [`Residual::Sandwich`](super::super::Residual::Sandwich) the norms after attention and after the MLP.
    pub branch_norms: [&'static str; 2],
    /// The norm before the MLP, or after it in [`Residual::PostNorm`](super::super::Residual::PostNorm).
    pub mlp_norm: &'static str,
    /// The gate of a gated MLP.
    pub mlp_gate: &'static str,
    /// Into the MLP.
    pub mlp_up: &'static str,
    /// Out of the MLP.
    pub mlp_down: &'static str,
    /// The norm after the last block, where there is one.
    pub final_norm: Option<&'static str>,
    /// The unembedding where it is not tied, with all that stands before it.
    pub unembedding: &'static str,
    /// How matrices are laid out.
    pub layout: WeightLayout,
}

impl Names {
    /// The token embedding.
    pub fn embedding(&self) -> String {
        format!("{}.{}.weight", self.decoder, self.embedding)
    }

    /// The learned positions.
    pub fn position_embedding(&self) -> Option<String> {
        self.position_embedding.map(|name| format!("{}.{name}.weight", self.decoder))
    }

    /// The norm after the last block.
    pub fn final_norm(&self) -> Option<String> {
        self.final_norm.map(|name| format!("{}.{name}", self.decoder))
    }

    /// A part of a block.
    pub fn in_block(&self, layer_idx: usize, part: &str) -> String {
        format!("{}.{}.{layer_idx}.{part}", self.decoder, self.block)
    }
}
