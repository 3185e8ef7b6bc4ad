//! The forward matrix product, with a bit contract: a row of the result depends on that row of `x` alone.
//!
//! Each number of the result is `start + Σ_block (fused multiply-adds over the block, in order)`, with blocks of
//! [`K_BLOCK`] terms, whatever the number of rows, the layout of the weight, the vector width and the number of
//! threads. General-purpose products choose their path by the number of rows and give no such promise.

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::blocks::{for_each_block, share_out};
use super::buffer::{Disjoint, filled_by, with_scratch};
use super::tile::{Ahead, K_BLOCK, Out, PANEL, Rows, Start, TILE, tiles_with_ahead};
use super::{WeightLayout, transpose};

/// A weight of `k` by `n` numbers, as a product reads it.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// `(k, n)`.
    InOut(&'a [f32]),
    /// `(n, k)`.
    OutIn(&'a [f32]),
    /// `(panels, k, `[`PANEL`]`)`: see [`panels`].
    Panels(&'a [f32]),
}

impl<'a> Operand<'a> {
    fn new(weight: &'a [f32], layout: WeightLayout) -> Self {
        match layout {
            WeightLayout::InOut => Self::InOut(weight),
            WeightLayout::OutIn => Self::OutIn(weight),
        }
    }

    /// How many numbers it has.
    fn len(self, k: usize, n: usize) -> usize {
        match self {
            Self::InOut(_) | Self::OutIn(_) => k * n,
            Self::Panels(_) => n.div_ceil(PANEL) * k * PANEL,
        }
    }

    /// What is read after a block of these columns: their terms from `t0` on, or the first ones of the `next` panel.
    fn ahead(self, k: usize, n: usize, columns: &Range<usize>, t0: usize, next: Option<usize>) -> Ahead<'a> {
        let (column, t0) = match next {
            _ if t0 < k => (columns.start, t0),
            Some(next) => (next * PANEL, 0),
            None => return Ahead::NONE,
        };
        let (n_terms, n_columns) = (K_BLOCK.min(k - t0), PANEL.min(n - column));
        match self {
            Self::InOut(w) => Ahead { numbers: &w[t0 * n + column..], stride: n, width: n_columns, n_rows: n_terms },
            Self::OutIn(w) => Ahead { numbers: &w[column * k + t0..], stride: k, width: n_terms, n_rows: n_columns },
            Self::Panels(w) => {
                Ahead { numbers: &w[column * k + t0 * PANEL..], stride: PANEL, width: PANEL, n_rows: n_terms }
            }
        }
    }

    fn numbers(self) -> &'a [f32] {
        let (Self::InOut(numbers) | Self::OutIn(numbers) | Self::Panels(numbers)) = self;
        numbers
    }
}

/// A weight, laid out so that a product reads it from beginning to end: [`PANEL`] columns after the other, each such
/// panel `(k, `[`PANEL`]`)`, zeros after the last column. For weights that serve many products.
pub fn panels(weight: &[f32], k: usize, n: usize, layout: WeightLayout) -> Vec<f32> {
    let weight = Operand::new(weight, layout);
    assert!(k > 0 && weight.numbers().len() == k * n);
    let n_panels = n.div_ceil(PANEL);
    let fill = |y: &Disjoint<'_>| {
        for_each_block(n_panels, 1, k * n, |block| {
            let columns = block.start * PANEL..n.min(block.end * PANEL);
            // SAFETY: each panel is one task's, and all of it is written.
            let panel = unsafe { y.places(block.start * k * PANEL, k * PANEL) };
            panel.fill(MaybeUninit::new(0.0));
            // SAFETY: written just now.
            pack(weight, 0, k, n, columns, unsafe { panel.assume_init_mut() });
        });
    };
    // SAFETY: the panels cover all of it.
    unsafe { filled_by(n_panels * k * PANEL, fill) }
}

/// Fewer multiply-adds than this, some 10 µs, are not worth a second thread.
pub const PARALLEL_WORK: usize = 1 << 20;

/// `start + x (m, k) · weight`, `(m, n)`, all contiguous; the weight is `(k, n)` or, as `OutIn`, `(n, k)`. k is not 0.
pub fn product(x: &[f32], k: usize, weight: &[f32], n: usize, layout: WeightLayout, start: Start<'_>) -> Vec<f32> {
    product_with(x, k, Operand::new(weight, layout), n, start)
}

/// [`product`] with a weight in any form.
pub fn product_with(x: &[f32], k: usize, weight: Operand<'_>, n: usize, start: Start<'_>) -> Vec<f32> {
    // SAFETY: all is written.
    unsafe { filled_by(x.len() / k * n, |y| write_product(y, x, k, weight, n, Some(start))) }
}

/// [`product`], from zero, in place of what stands in `y`.
pub fn product_over(y: &mut [f32], x: &[f32], k: usize, weight: &[f32], n: usize, layout: WeightLayout) {
    assert_eq!(y.len(), x.len() / k * n);
    write_product(&Disjoint::over(y), x, k, Operand::new(weight, layout), n, Some(Start::Zero));
}

/// `y (m, n) += x (m, k) · weight`.
pub fn add_product(y: &mut [f32], x: &[f32], k: usize, weight: &[f32], n: usize, layout: WeightLayout) {
    assert_eq!(y.len(), x.len() / k * n);
    write_product(&Disjoint::over(y), x, k, Operand::new(weight, layout), n, None);
}

/// `y (p, n) += xᵀ · z` for `x (k, p)` and `z (k, n)`: what rows in common add to the gradient of a weight. Where
/// `first`, in place of what stands in `y`.
pub fn add_transposed_product(y: &mut [f32], first: bool, x: &[f32], p: usize, z: &[f32], n: usize) {
    assert_eq!(y.len(), p * n);
    if p > 0 && !x.is_empty() {
        let k = x.len() / p;
        let x = transpose::transposed(x, k, p);
        write_product(&Disjoint::over(y), &x, k, Operand::InOut(z), n, first.then_some(Start::Zero));
    } else if first {
        y.fill(0.0);
    }
}

/// `y (n, p) += zᵀ · x` for `x (k, p)` and `z (k, n)`, where `z` is much wider than `x`: it is `x` that is transposed. Where
/// `first`, in place of what stands in `y`. Each number is a product's, which is added as a whole.
pub fn add_transposed_wide_product(y: &mut [f32], first: bool, x: &[f32], p: usize, z: &[f32], n: usize) {
    assert_eq!(y.len(), p * n);
    if p == 0 || x.is_empty() {
        if first {
            y.fill(0.0);
        }
        return;
    }
    let k = x.len() / p;
    assert_eq!(z.len(), k * n);
    let x = transpose::transposed(x, k, p);
    let y = Disjoint::over(y);
    let (n_panels, n_threads) = (n.div_ceil(PANEL), rayon::current_num_threads());
    let task = |panel_idx: usize| {
        let columns = panel_idx * PANEL..n.min((panel_idx + 1) * PANEL);
        with_scratch((K_BLOCK + 2 * p) * PANEL, |scratch| {
            let (panel, blocks) = scratch.split_at_mut(K_BLOCK * PANEL);
            let (product, added) = blocks.split_at_mut(p * PANEL);
            pulp::Arch::new().dispatch(OnePanel {
                x: &x,
                k,
                weight: Operand::InOut(z),
                n,
                start: Some(Start::Zero),
                rows: 0..p,
                columns: columns.clone(),
                panel: Some(panel),
                next: Some(panel_idx + n_threads).filter(|next| *next < n_panels),
                to: To { y: &Disjoint::over(product), stride: PANEL, column: 0 },
            });
            // SAFETY: each panel's columns of the product are rows of `y` that are one task's.
            let y = unsafe { y.numbers(columns.start * p, columns.len() * p) };
            let row = |row: usize| &product[row * PANEL..][..columns.len()];
            if first {
                transpose::rows_to_columns(p, row, y, p);
            } else {
                let added = &mut added[..y.len()];
                transpose::rows_to_columns(p, row, added, p);
                y.iter_mut().zip(added).for_each(|(y, x)| *y += *x);
            }
        });
    };
    if p * n * k < PARALLEL_WORK {
        (0..n_panels).for_each(task);
    } else {
        share_out(n_panels, task);
    }
}

/// Writes all of `y`, which no one else may use meanwhile; without `start`, adds to what stands there.
fn write_product(y: &Disjoint<'_>, x: &[f32], k: usize, weight: Operand<'_>, n: usize, start: Option<Start<'_>>) {
    let m = x.len() / k;
    assert!(x.len() == m * k && weight.numbers().len() == weight.len(k, n), "({m}, {k}) by ({k}, {n})");
    if n == 0 {
        return;
    }
    if let Some(Start::Row(row)) = start {
        assert_eq!(row.len(), n);
    }
    let n_panels = n.div_ceil(PANEL);
    // Panels that are left over when each thread has as many are cut into groups of rows, for all threads to end together.
    let n_threads = rayon::current_num_threads();
    let n_cut = n_panels % n_threads;
    let n_whole = n_panels - n_cut;
    let n_groups = (2 * n_threads).div_ceil(n_cut.max(1)).min(m.div_ceil(8 * TILE)).max(1);
    let group = m.div_ceil(n_groups).next_multiple_of(TILE);
    let task = |i: usize| {
        let (panel_idx, rows) = match i.checked_sub(n_whole) {
            None => (i, 0..m),
            Some(i) => {
                let start = i % n_groups * group;
                (n_whole + i / n_groups, start.min(m)..(start + group).min(m))
            }
        };
        let columns = panel_idx * PANEL..n.min((panel_idx + 1) * PANEL);
        // Few rows read a (k, n) weight where it lies, unless its rows are so far apart that they collide in the cache.
        let direct = match weight {
            Operand::InOut(_) => columns.len() == PANEL && rows.len() <= if n <= 1024 { 8 * TILE } else { TILE },
            Operand::OutIn(_) => false,
            Operand::Panels(_) => true,
        };
        with_scratch(if direct { 0 } else { K_BLOCK * PANEL }, |panel| {
            let panel = (!direct).then_some(panel);
            let to = To { y, stride: n, column: columns.start };
            let next = Some(panel_idx + n_threads).filter(|next| *next < n_panels);
            pulp::Arch::new().dispatch(OnePanel { x, k, weight, n, start, rows, columns, panel, next, to });
        });
    };
    let n_tasks = n_whole + n_cut * n_groups;
    // The tasks' rows and columns cover y without overlap, and each writes its first terms everywhere.
    if m * n * k < PARALLEL_WORK || n_tasks == 1 {
        (0..n_tasks).for_each(task);
    } else {
        share_out(n_tasks, task);
    }
}

/// Some rows of one panel of columns.
struct OnePanel<'a, 'y> {
    x: &'a [f32],
    k: usize,
    weight: Operand<'a>,
    n: usize,
    start: Option<Start<'a>>,
    rows: Range<usize>,
    columns: Range<usize>,
    /// Room for [`K_BLOCK`] terms of the panel; without it the weight, which is not `OutIn`, is read where it lies.
    panel: Option<&'a mut [f32]>,
    /// The panel that this thread is likely to take next.
    next: Option<usize>,
    to: To<'a, 'y>,
}

/// Where a panel of the result goes.
struct To<'a, 'y> {
    y: &'a Disjoint<'y>,
    /// From row to row of it.
    stride: usize,
    /// The panel's first column in it.
    column: usize,
}

impl WithSimd for OnePanel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, k, weight, n, start, rows, columns, mut panel, next, to } = self;
        let To { y, stride: to_stride, column } = to;
        for t0 in (0..k).step_by(K_BLOCK) {
            let len = K_BLOCK.min(k - t0);
            if let Some(panel) = panel.as_deref_mut() {
                pack(weight, t0, k, n, columns.clone(), &mut panel[..len * PANEL]);
            }
            let (panel, stride): (&[f32], usize) = match (panel.as_deref(), weight) {
                (Some(panel), _) => (panel, PANEL),
                (None, Operand::Panels(weight)) => (&weight[columns.start * k + t0 * PANEL..], PANEL),
                (None, Operand::InOut(weight) | Operand::OutIn(weight)) => (&weight[t0 * n + columns.start..], n),
            };
            // While many rows are computed, memory would have nothing to do.
            let n_tiles = rows.len().div_ceil(TILE);
            let ahead = if n_tiles > 1 { weight.ahead(k, n, &columns, t0 + K_BLOCK, next) } else { Ahead::NONE };
            for (tile_idx, row) in rows.clone().step_by(TILE).enumerate() {
                let n_rows = TILE.min(rows.end - row);
                let ahead = ahead.part(tile_idx, n_tiles);
                let x = Rows { numbers: &x[row * k + t0..], stride: k, n_rows, len };
                let first = if t0 == 0 { start } else { None };
                let out = Out { y, stride: to_stride, row, column, width: columns.len(), first };
                // SAFETY: the rows and columns of this task are its own, and are written from the first block on.
                unsafe { tiles_with_ahead(simd, x, panel, stride, out, ahead) };
            }
        }
    }
}

/// Terms from `t0` on of these columns, which are one panel's, into it: `(terms, PANEL)`, zeros beyond.
#[inline(always)]
fn pack(weight: Operand<'_>, t0: usize, k: usize, n: usize, columns: Range<usize>, panel: &mut [f32]) {
    match weight {
        Operand::InOut(weight) => pack_in_out(&weight[t0 * n..], n, columns, panel),
        Operand::OutIn(weight) => pack_out_in(&weight[t0..], k, columns, panel),
        Operand::Panels(weight) => panel.copy_from_slice(&weight[columns.start * k + t0 * PANEL..][..panel.len()]),
    }
}

/// Columns of a `(k, n)` weight into a panel `(terms, PANEL)`, zeros beyond.
#[inline(always)]
fn pack_in_out(weight: &[f32], n: usize, columns: Range<usize>, panel: &mut [f32]) {
    for (to, from) in panel.chunks_exact_mut(PANEL).zip(weight.chunks(n)) {
        to[..columns.len()].copy_from_slice(&from[columns.clone()]);
        to[columns.len()..].fill(0.0);
    }
}

/// Rows of an `(n, k)` weight into a panel `(terms, PANEL)`, zeros beyond.
#[inline(always)]
fn pack_out_in(weight: &[f32], k: usize, rows: Range<usize>, panel: &mut [f32]) {
    // The part of the panel that is being written stays in the first cache: 16 KiB.
    const BLOCK: usize = 64;
    for (block_idx, panel) in panel.chunks_mut(BLOCK * PANEL).enumerate() {
        let n_terms = panel.len() / PANEL;
        let row = |j: usize| &weight[(rows.start + j) * k + block_idx * BLOCK..][..n_terms];
        transpose::rows_to_columns(rows.len(), row, panel, PANEL);
        if rows.len() < PANEL {
            panel.chunks_exact_mut(PANEL).for_each(|term| term[rows.len()..].fill(0.0));
        }
    }
}

#[cfg(test)]
mod tests;
