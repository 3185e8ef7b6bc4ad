//! Attention for generation: new rows against the keys and values of the rows before them.

use candle_core::{Device, Result, Storage, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::blocks::{PARALLEL_NUMBERS, for_each_block};
use super::buffer::{Disjoint, filled_by, with_scratch};
use super::tile::{COLUMN_STEP, Out, Rows, Start, TILE, tiles_of_all_terms};
use super::{AttentionRule, HeadShape, simd};

/// Keys and values of one sequence in one layer, for up to `capacity` positions.
///
/// It is taken over by writing its positions anew from 0: what was there before is never read, since a row at position p
/// reads 0..=p alone.
#[derive(Clone, Debug)]
pub struct LayerCache {
    heads: HeadShape,
    capacity: usize,
    /// `(KV, D, capacity)`: for each dimension the positions lie side by side, so scores are computed for many positions
    /// at once. [`COLUMN_STEP`] more, since a window may begin anywhere.
    keys: Vec<f32>,
    /// `(KV, capacity, D')`, where D' is D and zeros up to a multiple of [`COLUMN_STEP`].
    values: Vec<f32>,
}

impl LayerCache {
    /// Capacity grows by multiples of this many positions, so that longer prompts coming in do not each copy the cache.
    /// A multiple of [`COLUMN_STEP`], in which positions are read.
    const GROWTH: usize = 64;

    /// The capacity that is taken for `n_positions`.
    pub fn capacity_for(n_positions: usize) -> usize {
        n_positions.next_multiple_of(Self::GROWTH)
    }

    /// Bytes of a cache for `n_positions`.
    pub fn bytes_for(n_positions: usize, heads: HeadShape) -> usize {
        let row = heads.n_kv_heads * (heads.head_dim + heads.head_dim.next_multiple_of(COLUMN_STEP));
        size_of::<f32>() * Self::capacity_for(n_positions) * row
    }

    /// An empty cache, without room as yet.
    pub fn new(heads: HeadShape) -> Self {
        Self { heads, capacity: 0, keys: Vec::new(), values: Vec::new() }
    }

    /// How many positions it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// From one position's values to the next one's.
    fn value_stride(&self) -> usize {
        self.heads.head_dim.next_multiple_of(COLUMN_STEP)
    }

    /// Makes room for `n_positions`, keeping what is there.
    pub fn reserve(&mut self, n_positions: usize) {
        if n_positions <= self.capacity {
            return;
        }
        let mut grown = Self { capacity: Self::capacity_for(n_positions), ..Self::new(self.heads) };
        let HeadShape { n_kv_heads, head_dim, .. } = self.heads;
        grown.keys = vec![0.0; n_kv_heads * head_dim * grown.capacity + COLUMN_STEP];
        grown.values = vec![0.0; n_kv_heads * grown.value_stride() * grown.capacity];
        grown.copy_from(self, self.capacity);
        *self = grown;
    }

    /// Takes over the first `n_positions` of another cache of the same heads. There must be room.
    pub fn copy_from(&mut self, other: &Self, n_positions: usize) {
        assert_eq!(self.heads, other.heads);
        assert!(n_positions <= self.capacity.min(other.capacity));
        if n_positions == 0 {
            return;
        }
        let rows = self.keys.chunks_exact_mut(self.capacity).zip(other.keys.chunks_exact(other.capacity));
        rows.for_each(|(to, from)| to[..n_positions].copy_from_slice(&from[..n_positions]));
        let (stride, n) = (self.value_stride(), n_positions * self.value_stride());
        let to = self.values.chunks_exact_mut(self.capacity * stride);
        let from = other.values.chunks_exact(other.capacity * stride);
        to.zip(from).for_each(|(to, from)| to[..n].copy_from_slice(&from[..n]));
    }

    /// Writes one position's keys and values, each `(KV, D)`.
    fn write(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let (HeadShape { n_kv_heads, head_dim, .. }, stride) = (self.heads, self.value_stride());
        for kv in 0..n_kv_heads {
            let from = kv * head_dim..(kv + 1) * head_dim;
            let column = &mut self.keys[kv * head_dim * self.capacity + position..];
            column.iter_mut().step_by(self.capacity).zip(&keys[from.clone()]).for_each(|(to, key)| *to = *key);
            let start = (kv * self.capacity + position) * stride;
            self.values[start..start + head_dim].copy_from_slice(&values[from]);
        }
    }

    /// Keys `(D, capacity)` and values `(capacity, D')` of one key head, and what follows.
    fn head(&self, kv: usize) -> (&[f32], &[f32]) {
        let (keys, values) = (self.heads.head_dim * self.capacity, self.value_stride() * self.capacity);
        (&self.keys[kv * keys..], &self.values[kv * values..])
    }
}

/// Where a row of a batch stands: its keys and values are written there, and it attends to the positions of its sequence
/// up to its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// Which of the pass' sequences.
    pub sequence: usize,
    /// Which position in it, from 0.
    pub position: usize,
}

/// Causal attention of `qkv (N, (H + 2 KV) D)` over the caches of several sequences: `(N, H D)`. All rows' keys and values
/// are written first, then every row attends, so the rows of one sequence may be a whole prompt.
///
/// Computed on the CPU in f32, wherever `qkv` lies and the result goes. It has no backward: a `qkv` with a gradient to
/// carry is refused rather than cut off in silence.
pub fn cached_attention(
    qkv: &Tensor,
    rule: AttentionRule,
    caches: &mut [&mut LayerCache],
    rows: &[CacheRow],
) -> Result<Tensor> {
    let heads = rule.heads;
    let (n, columns) = qkv.dims2()?;
    if qkv.track_op() {
        bail!("cached attention has no backward: generate with detached weights (a snapshot)");
    }
    if let Some(cache) = caches.iter().find(|cache| cache.heads != heads) {
        bail!("attention with {heads:?} over a cache made for {:?}", cache.heads);
    }
    if n != rows.len() || columns != heads.qkv_dim() {
        bail!("qkv is ({n}, {columns}), expected ({}, {})", rows.len(), heads.qkv_dim());
    }
    for row in rows {
        match caches.get(row.sequence) {
            None => bail!("{row:?} is of none of {} sequences", caches.len()),
            Some(cache) if row.position >= cache.capacity => {
                bail!("{row:?} lies outside a cache of {} positions", cache.capacity)
            }
            Some(_) => {}
        }
    }
    let device = qkv.device();
    let qkv = qkv.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = qkv.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("a tensor on the CPU has no storage there") };
    let data = &storage.as_slice::<f32>()?[layout.start_offset()..][..n * columns];

    let kv_dim = heads.n_kv_heads * heads.head_dim;
    let write = |cache: &mut LayerCache, row_idx: usize| {
        let (keys, values) = data[row_idx * columns..][heads.out_dim()..columns].split_at(kv_dim);
        cache.write(rows[row_idx].position, keys, values);
    };
    if data.len() < PARALLEL_NUMBERS {
        (0..n).for_each(|row_idx| write(caches[rows[row_idx].sequence], row_idx));
    } else {
        let mut rows_of = vec![Vec::new(); caches.len()];
        rows.iter().enumerate().for_each(|(row_idx, row)| rows_of[row.sequence].push(row_idx));
        let write_all = |(cache, rows): (&mut &mut LayerCache, Vec<usize>)| {
            rows.into_iter().for_each(|row_idx| write(cache, row_idx));
        };
        caches.par_iter_mut().zip(rows_of).for_each(write_all);
    }
    let caches = &*caches;
    let group_dim = heads.out_dim() / heads.n_kv_heads;
    let n_seen: usize = rows.iter().map(|row| row.position + 1 - rule.first_seen(row.position)).sum();
    let fill = |y: &Disjoint<'_>| {
        // Elementwise work on as many numbers takes about as long as a quarter of these multiply-adds.
        for_each_block(n * heads.n_kv_heads, 1, n_seen * heads.out_dim() / 4, |group| {
            let (row_idx, kv) = (group.start / heads.n_kv_heads, group.start % heads.n_kv_heads);
            let row = rows[row_idx];
            let cache = &*caches[row.sequence];
            let queries = &data[row_idx * columns + kv * group_dim..][..group_dim];
            let (keys, values) = cache.head(kv);
            let (capacity, value_stride) = (cache.capacity, cache.value_stride());
            let first = rule.first_seen(row.position);
            let seen = Seen { keys, values, capacity, value_stride, first, n: row.position + 1 - first };
            let n_queries = group_dim / heads.head_dim;
            let out_start = row_idx * heads.out_dim() + kv * group_dim;
            for query in (0..n_queries).step_by(TILE) {
                let n_rows = TILE.min(n_queries - query);
                let queries = &queries[query * heads.head_dim..][..n_rows * heads.head_dim];
                with_scratch(n_rows * seen.n, |weights| {
                    let out_start = out_start + query * heads.head_dim;
                    let attend = Attend { rule, queries, n_rows, seen, weights, y, out_start };
                    pulp::Arch::new().dispatch(attend);
                });
            }
        });
    };
    // SAFETY: the groups' places cover all rows and heads without overlap, and each is written.
    let out = unsafe { filled_by(n * heads.out_dim(), fill) };
    Tensor::from_vec(out, (n, heads.out_dim()), device)
}

/// What a row sees of one key head: `n` positions from `first` on.
#[derive(Clone, Copy)]
struct Seen<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    capacity: usize,
    value_stride: usize,
    first: usize,
    n: usize,
}

/// Up to [`TILE`] queries of one row over what it sees of their key head.
struct Attend<'a, 'y> {
    rule: AttentionRule,
    queries: &'a [f32],
    n_rows: usize,
    seen: Seen<'a>,
    /// Room for `n_rows` times the positions seen.
    weights: &'a mut [f32],
    y: &'a Disjoint<'y>,
    /// Where the first query's result begins.
    out_start: usize,
}

impl WithSimd for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rule, queries, n_rows, seen, weights, y, out_start } = self;
        let (head_dim, n) = (rule.heads.head_dim, seen.n);
        let scores = Disjoint::over(weights);
        let x = Rows { numbers: queries, stride: head_dim, n_rows, len: head_dim };
        let out = Out { y: &scores, stride: n, row: 0, column: 0, width: n, first: Some(Start::Zero) };
        // SAFETY: the scores are this task's.
        unsafe { tiles_of_all_terms(simd, x, &seen.keys[seen.first..], seen.capacity, out) };
        for weights in weights.chunks_exact_mut(n) {
            simd::softmax(weights, rule.scale);
        }
        let x = Rows { numbers: weights, stride: n, n_rows, len: n };
        let out = Out { y, stride: head_dim, row: 0, column: out_start, width: head_dim, first: Some(Start::Zero) };
        let values = &seen.values[seen.first * seen.value_stride..];
        // SAFETY: these queries' results are this task's.
        unsafe { tiles_of_all_terms(simd, x, values, seen.value_stride, out) };
    }
}

#[cfg(test)]
mod tests;
