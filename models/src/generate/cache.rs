//! The keys and values of the sequences in progress, one cache a layer.

use candle_core::Tensor;

use crate::arch::{Attend, ModelConfig};
use crate::kernels::{self, AttentionRule, CacheRow, LayerCache};

/// One [`LayerCache`] a layer.
#[derive(Debug)]
pub(super) struct Caches {
    layers: Vec<LayerCache>,
    context_len: usize,
}

impl Caches {
    /// Caches for `n_slots` sequences, with no room as yet.
    pub(super) fn new(config: &ModelConfig, n_slots: usize) -> Self {
        let layers = (0..config.n_layers).map(|_| LayerCache::new(n_slots, 0, config.heads())).collect();
        Self { layers, context_len: config.context_len }
    }

    /// Makes room for `n_positions` in each slot, keeping what is there.
    pub(super) fn reserve(&mut self, n_positions: usize) {
        let capacity = LayerCache::capacity_for(n_positions, self.context_len);
        for layer in &mut self.layers {
            if layer.capacity() < n_positions {
                *layer = layer.grown(capacity);
            }
        }
    }

    /// Attention for a forward pass over these rows.
    pub(super) fn attention<'a>(&'a mut self, rows: &'a [CacheRow]) -> CachedAttention<'a> {
        CachedAttention { layers: &mut self.layers, rows }
    }
}

/// Each row attends to what its slot holds, itself included.
pub(super) struct CachedAttention<'a> {
    layers: &'a mut [LayerCache],
    rows: &'a [CacheRow],
}

impl Attend for CachedAttention<'_> {
    fn attend(&mut self, layer_idx: usize, qkv: &Tensor, rule: AttentionRule) -> candle_core::Result<Tensor> {
        kernels::cached_attention(qkv, rule, &mut self.layers[layer_idx], self.rows)
    }
}
