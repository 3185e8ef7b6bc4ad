//! Matrices side by side.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::blocks::for_each_block;
use super::buffer::{Disjoint, filled_by};
use super::storage::{fusable, numbers, output, slice, tensor};
use super::tape::apply3;

/// Rows of one task.
const ROWS: usize = 32;

/// The columns of three matrices of N rows, in order: `(N, Σ columns)`.
pub fn join_columns(parts: [&Tensor; 3]) -> Result<Tensor> {
    let [a, b, c] = parts;
    if parts.iter().any(|part| part.dims().len() != 2 || part.dims()[0] != a.dims()[0]) {
        bail!("matrices of {:?}, {:?} and {:?} don't stand side by side", a.dims(), b.dims(), c.dims());
    }
    if !fusable(&parts) {
        return Tensor::cat(&parts, 1);
    }
    apply3(&a.contiguous()?, &b.contiguous()?, &c.contiguous()?, JoinColumns)
}

struct JoinColumns;

impl CustomOp3 for JoinColumns {
    fn name(&self) -> &'static str {
        "columns side by side"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
        c: &CpuStorage,
        lc: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let parts = [slice(a, la)?, slice(b, lb)?, slice(c, lc)?];
        let widths = [la.dims()[1], lb.dims()[1], lc.dims()[1]];
        let (n, width) = (la.dims()[0], widths.iter().sum::<usize>());
        let fill = |y: &Disjoint<'_>| {
            for_each_block(n, ROWS, n * width, |rows| {
                for row in rows {
                    let mut start = row * width;
                    for (part, width) in parts.iter().zip(widths) {
                        // SAFETY: each row is one task's.
                        unsafe { y.places(start, width) }.write_copy_of_slice(&part[row * width..][..width]);
                        start += width;
                    }
                }
            });
        };
        // SAFETY: every row is written, part by part.
        output(unsafe { filled_by(n * width, fill) }, (n, width))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let ((n, width), grad) = (grad.dims2()?, numbers(&grad)?);
        let mut start = 0;
        let mut gradient = |of: &Tensor| {
            let (from, own_width) = (start, of.dims()[1]);
            start += own_width;
            if !of.track_op() {
                return Ok(None);
            }
            let fill = |y: &Disjoint<'_>| {
                for_each_block(n, ROWS, n * own_width, |rows| {
                    for row in rows {
                        let columns = &grad[row * width + from..][..own_width];
                        // SAFETY: each row is one task's.
                        unsafe { y.places(row * own_width, own_width) }.write_copy_of_slice(columns);
                    }
                });
            };
            // SAFETY: every row is written.
            tensor(unsafe { filled_by(n * own_width, fill) }, of.shape()).map(Some)
        };
        Ok((gradient(a)?, gradient(b)?, gradient(c)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_function, random};

    #[test]
    fn agrees_with_candle_in_value_and_gradient() {
        for (n, widths) in [(3, [4, 2, 1]), (1, [1, 1, 1]), (70, [3, 5, 2])] {
            let inputs: Vec<Tensor> = widths.iter().zip(1..).map(|(width, seed)| random((n, *width), seed)).collect();
            assert_same_function(&inputs, |t| join_columns([&t[0], &t[1], &t[2]]), |t| Tensor::cat(t, 1));
        }
    }

    #[test]
    fn rows_that_differ_are_refused() {
        let error = join_columns([&random((2, 3), 1), &random((2, 1), 2), &random((3, 3), 3)]).unwrap_err().to_string();
        assert!(error.contains("[2, 3], [2, 1] and [3, 3]"), "{error}");
    }
}
