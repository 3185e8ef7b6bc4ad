//! The keys and values of a sequence in progress, one cache a layer.

use candle_core::Tensor;

use crate::arch::{Attend, ModelConfig};
use crate::kernels::{self, AttentionRule, CacheRow, LayerCache};

/// One [`LayerCache`] a layer.
#[derive(Debug)]
pub(super) struct SequenceCache {
    layers: Vec<LayerCache>,
}

impl SequenceCache {
    /// With no room as yet.
    pub(super) fn new(config: &ModelConfig) -> Self {
        Self { layers: (0..config.n_layers).map(|_| LayerCache::new(config.heads())).collect() }
    }

    /// Makes room for `n_positions`, keeping what is there.
    pub(super) fn reserve(&mut self, n_positions: usize) {
        self.layers.iter_mut().for_each(|layer| layer.reserve(n_positions));
    }

    /// Takes over the first `n_positions` of another sequence. There must be room.
    pub(super) fn copy_from(&mut self, other: &Self, n_positions: usize) {
        let layers = self.layers.iter_mut().zip(&other.layers);
        layers.for_each(|(layer, other)| layer.copy_from(other, n_positions));
    }
}

/// Each row attends to what its sequence holds, itself included.
pub(super) struct CachedAttention<'a> {
    /// Of the sequences that the rows name.
    pub(super) caches: Vec<&'a mut SequenceCache>,
    pub(super) rows: Vec<CacheRow>,
}

impl Attend for CachedAttention<'_> {
    fn attend(&mut self, layer_idx: usize, qkv: &Tensor, rule: AttentionRule) -> candle_core::Result<Tensor> {
        let mut layer: Vec<&mut LayerCache> =
            self.caches.iter_mut().map(|sequence| &mut sequence.layers[layer_idx]).collect();
        kernels::cached_attention(qkv, rule, &mut layer, &self.rows)
    }
}
