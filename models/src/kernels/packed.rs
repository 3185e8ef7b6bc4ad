//! Linear layers of inference, with their weights laid out once for many products.

use candle_core::{Device, Result, Tensor, bail};

use super::product::{Operand, panels, product_with};
use super::storage::{fusable, numbers, tensor};
use super::tile::{PANEL, Start};
use super::{WeightLayout, linear};

/// A weight that no longer changes, in the form that products of few rows read fastest.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    form: Form,
    n_in: usize,
    n_out: usize,
}

#[derive(Clone, Debug)]
enum Form {
    /// In panels of 64 outputs: on the CPU in f32.
    Panels(Tensor), // (panels, in, 64)
    /// `(in, out)`: elsewhere.
    InOut(Tensor),
}

impl PackedWeight {
    /// A copy of this weight; it has no gradient.
    pub fn new(weight: &Tensor, layout: WeightLayout) -> Result<Self> {
        let weight = weight.detach();
        let (rows, columns) = weight.dims2()?;
        let (n_in, n_out) = match layout {
            WeightLayout::InOut => (rows, columns),
            WeightLayout::OutIn => (columns, rows),
        };
        let form = if n_in > 0 && fusable(&[&weight]) {
            let weight = weight.contiguous()?;
            let panels = panels(&numbers(&weight)?, n_in, n_out, layout);
            Form::Panels(tensor(panels, (n_out.div_ceil(PANEL), n_in, PANEL))?)
        } else {
            Form::InOut(match layout {
                WeightLayout::InOut => weight.copy()?,
                WeightLayout::OutIn => weight.t()?.contiguous()?,
            })
        };
        Ok(Self { form, n_in, n_out })
    }

    /// Bytes of a weight of this size on the CPU.
    pub fn bytes(n_in: usize, n_out: usize) -> usize {
        size_of::<f32>() * n_in * n_out.next_multiple_of(PANEL)
    }
}

/// `x (N, I)` times the weight plus `bias (O,)`: `(N, O)`, the same bits as [`linear`] gives.
///
/// It has no backward: arguments with a gradient to carry are refused rather than cut off in silence.
pub fn packed_linear(x: &Tensor, weight: &PackedWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.track_op() || bias.is_some_and(Tensor::track_op) {
        bail!("a weight that is laid out for inference has no backward: compute with detached tensors");
    }
    let (n, n_in) = x.dims2()?;
    if n_in != weight.n_in {
        bail!("linear: x is {:?}, the weight ({}, {})", x.dims(), weight.n_in, weight.n_out);
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != [weight.n_out]) {
        bail!("linear: the weight is ({n_in}, {}), the bias {:?}", weight.n_out, bias.dims());
    }
    let panels = match &weight.form {
        Form::InOut(weight) => return linear(x, weight, WeightLayout::InOut, bias),
        Form::Panels(panels) => panels,
    };
    if !matches!(x.device(), Device::Cpu) {
        bail!("linear: x is on {:?}, the weight on the CPU", x.device().location());
    }
    let (x, bias) = (x.contiguous()?, bias.map(Tensor::contiguous).transpose()?);
    let bias = bias.as_ref().map(numbers).transpose()?;
    let start = bias.as_ref().map_or(Start::Zero, |bias| Start::Row(bias));
    let y = product_with(&numbers(&x)?, n_in, Operand::Panels(&numbers(panels)?), weight.n_out, start);
    tensor(y, (n, weight.n_out))
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::kernels::testing::{flat, random};

    #[test]
    fn the_same_bits_come_of_a_weight_however_it_is_laid_out() {
        for (n, n_in, n_out) in [(1, 7, 3), (5, 64, 64), (13, 3, 130), (70, 20, 65), (0, 3, 2)] {
            for layout in [WeightLayout::InOut, WeightLayout::OutIn] {
                let shape = if layout == WeightLayout::InOut { (n_in, n_out) } else { (n_out, n_in) };
                let (x, weight, bias) = (random((n, n_in), 1), random(shape, 2), random(n_out, 3));
                let packed = PackedWeight::new(&weight, layout).unwrap();
                for bias in [None, Some(&bias)] {
                    let expected = linear(&x, &weight, layout, bias).unwrap();
                    assert_eq!(flat(&packed_linear(&x, &packed, bias).unwrap()), flat(&expected));
                }
            }
        }
    }

    #[test]
    fn gradients_and_shapes_that_do_not_fit_are_refused() {
        let weight = random((3, 2), 1);
        let packed = PackedWeight::new(&weight, WeightLayout::InOut).unwrap();
        let trained = Var::from_tensor(&random((4, 3), 2)).unwrap();
        let error = packed_linear(&trained, &packed, None).unwrap_err().to_string();
        assert!(error.contains("no backward"), "{error}");
        let error = packed_linear(&random((4, 2), 2), &packed, None).unwrap_err().to_string();
        assert!(error.contains("x is [4, 2], the weight (3, 2)"), "{error}");
        let error = packed_linear(&random((4, 3), 2), &packed, Some(&weight)).unwrap_err().to_string();
        assert!(error.contains("the bias [3, 2]"), "{error}");
    }
}
