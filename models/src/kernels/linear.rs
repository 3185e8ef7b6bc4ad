//! The linear layer, with its bias in the product.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::column_sums::column_sums;
use super::product::{add_transposed_product, product};
use super::storage::{fusable, numbers, output, slice, tensor};
use super::tape::{apply2, apply3};
use super::tile::Start;
use super::weight_gradients::weight_gradient;
use super::{WeightLayout, composed};

/// `x (N, I)` times a weight plus `bias (O,)`: `(N, O)`.
pub fn linear(x: &Tensor, weight: &Tensor, layout: WeightLayout, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, n_in) = x.dims2()?;
    let (weight_in, n_out) = dims(weight, layout)?;
    if n_in != weight_in {
        bail!("linear: x is {:?}, the weight {:?} as {layout:?}", x.dims(), weight.dims());
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != [n_out]) {
        bail!("linear: the weight is {:?} as {layout:?}, the bias {:?}", weight.dims(), bias.dims());
    }
    if n_in == 0 || !fusable(&[x, weight, bias.unwrap_or(weight)]) {
        return composed::linear(x, weight, layout, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => apply3(&x, &weight, &bias.contiguous()?, Linear { layout }),
        None => apply2(&x, &weight, Linear { layout }),
    }
}

/// (in, out) of a weight.
fn dims(weight: &Tensor, layout: WeightLayout) -> Result<(usize, usize)> {
    let (rows, columns) = weight.dims2()?;
    Ok(match layout {
        WeightLayout::InOut => (rows, columns),
        WeightLayout::OutIn => (columns, rows),
    })
}

struct Linear {
    layout: WeightLayout,
}

impl Linear {
    fn forward(&self, x: &[f32], x_layout: &Layout, weight: &[f32], start: Start<'_>) -> Result<(CpuStorage, Shape)> {
        let (n, n_in) = x_layout.shape().dims2()?;
        let n_out = weight.len() / n_in;
        output(product(x, n_in, weight, n_out, self.layout, start), (n, n_out))
    }

    /// Gradients of x and weight, where they are asked for.
    fn backward(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n_in, n_out) = dims(weight, self.layout)?;
        let g = numbers(grad)?;
        let grad_x = if x.track_op() {
            // g (N, O) times the weight the other way round.
            let numbers = product(&g, n_out, &numbers(weight)?, n_in, self.layout.flipped(), Start::Zero);
            Some(tensor(numbers, x.shape())?)
        } else {
            None
        };
        let x = numbers(x)?;
        let grad_weight = weight_gradient(weight, |sum, first| match self.layout {
            WeightLayout::InOut => add_transposed_product(sum, first, &x, n_in, &g, n_out),
            WeightLayout::OutIn => add_transposed_product(sum, first, &g, n_out, &x, n_in),
        })?;
        Ok((grad_x, grad_weight))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, lx, slice(w, lw)?, Start::Zero)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, weight, &grad.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear with bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, lx, slice(w, lw)?, Start::Row(slice(b, lb)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (grad_x, grad_weight) = self.backward(x, weight, &grad)?;
        let grad_bias = match bias.track_op() {
            true => Some(tensor(column_sums(&numbers(&grad)?, bias.elem_count()), bias.shape())?),
            false => None,
        };
        Ok((grad_x, grad_weight, grad_bias))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::testing::{assert_same_function, flat, random};

    #[test]
    fn agrees_with_the_composition_in_value_and_gradient() {
        for (n, n_in, n_out) in [(5, 7, 3), (1, 4, 1), (13, 3, 70), (0, 3, 2)] {
            for layout in [WeightLayout::InOut, WeightLayout::OutIn] {
                let weight = if layout == WeightLayout::InOut { (n_in, n_out) } else { (n_out, n_in) };
                let inputs = [random((n, n_in), 1), random(weight, 2), random(n_out, 3)];
                assert_same_function(
                    &inputs,
                    |t| linear(&t[0], &t[1], layout, Some(&t[2])),
                    |t| composed::linear(&t[0], &t[1], layout, Some(&t[2])),
                );
                assert_same_function(
                    &inputs[..2],
                    |t| linear(&t[0], &t[1], layout, None),
                    |t| composed::linear(&t[0], &t[1], layout, None),
                );
            }
        }
    }

    #[test]
    fn strided_arguments_are_taken_as_what_they_show() {
        let (x, weight) = (random((4, 3), 1), random((4, 5), 2));
        let strided = linear(&x.t().unwrap(), &weight, WeightLayout::InOut, None).unwrap();
        let copied = linear(&x.t().unwrap().contiguous().unwrap(), &weight, WeightLayout::InOut, None).unwrap();
        assert_eq!(flat(&strided), flat(&copied));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (x, weight) = (random((2, 3), 1), random((4, 3), 2));
        assert!(linear(&x, &weight, WeightLayout::InOut, None).is_err());
        let bias = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = linear(&x, &weight, WeightLayout::OutIn, Some(&bias)).unwrap_err().to_string();
        assert!(error.contains("the bias [3]"), "{error}");
    }
}
