//! Transposing matrices, in registers.

use std::mem::MaybeUninit;

use super::blocks::for_each_block;
use super::buffer::{Disjoint, filled_by, with_scratch};

/// Columns of one task of [`transposed`].
const COLUMNS: usize = 32;

/// `(n_rows, n_columns)` as `(n_columns, n_rows)`.
pub fn transposed(x: &[f32], n_rows: usize, n_columns: usize) -> Vec<f32> {
    assert_eq!(x.len(), n_rows * n_columns);
    let fill = |y: &Disjoint<'_>| {
        for_each_block(n_columns, COLUMNS, x.len(), |columns| {
            let row = |row: usize| &x[row * n_columns..][columns.clone()];
            // SAFETY: each block of columns is one task's.
            let y = unsafe { y.places(columns.start * n_rows, columns.len() * n_rows) };
            y.fill(MaybeUninit::new(0.0));
            // SAFETY: written just now.
            rows_to_columns(n_rows, row, unsafe { y.assume_init_mut() }, n_rows);
        });
    };
    // SAFETY: the blocks cover all columns.
    unsafe { filled_by(x.len(), fill) }
}

/// Adds `x (n_rows, n_columns)` to `y (n_columns, n_rows)`; where `first`, in place of what stands there.
pub fn add_transposed(y: &mut [f32], first: bool, x: &[f32], n_rows: usize, n_columns: usize) {
    assert!(x.len() == n_rows * n_columns && y.len() == x.len());
    let parts = Disjoint::over(y);
    for_each_block(n_columns, COLUMNS, x.len(), |columns| {
        let row = |row: usize| &x[row * n_columns..][columns.clone()];
        // SAFETY: each block of columns is one task's.
        let y = unsafe { parts.numbers(columns.start * n_rows, columns.len() * n_rows) };
        if first {
            rows_to_columns(n_rows, row, y, n_rows);
        } else {
            with_scratch(y.len(), |block| {
                rows_to_columns(n_rows, row, block, n_rows);
                y.iter_mut().zip(block).for_each(|(y, x)| *y += *x);
            });
        }
    });
}

/// Writes the `n_rows` rows, all of one length, as columns: `row(j)[t]` to `out[t * stride + j]`.
#[inline(always)]
pub fn rows_to_columns<'a>(n_rows: usize, row: impl Fn(usize) -> &'a [f32], out: &mut [f32], stride: usize) {
    let n_eights = n_rows / 8;
    for j in (0..n_eights * 8).step_by(8) {
        eight_rows(std::array::from_fn(|i| row(j + i)), &mut out[j..], stride);
    }
    for j in n_eights * 8..n_rows {
        out[j..].iter_mut().step_by(stride).zip(row(j)).for_each(|(to, from)| *to = *from);
    }
}

/// Writes `rows[j][t]` to `out[t * stride + j]`; the rows have one length.
#[inline(always)]
fn eight_rows(rows: [&[f32]; 8], out: &mut [f32], stride: usize) {
    let n = rows[0].len();
    assert!(stride >= 8 && rows.iter().all(|row| row.len() == n) && (n == 0 || out.len() >= (n - 1) * stride + 8));
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the CPU has AVX; lengths are asserted above.
        done = unsafe { eight_rows_avx(rows, out, stride) };
    }
    for t in done..n {
        for (to, row) in out[t * stride..][..8].iter_mut().zip(rows) {
            *to = row[t];
        }
    }
}

/// The first n / 4 · 4 terms; returns how many.
///
/// # Safety
/// The CPU has AVX, the rows have one length n, and `out` has `(n - 1) * stride + 8` places.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn eight_rows_avx(rows: [&[f32]; 8], out: &mut [f32], stride: usize) -> usize {
    use std::arch::x86_64::*;
    let n = rows[0].len() / 4 * 4;
    let rows = rows.map(<[f32]>::as_ptr);
    for t in (0..n).step_by(4) {
        // SAFETY: t + 4 <= n, the rows' length; the stores end at (t + 3) * stride + 8.
        unsafe {
            // Row j beside row j + 4, four terms of each.
            let pair = |j: usize| {
                let low = _mm256_castps128_ps256(_mm_loadu_ps(rows[j].add(t)));
                _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(rows[j + 4].add(t)))
            };
            let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let out = out.as_mut_ptr().add(t * stride);
            _mm256_storeu_ps(out, _mm256_shuffle_ps::<0x44>(ab_low, cd_low));
            _mm256_storeu_ps(out.add(stride), _mm256_shuffle_ps::<0xee>(ab_low, cd_low));
            _mm256_storeu_ps(out.add(2 * stride), _mm256_shuffle_ps::<0x44>(ab_high, cd_high));
            _mm256_storeu_ps(out.add(3 * stride), _mm256_shuffle_ps::<0xee>(ab_high, cd_high));
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_of_any_shape_is_transposed() {
        for (n_rows, n_columns) in [(0, 3), (3, 0), (1, 5), (9, 33), (40, 1000)] {
            let x: Vec<f32> = (0..n_rows * n_columns).map(|i| i as f32).collect();
            let y = transposed(&x, n_rows, n_columns);
            for (i, y) in y.iter().enumerate() {
                assert_eq!(*y, x[i % n_rows * n_columns + i / n_rows]);
            }
        }
    }

    #[test]
    fn every_term_lands_in_its_column() {
        for n in [0, 1, 4, 7, 9] {
            let rows: Vec<Vec<f32>> = (0..8).map(|j| (0..n).map(|t| (10 * j + t) as f32).collect()).collect();
            let mut out = vec![-1.0; n * 10 + 8];
            eight_rows(std::array::from_fn(|j| rows[j].as_slice()), &mut out, 10);
            for t in 0..n {
                let expected: Vec<f32> = (0..8).map(|j| (10 * j + t) as f32).collect();
                assert_eq!(out[t * 10..t * 10 + 8], expected);
                assert_eq!(out[t * 10 + 8], -1.0);
            }
        }
    }
}
