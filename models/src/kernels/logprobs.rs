//! Log-probabilities straight from hidden states. Logits exist for a chunk of rows at a time, in the backward pass
//! once more.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::blocks::for_each_block;
use super::buffer::{Disjoint, filled_by};
use super::product::{add_transposed_product, product_over};
use super::storage::{fusable, numbers, output, slice, tensor};
use super::transpose::transposed;
use super::{TokenLogprobs, WeightLayout, composed, simd};

/// Rows of logits that one task works on.
const ROWS: usize = 4;

/// Log-probability of each target under `softmax(scale · hidden · unembeddingᵀ)`, and its entropy; `scale` is one
/// over the temperature. `hidden (N, C)`, `unembedding (V, C)`, `targets` N ids. Both can be differentiated.
pub fn token_logprobs(hidden: &Tensor, unembedding: &Tensor, targets: &[u32], scale: f32) -> Result<TokenLogprobs> {
    let (vocab_size, _) = unembedding.dims2()?;
    token_logprobs_by(logits_chunk_len(vocab_size), hidden, unembedding, targets, scale)
}

/// Rows of a chunk: about 8 MiB of logits, but no fewer than make it worth packing the unembedding for them.
pub fn logits_chunk_len(vocab_size: usize) -> usize {
    ((1 << 21) / vocab_size.max(1)).clamp(96, 1 << 14)
}

fn token_logprobs_by(
    chunk_len: usize,
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    scale: f32,
) -> Result<TokenLogprobs> {
    let ((n, c), (vocab_size, unembedding_c)) = (hidden.dims2()?, unembedding.dims2()?);
    if n != targets.len() || c != unembedding_c {
        bail!(
            "logprobs: hidden is ({n}, {c}), the unembedding ({vocab_size}, {unembedding_c}), {} targets",
            targets.len()
        );
    }
    if let Some(target) = targets.iter().find(|target| **target as usize >= vocab_size) {
        bail!("logprobs: target {target} is outside a vocabulary of {vocab_size}");
    }
    if !(scale > 0.0 && scale.is_finite()) {
        bail!("logprobs: logits can't be scaled by {scale}");
    }
    if c == 0 || !fusable(&[hidden, unembedding]) {
        return composed::token_logprobs(hidden, unembedding, targets, scale);
    }
    let op = Logprobs { targets: targets.to_vec(), scale, chunk_len };
    let both = hidden.contiguous()?.apply_op2(&unembedding.contiguous()?, op)?; // (2, N)
    Ok(TokenLogprobs { logprobs: both.get(0)?, entropies: both.get(1)? })
}

struct Logprobs {
    targets: Vec<u32>,
    scale: f32,
    chunk_len: usize,
}

/// A row's softmax: what its weights are relative to, and their sum.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    sum: f32,
    log_sum: f32,
    entropy: f32,
}

impl Softmax {
    #[inline(always)]
    fn of(logits: &[f32], scale: f32) -> Self {
        let largest = simd::max(logits);
        let (sum, weighted) = simd::exp_sums(logits, scale, largest);
        let log_sum = sum.ln();
        Self { largest, sum: sum as f32, log_sum: log_sum as f32, entropy: (log_sum - weighted / sum) as f32 }
    }
}

impl Logprobs {
    /// Calls `f` with each chunk of rows and its logits, not scaled yet.
    fn for_each_chunk(
        &self,
        hidden: &[f32],
        c: usize,
        unembedding: &[f32],
        mut f: impl FnMut(Range<usize>, &mut [f32]),
    ) {
        let (n, vocab_size) = (self.targets.len(), unembedding.len() / c);
        let mut logits = vec![0.0; self.chunk_len.min(n) * vocab_size];
        for start in (0..n).step_by(self.chunk_len) {
            let rows = start..n.min(start + self.chunk_len);
            let logits = &mut logits[..rows.len() * vocab_size];
            product_over(logits, &hidden[start * c..rows.end * c], c, unembedding, vocab_size, WeightLayout::OutIn);
            f(rows, logits);
        }
    }

    /// Logprobs, then entropies: `(2, N)`.
    fn forward(&self, hidden: &[f32], c: usize, unembedding: &[f32]) -> Vec<f32> {
        let (n, vocab_size) = (self.targets.len(), unembedding.len() / c);
        let fill = |y: &Disjoint<'_>| {
            self.for_each_chunk(hidden, c, unembedding, |chunk, logits| {
                let logits = &*logits;
                for_each_block(chunk.len(), ROWS, logits.len(), |rows| {
                    simd::dispatch(
                        #[inline(always)]
                        || {
                            for row in rows {
                                let logits = &logits[row * vocab_size..(row + 1) * vocab_size];
                                let softmax = Softmax::of(logits, self.scale);
                                let row = chunk.start + row;
                                let target = logits[self.targets[row] as usize];
                                let logprob = self.scale * (target - softmax.largest) - softmax.log_sum;
                                // SAFETY: each row is one task's.
                                unsafe {
                                    y.places(row, 1)[0].write(logprob);
                                    y.places(n + row, 1)[0].write(softmax.entropy);
                                }
                            }
                        },
                    );
                });
            });
        };
        // SAFETY: the chunks' blocks cover all rows, and both numbers of each are written.
        unsafe { filled_by(2 * n, fill) }
    }

    /// Turns logits into the loss' gradient by them. With z the scaled logits and p = softmax(z):
    /// ∂ logprob / ∂z = onehot − p, and ∂ entropy / ∂z = −p (ln p + entropy).
    fn to_gradients(&self, chunk: &Range<usize>, logits: &mut [f32], vocab_size: usize, g: &[f32]) {
        let (n, n_numbers) = (self.targets.len(), logits.len());
        let all_logits = Disjoint::over(logits);
        for_each_block(chunk.len(), ROWS, n_numbers, |rows| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for row in rows {
                        // SAFETY: each row is one task's.
                        let logits = unsafe { all_logits.numbers(row * vocab_size, vocab_size) };
                        let row = chunk.start + row;
                        let (g_logprob, g_entropy) = (g[row], g[n + row]);
                        let softmax = Softmax::of(logits, self.scale);
                        // From d = ln p + log_sum: what p is multiplied by is slope · d + level.
                        let inverse = self.scale / softmax.sum;
                        let slope = -g_entropy * inverse;
                        let level = (g_entropy * (softmax.log_sum - softmax.entropy) - g_logprob) * inverse;
                        for logit in logits.iter_mut() {
                            let d = self.scale * (*logit - softmax.largest);
                            *logit = simd::exp(d) * slope.mul_add(d, level);
                        }
                        logits[self.targets[row] as usize] += self.scale * g_logprob;
                    }
                },
            );
        });
    }
}

impl CustomOp2 for Logprobs {
    fn name(&self) -> &'static str {
        "token logprobs"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, lh: &Layout, u: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c) = lh.shape().dims2()?;
        output(self.forward(slice(hidden, lh)?, c, slice(u, lu)?), (2, n))
    }

    fn bwd(&self, hidden: &Tensor, u: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (vocab_size, c) = u.dims2()?;
        let grad = grad.contiguous()?;
        let (hidden_numbers, u_numbers, g) = (numbers(hidden)?, numbers(u)?, numbers(&grad)?);
        let mut grad_hidden = hidden.track_op().then(|| vec![0.0; hidden_numbers.len()]);
        // Transposed, (C, V), which leaves only the hidden states to be transposed in each chunk.
        let mut grad_u = u.track_op().then(|| vec![0.0; u_numbers.len()]);
        self.for_each_chunk(&hidden_numbers, c, &u_numbers, |chunk, logits| {
            self.to_gradients(&chunk, logits, vocab_size, &g);
            let rows = chunk.start * c..chunk.end * c;
            if let Some(grad_hidden) = &mut grad_hidden {
                let grad_hidden = &mut grad_hidden[rows.clone()];
                product_over(grad_hidden, logits, vocab_size, &u_numbers, c, WeightLayout::InOut);
            }
            if let Some(grad_u) = &mut grad_u {
                add_transposed_product(grad_u, &hidden_numbers[rows], c, logits, vocab_size);
            }
        });
        let grad_hidden = grad_hidden.map(|grad| tensor(grad, hidden.shape())).transpose()?;
        let grad_u = grad_u.map(|grad| tensor(transposed(&grad, c, vocab_size), u.shape())).transpose()?;
        Ok((grad_hidden, grad_u))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_function, flat, random};

    fn both(found: Result<TokenLogprobs>) -> Result<Tensor> {
        let found = found?;
        Tensor::stack(&[found.logprobs, found.entropies], 0)
    }

    #[test]
    fn both_outputs_agree_with_the_composition_in_value_and_gradient() {
        for (n, c, vocab_size, scale) in [(5, 3, 7, 1.0), (1, 4, 1, 0.5), (9, 2, 40, 2.0)] {
            let targets: Vec<u32> = (0..n).map(|i| (3 * i % vocab_size) as u32).collect();
            let inputs = [(random((n, c), 1) * 3.0).unwrap(), random((vocab_size, c), 2)];
            // In chunks of 2 rows, and in one.
            for chunk_len in [2, 100] {
                assert_same_function(
                    &inputs,
                    |t| both(token_logprobs_by(chunk_len, &t[0], &t[1], &targets, scale)),
                    |t| both(composed::token_logprobs(&t[0], &t[1], &targets, scale)),
                );
            }
        }
    }

    #[test]
    fn no_rows_have_no_logprobs() {
        let found = token_logprobs(&random((0, 3), 1), &random((4, 3), 2), &[], 1.0).unwrap();
        assert_eq!((found.logprobs.dims(), found.entropies.dims()), (&[0][..], &[0][..]));
    }

    #[test]
    fn a_row_depends_on_no_other_and_on_no_chunk_and_nans_stay_alone() {
        let (n, c, vocab_size) = (150, 8, 300);
        let (hidden, unembedding) = (random((n, c), 1), random((vocab_size, c), 2));
        let targets: Vec<u32> = (0..n as u32).collect();
        let whole = flat(&both(token_logprobs(&hidden, &unembedding, &targets, 0.7)).unwrap());
        for chunk_len in [1, 7, 100] {
            let cut = both(token_logprobs_by(chunk_len, &hidden, &unembedding, &targets, 0.7)).unwrap();
            assert_eq!(flat(&cut), whole);
        }
        let alone = token_logprobs(&hidden.narrow(0, 40, 1).unwrap(), &unembedding, &targets[40..41], 0.7);
        assert_eq!(flat(&both(alone).unwrap()), [whole[40], whole[n + 40]]);
        let mut with_nan = flat(&hidden);
        with_nan[3 * c] = f32::NAN;
        let with_nan = tensor(with_nan, (n, c)).unwrap();
        let with_nan = flat(&both(token_logprobs(&with_nan, &unembedding, &targets, 0.7)).unwrap());
        for (i, (a, b)) in with_nan.iter().zip(&whole).enumerate() {
            assert!(if i % n == 3 { a.is_nan() } else { a == b }, "{i}");
        }
    }

    #[test]
    fn likely_and_hopeless_tokens_stay_finite() {
        let (hidden, unembedding) = (tensor(vec![1.0], (1, 1)).unwrap(), tensor(vec![500.0, 0.0], (2, 1)).unwrap());
        let logprob = |target: u32| flat(&both(token_logprobs(&hidden, &unembedding, &[target], 1.0)).unwrap());
        assert_eq!(logprob(0), [0.0, 0.0]);
        assert_eq!(logprob(1), [-500.0, 0.0]);
    }

    #[test]
    fn targets_and_scales_that_mean_nothing_are_refused() {
        let (hidden, unembedding) = (random((1, 3), 1), random((4, 3), 2));
        let error = token_logprobs(&hidden, &unembedding, &[4], 1.0).unwrap_err().to_string();
        assert!(error.contains("target 4 is outside a vocabulary of 4"), "{error}");
        assert!(token_logprobs(&hidden, &unembedding, &[1, 2], 1.0).is_err());
        assert!(token_logprobs(&hidden, &unembedding, &[1], f32::INFINITY).is_err());
        assert!(token_logprobs(&hidden, &random((4, 2), 2), &[1], 1.0).is_err());
    }
}
