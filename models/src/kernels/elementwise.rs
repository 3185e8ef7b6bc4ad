//! Sums and products of tensors of one shape, element by element.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::blocks::map;
use super::storage::{fusable, numbers, output, slice, tensor};
use super::tape::apply2;

/// `x + y` of one shape.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    apply(x, y, Elementwise::Sum)
}

/// `x · y` of one shape, element by element.
pub fn multiply(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    apply(x, y, Elementwise::Product)
}

fn apply(x: &Tensor, y: &Tensor, op: Elementwise) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("{} of {:?} and {:?}", op.name(), x.dims(), y.dims());
    }
    if !fusable(&[x, y]) {
        return match op {
            Elementwise::Sum => x + y,
            Elementwise::Product => x * y,
        };
    }
    apply2(&x.contiguous()?, &y.contiguous()?, op)
}

enum Elementwise {
    Sum,
    Product,
}

impl CustomOp2 for Elementwise {
    fn name(&self) -> &'static str {
        match self {
            Elementwise::Sum => "sum",
            Elementwise::Product => "product",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, y: &CpuStorage, ly: &Layout) -> Result<(CpuStorage, Shape)> {
        let inputs = [slice(x, lx)?, slice(y, ly)?];
        let [numbers] = match self {
            Elementwise::Sum => map(
                inputs,
                #[inline(always)]
                |[x, y]| [x + y],
            ),
            Elementwise::Product => map(
                inputs,
                #[inline(always)]
                |[x, y]| [x * y],
            ),
        };
        output(numbers, lx.shape())
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = |of: &Tensor, other: &Tensor| match self {
            _ if !of.track_op() => Ok(None),
            Elementwise::Sum => Ok(Some(grad.clone())),
            Elementwise::Product => {
                let grad = grad.contiguous()?;
                let [numbers] = map(
                    [&*numbers(&grad)?, &*numbers(other)?],
                    #[inline(always)]
                    |[g, other]| [g * other],
                );
                tensor(numbers, of.shape()).map(Some)
            }
        };
        Ok((gradient(x, y)?, gradient(y, x)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_function, random};

    #[test]
    fn agrees_with_candle_in_value_and_gradient() {
        for shape in [(3, 7), (1, 1), (0, 4), (33, 5)] {
            let inputs = [random(shape, 1), random(shape, 2)];
            assert_same_function(&inputs, |t| add(&t[0], &t[1]), |t| &t[0] + &t[1]);
            assert_same_function(&inputs, |t| multiply(&t[0], &t[1]), |t| &t[0] * &t[1]);
            assert_same_function(&inputs[..1], |t| multiply(&t[0], &t[0]), |t| &t[0] * &t[0]);
        }
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let error = add(&random((2, 3), 1), &random((3, 2), 2)).unwrap_err().to_string();
        assert!(error.contains("sum of [2, 3] and [3, 2]"), "{error}");
    }
}
