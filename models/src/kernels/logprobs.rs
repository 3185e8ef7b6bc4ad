//! Log-probabilities straight from hidden states, and losses of them. Logits exist for a chunk of rows at a time; those of
//! log-probabilities once more in the backward pass, those of a loss once and for all.

mod gradients;

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, Var, bail};
use rayon::prelude::*;

use self::gradients::Gradients;
use super::blocks::{PARALLEL_NUMBERS, for_each_block};
use super::buffer::Disjoint;
use super::product::product;
use super::storage::{fusable, numbers, output, slice};
use super::tile::Start;
use super::weight_gradients::GradientSum;
use super::{TokenLogprobs, WeightLayout, composed, simd};

/// Rows of logits that one task works on.
const ROWS: usize = 4;

/// Log-probability of each target under `softmax(scale · hidden · unembeddingᵀ)`, and its entropy; `scale` is one
/// over the temperature. `hidden (N, C)`, `unembedding (V, C)`, `targets` N ids. Both can be differentiated.
pub fn token_logprobs(hidden: &Tensor, unembedding: &Tensor, targets: &[u32], scale: f32) -> Result<TokenLogprobs> {
    let (vocab_size, _) = unembedding.dims2()?;
    token_logprobs_by(logits_chunk_len(vocab_size), hidden, unembedding, targets, scale)
}

/// Rows of a chunk: up to 64 MiB of logits, since each chunk packs and reads the whole unembedding, and its gradient too.
pub fn logits_chunk_len(vocab_size: usize) -> usize {
    ((1 << 24) / vocab_size.max(1)).clamp(96, 1 << 14)
}

/// `n` rows in chunks of equal size, none longer than `chunk_len`.
fn chunks(n: usize, chunk_len: usize) -> impl Iterator<Item = Range<usize>> {
    let len = n.div_ceil(n.div_ceil(chunk_len).max(1)).max(1);
    (0..n).step_by(len).map(move |start| start..n.min(start + len))
}

/// A loss that is a sum over tokens, each token's share a function of its log-probability: `loss(rows, logprobs)` gives that
/// of some of the targets, from their log-probabilities `(rows,)` under `softmax(scale · hidden · unembeddingᵀ)`.
///
/// Arguments as of [`token_logprobs`]. `hidden` and `unembedding` can be differentiated: their gradients are computed along
/// with the loss, while its logits are there, so that nothing is computed twice. The loss' own gradient by the
/// log-probabilities is candle's.
///
/// The unembedding's gradient is as large as the unembedding. With `sum` it is added there at once, and is not what
/// backward gives: the loss itself must be differentiated then, not a multiple of it.
pub fn token_loss(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    scale: f32,
    sum: Option<&GradientSum>,
    loss: impl FnMut(Range<usize>, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (vocab_size, _) = unembedding.dims2()?;
    token_loss_by(logits_chunk_len(vocab_size), hidden, unembedding, targets, scale, sum, loss)
}

fn token_loss_by(
    chunk_len: usize,
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    scale: f32,
    sum: Option<&GradientSum>,
    mut loss: impl FnMut(Range<usize>, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    check(hidden, unembedding, targets, scale)?;
    let (_, c) = hidden.dims2()?;
    if c == 0 || !fusable(&[hidden, unembedding]) {
        return composed::token_loss(chunk_len, hidden, unembedding, targets, scale, loss);
    }
    let (hidden, unembedding) = (hidden.contiguous()?, unembedding.contiguous()?);
    let (vocab_size, _) = unembedding.dims2()?;
    let op = Logprobs { targets: targets.to_vec(), scale, chunk_len };
    let (hidden_numbers, u_numbers) = (numbers(&hidden)?, numbers(&unembedding)?);
    let mut sums = Gradients::new(&hidden, &unembedding, sum);
    let mut total = 0.0;
    op.for_each_chunk(&hidden_numbers, c, &u_numbers, |chunk, logits| {
        let softmaxes = op.softmaxes(&chunk, logits, vocab_size);
        let logprobs = Var::from_vec(op.logprobs(&chunk, logits, &softmaxes), chunk.len(), &Device::Cpu)?;
        let share = loss(chunk.clone(), logprobs.as_tensor())?;
        total += share.to_scalar::<f32>()?;
        if sums.are_asked_for() {
            let gradients = share.backward()?;
            let Some(by_logprob) = gradients.get(&logprobs) else {
                bail!("a loss of tokens does not depend on their log-probabilities");
            };
            let by_logprob = by_logprob.contiguous()?;
            let by_entropy = vec![0.0; chunk.len()];
            op.to_gradients(&chunk, logits, &softmaxes, &numbers(&by_logprob)?, &by_entropy);
            sums.add(&chunk, logits, &hidden_numbers, &u_numbers)?;
        }
        Ok(())
    })?;
    drop((hidden_numbers, u_numbers));
    hidden.apply_op2(&unembedding, KnownGradients { value: total, gradients: sums })
}

/// A number whose gradients are known already.
struct KnownGradients {
    value: f32,
    gradients: Gradients,
}

impl CustomOp2 for KnownGradients {
    fn name(&self) -> &'static str {
        "token loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        output(vec![self.value], ())
    }

    fn bwd(&self, hidden: &Tensor, u: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients.times(grad.to_scalar()?, hidden, u)
    }
}

/// Refuses arguments that don't fit together.
fn check(hidden: &Tensor, unembedding: &Tensor, targets: &[u32], scale: f32) -> Result<()> {
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
    Ok(())
}

fn token_logprobs_by(
    chunk_len: usize,
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    scale: f32,
) -> Result<TokenLogprobs> {
    check(hidden, unembedding, targets, scale)?;
    if hidden.dims()[1] == 0 || !fusable(&[hidden, unembedding]) {
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
        mut f: impl FnMut(Range<usize>, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let (n, vocab_size) = (self.targets.len(), unembedding.len() / c);
        for rows in chunks(n, self.chunk_len) {
            let hidden = &hidden[rows.start * c..rows.end * c];
            let mut logits = product(hidden, c, unembedding, vocab_size, WeightLayout::OutIn, Start::Zero);
            f(rows, &mut logits)?;
        }
        Ok(())
    }

    /// Of each row of a chunk.
    fn softmaxes(&self, chunk: &Range<usize>, logits: &[f32], vocab_size: usize) -> Vec<Softmax> {
        let of_block = |block_idx: usize| -> Vec<Softmax> {
            let rows = block_idx * ROWS..chunk.len().min((block_idx + 1) * ROWS);
            let mut softmaxes = Vec::with_capacity(rows.len());
            simd::dispatch(
                #[inline(always)]
                || {
                    for row in rows {
                        softmaxes.push(Softmax::of(&logits[row * vocab_size..(row + 1) * vocab_size], self.scale));
                    }
                },
            );
            softmaxes
        };
        let n_blocks = chunk.len().div_ceil(ROWS);
        match logits.len() < PARALLEL_NUMBERS {
            true => (0..n_blocks).flat_map(of_block).collect(),
            false => (0..n_blocks).into_par_iter().flat_map_iter(of_block).collect(),
        }
    }

    /// Of each row's target.
    fn logprobs(&self, chunk: &Range<usize>, logits: &[f32], softmaxes: &[Softmax]) -> Vec<f32> {
        let rows =
            logits.chunks_exact(logits.len() / chunk.len().max(1)).zip(softmaxes).zip(&self.targets[chunk.clone()]);
        rows.map(|((logits, softmax), target)| {
            self.scale * (logits[*target as usize] - softmax.largest) - softmax.log_sum
        })
        .collect()
    }

    /// Logprobs, then entropies: `(2, N)`.
    fn forward(&self, hidden: &[f32], c: usize, unembedding: &[f32]) -> Result<Vec<f32>> {
        let vocab_size = unembedding.len() / c;
        let (mut both, mut entropies) = (Vec::with_capacity(2 * self.targets.len()), Vec::new());
        self.for_each_chunk(hidden, c, unembedding, |chunk, logits| {
            let softmaxes = self.softmaxes(&chunk, logits, vocab_size);
            both.extend(self.logprobs(&chunk, logits, &softmaxes));
            entropies.extend(softmaxes.iter().map(|softmax| softmax.entropy));
            Ok(())
        })?;
        both.extend(entropies);
        Ok(both)
    }

    /// Turns logits into the loss' gradient by them. With z the scaled logits and p = softmax(z):
    /// ∂ logprob / ∂z = onehot − p, and ∂ entropy / ∂z = −p (ln p + entropy).
    fn to_gradients(
        &self,
        chunk: &Range<usize>,
        logits: &mut [f32],
        softmaxes: &[Softmax],
        by_logprob: &[f32],
        by_entropy: &[f32],
    ) {
        let n_numbers = logits.len();
        let vocab_size = n_numbers / chunk.len().max(1);
        let all_logits = Disjoint::over(logits);
        for_each_block(chunk.len(), ROWS, n_numbers, |rows| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for row in rows {
                        // SAFETY: each row is one task's.
                        let logits = unsafe { all_logits.numbers(row * vocab_size, vocab_size) };
                        let (softmax, g_logprob, g_entropy) = (softmaxes[row], by_logprob[row], by_entropy[row]);
                        // From d = ln p + log_sum: what p is multiplied by is slope · d + level.
                        let inverse = self.scale / softmax.sum;
                        let slope = -g_entropy * inverse;
                        let level = (g_entropy * (softmax.log_sum - softmax.entropy) - g_logprob) * inverse;
                        for logit in logits.iter_mut() {
                            let d = self.scale * (*logit - softmax.largest);
                            *logit = simd::exp(d) * slope.mul_add(d, level);
                        }
                        logits[self.targets[chunk.start + row] as usize] += self.scale * g_logprob;
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
        output(self.forward(slice(hidden, lh)?, c, slice(u, lu)?)?, (2, n))
    }

    fn bwd(&self, hidden: &Tensor, u: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (vocab_size, c) = u.dims2()?;
        let grad = grad.contiguous()?;
        let (hidden_numbers, u_numbers, g) = (numbers(hidden)?, numbers(u)?, numbers(&grad)?);
        let (by_logprob, by_entropy) = g.split_at(self.targets.len());
        let mut sums = Gradients::new(hidden, u, None);
        self.for_each_chunk(&hidden_numbers, c, &u_numbers, |chunk, logits| {
            let softmaxes = self.softmaxes(&chunk, logits, vocab_size);
            self.to_gradients(&chunk, logits, &softmaxes, &by_logprob[chunk.clone()], &by_entropy[chunk.clone()]);
            sums.add(&chunk, logits, &hidden_numbers, &u_numbers)
        })?;
        sums.times(1.0, hidden, u)
    }
}

#[cfg(test)]
mod tests;
