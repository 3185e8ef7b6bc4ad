//! What the policy learns from tokens that an older version sampled. Each objective is one of the literature's; they
//! agree where nothing is stale, but for the last.

use candle_core::{Result, Tensor};

use super::ppo::{PolicyLoss, ppo_policy_loss};

/// The log-probabilities that the policy's loss compares, and the advantages: a number for each of some tokens.
#[derive(Clone, Copy, Debug)]
pub struct PolicyTokens<'a> {
    /// `(N,)`, of the weights in training: carries the gradient.
    pub new_logprobs: &'a Tensor,
    /// The learner's own at the start of the update.
    pub proximal_logprobs: &'a [f32],
    /// As recorded while sampling.
    pub behaviour_logprobs: &'a [f32],
    /// Advantages.
    pub advantages: &'a [f32],
}

/// The policy's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyObjective {
    /// Clipped PPO (Schulman et al. 2017, arXiv 1707.06347): the ratio is against whichever version sampled, so that
    /// what is stale is clipped around a policy that is gone.
    Plain {
        /// How far the ratio may leave 1.
        clip_range: f32,
    },
    /// Decoupled PPO (Hilton et al. 2022, arXiv 2110.00641; for language models Fu et al. 2025, arXiv 2505.24298): the
    /// ratio is against the proximal policy, and each token is weighted by `min(proximal / behaviour, weight_cap)`.
    Decoupled {
        /// How far the ratio may leave 1.
        clip_range: f32,
        /// The largest weight.
        weight_cap: f32,
    },
    /// Decoupled PPO that leaves out each token whose weight `proximal / behaviour` lies outside of a band, instead of
    /// capping it, as IcePop does (Ling Team 2025, arXiv 2510.18855). What is left out still counts in the number of
    /// tokens that the loss is divided by.
    Masked {
        /// How far the ratio may leave 1.
        clip_range: f32,
        /// The smallest and the largest weight that is kept.
        band: [f32; 2],
    },
    /// The policy gradient with truncated importance sampling (Espeholt et al. 2018, arXiv 1802.01561, section 4.2):
    /// `−A · sg(min(new / behaviour, weight_cap)) · ∇ log new`, where `sg` stops the gradient. Nothing is clipped, so
    /// nothing but the weights' cap bounds an update: for one epoch with few minibatches.
    Truncated {
        /// The largest weight (the paper's ρ̄).
        weight_cap: f32,
    },
}

impl PolicyObjective {
    /// Whether the proximal policy's log-probabilities make a difference.
    pub fn reads_proximal(self) -> bool {
        matches!(self, Self::Decoupled { .. } | Self::Masked { .. })
    }

    /// The loss, summed over the tokens. What is not finite makes the loss not finite, unless it is masked.
    ///
    /// # Errors
    /// The tensors do not fit one another.
    pub fn loss(self, tokens: &PolicyTokens<'_>) -> Result<PolicyLoss> {
        let PolicyTokens { new_logprobs, proximal_logprobs, behaviour_logprobs, advantages } = *tokens;
        match self {
            Self::Plain { clip_range } => {
                let weights = vec![1.0; advantages.len()];
                ppo_policy_loss(new_logprobs, behaviour_logprobs, &weights, advantages, clip_range)
            }
            Self::Decoupled { clip_range, weight_cap } => {
                let weights = weights(proximal_logprobs, behaviour_logprobs);
                let weights: Vec<f32> = weights.into_iter().map(|weight| capped(weight, weight_cap)).collect();
                ppo_policy_loss(new_logprobs, proximal_logprobs, &weights, advantages, clip_range)
            }
            Self::Masked { clip_range, band } => masked_loss(tokens, clip_range, band),
            Self::Truncated { weight_cap } => truncated_loss(new_logprobs, behaviour_logprobs, advantages, weight_cap),
        }
    }
}

/// `proximal / behaviour` of each token: exactly 1 where both are the same numbers.
fn weights(proximal_logprobs: &[f32], behaviour_logprobs: &[f32]) -> Vec<f32> {
    proximal_logprobs.iter().zip(behaviour_logprobs).map(|(proximal, behaviour)| (proximal - behaviour).exp()).collect()
}

/// Not `f32::min`, which would turn a NaN into the cap.
fn capped(weight: f32, cap: f32) -> f32 {
    if weight > cap { cap } else { weight }
}

fn masked_loss(tokens: &PolicyTokens<'_>, clip_range: f32, [low, high]: [f32; 2]) -> Result<PolicyLoss> {
    let PolicyTokens { new_logprobs, proximal_logprobs, behaviour_logprobs, advantages } = *tokens;
    let weights = weights(proximal_logprobs, behaviour_logprobs);
    // A NaN is inside of no band.
    let kept: Vec<usize> = (0..weights.len()).filter(|&idx| (low..=high).contains(&weights[idx])).collect();
    let n_masked = weights.len() - kept.len();
    if n_masked == 0 {
        return ppo_policy_loss(new_logprobs, proximal_logprobs, &weights, advantages, clip_range);
    }
    // Selected, not multiplied by 0: what is masked may be anything.
    let of = |numbers: &[f32]| -> Vec<f32> { kept.iter().map(|&idx| numbers[idx]).collect() };
    let rows: Vec<u32> = kept.iter().map(|&idx| idx as u32).collect();
    let rows = Tensor::new(rows.as_slice(), new_logprobs.device())?;
    let new_logprobs = new_logprobs.index_select(&rows, 0)?;
    let loss = ppo_policy_loss(&new_logprobs, &of(proximal_logprobs), &of(&weights), &of(advantages), clip_range)?;
    Ok(PolicyLoss { n_masked, ..loss })
}

fn truncated_loss(
    new_logprobs: &Tensor,
    behaviour_logprobs: &[f32],
    advantages: &[f32],
    weight_cap: f32,
) -> Result<PolicyLoss> {
    let new = new_logprobs.detach().to_vec1::<f32>()?;
    let log_ratios: Vec<f32> = new.iter().zip(behaviour_logprobs).map(|(new, behaviour)| new - behaviour).collect();
    let off_policy_weights: Vec<f32> = log_ratios.iter().map(|log_ratio| capped(log_ratio.exp(), weight_cap)).collect();
    let n_clipped = log_ratios.iter().filter(|log_ratio| log_ratio.exp() > weight_cap).count();
    let gains: Vec<f32> = advantages.iter().zip(&off_policy_weights).map(|(a, w)| -a * w).collect();
    // exp(x − sg(x)) is 1, and its gradient that of x.
    let one = (new_logprobs - new_logprobs.detach())?.exp()?;
    let loss = (one * Tensor::new(gains.as_slice(), new_logprobs.device())?)?.sum_all()?;
    Ok(PolicyLoss { loss, log_ratios, off_policy_weights, n_clipped, n_masked: 0 })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    const CLIP: f32 = 0.2;

    fn loss_and_gradient(
        objective: PolicyObjective,
        new: &[f32],
        proximal: &[f32],
        behaviour: &[f32],
        advantages: &[f32],
    ) -> Result<(f32, Vec<f32>, PolicyLoss)> {
        let new = Var::new(new, &Device::Cpu)?;
        let tokens = PolicyTokens {
            new_logprobs: new.as_tensor(),
            proximal_logprobs: proximal,
            behaviour_logprobs: behaviour,
            advantages,
        };
        let loss = objective.loss(&tokens)?;
        let gradient = loss.loss.backward()?.get(&new).unwrap().to_vec1()?;
        Ok((loss.loss.to_scalar()?, gradient, loss))
    }

    #[test]
    fn a_stale_token_clips_around_the_proximal_policy_and_weighs_by_its_likelihood_up_to_the_cap() -> Result<()> {
        // The proximal policy made the first token 1.5 times and the second 3 times as likely as its sampler did.
        let proximal = [-1.0f32, -1.0];
        let behaviour = [-1.0 - 1.5f32.ln(), -1.0 - 3f32.ln()];
        let decoupled = PolicyObjective::Decoupled { clip_range: CLIP, weight_cap: 2.0 };
        let (loss, gradient, _) = loss_and_gradient(decoupled, &proximal, &proximal, &behaviour, &[1.0, 1.0])?;
        assert!((loss + 3.5).abs() < 1e-6); // −1.5 − 2 (the cap): no ratio is clipped, however far the sampler is
        assert!((gradient[0] + 1.5).abs() < 1e-6 && (gradient[1] + 2.0).abs() < 1e-6);

        // Plain PPO clips both around a policy that is gone: −1.2 − 1.2, and nothing is learned.
        let plain = PolicyObjective::Plain { clip_range: CLIP };
        let (loss, gradient, told) = loss_and_gradient(plain, &proximal, &proximal, &behaviour, &[1.0, 1.0])?;
        assert!((loss + 2.4).abs() < 1e-6);
        assert_eq!((gradient, told.n_clipped), (vec![0.0, 0.0], 2));

        // The second is outside of the band.
        let masked = PolicyObjective::Masked { clip_range: CLIP, band: [0.5, 2.0] };
        let (loss, gradient, told) = loss_and_gradient(masked, &proximal, &proximal, &behaviour, &[1.0, 1.0])?;
        assert!((loss + 1.5).abs() < 1e-6);
        assert!((gradient[0] + 1.5).abs() < 1e-6 && gradient[1] == 0.0);
        assert_eq!((told.n_masked, told.off_policy_weights.len()), (1, 1));
        Ok(())
    }

    #[test]
    fn the_truncated_weight_is_that_of_the_new_policy_and_passes_no_gradient() -> Result<()> {
        // new / behaviour: 1.5, 3, 0.5.
        let ratios = [1.5f32, 3.0, 0.5];
        let truncated = PolicyObjective::Truncated { weight_cap: 2.0 };
        let (loss, gradient, told) =
            loss_and_gradient(truncated, &ratios.map(f32::ln), &[9.0; 3], &[0.0; 3], &[1.0, 1.0, -1.0])?;
        assert!((loss - (-1.5 - 2.0 + 0.5)).abs() < 1e-6);
        for (gradient, expected) in gradient.iter().zip([-1.5, -2.0, 0.5]) {
            assert!((gradient - expected).abs() < 1e-6);
        }
        assert_eq!(told.n_clipped, 1);
        Ok(())
    }

    #[test]
    fn where_nothing_is_stale_all_but_the_truncated_are_plain_ppo_to_the_bit() -> Result<()> {
        let logprobs = [-1.234_567_8f32, -17.0, -1e-7];
        let (new, advantages) = ([-1.2f32, -17.5, -1e-6], [1.0f32, -2.0, 0.3]);
        let of = |objective| loss_and_gradient(objective, &new, &logprobs, &logprobs, &advantages);
        let (loss, gradient, _) = of(PolicyObjective::Plain { clip_range: CLIP })?;
        for objective in [
            PolicyObjective::Decoupled { clip_range: CLIP, weight_cap: 1.0 },
            PolicyObjective::Masked { clip_range: CLIP, band: [1.0, 1.0] },
        ] {
            let (its_loss, its_gradient, told) = of(objective)?;
            assert_eq!((its_loss.to_bits(), &its_gradient), (loss.to_bits(), &gradient));
            assert_eq!(told.off_policy_weights, [1.0; 3]);
        }
        Ok(())
    }

    #[test]
    fn what_is_masked_changes_no_bit_whatever_it_is() -> Result<()> {
        let masked = PolicyObjective::Masked { clip_range: CLIP, band: [0.5, 2.0] };
        let run = |behaviour: f32, advantage: f32| {
            let (new, proximal) = ([-1.1f32, -2.0], [-1.0f32, -2.0]);
            let (loss, gradient, _) =
                loss_and_gradient(masked, &new, &proximal, &[-1.2, behaviour], &[1.0, advantage])?;
            Ok::<_, candle_core::Error>((loss.to_bits(), gradient[0].to_bits(), gradient[1]))
        };
        let expected = run(-9.0, 1.0)?;
        assert_eq!(expected.2, 0.0);
        assert_eq!(run(f32::NAN, f32::NAN)?, expected);
        assert_eq!(run(f32::NEG_INFINITY, f32::INFINITY)?, expected);
        Ok(())
    }

    #[test]
    fn anything_not_finite_shows_in_the_loss_of_what_masks_nothing() -> Result<()> {
        let (fine, broken) = ([-1.0f32, -1.0], [-1.0f32, f32::NAN]);
        for objective in [
            PolicyObjective::Plain { clip_range: CLIP },
            PolicyObjective::Decoupled { clip_range: CLIP, weight_cap: 2.0 },
            PolicyObjective::Truncated { weight_cap: 2.0 },
        ] {
            assert!(loss_and_gradient(objective, &broken, &fine, &fine, &fine)?.0.is_nan());
            assert!(loss_and_gradient(objective, &fine, &fine, &broken, &fine)?.0.is_nan());
            assert!(loss_and_gradient(objective, &fine, &fine, &fine, &broken)?.0.is_nan());
            if objective.reads_proximal() {
                assert!(loss_and_gradient(objective, &fine, &broken, &fine, &fine)?.0.is_nan());
            }
        }
        Ok(())
    }
}
