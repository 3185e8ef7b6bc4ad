//! Each operation as a composition of candle's differentiable ops: the reference for the fused ones, and what
//! runs on devices for which no fused op exists. A matrix may be bf16: then the product is, and its result f32 again.

use std::ops::Range;

use candle_core::{D, Result, Tensor, Var, bail};

use super::{AttentionRule, Gelu, HeadShape, RopeTable, TokenLogprobs, WeightLayout};

/// `x · weight` in the weight's type, as what x is.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.to_dtype(weight.dtype())?.matmul(weight)?.to_dtype(x.dtype())
}

/// `x (N, I)` times a weight plus `bias (O,)`: `(N, O)`.
pub fn linear(x: &Tensor, weight: &Tensor, layout: WeightLayout, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = match layout {
        WeightLayout::InOut => product(x, weight)?,
        WeightLayout::OutIn => product(x, &weight.t()?)?,
    };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// `x (N, I)` through a linear layer, plus `scale · x · aᵀ · bᵀ` with `a (R, I)` and `b (O, R)`: `(N, O)`.
pub fn lora_linear(
    x: &Tensor,
    weight: &Tensor,
    layout: WeightLayout,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    linear(x, weight, layout, bias)? + (x.matmul(&a.t()?)? * f64::from(scale))?.matmul(&b.t()?)?
}

/// Layer normalisation (Ba et al. 2016) of each row of `x (N, C)` with gain and bias `(C,)`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Root mean square normalisation (Zhang and Sennrich 2019) of each row of `x (N, C)` with gain `(C,)`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// GELU of each element.
pub fn gelu(x: &Tensor, kind: Gelu) -> Result<Tensor> {
    match kind {
        Gelu::Tanh => x.gelu(),
        Gelu::Erf => x.gelu_erf(),
    }
}

/// `silu(gate) * up`, element by element (Shazeer 2020).
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// Rotates queries and keys inside the packed projection `qkv (N, (H + 2 KV) D)` by each row's angles; values pass
/// unchanged, and so does what lies in a head beyond the table's `rotary_dim` R. Halves of the rotated part are paired
/// (element i with i + R/2), as HuggingFace's Llama does.
pub fn rope(qkv: &Tensor, table: &RopeTable, heads: HeadShape) -> Result<Tensor> {
    let n = qkv.dim(0)?;
    let (head_dim, half) = (heads.head_dim, table.rotary_dim / 2);
    let n_rotated = heads.n_heads + heads.n_kv_heads;
    let rows = |numbers: &[f32]| Tensor::from_slice(numbers, (n, 1, half), qkv.device())?.to_dtype(qkv.dtype());
    let (cos, sin) = (rows(&table.cos)?, rows(&table.sin)?);
    let rotated = qkv.narrow(1, 0, n_rotated * head_dim)?.reshape((n, n_rotated, head_dim))?;
    let (first, second) = (rotated.narrow(2, 0, half)?, rotated.narrow(2, half, half)?);
    let new_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let new_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let rest = rotated.narrow(2, 2 * half, head_dim - 2 * half)?;
    let rotated = Tensor::cat(&[new_first, new_second, rest], 2)?.reshape((n, n_rotated * head_dim))?;
    let values = qkv.narrow(1, n_rotated * head_dim, heads.n_kv_heads * head_dim)?;
    Tensor::cat(&[rotated, values], 1)
}

/// Causal self-attention within each packed sequence: `qkv (N, (H + 2 KV) D)` to `(N, H D)`. Sequence s is rows
/// `offsets[s]..offsets[s + 1]`.
pub fn causal_attention(qkv: &Tensor, offsets: &[usize], rule: AttentionRule) -> Result<Tensor> {
    let HeadShape { n_heads, n_kv_heads, head_dim } = rule.heads;
    let mut outputs = Vec::with_capacity(offsets.len().saturating_sub(1));
    for bounds in offsets.windows(2) {
        let t = bounds[1] - bounds[0];
        if t == 0 {
            continue;
        }
        let rows = qkv.narrow(0, bounds[0], t)?.reshape((t, n_heads + 2 * n_kv_heads, head_dim))?;
        let q = rows.narrow(1, 0, n_heads)?.transpose(0, 1)?.contiguous()?; // (H, T, D)
        let shared = |start: usize| -> Result<Tensor> {
            let one = rows.narrow(1, start, n_kv_heads)?.transpose(0, 1)?; // (KV, T, D)
            one.unsqueeze(1)?
                .expand((n_kv_heads, n_heads / n_kv_heads, t, head_dim))?
                .reshape((n_heads, t, head_dim))?
                .contiguous()
        };
        let (k, v) = (shared(n_heads)?, shared(n_heads + n_kv_heads)?); // (H, T, D)
        let seen = |i: usize, j: usize| j <= i && j >= rule.first_seen(i);
        let mask: Vec<f32> = (0..t * t).map(|at| if seen(at / t, at % t) { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mask = Tensor::from_vec(mask, (1, t, t), qkv.device())?.to_dtype(qkv.dtype())?;
        let scores = (q.matmul(&k.transpose(1, 2)?)? * f64::from(rule.scale))?.broadcast_add(&mask)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?; // (H, T, T)
        outputs.push(weights.matmul(&v)?.transpose(0, 1)?.reshape((t, n_heads * head_dim))?);
    }
    if outputs.is_empty() {
        return Tensor::zeros((0, n_heads * head_dim), qkv.dtype(), qkv.device());
    }
    Tensor::cat(&outputs, 0)
}

/// Log-probability of each target under `softmax(scale · hidden · unembeddingᵀ)`, and its entropy; `scale` is one
/// over the temperature. `hidden (N, C)`, `unembedding (V, C)`, `targets` N ids.
pub fn token_logprobs(hidden: &Tensor, unembedding: &Tensor, targets: &[u32], scale: f32) -> Result<TokenLogprobs> {
    let logits = (product(hidden, &unembedding.t()?)? * f64::from(scale))?; // (N, V)
    let log_softmax = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
    let targets = Tensor::from_slice(targets, (targets.len(), 1), hidden.device())?;
    let logprobs = log_softmax.gather(&targets, 1)?.squeeze(1)?;
    let entropies = (log_softmax.exp()? * &log_softmax)?.sum(D::Minus1)?.neg()?;
    Ok(TokenLogprobs { logprobs, entropies })
}

/// A loss that is a sum over tokens, each token's share a function of its log-probability: `loss(rows, logprobs)` gives that
/// of some of the targets. Arguments as of [`token_logprobs`]; `hidden` and `unembedding` can be differentiated.
///
/// The graph never holds more logits than those of `chunk_len` rows: each chunk is differentiated on its own, and what is
/// returned is a function with the value and the gradients that come of it.
pub fn token_loss(
    chunk_len: usize,
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[u32],
    scale: f32,
    mut loss: impl FnMut(Range<usize>, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let n = targets.len();
    if !(hidden.track_op() || unembedding.track_op()) || n <= chunk_len {
        return loss(0..n, &token_logprobs(hidden, unembedding, targets, scale)?.logprobs);
    }
    let u = Var::from_tensor(&unembedding.detach())?;
    let (mut values, mut grads_hidden, mut grad_u) = (Vec::new(), Vec::new(), None::<Tensor>);
    for start in (0..n).step_by(chunk_len) {
        let rows = start..n.min(start + chunk_len);
        let h = Var::from_tensor(&hidden.detach().narrow(0, start, rows.len())?)?;
        let share = loss(rows.clone(), &token_logprobs(&h, &u, &targets[rows], scale)?.logprobs)?;
        let mut gradients = share.backward()?;
        let (Some(by_hidden), Some(by_u)) = (gradients.remove(&h), gradients.remove(&u)) else {
            bail!("a loss of tokens does not depend on their log-probabilities");
        };
        values.push(share.detach());
        grads_hidden.push(by_hidden.detach());
        // Sums over many chunks stay in f32 whatever the products are.
        let by_u = by_u.detach().to_dtype(hidden.dtype())?;
        grad_u = Some(grad_u.map_or(Ok(by_u.clone()), |sum| sum + &by_u)?);
    }
    let Some(grad_u) = grad_u else { bail!("a loss of no chunk") };
    // Its gradients are those, whatever the arguments.
    let by_hidden = (hidden * Tensor::cat(&grads_hidden, 0)?)?.sum_all()?;
    let linear = (by_hidden + (unembedding.to_dtype(hidden.dtype())? * grad_u)?.sum_all()?)?;
    let value = Tensor::stack(&values, 0)?.sum_all()?;
    value + (&linear - linear.detach())?
}
