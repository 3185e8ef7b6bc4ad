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

    /// Hidden states `(R, C)` after the final norm, of some `rows` of N tokens at their positions; without `rows`, of all.
    ///
    /// The last block computes for these rows alone what comes after its attention, since nothing else reads the others.
    pub fn forward(
        &self,
        ids: &[u32],
        positions: &[u32],
        rows: Option<&[u32]>,
        attend: &mut dyn Attend,
    ) -> Result<Tensor> {
        let embedded = self.embed(ids, positions)?;
        let ropes = self.ropes(positions);
        Ok(kernels::recorded(|| {
            let mut x = embedded;
            for (layer_idx, block) in self.blocks.iter().enumerate() {
                let rope = self.rope_of(layer_idx, &ropes).map(Arc::as_ref);
                let rows = rows.filter(|_| self.is_last(layer_idx));
                x = block.forward(&x, rope, rows, |qkv, rule| attend.attend(layer_idx, qkv, rule))?;
            }
            self.normed(x)
        })?)
    }

    /// Hidden states `(N, C)` of packed sequences, each attending to itself alone.
    pub fn forward_packed(&self, packed: &PackedSequences) -> Result<Tensor> {
        self.forward_packed_rows(packed, None)
    }

    /// Hidden states `(R, C)` of some rows of packed sequences.
    pub fn forward_packed_at(&self, packed: &PackedSequences, rows: &[u32]) -> Result<Tensor> {
        if rows.is_empty() {
            return Ok(self.forward_packed(packed)?.narrow(0, 0, 0)?);
        }
        self.forward_packed_rows(packed, Some(rows))
    }

    fn forward_packed_rows(&self, packed: &PackedSequences, rows: Option<&[u32]>) -> Result<Tensor> {
        let PackedSequences { ids, positions, offsets, .. } = packed;
        let Some(gradients) = &self.checkpointing else {
            return self.forward(ids, positions, rows, &mut PackedAttention { offsets });
        };
        let mut x = self.embed(ids, positions)?;
        let (ropes, offsets) = (self.ropes(positions), Arc::<[usize]>::from(offsets.as_slice()));
        for (layer_idx, block) in self.blocks.iter().enumerate() {
            let rope = self.rope_of(layer_idx, &ropes).cloned();
            let rows = rows.filter(|_| self.is_last(layer_idx)).map(Arc::from);
            let (block, offsets, gradients) = (block.clone(), offsets.clone(), gradients.clone());
            x = Checkpointed { block, rope, rows, offsets, gradients }.forward(&x)?;
        }
        Ok(self.normed(x)?)
    }

    fn is_last(&self, layer_idx: usize) -> bool {
        layer_idx + 1 == self.blocks.len()
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
            x = kernels::add(&x, &kernels::embed(position_embedding, positions)?)?;
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

    fn normed(&self, x: Tensor) -> candle_core::Result<Tensor> {
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{HeadKind, Parameters};
    use crate::kernels::testing::flat;
    use crate::testing::{each_kind, tokens, weights};

    #[test]
    fn rows_that_are_asked_for_have_the_bits_and_gradients_that_they_have_among_all() {
        let packed = PackedSequences::new(&[tokens(7, 1), tokens(1, 2), tokens(5, 3)]);
        for rows in [vec![12], vec![3, 4, 6, 7, 11], (0..13).collect::<Vec<u32>>(), vec![]] {
            for config in each_kind() {
                let parameters = Parameters::from_weights(&weights(&config, HeadKind::Language, 1)).unwrap();
                let decoder = Decoder::new(&config, &parameters.weights()).unwrap();
                let own = decoder.forward_packed_at(&packed, &rows).unwrap();
                let among_all = kernels::embed(&decoder.forward_packed(&packed).unwrap(), &rows).unwrap();
                assert_eq!((own.dims(), flat(&own)), (among_all.dims(), flat(&among_all)));
                if rows.is_empty() {
                    continue;
                }
                let [own, among_all] = [own, among_all].map(|hidden| hidden.sqr().unwrap().sum_all().unwrap());
                let [own, among_all] = [own, among_all].map(|loss| loss.backward().unwrap());
                for (name, var) in parameters.iter() {
                    let (Some(own), Some(among_all)) = (own.get(var), among_all.get(var)) else {
                        assert!(own.get(var).is_none() && among_all.get(var).is_none(), "{name}");
                        continue;
                    };
                    for (own, among_all) in flat(own).into_iter().zip(flat(among_all)) {
                        assert!(
                            (own - among_all).abs() <= 1e-4 * among_all.abs().max(1.0),
                            "{name}: {own} {among_all}"
                        );
                    }
                }
            }
        }
    }
}
