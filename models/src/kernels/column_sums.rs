//! Sums over rows: the gradients of what every row shares.

use std::ops::Range;

use super::blocks::for_each_block;
use super::buffer::{Disjoint, filled_by};
use super::simd;

/// Columns of one task of [`column_sums`].
const COLUMNS: usize = 64;

/// Σ over the rows of `x (N, n)`: `(n,)`.
pub fn column_sums(x: &[f32], n: usize) -> Vec<f32> {
    let fill = |y: &Disjoint<'_>| {
        for_each_block(n, COLUMNS, x.len(), |columns| {
            // SAFETY: each task has its own columns.
            let y = unsafe { y.places(columns.start, columns.len()) };
            simd::dispatch(
                #[inline(always)]
                || y.write_copy_of_slice(&sums_of(x, n, columns.clone())[..columns.len()]),
            );
        });
    };
    // SAFETY: the tasks' columns cover all n, and each task writes all of its own.
    unsafe { filled_by(n, fill) }
}

/// Sums of some columns, in blocks of rows, which keeps the rounding small.
#[inline(always)]
fn sums_of(x: &[f32], n: usize, columns: Range<usize>) -> [f32; COLUMNS] {
    const ROWS: usize = 64;
    let mut total = [0.0; COLUMNS];
    for block in x.chunks(ROWS * n) {
        let mut sums = [0.0; COLUMNS];
        for row in block.chunks_exact(n) {
            sums.iter_mut().zip(&row[columns.clone()]).for_each(|(sum, x)| *sum += *x);
        }
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_every_column_counts_once() {
        for (rows, n) in [(0, 3), (1, 1), (70, 130), (600, 65)] {
            let x: Vec<f32> = (0..rows * n).map(|i| (i % n) as f32 + 1.0).collect();
            let expected: Vec<f32> = (0..n).map(|j| rows as f32 * (j as f32 + 1.0)).collect();
            assert_eq!(column_sums(&x, n), expected);
        }
    }
}
