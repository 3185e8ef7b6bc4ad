//! The losses of proximal policy optimisation (Schulman et al. 2017). What is done about stale tokens is in
//! [`off_policy`](super::off_policy).

use candle_core::{Result, Tensor};

/// The policy loss of some tokens, and what is told about them.
#[derive(Debug)]
pub struct PolicyLoss {
    /// Sum over the tokens; differentiable.
    pub loss: Tensor,
    /// The log of each token's ratio (nats); of what was masked there is none.
    pub log_ratios: Vec<f32>,
    /// Each token's off-policy weight; of what was masked there is none.
    pub off_policy_weights: Vec<f32>,
    /// Tokens whose ratio was clipped: their gradient is zero. Where weights are truncated instead, tokens whose was.
    pub n_clipped: usize,
    /// Tokens that were left out.
    pub n_masked: usize,
}

/// The clipped surrogate, summed over tokens, each with its weight:
///
/// `Σ w · max(−A · ratio, −A · clip(ratio, 1 ± clip_range))` with `ratio = exp(new − proximal)`.
///
/// `new_logprobs (N,)` carry the gradient. `proximal_logprobs` are what the ratio is against. What is not finite makes
/// the loss not finite.
pub fn ppo_policy_loss(
    new_logprobs: &Tensor,
    proximal_logprobs: &[f32],
    weights: &[f32],
    advantages: &[f32],
    clip_range: f32,
) -> Result<PolicyLoss> {
    let device = new_logprobs.device();
    let gains: Vec<f32> = advantages.iter().zip(weights).map(|(a, w)| -a * w).collect();

    let log_ratios = (new_logprobs - Tensor::new(proximal_logprobs, device)?)?;
    let ratios = log_ratios.exp()?;
    let gains = Tensor::new(gains.as_slice(), device)?;
    let unclipped = (&gains * &ratios)?;
    let clipped = (&gains * ratios.clamp(1.0 - clip_range, 1.0 + clip_range)?)?;
    let loss = unclipped.maximum(&clipped)?.sum_all()?;

    let log_ratios = log_ratios.to_vec1::<f32>()?;
    let is_clipped = |(log_ratio, advantage): (&f32, &f32)| {
        let ratio = log_ratio.exp();
        (*advantage > 0.0 && ratio > 1.0 + clip_range) || (*advantage < 0.0 && ratio < 1.0 - clip_range)
    };
    let n_clipped = log_ratios.iter().zip(advantages).filter(|&token| is_clipped(token)).count();
    Ok(PolicyLoss { loss, log_ratios, off_policy_weights: weights.to_vec(), n_clipped, n_masked: 0 })
}

/// The clipped value loss, summed over tokens: `½ Σ max((V − R)², (clip(V, V_old ± clip_range_value) − R)²)`, as
/// OpenAI's implementation of PPO has it. A `clip_range_value` of 0 turns the clipping off.
///
/// `new_values (N,)` carry the gradient; `old_values` are those that the advantages were made from.
pub fn ppo_value_loss(
    new_values: &Tensor,
    old_values: &[f32],
    returns: &[f32],
    clip_range_value: f32,
) -> Result<Tensor> {
    let device = new_values.device();
    let returns = Tensor::new(returns, device)?;
    let unclipped = (new_values - &returns)?.sqr()?;
    let loss = if clip_range_value == 0.0 {
        unclipped
    } else {
        let old_values = Tensor::new(old_values, device)?;
        let moved = (new_values - &old_values)?.clamp(-clip_range_value, clip_range_value)?;
        let clipped = ((old_values + moved)? - &returns)?.sqr()?;
        // In this order: candle's `maximum` passes a NaN on from its first argument alone, and old values that are
        // not finite show in the clipped loss only.
        clipped.maximum(&unclipped)?
    };
    loss.sum_all()? * 0.5
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn policy_loss(new: &[f32], proximal: &[f32], weights: &[f32], advantages: &[f32]) -> Result<(f32, Vec<f32>)> {
        let new = Var::new(new, &Device::Cpu)?;
        let loss = ppo_policy_loss(new.as_tensor(), proximal, weights, advantages, 0.2)?.loss;
        Ok((loss.to_scalar()?, loss.backward()?.get(&new).unwrap().to_vec1()?))
    }

    #[test]
    fn at_ratio_one_the_gradient_is_minus_the_advantage() -> Result<()> {
        let logprobs = [-1.0, -2.0];
        assert_eq!(policy_loss(&logprobs, &logprobs, &[1.0, 1.0], &[1.0, -3.0])?, (2.0, vec![-1.0, 3.0]));
        Ok(())
    }

    #[test]
    fn the_gradient_stops_where_the_ratio_has_gone_far_enough() -> Result<()> {
        let ratios = [1.5f32, 1.5, 0.5, 0.5];
        let (loss, gradient) = policy_loss(&ratios.map(f32::ln), &[0.0; 4], &[1.0; 4], &[1.0, -1.0, 1.0, -1.0])?;
        assert!((loss - (-1.2 + 1.5 - 0.5 + 0.8)).abs() < 1e-6);
        for (gradient, expected) in gradient.iter().zip([0.0, 1.5, -0.5, 0.0]) {
            assert!((gradient - expected).abs() < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn anything_not_finite_shows_in_the_loss() -> Result<()> {
        let fine = [-1.0f32, -1.0];
        let broken = [-1.0f32, f32::NAN];
        assert!(policy_loss(&broken, &fine, &fine, &fine)?.0.is_nan());
        assert!(policy_loss(&fine, &broken, &fine, &fine)?.0.is_nan());
        assert!(policy_loss(&fine, &fine, &broken, &fine)?.0.is_nan());
        assert!(policy_loss(&fine, &fine, &fine, &broken)?.0.is_nan());
        let values = Tensor::new(&broken, &Device::Cpu)?;
        assert!(ppo_value_loss(&values, &fine, &fine, 0.2)?.to_scalar::<f32>()?.is_nan());
        let values = Tensor::new(&fine, &Device::Cpu)?;
        assert!(ppo_value_loss(&values, &fine, &broken, 0.2)?.to_scalar::<f32>()?.is_nan());
        assert!(ppo_value_loss(&values, &broken, &fine, 0.2)?.to_scalar::<f32>()?.is_nan());
        Ok(())
    }

    #[test]
    fn the_value_loss_takes_the_worse_of_clipped_and_unclipped() -> Result<()> {
        // Old value 0, new value 1, clip 0.2. Return 1: clipped (0.2 − 1)². Return −1: unclipped (1 + 1)².
        let new = Var::new(&[1f32, 1.0], &Device::Cpu)?;
        let loss = ppo_value_loss(new.as_tensor(), &[0.0, 0.0], &[1.0, -1.0], 0.2)?;
        assert!((loss.to_scalar::<f32>()? - 0.5 * (0.64 + 4.0)).abs() < 1e-6);
        assert_eq!(loss.backward()?.get(&new).unwrap().to_vec1::<f32>()?, [0.0, 2.0]);
        Ok(())
    }
}
