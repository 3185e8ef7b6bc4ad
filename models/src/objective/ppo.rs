//! Proximal policy optimisation (Schulman et al. 2017), decoupled from the policy that sampled (Hilton et al. 2022).

use candle_core::{Result, Tensor};

/// The policy loss of some tokens, and what is told about them.
#[derive(Debug)]
pub struct PolicyLoss {
    /// Sum over the tokens; differentiable.
    pub loss: Tensor,
    /// For each token `new_logprobs − proximal_logprobs` (nats).
    pub log_ratios: Vec<f32>,
    /// For each token its off-policy weight.
    pub off_policy_weights: Vec<f32>,
    /// Tokens whose ratio was clipped: their gradient is zero.
    pub n_clipped: usize,
}

/// The clipped surrogate, summed over tokens, each weighted by how much likelier the proximal policy makes it than the
/// behaviour policy did:
///
/// `Σ w · max(−A · ratio, −A · clip(ratio, 1 ± clip_range))` with `ratio = exp(new − proximal)` and
/// `w = min(exp(proximal − behaviour), weight_cap)`.
///
/// `new_logprobs (N,)` carry the gradient. `proximal_logprobs` are the learner's own at the start of the update,
/// `behaviour_logprobs` those recorded while sampling; where both are the same numbers, the weight is exactly 1 and
/// this is plain PPO. What is not finite makes the loss not finite.
pub fn ppo_policy_loss(
    new_logprobs: &Tensor,
    proximal_logprobs: &[f32],
    behaviour_logprobs: &[f32],
    advantages: &[f32],
    clip_range: f32,
    weight_cap: f32,
) -> Result<PolicyLoss> {
    let device = new_logprobs.device();
    let weight = |(proximal, behaviour): (&f32, &f32)| {
        let weight = (proximal - behaviour).exp();
        // Not `f32::min`, which would turn a NaN into the cap.
        if weight > weight_cap { weight_cap } else { weight }
    };
    let off_policy_weights: Vec<f32> = proximal_logprobs.iter().zip(behaviour_logprobs).map(weight).collect();
    let gains: Vec<f32> = advantages.iter().zip(&off_policy_weights).map(|(a, w)| -a * w).collect();

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
    Ok(PolicyLoss { loss, log_ratios, off_policy_weights, n_clipped })
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

    fn policy_loss(new: &[f32], proximal: &[f32], behaviour: &[f32], advantages: &[f32]) -> Result<(f32, Vec<f32>)> {
        let new = Var::new(new, &Device::Cpu)?;
        let loss = ppo_policy_loss(new.as_tensor(), proximal, behaviour, advantages, 0.2, 2.0)?.loss;
        Ok((loss.to_scalar()?, loss.backward()?.get(&new).unwrap().to_vec1()?))
    }

    #[test]
    fn at_ratio_one_the_gradient_is_minus_the_advantage() -> Result<()> {
        let logprobs = [-1.0, -2.0];
        assert_eq!(policy_loss(&logprobs, &logprobs, &logprobs, &[1.0, -3.0])?, (2.0, vec![-1.0, 3.0]));
        Ok(())
    }

    #[test]
    fn the_gradient_stops_where_the_ratio_has_gone_far_enough() -> Result<()> {
        let ratios = [1.5f32, 1.5, 0.5, 0.5];
        let (loss, gradient) = policy_loss(&ratios.map(f32::ln), &[0.0; 4], &[0.0; 4], &[1.0, -1.0, 1.0, -1.0])?;
        assert!((loss - (-1.2 + 1.5 - 0.5 + 0.8)).abs() < 1e-6);
        for (gradient, expected) in gradient.iter().zip([0.0, 1.5, -0.5, 0.0]) {
            assert!((gradient - expected).abs() < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn a_stale_token_clips_around_the_proximal_policy_and_weighs_by_its_likelihood_up_to_the_cap() -> Result<()> {
        // The proximal policy made the first token 1.5 times and the second 3 times as likely as its sampler did.
        let proximal = [-1.0f32, -1.0];
        let behaviour = [-1.0 - 1.5f32.ln(), -1.0 - 3f32.ln()];
        let (loss, gradient) = policy_loss(&proximal, &proximal, &behaviour, &[1.0, 1.0])?;
        assert!((loss + 3.5).abs() < 1e-6); // −1.5 − 2 (the cap): no ratio is clipped, however far the sampler is
        assert!((gradient[0] + 1.5).abs() < 1e-6 && (gradient[1] + 2.0).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn the_off_policy_weight_is_exactly_one_where_proximal_and_behaviour_agree() -> Result<()> {
        let logprobs = [-1.234_567_8f32, -17.0, -1e-7];
        let new = Tensor::new(&[-1.2f32, -17.1, -1e-6], &Device::Cpu)?;
        let loss = ppo_policy_loss(&new, &logprobs, &logprobs, &[1.0; 3], 0.2, 1.0)?;
        assert_eq!(loss.off_policy_weights, [1.0; 3]);
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
