//! PPO-ptx's second term.

use candle_core::{Result, Tensor};

use super::lm::lm_loss;

/// `ptx_coef` times the mean negative log-likelihood of pretraining text (Ouyang et al. 2022, equation 2), as far as
/// these `logprobs (N,)` are part of it. `n_tokens` counts the text of the whole optimiser step.
///
/// Its gradient is added to that of the policy loss and both are taken in one step: Adam is blind to the scale of a
/// gradient that it gets alone.
pub fn ptx_loss(logprobs: &Tensor, n_tokens: usize, ptx_coef: f64) -> Result<Tensor> {
    lm_loss(logprobs)? * (ptx_coef / n_tokens as f64)
}
