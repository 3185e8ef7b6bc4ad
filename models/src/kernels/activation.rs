//! Activations of the MLPs.

use std::f32::consts::FRAC_1_SQRT_2;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::blocks::map;
use super::storage::{fusable, numbers, output, slice, tensor};
use super::tape::{apply1, apply2};
use super::{Gelu, composed, simd};

/// GELU of each element.
pub fn gelu(x: &Tensor, kind: Gelu) -> Result<Tensor> {
    if !fusable(&[x]) {
        return composed::gelu(x, kind);
    }
    apply1(&x.contiguous()?, kind)
}

/// `silu(gate) * up`, element by element (Shazeer 2020).
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("silu_mul: the gate is {:?}, up {:?}", gate.dims(), up.dims());
    }
    if !fusable(&[gate, up]) {
        return composed::silu_mul(gate, up);
    }
    apply2(&gate.contiguous()?, &up.contiguous()?, SiluMul)
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + simd::exp(-x))
}

/// σ(2u) and du/dx of the tanh approximation, which is x (1 + tanh u) / 2 = x σ(2u).
#[inline(always)]
fn tanh_parts(x: f32) -> (f32, f32) {
    /// √(2/π).
    const SCALE: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
    let square = CUBIC * x * x;
    (sigmoid(2.0 * SCALE * x * (1.0 + square)), SCALE * (1.0 + 3.0 * square))
}

/// Φ(x), to 1e-7, and φ(x). The error function by Abramowitz and Stegun's 7.1.26.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    /// 1/√(2π).
    const PEAK: f32 = 0.398_942_3;
    let t = 1.0 / (0.327_591_1 * FRAC_1_SQRT_2).mul_add(x.abs(), 1.0);
    let p = 1.061_405_4_f32;
    let p = p.mul_add(t, -1.453_152);
    let p = p.mul_add(t, 1.421_413_7);
    let p = p.mul_add(t, -0.284_496_74);
    let p = p.mul_add(t, 0.254_829_6);
    let bell = simd::exp(-0.5 * x * x);
    let tail = 0.5 * p * t * bell;
    (if x > 0.0 { 1.0 - tail } else { tail }, PEAK * bell)
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let [y] = match self {
            Gelu::Tanh => map(
                [x],
                #[inline(always)]
                |[x]| [x * tanh_parts(x).0],
            ),
            Gelu::Erf => map(
                [x],
                #[inline(always)]
                |[x]| [x * normal(x).0],
            ),
        };
        output(y, layout.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let inputs = (numbers(x)?, numbers(&grad)?);
        let inputs = [&*inputs.0, &*inputs.1];
        let [grad_x] = match self {
            Gelu::Tanh => map(
                inputs,
                #[inline(always)]
                |[x, g]| {
                    let (s, slope) = tanh_parts(x);
                    [g * s * (2.0 * x * (1.0 - s)).mul_add(slope, 1.0)]
                },
            ),
            Gelu::Erf => map(
                inputs,
                #[inline(always)]
                |[x, g]| {
                    let (below, density) = normal(x);
                    [g * x.mul_add(density, below)]
                },
            ),
        };
        Ok(Some(tensor(grad_x, x.shape())?))
    }
}

struct SiluMul;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu times up"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, lg: &Layout, up: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let [y] = map(
            [slice(gate, lg)?, slice(up, lu)?],
            #[inline(always)]
            |[gate, up]| [gate * sigmoid(gate) * up],
        );
        output(y, lg.shape())
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [grad_gate, grad_up] = map(
            [&*numbers(gate)?, &*numbers(up)?, &*numbers(&grad.contiguous()?)?],
            #[inline(always)]
            |[gate, up, g]| {
                let s = sigmoid(gate);
                [g * up * s * gate.mul_add(1.0 - s, 1.0), g * gate * s]
            },
        );
        Ok((Some(tensor(grad_gate, gate.shape())?), Some(tensor(grad_up, up.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, assert_same_function, flat, random};

    #[test]
    fn agree_with_the_compositions_in_value_and_gradient() {
        for shape in [(3, 7), (1, 1), (0, 4)] {
            let inputs = [(random(shape, 1) * 5.0).unwrap(), random(shape, 2)];
            for kind in [Gelu::Tanh, Gelu::Erf] {
                assert_same_function(&inputs[..1], |t| gelu(&t[0], kind), |t| composed::gelu(&t[0], kind));
            }
            assert_same_function(&inputs, |t| silu_mul(&t[0], &t[1]), |t| composed::silu_mul(&t[0], &t[1]));
        }
    }

    #[test]
    fn hold_far_out_and_pass_nans_to_their_own_place_alone() {
        let x = tensor(vec![-1e4, -30.0, 0.0, f32::NAN, 30.0, 1e4], 6).unwrap();
        let expected = [0.0, 0.0, 0.0, 30.0, 1e4];
        let one = tensor(vec![1.0; 6], 6).unwrap();
        for y in [gelu(&x, Gelu::Tanh), gelu(&x, Gelu::Erf), silu_mul(&x, &one)] {
            let mut y = flat(&y.unwrap());
            assert!(y.remove(3).is_nan());
            assert_close(&y, &expected, 1e-6, "value");
        }
    }

    #[test]
    fn gate_and_up_of_two_shapes_are_refused() {
        assert!(silu_mul(&random((2, 3), 1), &random((3, 2), 2)).is_err());
    }
}
