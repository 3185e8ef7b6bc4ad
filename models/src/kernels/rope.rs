//! Rotary positions, in one pass over the packed projection.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::blocks::for_each_block;
use super::buffer::{Disjoint, filled_by};
use super::storage::{fusable, numbers, output, slice, tensor};
use super::tape::apply1;
use super::{HeadShape, RopeTable, composed, simd};

/// Rows of one task.
const ROWS: usize = 16;

/// Rotates queries and keys inside the packed projection `qkv (N, (H + 2 KV) D)` by each row's angles; values pass
/// unchanged, and so does what lies in a head beyond the table's `rotary_dim` R. Halves of the rotated part are paired
/// (element i with i + R/2), as HuggingFace's Llama does.
pub fn rope(qkv: &Tensor, table: &RopeTable, heads: HeadShape) -> Result<Tensor> {
    let (n, columns) = qkv.dims2()?;
    let (rotary_dim, head_dim) = (table.rotary_dim, heads.head_dim);
    if columns != heads.qkv_dim() || table.cos.len() != n * rotary_dim / 2 {
        bail!(
            "rope: qkv is ({n}, {columns}), expected {} columns for {heads:?}; the table holds {} numbers for each of \
             {rotary_dim} / 2",
            heads.qkv_dim(),
            table.cos.len()
        );
    }
    if rotary_dim == 0 || rotary_dim % 2 == 1 || rotary_dim > head_dim {
        bail!("rope: {rotary_dim} numbers of a head of {head_dim} have no two halves to rotate");
    }
    if !fusable(&[qkv]) {
        return composed::rope(qkv, table, heads);
    }
    apply1(&qkv.contiguous()?, Rope { table: table.clone(), heads })
}

struct Rope {
    table: RopeTable,
    heads: HeadShape,
}

impl Rope {
    /// Every row of `qkv`, turned by `direction` (1 or −1) times its angles.
    fn rotated(&self, qkv: &[f32], direction: f32) -> Vec<f32> {
        let (head_dim, half) = (self.heads.head_dim, self.table.rotary_dim / 2);
        let columns = self.heads.qkv_dim();
        let n_rotated = (self.heads.n_heads + self.heads.n_kv_heads) * head_dim;
        let fill = |y: &Disjoint<'_>| {
            for_each_block(qkv.len() / columns, ROWS, qkv.len(), |rows| {
                simd::dispatch(
                    #[inline(always)]
                    || {
                        for row in rows {
                            let angles = row * half..(row + 1) * half;
                            let (cos, sin) = (&self.table.cos[angles.clone()], &self.table.sin[angles]);
                            let x = &qkv[row * columns..(row + 1) * columns];
                            // SAFETY: each row is one task's, and it takes one at a time.
                            let y = unsafe { y.places(row * columns, columns) };
                            y[n_rotated..].write_copy_of_slice(&x[n_rotated..]);
                            for (x, y) in
                                x[..n_rotated].chunks_exact(head_dim).zip(y[..n_rotated].chunks_exact_mut(head_dim))
                            {
                                y[2 * half..].write_copy_of_slice(&x[2 * half..]);
                                let ((a, b), (ya, yb)) = (x.split_at(half), y.split_at_mut(half));
                                let (b, yb) = (&b[..half], &mut yb[..half]);
                                for i in 0..half {
                                    let sin = direction * sin[i];
                                    ya[i].write(a[i].mul_add(cos[i], -(b[i] * sin)));
                                    yb[i].write(b[i].mul_add(cos[i], a[i] * sin));
                                }
                            }
                        }
                    },
                );
            });
        };
        // SAFETY: the blocks cover all rows, and all of each row is written: what is rotated has an even width.
        unsafe { filled_by(qkv.len(), fill) }
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        output(self.rotated(slice(qkv, layout)?, 1.0), layout.shape())
    }

    /// A rotation's transpose turns backwards.
    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(tensor(self.rotated(&numbers(&grad.contiguous()?)?, -1.0), qkv.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_function, flat, random};

    const HEADS: HeadShape = HeadShape { n_heads: 4, n_kv_heads: 2, head_dim: 6 };

    fn table(rotary_dim: usize, positions: &[u32]) -> RopeTable {
        RopeTable::new(&RopeTable::frequencies(rotary_dim, 1e4), positions)
    }

    #[test]
    fn agrees_with_the_composition_in_value_and_gradient() {
        for rotary_dim in [6, 4, 2] {
            for positions in [&[0, 1, 2, 0, 11][..], &[7], &[]] {
                let table = table(rotary_dim, positions);
                assert_same_function(
                    &[random((positions.len(), HEADS.qkv_dim()), 1)],
                    |t| rope(&t[0], &table, HEADS),
                    |t| composed::rope(&t[0], &table, HEADS),
                );
            }
        }
    }

    #[test]
    fn position_0_turns_nothing() {
        let qkv = random((3, HEADS.qkv_dim()), 1);
        assert_eq!(flat(&rope(&qkv, &table(6, &[0; 3]), HEADS).unwrap()), flat(&qkv));
    }

    #[test]
    fn what_lies_beyond_the_rotated_part_passes() {
        let qkv = random((2, HEADS.qkv_dim()), 1);
        let rotated = flat(&rope(&qkv, &table(4, &[3, 5]), HEADS).unwrap());
        for (i, (before, after)) in flat(&qkv).iter().zip(rotated).enumerate() {
            let is_rotated = i % HEADS.qkv_dim() < 6 * HEADS.head_dim && i % HEADS.head_dim < 4;
            assert_eq!(is_rotated, *before != after, "number {i}");
        }
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let qkv = random((1, HEADS.qkv_dim()), 1);
        assert!(rope(&qkv, &table(6, &[1, 2]), HEADS).is_err());
        let error = rope(&qkv, &table(8, &[1]), HEADS).unwrap_err().to_string();
        assert!(error.contains("8 numbers of a head of 6"), "{error}");
    }
}
