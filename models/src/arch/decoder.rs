//! The decoder: embeddings, blocks, final norm. Rows in, rows out; attention comes from outside, so that training,
//! scoring and generation run the same code.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::block::{Block, NormLayer};
use super::checkpointing::{BlockGradients, Checkpointed};
use super::config::{ModelConfig, Positions};
use super::packed::PackedSequences;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::kernels::{self, AttentionRule, RopeTable};

/// Where a block's queries find their keys and values.
pub trait Attend {
    /// Attention of one layer: `qkv (N, (H + 2 KV) D)`, already rotated, to `(N, H D)`.
    fn attend(&mut self, layer_idx: usize, qkv: &Tensor, rule: AttentionRule) -> candle_core::Result<Tensor>;
}

/// Causal self-attention within each packed sequence.
#[derive(Clone, Copy, Debug)]
pub struct PackedAttention<'a> {
    /// [`PackedSequences::offsets`].
    pub offsets: &'a [usize],
}

impl Attend for PackedAttention<'_> {
    fn attend(&mut self, _layer_idx: usize, qkv: &Tensor, rule: AttentionRule) -> candle_core::Result<Tensor> {
        kernels::causal_attention(qkv, self.offsets, rule)
    }
}

/// Token ids to hidden states. It holds views of its weights: built on [`Parameters`](super::Parameters) it follows
/// their training, built on a snapshot it never changes.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: Arc<ModelConfig>,
    embedding: Tensor,                  // (V, C)
    position_embedding: Option<Tensor>, // (context_len, C)
    blocks: Vec<Block>,
    final_norm: Option<NormLayer>,
    /// Where blocks that are computed twice leave their gradients.
    checkpointing: Option<BlockGradients>,
}

/// The angles of a pass' rows.
struct Ropes {
    full: Option<Arc<RopeTable>>,
    /// Of the layers with a window, where theirs are others.
    windowed: Option<Arc<RopeTable>>,
}

impl Decoder {
    /// A decoder over these weights. Errors name the first tensor that is missing.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        let names = config.family.names();
        Ok(Self {
            config: config.clone(),
            embedding: weights.get(&names.embedding())?.clone(),
            position_embedding: names.position_embedding().map(|name| weights.get(&name).cloned()).transpose()?,
            blocks: (0..config.n_layers).map(|i| Block::load(config, weights, i)).collect::<Result<_>>()?,
            final_norm: names.final_norm().map(|name| NormLayer::load(config, weights, &name)).transpose()?,
            checkpointing: None,
        })
    }

    /// The same decoder, which in training keeps only the arguments of its blocks and computes each twice. The gradients
    /// of the blocks' parameters are left in `gradients` by each backward pass.
    pub fn with_checkpointing(mut self, gradients: &BlockGradients) -> Self {
        self.checkpointing = Some(gradients.clone());
        self
    }

    /// Joins weights that no longer change, and makes copies of them that passes of few tokens read fastest, unless they
    /// are a base's.
    pub(super) fn lay_out(&mut self) -> Result<()> {
        self.blocks.iter_mut().try_for_each(Block::lay_out)
    }

    /// The config it was built for.
    pub fn config(&self) -> &Arc<ModelConfig> {
        &self.config
    }

    /// Where its weights lie.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// The embedding `(V, C)`: the unembedding too, when tied.
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// Hidden states `(N, C)` after the final norm, for N tokens at their positions.
    pub fn forward(&self, ids: &[u32], positions: &[u32], attend: &mut dyn Attend) -> Result<Tensor> {
        let mut x = self.embed(ids, positions)?;
        let ropes = self.ropes(positions);
        for (layer_idx, block) in self.blocks.iter().enumerate() {
            let rope = self.rope_of(layer_idx, &ropes);
            x = block.forward(&x, rope.map(Arc::as_ref), |qkv, rule| attend.attend(layer_idx, qkv, rule))?;
        }
        self.normed(x)
    }

    /// Hidden states `(N, C)` of packed sequences, each attending to itself alone.
    pub fn forward_packed(&self, packed: &PackedSequences) -> Result<Tensor> {
        let PackedSequences { ids, positions, offsets, .. } = packed;
        let Some(gradients) = &self.checkpointing else {
            return self.forward(ids, positions, &mut PackedAttention { offsets });
        };
        let mut x = self.embed(ids, positions)?;
        let (ropes, offsets) = (self.ropes(positions), Arc::<[usize]>::from(offsets.as_slice()));
        for (layer_idx, block) in self.blocks.iter().enumerate() {
            let rope = self.rope_of(layer_idx, &ropes).cloned();
            let (block, offsets, gradients) = (block.clone(), offsets.clone(), gradients.clone());
            x = Checkpointed { block, rope, offsets, gradients }.forward(&x)?;
        }
        self.normed(x)
    }

    /// Hidden states `(R, C)` of some rows of packed sequences.
    pub fn forward_packed_at(&self, packed: &PackedSequences, rows: &[u32]) -> Result<Tensor> {
        let hidden = self.forward_packed(packed)?; // (N, C)
        let rows = Tensor::from_slice(rows, rows.len(), hidden.device())?;
        Ok(hidden.index_select(&rows, 0)?)
    }

    /// Embedded tokens at their positions, `(N, C)`.
    fn embed(&self, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        let context_len = self.config.context_len;
        if let Some(position) = positions.iter().find(|position| **position as usize >= context_len) {
            return Err(Error::invalid(format!("position {position} lies beyond the context of {context_len} tokens")));
        }
        let mut x = kernels::embed(&self.embedding, ids)?; // (N, C)
        if self.config.embedding_scale != 1.0 {
            x = (x * self.config.embedding_scale)?;
        }
        if let Some(position_embedding) = &self.position_embedding {
            x = (x + kernels::embed(position_embedding, positions)?)?;
        }
        Ok(x)
    }

    fn ropes(&self, positions: &[u32]) -> Ropes {
        match self.config.positions {
            Positions::Learned => Ropes { full: None, windowed: None },
            Positions::Rotary { rope, windowed } => {
                let table = |frequencies: Vec<f64>| Arc::new(RopeTable::new(&frequencies, positions));
                Ropes {
                    full: Some(table(rope.frequencies())),
                    windowed: windowed.map(|rope| table(rope.frequencies())),
                }
            }
        }
    }

    fn rope_of<'a>(&self, layer_idx: usize, ropes: &'a Ropes) -> Option<&'a Arc<RopeTable>> {
        let is_windowed = self.config.attention.windows[layer_idx].is_some();
        ropes.windowed.as_ref().filter(|_| is_windowed).or(ropes.full.as_ref())
    }

    fn normed(&self, x: Tensor) -> Result<Tensor> {
        match &self.final_norm {
            Some(norm) => Ok(norm.forward(&x)?),
            None => Ok(x),
        }
    }
}
