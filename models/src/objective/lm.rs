//! The language-modelling loss.

use candle_core::{Result, Tensor};

/// Negative log-likelihood of tokens whose log-probabilities are `logprobs (N,)`, summed (nats).
pub fn lm_loss(logprobs: &Tensor) -> Result<Tensor> {
    logprobs.sum_all()?.neg()
}
