//! Attention for training and scoring: packed sequences, each to itself. The weights are never held in full: the
//! backward pass computes them anew.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};

use super::blocks::share_out;
use super::buffer::{Disjoint, filled_by, with_scratch};
use super::gemm::{Matrix, add_product};
use super::product::PARALLEL_WORK;
use super::storage::{fusable, numbers, output, slice, tensor};
use super::tape::apply1;
use super::tile::{COLUMN_STEP, K_BLOCK, Out, Rows, Start, TILE, tiles, tiles_of_all_terms};
use super::{AttentionRule, HeadShape, composed, simd, transpose};

/// Rows of which the backward pass holds the weights at a time: a multiple of [`TILE`].
const BACKWARD_ROWS: usize = 8 * TILE;

/// Causal self-attention within each packed sequence: `qkv (N, (H + 2 KV) D)` to `(N, H D)`. Sequence s is rows
/// `offsets[s]..offsets[s + 1]`.
///
/// A row's result depends on the rows up to it in its sequence alone, bit for bit, as long as those after it are
/// finite.
pub fn causal_attention(qkv: &Tensor, offsets: &[usize], rule: AttentionRule) -> Result<Tensor> {
    let heads = rule.heads;
    let (n, columns) = qkv.dims2()?;
    if columns != heads.qkv_dim() {
        bail!("attention: qkv is ({n}, {columns}), expected {} columns for {heads:?}", heads.qkv_dim());
    }
    if heads.n_kv_heads == 0 || !heads.n_heads.is_multiple_of(heads.n_kv_heads) {
        bail!("attention: {} query heads do not share {} key heads evenly", heads.n_heads, heads.n_kv_heads);
    }
    if offsets.first() != Some(&0) || offsets.last() != Some(&n) || !offsets.is_sorted() {
        bail!("attention: offsets {offsets:?} do not cut {n} rows into sequences");
    }
    if heads.head_dim > K_BLOCK || !fusable(&[qkv]) {
        return composed::causal_attention(qkv, offsets, rule);
    }
    apply1(&qkv.contiguous()?, CausalAttention { offsets: offsets.to_vec(), rule })
}

struct CausalAttention {
    offsets: Vec<usize>,
    rule: AttentionRule,
}

impl CausalAttention {
    /// Runs `task` for each key head of each sequence.
    fn for_each_part<'a>(&self, qkv: &'a [f32], task: impl Fn(Part<'a>) + Sync + Send) {
        let n_kv_heads = self.rule.heads.n_kv_heads;
        let task = |i: usize| {
            let sequence = i / n_kv_heads;
            let rows = self.offsets[sequence]..self.offsets[sequence + 1];
            if !rows.is_empty() {
                task(Part { qkv, rule: self.rule, heads: self.rule.heads, rows, kv: i % n_kv_heads });
            }
        };
        let n_tasks = (self.offsets.len() - 1) * n_kv_heads;
        let work: usize = self.offsets.windows(2).map(|bounds| (bounds[1] - bounds[0]).pow(2)).sum();
        if work * self.rule.heads.out_dim() < PARALLEL_WORK {
            (0..n_tasks).for_each(task);
        } else {
            share_out(n_tasks, task);
        }
    }
}

/// One key head of one sequence, with the query heads that read it.
struct Part<'a> {
    /// All sequences, `(N, (H + 2 KV) D)`.
    qkv: &'a [f32],
    rule: AttentionRule,
    /// The rule's.
    heads: HeadShape,
    /// The sequence's.
    rows: Range<usize>,
    kv: usize,
}

impl<'a> Part<'a> {
    /// How many rows the sequence has.
    fn len(&self) -> usize {
        self.rows.len()
    }

    /// The query heads that read this key head.
    fn query_heads(&self) -> Range<usize> {
        let n = self.heads.n_heads / self.heads.n_kv_heads;
        self.kv * n..(self.kv + 1) * n
    }

    /// Where this key head's keys and values stand in a row.
    fn key_and_value_columns(&self) -> [usize; 2] {
        let HeadShape { n_heads, n_kv_heads, head_dim } = self.heads;
        [n_heads + self.kv, n_heads + n_kv_heads + self.kv].map(|head| head * head_dim)
    }

    /// All that follows in `qkv` from a column of a row of the sequence.
    #[inline(always)]
    fn from(&self, row: usize, column: usize) -> &'a [f32] {
        &self.qkv[(self.rows.start + row) * self.heads.qkv_dim() + column..]
    }

    /// From one row of scores, keys' dimensions or values' dimensions to the next: sequence positions, rounded up.
    /// Odd multiples, since rows that are a power of two apart collide in the cache.
    fn positions_stride(&self) -> usize {
        (self.len().div_ceil(COLUMN_STEP) | 1) * COLUMN_STEP
    }

    /// From one padded row of keys or values to the next.
    fn head_stride(&self) -> usize {
        self.heads.head_dim.next_multiple_of(COLUMN_STEP)
    }

    /// One head of every row, transposed: `(D, positions_stride)`. What lies beyond the positions is left as it is.
    #[inline(always)]
    fn transposed(&self, column: usize, out: &mut [f32]) {
        let row = |i: usize| &self.from(i, column)[..self.heads.head_dim];
        transpose::rows_to_columns(self.len(), row, out, self.positions_stride());
    }

    /// One head of every row: `(T, head_stride)`. What lies beyond the head is left as it is.
    #[inline(always)]
    fn padded(&self, column: usize, out: &mut [f32]) {
        let d = self.heads.head_dim;
        for (row, out) in out.chunks_exact_mut(self.head_stride()).enumerate() {
            out[..d].copy_from_slice(&self.from(row, column)[..d]);
        }
    }

    /// Attention weights of some rows of a query head, `(rows, positions_stride)`: zeros before each row's window, and
    /// from its own future up to the last row's position; beyond that nothing is written.
    #[inline(always)]
    fn weights<S: Simd>(&self, simd: S, head: usize, rows: Range<usize>, keys: &[f32], weights: &mut [f32]) {
        let (d, stride) = (self.heads.head_dim, self.positions_stride());
        let x =
            Rows { numbers: self.from(rows.start, head * d), stride: self.heads.qkv_dim(), n_rows: rows.len(), len: d };
        let y = &Disjoint::over(weights);
        let out = Out { y, stride, row: 0, column: 0, width: rows.end, first: Some(Start::Zero) };
        // SAFETY: the weights are borrowed alone, and written.
        unsafe { tiles(simd, x, keys, stride, out) };
        let scale = self.rule.scale;
        for (row, weights) in rows.clone().zip(weights.chunks_exact_mut(stride)) {
            let (seen, future) = weights[..rows.end].split_at_mut(row + 1);
            let (past, seen) = seen.split_at_mut(self.rule.first_seen(row));
            past.fill(0.0);
            simd::softmax(seen, scale);
            future.fill(0.0);
        }
    }

    /// Σ over the positions up to the last of `rows` of `weights (rows, positions_stride)` times `x (T, head_stride)`.
    /// `out` says where the rows' head begins.
    ///
    /// # Safety
    /// No other task uses these places of `out` meanwhile.
    #[inline(always)]
    unsafe fn weighted_sum<S: Simd>(&self, simd: S, rows: Range<usize>, weights: &[f32], x: &[f32], out: Out<'_, '_>) {
        let weights = Rows { numbers: weights, stride: self.positions_stride(), n_rows: rows.len(), len: rows.end };
        // SAFETY: the caller's promise, passed on.
        unsafe { tiles_of_all_terms(simd, weights, x, self.head_stride(), out) };
    }
}

/// Cuts these lengths off the front of a buffer.
fn cut<const N: usize>(mut buffer: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    lens.map(|len| {
        let (part, rest) = std::mem::take(&mut buffer).split_at_mut(len);
        buffer = rest;
        part
    })
}

/// Σ of some lengths.
fn total<const N: usize>(lens: [usize; N]) -> usize {
    lens.iter().sum()
}

struct Forward<'a, 'y> {
    part: Part<'a>,
    scratch: &'a mut [f32],
    y: &'a Disjoint<'y>,
}

impl Forward<'_, '_> {
    /// Keys, transposed; values, padded; weights of one tile.
    fn scratch(part: &Part<'_>) -> [usize; 3] {
        let (t, d) = (part.len(), part.heads.head_dim);
        [d * part.positions_stride(), t * part.head_stride(), TILE * part.positions_stride()]
    }
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { part, scratch, y } = self;
        let [keys, values, weights] = cut(scratch, Self::scratch(&part));
        let [key_column, value_column] = part.key_and_value_columns();
        part.transposed(key_column, keys);
        part.padded(value_column, values);
        let (n, d, first) = (part.len(), part.heads.head_dim, Some(Start::Zero));
        for head in part.query_heads() {
            for start in (0..n).step_by(TILE) {
                let rows = start..n.min(start + TILE);
                part.weights(simd, head, rows.clone(), keys, weights);
                let row = part.rows.start + start;
                let out = Out { y, stride: part.heads.out_dim(), row, column: head * d, width: d, first };
                // SAFETY: this head of this sequence's rows is this task's alone.
                unsafe { part.weighted_sum(simd, rows, weights, values, out) };
            }
        }
    }
}

struct Backward<'a, 'y> {
    part: Part<'a>,
    scratch: &'a mut [f32],
    /// Gradient of the attention's output, `(N, H D)`.
    g: &'a [f32],
    /// Gradient of qkv.
    y: &'a Disjoint<'y>,
}

impl Backward<'_, '_> {
    /// Keys and values, transposed; keys, padded; weights and scores' gradients of one block of rows; gradients of
    /// keys and values.
    fn scratch(part: &Part<'_>) -> [usize; 7] {
        let (t, d) = (part.len(), part.heads.head_dim);
        let (transposed, block) = (d * part.positions_stride(), BACKWARD_ROWS * part.positions_stride());
        [transposed, transposed, t * part.head_stride(), block, block, t * d, t * d]
    }
}

impl WithSimd for Backward<'_, '_> {
    type Output = ();

    /// With weights P = softmax(S) and output O = P V: ∂V = Pᵀ ∂O, ∂P = ∂O Vᵀ, ∂S = P ∘ (∂P − Σ P ∂P) row by row,
    /// and from the scaled ∂S: ∂Q = ∂S K, ∂K = ∂Sᵀ Q.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { part, scratch, g, y } = self;
        let [keys, values, padded_keys, weights, grad_scores, grad_keys, grad_values] =
            cut(scratch, Self::scratch(&part));
        let [key_column, value_column] = part.key_and_value_columns();
        part.transposed(key_column, keys);
        part.transposed(value_column, values);
        part.padded(key_column, padded_keys);
        grad_keys.fill(0.0);
        grad_values.fill(0.0);
        let (n, d, stride) = (part.len(), part.heads.head_dim, part.positions_stride());
        let (in_dim, out_dim) = (part.heads.qkv_dim(), part.heads.out_dim());
        let scale = part.rule.scale;
        for head in part.query_heads() {
            let g_from = |row: usize| &g[(part.rows.start + row) * out_dim + head * d..];
            for block_start in (0..n).step_by(BACKWARD_ROWS) {
                let block = block_start..n.min(block_start + BACKWARD_ROWS);
                for start in block.clone().step_by(TILE) {
                    let rows = start..block.end.min(start + TILE);
                    let weights = &mut weights[(start - block.start) * stride..];
                    let grad_scores = &mut grad_scores[(start - block.start) * stride..];
                    part.weights(simd, head, rows.clone(), keys, weights);
                    let x = Rows { numbers: g_from(start), stride: out_dim, n_rows: rows.len(), len: d };
                    let place = &Disjoint::over(grad_scores);
                    let out = Out { y: place, stride, row: 0, column: 0, width: rows.end, first: Some(Start::Zero) };
                    // SAFETY: the scores' gradients are borrowed alone, and written.
                    unsafe { tiles(simd, x, values, stride, out) };
                    let each = weights.chunks_exact_mut(stride).zip(grad_scores.chunks_exact_mut(stride));
                    for (weights, grad_scores) in each.take(rows.len()) {
                        let mean = simd::dot(&weights[..rows.end], &grad_scores[..rows.end]);
                        for (grad, weight) in grad_scores[..rows.end].iter_mut().zip(&*weights) {
                            *grad = scale * weight * (*grad - mean);
                        }
                        // The products over the block read up to its last position.
                        weights[rows.end..block.end].fill(0.0);
                        grad_scores[rows.end..block.end].fill(0.0);
                    }
                    let (row, first) = (part.rows.start + start, Some(Start::Zero));
                    let out = Out { y, stride: in_dim, row, column: head * d, width: d, first };
                    // SAFETY: this query head of this sequence's rows is this task's alone.
                    unsafe { part.weighted_sum(simd, rows, grad_scores, padded_keys, out) };
                }
                let matrix = |numbers| Matrix::strided(numbers, block.len(), block.end, stride).t();
                let queries = Matrix::strided(part.from(block.start, head * d), block.len(), d, in_dim);
                let g = Matrix::strided(g_from(block.start), block.len(), d, out_dim);
                let seen = block.end * d;
                add_product(&mut grad_values[..seen], matrix(weights), g);
                add_product(&mut grad_keys[..seen], matrix(grad_scores), queries);
            }
        }
        for (column, grad) in [(key_column, grad_keys), (value_column, grad_values)] {
            for (row, grad) in part.rows.clone().zip(grad.chunks_exact(d)) {
                // SAFETY: this key head of this sequence's rows is this task's alone.
                unsafe { y.places(row * in_dim + column, d) }.write_copy_of_slice(grad);
            }
        }
    }
}

impl CustomOp1 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = slice(qkv, layout)?;
        let n = layout.dims()[0];
        let fill = |y: &Disjoint<'_>| {
            self.for_each_part(qkv, |part| {
                with_scratch(total(Forward::scratch(&part)), |scratch| {
                    pulp::Arch::new().dispatch(Forward { part, scratch, y });
                });
            });
        };
        // SAFETY: the parts cover every query head of every row of every sequence, hence all of y.
        output(unsafe { filled_by(n * self.rule.heads.out_dim(), fill) }, (n, self.rule.heads.out_dim()))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (qkv_numbers, g) = (numbers(qkv)?, numbers(&grad)?);
        let fill = |y: &Disjoint<'_>| {
            self.for_each_part(&qkv_numbers, |part| {
                with_scratch(total(Backward::scratch(&part)), |scratch| {
                    pulp::Arch::new().dispatch(Backward { part, scratch, g: &g, y });
                });
            });
        };
        // SAFETY: the parts cover every query, key and value head of every row of every sequence, hence all of y.
        let y = unsafe { filled_by(qkv_numbers.len(), fill) };
        Ok(Some(tensor(y, qkv.shape())?))
    }
}

#[cfg(test)]
mod tests;
