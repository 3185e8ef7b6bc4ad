//! The innermost product: a few rows by a panel of columns, summed in registers.

use pulp::{Simd, WithSimd};

use super::buffer::Disjoint;

/// Terms that are summed in registers before they are added to the result.
pub const K_BLOCK: usize = 768;
/// Columns that are taken together.
pub const PANEL: usize = 64;
/// Rows that are taken together: 6 rows by 4 vectors fill the registers of AVX-512, 6 by 2 those of AVX2.
pub const TILE: usize = 6;
/// Columns are read in multiples of this, so what lies behind the last one must be readable up to there.
pub const COLUMN_STEP: usize = 32;

/// Numbers that memory hands over at a time.
const LINE: usize = 16;

/// 1 to [`TILE`] rows of `len` terms.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The first row's first term, and all that follow.
    pub numbers: &'a [f32],
    /// From row to row.
    pub stride: usize,
    /// How many rows.
    pub n_rows: usize,
    /// How many terms; for [`tiles`] at most [`K_BLOCK`].
    pub len: usize,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// This row, for every row.
    Row(&'a [f32]),
}

/// Where the results go: rows from `row`, columns `column..column + width` of a matrix.
#[derive(Clone, Copy)]
pub struct Out<'a, 'y> {
    /// The matrix.
    pub y: &'a Disjoint<'y>,
    /// From row to row of it.
    pub stride: usize,
    /// The first row.
    pub row: usize,
    /// The first column.
    pub column: usize,
    /// How many columns.
    pub width: usize,
    /// What the sums are added to; without it, to what stands there.
    pub first: Option<Start<'a>>,
}

/// `out = start + x · w`, where `w` has `x.len` rows, `stride` apart, of `out.width` columns, readable up to the next
/// multiple of [`COLUMN_STEP`].
///
/// # Safety
/// No other task uses these places of `out` meanwhile; without `out.first`, they are written.
#[inline(always)]
pub unsafe fn tiles<S: Simd>(simd: S, x: Rows<'_>, w: &[f32], stride: usize, out: Out<'_, '_>) {
    simd.vectorize(Tiles { x, w, stride, out, ahead: Ahead::NONE });
}

/// What will be read soon: `n_rows` rows of `width` numbers, `stride` apart.
#[derive(Clone, Copy)]
pub struct Ahead<'a> {
    /// The first row's first number, and all that follow.
    pub numbers: &'a [f32],
    /// From row to row.
    pub stride: usize,
    /// How many numbers of each row.
    pub width: usize,
    /// How many rows.
    pub n_rows: usize,
}

impl Ahead<'_> {
    /// Nothing.
    pub const NONE: Self = Self { numbers: &[], stride: 0, width: 0, n_rows: 0 };

    /// One of `n` parts of it, which together are all rows.
    pub fn part(self, idx: usize, n: usize) -> Self {
        let n_rows = self.n_rows.div_ceil(n);
        let start = (idx * n_rows).min(self.n_rows);
        match self.numbers.get(start * self.stride..) {
            Some(numbers) => Self { numbers, n_rows: n_rows.min(self.n_rows - start), ..self },
            None => Self::NONE,
        }
    }
}

/// [`tiles`], which meanwhile brings what lies ahead into the second cache.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
pub unsafe fn tiles_with_ahead<S: Simd>(
    simd: S,
    x: Rows<'_>,
    w: &[f32],
    stride: usize,
    out: Out<'_, '_>,
    ahead: Ahead<'_>,
) {
    simd.vectorize(Tiles { x, w, stride, out, ahead });
}

/// [`tiles`] for any number of terms, [`K_BLOCK`] at a time.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
pub unsafe fn tiles_of_all_terms<S: Simd>(simd: S, x: Rows<'_>, w: &[f32], stride: usize, out: Out<'_, '_>) {
    for t0 in (0..x.len).step_by(K_BLOCK) {
        let of_block = Rows { numbers: &x.numbers[t0..], len: K_BLOCK.min(x.len - t0), ..x };
        let first = if t0 == 0 { out.first } else { None };
        // SAFETY: the caller's promise, passed on; the first block writes what the others add to.
        unsafe { tiles(simd, of_block, &w[t0 * stride..], stride, Out { first, ..out }) };
    }
}

/// One call of [`tiles`]: compiled once for each vector width, not once more wherever it is called.
struct Tiles<'a, 'y> {
    x: Rows<'a>,
    w: &'a [f32],
    stride: usize,
    out: Out<'a, 'y>,
    ahead: Ahead<'a>,
}

impl WithSimd for Tiles<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, stride, out, ahead } = self;
        // SAFETY: promised by the caller of `tiles`, which alone makes this.
        unsafe {
            match x.n_rows {
                0 => {}
                1 => columns::<S, 1>(simd, x, w, stride, out, ahead),
                2 => columns::<S, 2>(simd, x, w, stride, out, ahead),
                3 => columns::<S, 3>(simd, x, w, stride, out, ahead),
                4 => columns::<S, 4>(simd, x, w, stride, out, ahead),
                5 => columns::<S, 5>(simd, x, w, stride, out, ahead),
                _ => columns::<S, 6>(simd, x, w, stride, out, ahead),
            }
        }
    }
}

/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn columns<S: Simd, const R: usize>(
    simd: S,
    x: Rows<'_>,
    w: &[f32],
    stride: usize,
    out: Out<'_, '_>,
    ahead: Ahead<'_>,
) {
    let lanes = S::F32_LANES;
    let ahead_of = |column: usize| if column == 0 { ahead } else { Ahead::NONE };
    let mut column = 0;
    while column < out.width {
        let readable = (out.width - column).next_multiple_of(COLUMN_STEP);
        // SAFETY: the caller's promise, passed on.
        unsafe {
            if S::REGISTER_COUNT >= 32 && readable >= 4 * lanes {
                tile::<S, R, 4>(simd, x, w, stride, column, out, ahead_of(column));
                column += 4 * lanes;
            } else {
                tile::<S, R, 2>(simd, x, w, stride, column, out, ahead_of(column));
                column += 2 * lanes;
            }
        }
    }
}

/// R rows by V vectors from `column` of the panel.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    x: Rows<'_>,
    w: &[f32],
    stride: usize,
    column: usize,
    out: Out<'_, '_>,
    ahead: Ahead<'_>,
) {
    let n_columns = V * S::F32_LANES;
    assert!(x.len > 0 && (R - 1) * x.stride + x.len <= x.numbers.len());
    assert!((x.len - 1) * stride + column + n_columns <= w.len());
    // SAFETY: asserted just above.
    let sums = unsafe { sums::<S, R, V>(simd, x, w.as_ptr().add(column), stride, ahead) };
    let from = out.column + column;
    let width = n_columns.min(out.width - column);
    for (r, mut sums) in sums.into_iter().enumerate() {
        let at = (out.row + r) * out.stride + from;
        let before = match out.first {
            Some(Start::Zero) => None,
            Some(Start::Row(row)) => Some(&row[from..from + width]),
            // SAFETY: no other task's, and written, by the caller's promise.
            None => Some(unsafe { &*out.y.numbers(at, width) }),
        };
        if width == n_columns {
            if let Some(before) = before {
                let (before, _) = S::as_simd_f32s(before);
                for v in 0..V {
                    sums[v] = simd.add_f32s(before[v], sums[v]);
                }
            }
            // SAFETY: no other task's, by the caller's promise; `before` is not used any more.
            let (y, _) = S::as_uninit_mut_simd_f32s(unsafe { out.y.places(at, width) });
            for v in 0..V {
                y[v].write(sums[v]);
            }
        } else {
            let mut edge = [0.0; PANEL];
            let (vectors, _) = S::as_mut_simd_f32s(&mut edge);
            vectors[..V].copy_from_slice(&sums);
            if let Some(before) = before {
                edge.iter_mut().zip(before).for_each(|(sum, before)| *sum += *before);
            }
            // SAFETY: as above.
            unsafe { out.y.places(at, width) }.write_copy_of_slice(&edge[..width]);
        }
    }
}

/// Σ over the terms of R rows by V vectors.
///
/// # Safety
/// `x` holds R rows; from `w` on there are `x.len` rows of V vectors, `stride` apart.
#[inline(always)]
unsafe fn sums<S: Simd, const R: usize, const V: usize>(
    simd: S,
    x: Rows<'_>,
    w: *const f32,
    stride: usize,
    ahead: Ahead<'_>,
) -> [[S::f32s; V]; R] {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    let rows: [*const f32; R] = std::array::from_fn(|r| x.numbers.as_ptr().wrapping_add(r * x.stride));
    let mut w = w;
    // In steps of 4: what counts the steps would compete with the multiply-adds for the CPU's ports.
    let n_steps = x.len / 4;
    let lines_of_row = ahead.width.div_ceil(LINE);
    let lines_of_step = (ahead.n_rows * lines_of_row).div_ceil(n_steps.max(1));
    let (mut ahead_row, mut ahead_line) = (0, 0);
    for step in 0..n_steps {
        for _ in 0..lines_of_step {
            prefetch(ahead.numbers, ahead_row * ahead.stride + ahead_line * LINE);
            ahead_line += 1;
            if ahead_line == lines_of_row {
                (ahead_row, ahead_line) = (ahead_row + 1, 0);
            }
        }
        for i in 0..4 {
            // SAFETY: term 4 step + i, by the caller's promise.
            unsafe { term(simd, &rows, 4 * step + i, w.add(i * stride), &mut sums) };
        }
        w = w.wrapping_add(4 * stride);
    }
    for t in 4 * n_steps..x.len {
        // SAFETY: term t, by the caller's promise.
        unsafe { term(simd, &rows, t, w, &mut sums) };
        w = w.wrapping_add(stride);
    }
    sums
}

/// Asks for a number to be brought into the second cache, unless it lies beyond all.
#[inline(always)]
fn prefetch(numbers: &[f32], idx: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(number) = numbers.get(idx) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which every x86-64 CPU has.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(number).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (numbers, idx);
}

/// Adds one term: `sums[r][v] += rows[r][t] · w[v]`.
///
/// # Safety
/// Each row has a term t; from `w` on there are V vectors.
#[inline(always)]
unsafe fn term<S: Simd, const R: usize, const V: usize>(
    simd: S,
    rows: &[*const f32; R],
    t: usize,
    w: *const f32,
    sums: &mut [[S::f32s; V]; R],
) {
    // SAFETY: by the caller's promise.
    let w: [S::f32s; V] = unsafe { w.cast::<[S::f32s; V]>().read_unaligned() };
    for r in 0..R {
        // SAFETY: by the caller's promise.
        let x = simd.splat_f32s(unsafe { *rows[r].add(t) });
        for v in 0..V {
            sums[r][v] = simd.mul_add_f32s(x, w[v], sums[r][v]);
        }
    }
}
