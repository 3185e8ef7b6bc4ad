//! A frozen linear layer with a low-rank adapter, in one op: what stands between its argument and its result is not
//! kept for the backward pass.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::product::{add_product, add_transposed_product, product};
use super::storage::{fusable, numbers, output, slice, tensor};
use super::tape::apply3;
use super::tile::Start;
use super::{WeightLayout, composed};

/// A linear layer that does not change: what an adapter stands on.
#[derive(Clone, Copy, Debug)]
pub struct FrozenLinear<'a> {
    /// `(I, O)` or `(O, I)`. No gradient goes into it.
    pub weight: &'a Tensor,
    /// Which of the two.
    pub layout: WeightLayout,
    /// `(O,)`. No gradient goes into it.
    pub bias: Option<&'a Tensor>,
}

/// `x (N, I)` through the frozen layer, plus `scale · x · aᵀ · bᵀ` with `a (R, I)` and `b (O, R)`: `(N, O)`
/// (Hu et al. 2021, equation 3). `x`, `a` and `b` can be differentiated.
pub fn lora_linear(x: &Tensor, frozen: FrozenLinear<'_>, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    let ((_, n_in), (rank, a_in), (n_out, b_rank)) = (x.dims2()?, a.dims2()?, b.dims2()?);
    let weight = match frozen.layout {
        WeightLayout::InOut => [n_in, n_out],
        WeightLayout::OutIn => [n_out, n_in],
    };
    if a_in != n_in || b_rank != rank || frozen.weight.dims() != weight {
        bail!(
            "lora: x is {:?}, the weight {:?} as {:?}, a {:?}, b {:?}",
            x.dims(),
            frozen.weight.dims(),
            frozen.layout,
            a.dims(),
            b.dims()
        );
    }
    if let Some(bias) = frozen.bias.filter(|bias| bias.dims() != [n_out]) {
        bail!("lora: the weight is {weight:?} as {:?}, the bias {:?}", frozen.layout, bias.dims());
    }
    let (weight, bias) = (frozen.weight.detach(), frozen.bias.map(Tensor::detach));
    if n_in == 0 || rank == 0 || !fusable(&[x, &weight, a, b]) {
        return composed::lora_linear(x, &weight, frozen.layout, bias.as_ref(), a, b, scale);
    }
    let bias = bias.map(|bias| bias.contiguous()).transpose()?;
    let op = LoraLinear { weight: weight.contiguous()?, bias, layout: frozen.layout, scale };
    apply3(&x.contiguous()?, &a.contiguous()?, &b.contiguous()?, op)
}

struct LoraLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    layout: WeightLayout,
    scale: f32,
}

impl LoraLinear {
    /// `scale · x · aᵀ`, `(N, R)`.
    fn inner(&self, x: &[f32], n_in: usize, a: &[f32]) -> Vec<f32> {
        let mut inner = product(x, n_in, a, a.len() / n_in, WeightLayout::OutIn, Start::Zero);
        inner.iter_mut().for_each(|h| *h *= self.scale);
        inner
    }
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "linear with adapter"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, n_in), (n_out, rank)) = (lx.shape().dims2()?, lb.shape().dims2()?);
        let x = slice(x, lx)?;
        let mut y = match &self.bias {
            Some(bias) => product(x, n_in, &numbers(&self.weight)?, n_out, self.layout, Start::Row(&numbers(bias)?)),
            None => product(x, n_in, &numbers(&self.weight)?, n_out, self.layout, Start::Zero),
        };
        let inner = self.inner(x, n_in, slice(a, la)?);
        add_product(&mut y, &inner, rank, slice(b, lb)?, n_out, WeightLayout::OutIn);
        output(y, (n, n_out))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((_, n_in), (n_out, rank)) = (x.dims2()?, b.dims2()?);
        let grad = grad.contiguous()?;
        let (g, x_numbers, a_numbers) = (numbers(&grad)?, numbers(x)?, numbers(a)?);
        // By the inner product h = scale · x · aᵀ: ∂/∂b = gᵀ h, ∂/∂a = scale · (g b)ᵀ x.
        let grad_b = match b.track_op() {
            true => {
                let mut grad_b = vec![0.0; n_out * rank];
                let inner = self.inner(&x_numbers, n_in, &a_numbers);
                add_transposed_product(&mut grad_b, true, &g, n_out, &inner, rank);
                Some(tensor(grad_b, b.shape())?)
            }
            false => None,
        };
        let mut grad_inner = product(&g, n_out, &numbers(b)?, rank, WeightLayout::InOut, Start::Zero);
        grad_inner.iter_mut().for_each(|g| *g *= self.scale);
        let grad_a = match a.track_op() {
            true => {
                let mut grad_a = vec![0.0; rank * n_in];
                add_transposed_product(&mut grad_a, true, &grad_inner, rank, &x_numbers, n_in);
                Some(tensor(grad_a, a.shape())?)
            }
            false => None,
        };
        let grad_x = match x.track_op() {
            true => {
                let flipped = self.layout.flipped();
                let mut grad_x = product(&g, n_out, &numbers(&self.weight)?, n_in, flipped, Start::Zero);
                add_product(&mut grad_x, &grad_inner, rank, &a_numbers, n_in, WeightLayout::InOut);
                Some(tensor(grad_x, x.shape())?)
            }
            false => None,
        };
        Ok((grad_x, grad_a, grad_b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::linear;
    use crate::kernels::testing::{assert_same_function, flat, random};

    #[test]
    fn agrees_with_the_composition_in_value_and_gradient() {
        for (n, n_in, n_out, rank) in [(5, 7, 3, 2), (1, 4, 1, 1), (13, 3, 70, 5), (0, 3, 2, 2)] {
            for layout in [WeightLayout::InOut, WeightLayout::OutIn] {
                let weight = random(if layout == WeightLayout::InOut { (n_in, n_out) } else { (n_out, n_in) }, 1);
                let bias = random(n_out, 2);
                let inputs = [random((n, n_in), 3), random((rank, n_in), 4), random((n_out, rank), 5)];
                for bias in [None, Some(&bias)] {
                    let frozen = FrozenLinear { weight: &weight, layout, bias };
                    assert_same_function(
                        &inputs,
                        |t| lora_linear(&t[0], frozen, &t[1], &t[2], 0.7),
                        |t| {
                            let like = |frozen: &Tensor| frozen.to_dtype(t[0].dtype());
                            let (weight, bias) = (like(&weight)?, bias.map(like).transpose()?);
                            composed::lora_linear(&t[0], &weight, layout, bias.as_ref(), &t[1], &t[2], 0.7)
                        },
                    );
                }
            }
        }
    }

    #[test]
    fn an_adapter_of_zeros_changes_no_bit() {
        let (x, weight) = (random((9, 40), 1), random((40, 30), 2));
        let (a, b) = (random((4, 40), 3), random((30, 4), 4).zeros_like().unwrap());
        let frozen = FrozenLinear { weight: &weight, layout: WeightLayout::InOut, bias: None };
        let adapted = lora_linear(&x, frozen, &a, &b, 2.0).unwrap();
        assert_eq!(flat(&adapted), flat(&linear(&x, &weight, WeightLayout::InOut, None).unwrap()));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (x, weight) = (random((2, 3), 1), random((4, 3), 2));
        let frozen = FrozenLinear { weight: &weight, layout: WeightLayout::OutIn, bias: None };
        let refused = |a: (usize, usize), b: (usize, usize)| {
            lora_linear(&x, frozen, &random(a, 3), &random(b, 4), 1.0).unwrap_err().to_string()
        };
        assert!(refused((2, 4), (4, 2)).contains("a [2, 4]"));
        assert!(refused((2, 3), (3, 2)).contains("b [3, 2]"));
        assert!(refused((2, 3), (4, 1)).contains("b [4, 1]"));
    }
}
