//! Rotary positions, in one pass over the packed projection.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::blocks::for_each_block;
use super::buffer::{Disjoint, filled_by};
use super::storage::{fusable, numbers, output, slice, tensor};
use super::{HeadShape, RopeTable, composed, simd};

/// Rows of one task.
const ROWS: usize = 16;

/// Rotates queries and keys inside the packed projection `qkv (N, (H + 2 KV) D)` by each row's position; values
/// pass unchanged. Halves of a head are paired (element i with i + D/2), as HuggingFace's Llama does.
pub fn rope(qkv: &Tensor, positions: &[u32], table: &Arc<RopeTable>, heads: HeadShape) -> Result<Tensor> {
    let (n, columns) = qkv.dims2()?;
    if n != positions.len() || columns != heads.qkv_dim() || table.head_dim != heads.head_dim {
        bail!(
            "rope: qkv is ({n}, {columns}), expected ({}, {}); its heads are {} wide, the table's {}",
            positions.len(),
            heads.qkv_dim(),
            heads.head_dim,
            table.head_dim
        );
    }
    if heads.head_dim == 0 || heads.head_dim % 2 == 1 {
        bail!("rope: a head of {} numbers has no two halves", heads.head_dim);
    }
    let half = heads.head_dim / 2;
    if let Some(position) = positions.iter().find(|position| (**position as usize + 1) * half > table.cos.len()) {
        bail!("rope: position {position} lies beyond the table's {}", table.cos.len() / half);
    }
    if !fusable(&[qkv]) {
        return composed::rope(qkv, positions, table, heads);
    }
    qkv.contiguous()?.apply_op1(Rope { positions: positions.to_vec(), table: table.clone(), heads })
}

struct Rope {
    positions: Vec<u32>,
    table: Arc<RopeTable>,
    heads: HeadShape,
}

impl Rope {
    /// Every row of `qkv`, turned by `direction` (1 or −1) times its angles.
    fn rotated(&self, qkv: &[f32], direction: f32) -> Vec<f32> {
        let (head_dim, half) = (self.heads.head_dim, self.heads.head_dim / 2);
        let columns = self.heads.qkv_dim();
        let n_rotated = (self.heads.n_heads + self.heads.n_kv_heads) * head_dim;
        let fill = |y: &Disjoint<'_>| {
            for_each_block(self.positions.len(), ROWS, qkv.len(), |rows| {
                simd::dispatch(
                    #[inline(always)]
                    || {
                        for row in rows {
                            let angles = self.positions[row] as usize * half..(self.positions[row] as usize + 1) * half;
                            let (cos, sin) = (&self.table.cos[angles.clone()], &self.table.sin[angles]);
                            let x = &qkv[row * columns..(row + 1) * columns];
                            // SAFETY: each row is one task's, and it takes one at a time.
                            let y = unsafe { y.places(row * columns, columns) };
                            y[n_rotated..].write_copy_of_slice(&x[n_rotated..]);
                            for (x, y) in
                                x[..n_rotated].chunks_exact(head_dim).zip(y[..n_rotated].chunks_exact_mut(head_dim))
                            {
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
        // SAFETY: the blocks cover all rows, and all of each row is written: heads have an even width.
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

    #[test]
    fn agrees_with_the_composition_in_value_and_gradient() {
        let table = Arc::new(RopeTable::new(HEADS.head_dim, 12, 1e4));
        for positions in [&[0, 1, 2, 0, 11][..], &[7], &[]] {
            assert_same_function(
                &[random((positions.len(), HEADS.qkv_dim()), 1)],
                |t| rope(&t[0], positions, &table, HEADS),
                |t| composed::rope(&t[0], positions, &table, HEADS),
            );
        }
    }

    #[test]
    fn position_0_turns_nothing() {
        let table = Arc::new(RopeTable::new(HEADS.head_dim, 1, 1e4));
        let qkv = random((3, HEADS.qkv_dim()), 1);
        assert_eq!(flat(&rope(&qkv, &[0; 3], &table, HEADS).unwrap()), flat(&qkv));
    }

    #[test]
    fn positions_beyond_the_table_are_refused() {
        let table = Arc::new(RopeTable::new(HEADS.head_dim, 4, 1e4));
        let error = rope(&random((1, HEADS.qkv_dim()), 1), &[4], &table, HEADS).unwrap_err().to_string();
        assert!(error.contains("position 4 lies beyond the table's 4"), "{error}");
        assert!(rope(&random((1, HEADS.qkv_dim()), 1), &[1, 2], &table, HEADS).is_err());
    }
}
