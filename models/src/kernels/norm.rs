//! Normalisation of rows. Statistics are computed anew in the backward pass, which costs less than keeping them.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::blocks::for_each_block;
use super::buffer::{Disjoint, filled_by, with_scratch};
use super::column_sums::column_sums;
use super::storage::{fusable, numbers, output, slice, tensor};
use super::tape::{apply2, apply3};
use super::{composed, simd};

/// Rows of one task. Gradients of gain and bias are summed over a task's rows first, so it also fixes their rounding.
const ROWS: usize = 32;

/// Layer normalisation (Ba et al. 2016) of each row of `x (N, C)` with gain and bias `(C,)`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, weight)?;
    check(x, bias)?;
    if !fusable(&[x, weight, bias]) {
        return composed::layer_norm(x, weight, bias, eps);
    }
    let norm = Norm { kind: Kind::Layer, eps: eps as f32 };
    apply3(&x.contiguous()?, &weight.contiguous()?, &bias.contiguous()?, norm)
}

/// Root mean square normalisation (Zhang and Sennrich 2019) of each row of `x (N, C)` with gain `(C,)`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, weight)?;
    if !fusable(&[x, weight]) {
        return composed::rms_norm(x, weight, eps);
    }
    apply2(&x.contiguous()?, &weight.contiguous()?, Norm { kind: Kind::Rms, eps: eps as f32 })
}

fn check(x: &Tensor, parameter: &Tensor) -> Result<()> {
    let (_, c) = x.dims2()?;
    if parameter.dims() != [c] {
        bail!("norm: x is {:?}, a parameter {:?}", x.dims(), parameter.dims());
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To mean 0 and variance 1.
    Layer,
    /// To mean square 1.
    Rms,
}

#[derive(Clone, Copy)]
struct Norm {
    kind: Kind,
    eps: f32,
}

/// Gradients of x, gain and bias.
struct Gradients {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    fn forward(self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let c = weight.len();
        let fill = |y: &Disjoint<'_>| {
            for_each_block(x.len() / c.max(1), ROWS, x.len(), |rows| {
                simd::dispatch(
                    #[inline(always)]
                    || {
                        for start in rows.map(|row| row * c) {
                            let x = &x[start..start + c];
                            // SAFETY: each row is one task's, and it takes one at a time.
                            let y = unsafe { y.places(start, c) };
                            let scaling = self.scaling(x);
                            let row = y.iter_mut().zip(x).zip(weight);
                            match bias {
                                Some(bias) => row.zip(bias).for_each(|(((y, x), w), b)| {
                                    y.write(scaling.apply(*x).mul_add(*w, *b));
                                }),
                                None => row.for_each(|((y, x), w)| {
                                    y.write(scaling.apply(*x) * w);
                                }),
                            }
                        }
                    },
                );
            });
        };
        // SAFETY: the blocks cover all rows, and all of each row is written.
        unsafe { filled_by(x.len(), fill) }
    }

    /// With x̂ = (x + shift) · scale and ĝ = g · gain, the gradient of x is scale · (ĝ − mean ĝ − x̂ mean(ĝ x̂)), where
    /// the root mean square has no mean ĝ; gain's is Σ g x̂ over the rows, bias' Σ g.
    fn backward(self, x: &[f32], weight: &[f32], g: &[f32]) -> Gradients {
        let c = weight.len();
        let n_rows = x.len() / c.max(1);
        let mut sums = vec![0.0; n_rows.div_ceil(ROWS) * 2 * c];
        let all_sums = Disjoint::over(&mut sums);
        let fill = |grad_x: &Disjoint<'_>| {
            for_each_block(n_rows, ROWS, x.len(), |rows| {
                let block_idx = rows.start / ROWS;
                let block = rows.start * c..rows.end * c;
                // SAFETY: each block of rows, with its sums, is one task's; the sums are written, as zeros.
                let (sums, grad_x) =
                    unsafe { (all_sums.numbers(block_idx * 2 * c, 2 * c), grad_x.places(block.start, block.len())) };
                with_scratch(2 * c, |scratch| {
                    simd::dispatch(
                        #[inline(always)]
                        || self.backward_of_rows(&x[block.clone()], weight, &g[block], scratch, grad_x, sums),
                    );
                });
            });
        };
        // SAFETY: the blocks cover all rows, and all of each row is written.
        let x = unsafe { filled_by(x.len(), fill) };
        let mut weight = column_sums(&sums, 2 * c);
        let bias = weight.split_off(c);
        Gradients { x, weight, bias }
    }

    /// Rows of one block: their gradients, and what they add to gain's and bias', which stand in `sums` in this order.
    #[inline(always)]
    fn backward_of_rows(
        self,
        x: &[f32],
        weight: &[f32],
        g: &[f32],
        scratch: &mut [f32],
        grad_x: &mut [MaybeUninit<f32>],
        sums: &mut [f32],
    ) {
        let c = weight.len();
        let (weight_sums, bias_sums) = sums.split_at_mut(c);
        let (normed, scaled) = scratch.split_at_mut(c);
        for ((x, g), grad_x) in x.chunks_exact(c).zip(g.chunks_exact(c)).zip(grad_x.chunks_exact_mut(c)) {
            let scaling = self.scaling(x);
            for i in 0..c {
                normed[i] = scaling.apply(x[i]);
                scaled[i] = g[i] * weight[i];
                weight_sums[i] = g[i].mul_add(normed[i], weight_sums[i]);
                bias_sums[i] += g[i];
            }
            let mean = if self.kind == Kind::Layer { simd::sum(scaled) / c as f32 } else { 0.0 };
            let mean_product = simd::dot(scaled, normed) / c as f32;
            for i in 0..c {
                grad_x[i].write(scaling.scale * (normed[i].mul_add(-mean_product, scaled[i] - mean)));
            }
        }
    }

    #[inline(always)]
    fn scaling(self, x: &[f32]) -> Scaling {
        let c = x.len() as f32;
        let shift = if self.kind == Kind::Layer { -simd::sum(x) / c } else { 0.0 };
        Scaling { shift, scale: 1.0 / (simd::sum_of_squares(x, shift) / c + self.eps).sqrt() }
    }
}

/// What a row is shifted by, and scaled by after that.
#[derive(Clone, Copy)]
struct Scaling {
    shift: f32,
    scale: f32,
}

impl Scaling {
    #[inline(always)]
    fn apply(self, x: f32) -> f32 {
        (x + self.shift) * self.scale
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        output(self.forward(slice(x, lx)?, slice(w, lw)?, None), lx.shape())
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = self.backward(&numbers(x)?, &numbers(weight)?, &numbers(&grad.contiguous()?)?);
        Ok((Some(tensor(gradients.x, x.shape())?), Some(tensor(gradients.weight, weight.shape())?)))
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "layer norm"
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
        output(self.forward(slice(x, lx)?, slice(w, lw)?, Some(slice(b, lb)?)), lx.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradients = self.backward(&numbers(x)?, &numbers(weight)?, &numbers(&grad.contiguous()?)?);
        let (grad_x, grad_weight) = (tensor(gradients.x, x.shape())?, tensor(gradients.weight, weight.shape())?);
        Ok((Some(grad_x), Some(grad_weight), Some(tensor(gradients.bias, bias.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_function, flat, random};

    #[test]
    fn agrees_with_the_composition_in_value_and_gradient() {
        for (n, c) in [(3, 5), (1, 1), (35, 4), (2, 70), (0, 4)] {
            let inputs = [random((n, c), 1), random(c, 2), random(c, 3)];
            assert_same_function(
                &inputs,
                |t| layer_norm(&t[0], &t[1], &t[2], 1e-3),
                |t| composed::layer_norm(&t[0], &t[1], &t[2], 1e-3),
            );
            assert_same_function(
                &inputs[..2],
                |t| rms_norm(&t[0], &t[1], 1e-3),
                |t| composed::rms_norm(&t[0], &t[1], 1e-3),
            );
        }
    }

    #[test]
    fn rows_and_threads_change_no_bit_and_nans_stay_alone() {
        let (n, c) = (700, 50);
        let (x, weight, bias) = (random((n, c), 1), random(c, 2), random(c, 3));
        let whole = flat(&layer_norm(&x, &weight, &bias, 1e-5).unwrap());
        for row in [0, 31, 32, 699] {
            let alone = layer_norm(&x.narrow(0, row, 1).unwrap(), &weight, &bias, 1e-5).unwrap();
            assert_eq!(flat(&alone), whole[row * c..(row + 1) * c]);
        }
        let mut with_nan = flat(&x);
        with_nan[5 * c] = f32::NAN;
        let with_nan = flat(&layer_norm(&tensor(with_nan, (n, c)).unwrap(), &weight, &bias, 1e-5).unwrap());
        assert!(with_nan[5 * c..6 * c].iter().all(|y| y.is_nan()));
        assert_eq!((&with_nan[..5 * c], &with_nan[6 * c..]), (&whole[..5 * c], &whole[6 * c..]));
    }

    #[test]
    fn a_large_mean_costs_no_precision() {
        let x = (random((4, 48), 1) + 1000.0).unwrap();
        let (weight, bias) = (random(48, 2), random(48, 3));
        let exact = |t: &Tensor| t.to_dtype(candle_core::DType::F64).unwrap();
        let expected = composed::layer_norm(&exact(&x), &exact(&weight), &exact(&bias), 1e-5).unwrap();
        let expected = flat(&expected.to_dtype(candle_core::DType::F32).unwrap());
        let actual = flat(&layer_norm(&x, &weight, &bias, 1e-5).unwrap());
        // Numbers about 1000 are 6e-5 apart.
        crate::kernels::testing::assert_close(&actual, &expected, 2e-4, "value");
    }

    #[test]
    fn parameters_that_do_not_fit_are_refused() {
        let (x, weight) = (random((2, 3), 1), random(4, 2));
        assert!(rms_norm(&x, &weight, 1e-5).is_err());
        assert!(layer_norm(&x, &random(3, 1), &weight, 1e-5).is_err());
    }
}
