//! Attention for generation: new rows against the keys and values of the rows before them.

use candle_core::{Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::{AttentionRule, HeadShape, simd};

/// Keys and values of one layer for `n_slots` sequences of up to `capacity` positions each.
///
/// A slot is taken over by writing its positions anew from 0: what was there before is never read, since a row at
/// position p reads 0..=p alone.
#[derive(Clone, Debug)]
pub struct LayerCache {
    heads: HeadShape,
    n_slots: usize,
    capacity: usize,
    /// `(n_slots, KV, D, capacity)`: for each dimension the positions lie side by side, so scores are computed for
    /// many positions at once.
    keys: Vec<f32>,
    /// `(n_slots, KV, capacity, D)`.
    values: Vec<f32>,
}

impl LayerCache {
    /// Capacity grows by multiples of this many positions, so that longer prompts coming in do not each copy the cache.
    const GROWTH: usize = 64;

    /// The capacity that is taken for sequences of `n_positions` in a context of `context_len`.
    pub fn capacity_for(n_positions: usize, context_len: usize) -> usize {
        n_positions.next_multiple_of(Self::GROWTH).min(context_len)
    }

    /// An empty cache: 2 · n_slots · capacity · KV · D numbers.
    pub fn new(n_slots: usize, capacity: usize, heads: HeadShape) -> Self {
        let n = n_slots * capacity * heads.n_kv_heads * heads.head_dim;
        Self { heads, n_slots, capacity, keys: vec![0.0; n], values: vec![0.0; n] }
    }

    /// How many sequences it holds.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// How many positions each slot holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The same cache with room for `capacity` positions, no fewer than now, in each slot.
    pub fn grown(&self, capacity: usize) -> Self {
        let mut grown = Self::new(self.n_slots, capacity.max(self.capacity), self.heads);
        if self.capacity == 0 {
            return grown;
        }
        let (old, new) = (self.capacity, grown.capacity);
        for (from, to) in self.keys.chunks_exact(old).zip(grown.keys.chunks_exact_mut(new)) {
            to[..old].copy_from_slice(from);
        }
        let (old, new) = (old * self.heads.head_dim, new * self.heads.head_dim);
        for (from, to) in self.values.chunks_exact(old).zip(grown.values.chunks_exact_mut(new)) {
            to[..old].copy_from_slice(from);
        }
        grown
    }

    /// Writes one row's keys and values, each `(KV, D)`.
    fn write(&mut self, row: CacheRow, keys: &[f32], values: &[f32]) {
        let HeadShape { n_kv_heads, head_dim, .. } = self.heads;
        for kv in 0..n_kv_heads {
            let start = (row.slot * n_kv_heads + kv) * head_dim * self.capacity;
            for (d, key) in keys[kv * head_dim..(kv + 1) * head_dim].iter().enumerate() {
                self.keys[start + d * self.capacity + row.position] = *key;
            }
            let start = start + row.position * head_dim;
            self.values[start..start + head_dim].copy_from_slice(&values[kv * head_dim..(kv + 1) * head_dim]);
        }
    }

    /// Keys `(D, capacity)` and values `(capacity, D)` of one key head of a slot.
    fn head(&self, slot: usize, kv: usize) -> (&[f32], &[f32]) {
        let len = self.heads.head_dim * self.capacity;
        let start = (slot * self.heads.n_kv_heads + kv) * len;
        (&self.keys[start..start + len], &self.values[start..start + len])
    }
}

/// Where a row of a batch stands in a [`LayerCache`]: its keys and values are written there, and it attends to
/// the positions of its slot up to its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// Which sequence.
    pub slot: usize,
    /// Which position in it, from 0.
    pub position: usize,
}

/// Causal attention of `qkv (N, (H + 2 KV) D)` over a cache: `(N, H D)`. All rows' keys and values are written first,
/// then every row attends, so the rows of one slot may be a whole prompt.
///
/// Computed on the CPU in f32, wherever `qkv` lies and the result goes. It has no backward: a `qkv` with a gradient to carry is refused rather than cut off in silence.
pub fn cached_attention(
    qkv: &Tensor,
    rule: AttentionRule,
    cache: &mut LayerCache,
    rows: &[CacheRow],
) -> Result<Tensor> {
    let heads = rule.heads;
    let (n, columns) = qkv.dims2()?;
    if qkv.track_op() {
        bail!("cached attention has no backward: generate with detached weights (a snapshot)");
    }
    if heads != cache.heads {
        bail!("attention with {heads:?} over a cache made for {:?}", cache.heads);
    }
    if n != rows.len() || columns != heads.qkv_dim() {
        bail!("qkv is ({n}, {columns}), expected ({}, {})", rows.len(), heads.qkv_dim());
    }
    if let Some(row) = rows.iter().find(|row| row.slot >= cache.n_slots || row.position >= cache.capacity) {
        bail!("{row:?} lies outside a cache of {} slots of {} positions", cache.n_slots, cache.capacity);
    }
    let device = qkv.device();
    let qkv = qkv.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = qkv.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("a tensor on the CPU has no storage there") };
    let data = &storage.as_slice::<f32>()?[layout.start_offset()..][..n * columns];

    let kv_dim = heads.n_kv_heads * heads.head_dim;
    for (row, data) in rows.iter().zip(data.chunks_exact(columns)) {
        let (keys, values) = data[heads.out_dim()..].split_at(kv_dim);
        cache.write(*row, keys, values);
    }
    let mut out = vec![0.0; n * heads.out_dim()];
    let group_dim = heads.out_dim() / heads.n_kv_heads;
    let cache = &*cache;
    out.par_chunks_mut(group_dim).enumerate().for_each_init(Vec::new, |weights, (i, out)| {
        let (row_idx, kv) = (i / heads.n_kv_heads, i % heads.n_kv_heads);
        let (keys, values) = cache.head(rows[row_idx].slot, kv);
        let queries = &data[row_idx * columns + kv * group_dim..][..group_dim];
        let position = rows[row_idx].position;
        let first = rule.first_seen(position);
        weights.resize(position + 1 - first, 0.0);
        simd::dispatch(
            #[inline(always)]
            || {
                for (query, out) in queries.chunks(heads.head_dim).zip(out.chunks_mut(heads.head_dim)) {
                    attend_one(query, rule.scale, keys, values, cache.capacity, first, weights, out);
                }
            },
        );
    });
    Tensor::from_vec(out, (n, heads.out_dim()), device)
}

/// One query over `weights.len()` positions from `first` on.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's inner function")]
fn attend_one(
    query: &[f32],
    scale: f32,
    keys: &[f32],
    values: &[f32],
    capacity: usize,
    first: usize,
    weights: &mut [f32],
    out: &mut [f32],
) {
    weights.fill(0.0);
    for (q, keys) in query.iter().zip(keys.chunks_exact(capacity)) {
        simd::axpy(*q, &keys[first..first + weights.len()], weights);
    }
    let largest = simd::max(weights);
    for weight in weights.iter_mut() {
        *weight = simd::exp((*weight - largest) * scale);
    }
    let inverse = 1.0 / simd::sum(weights);
    for (weight, value) in weights.iter().zip(values[first * query.len()..].chunks_exact(query.len())) {
        simd::axpy(*weight, value, out);
    }
    for out in out.iter_mut() {
        *out *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::kernels::composed;
    use crate::rng::SeededRng;

    const HEADS: HeadShape = HeadShape { n_heads: 4, n_kv_heads: 2, head_dim: 6 };

    fn causal() -> AttentionRule {
        AttentionRule::causal(HEADS)
    }

    fn random_rows(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = SeededRng::seed_from_u64(seed);
        (0..n * HEADS.qkv_dim()).map(|_| rng.random_range(-2.0..2.0)).collect()
    }

    fn tensor(rows: &[f32]) -> Tensor {
        Tensor::from_slice(rows, (rows.len() / HEADS.qkv_dim(), HEADS.qkv_dim()), &Device::Cpu).unwrap()
    }

    fn flat(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn prefill_then_decode_agrees_with_attention_over_the_whole_sequence() {
        let rows = random_rows(9, 1);
        let causal = causal();
        for rule in [causal, AttentionRule { window: Some(3), scale: 0.7, ..causal }] {
            let whole = flat(&composed::causal_attention(&tensor(&rows), &[0, 9], rule).unwrap());
            let mut cache = LayerCache::new(3, 9, HEADS);
            let prompt: Vec<CacheRow> = (0..5).map(|position| CacheRow { slot: 2, position }).collect();
            let cut = 5 * HEADS.qkv_dim();
            let mut out = flat(&cached_attention(&tensor(&rows[..cut]), rule, &mut cache, &prompt).unwrap());
            for (i, row) in rows[cut..].chunks(HEADS.qkv_dim()).enumerate() {
                let at = [CacheRow { slot: 2, position: 5 + i }];
                out.extend(flat(&cached_attention(&tensor(row), rule, &mut cache, &at).unwrap()));
            }
            assert!(out.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-5), "{out:?} {whole:?}");
        }
    }

    #[test]
    fn a_slot_depends_on_no_other_and_on_nothing_that_stood_there_before() {
        let rows = random_rows(4, 2);
        let at: Vec<CacheRow> = (0..4).map(|position| CacheRow { slot: 1, position }).collect();
        let alone = flat(&cached_attention(&tensor(&rows), causal(), &mut LayerCache::new(2, 8, HEADS), &at).unwrap());

        let mut used = LayerCache::new(2, 8, HEADS);
        let garbage = vec![f32::NAN; 8 * HEADS.qkv_dim()];
        let everywhere: Vec<CacheRow> = (0..8).map(|position| CacheRow { slot: 1, position }).collect();
        cached_attention(&tensor(&garbage), causal(), &mut used, &everywhere).unwrap();
        let mut both = garbage[..2 * HEADS.qkv_dim()].to_vec();
        both.extend(&rows);
        let mut places = vec![CacheRow { slot: 0, position: 0 }, CacheRow { slot: 0, position: 1 }];
        places.extend(&at);
        let mixed = flat(&cached_attention(&tensor(&both), causal(), &mut used, &places).unwrap());
        assert_eq!(alone, mixed[2 * HEADS.out_dim()..]);
    }

    #[test]
    fn a_cache_that_grows_keeps_what_it_holds() {
        let rows = random_rows(4, 4);
        let cut = 3 * HEADS.qkv_dim();
        let at: Vec<CacheRow> = (0..4).map(|position| CacheRow { slot: 1, position }).collect();
        let mut cache = LayerCache::new(2, 0, HEADS).grown(3);
        cached_attention(&tensor(&rows[..cut]), causal(), &mut cache, &at[..3]).unwrap();
        let mut grown = cache.grown(5);
        let last = flat(&cached_attention(&tensor(&rows[cut..]), causal(), &mut grown, &at[3..]).unwrap());
        let whole = flat(&cached_attention(&tensor(&rows), causal(), &mut LayerCache::new(2, 5, HEADS), &at).unwrap());
        assert_eq!(last, whole[3 * HEADS.out_dim()..]);
    }

    #[test]
    fn rows_outside_the_cache_are_refused() {
        let mut cache = LayerCache::new(1, 2, HEADS);
        let rows = tensor(&random_rows(1, 3));
        for at in [CacheRow { slot: 1, position: 0 }, CacheRow { slot: 0, position: 2 }] {
            let error = cached_attention(&rows, causal(), &mut cache, &[at]).unwrap_err().to_string();
            assert!(error.contains("outside a cache of 1 slots of 2 positions"), "{error}");
        }
        assert!(cached_attention(&rows, causal(), &mut cache, &[]).is_err());
    }
}
