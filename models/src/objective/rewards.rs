//! From one score a response to a reward a token.

use collimate_protocol::FinishReason;
use serde::{Deserialize, Serialize};

use super::kl::k1;

/// What the policy is paid for a score: `length_cutoff_penalty` less where the response was cut off by its length
/// rather than ended by the policy. It depends on the finish reason alone, so every end token counts as an end.
pub fn cut_off_score(score: f32, finish: FinishReason, length_cutoff_penalty: f32) -> f32 {
    match finish {
        FinishReason::End => score,
        FinishReason::Length => score - length_cutoff_penalty,
    }
}

/// Reward of each response token: `−kl_coef · (logprobs − ref_logprobs)`, plus the score on the last token, which is
/// the end token where there is one (Stiennon et al. 2020, section 3.4). An empty response has no token to be paid.
pub fn rewards(logprobs: &[f32], ref_logprobs: &[f32], kl_coef: f32, score: f32) -> Vec<f32> {
    let mut rewards: Vec<f32> =
        logprobs.iter().zip(ref_logprobs).map(|(&logprob, &reference)| -kl_coef * k1(logprob, reference)).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

/// Mean and deviation of all finite scores so far (Welford 1962), by which scores are brought to mean 0 and
/// deviation 1. Rewards of a large scale would otherwise blow up the value loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreNormalizer {
    /// How many scores were seen.
    pub n: u64,
    /// Their mean.
    pub mean: f64,
    /// Sum of their squared distances to the mean.
    pub sum_of_squares: f64,
}

impl ScoreNormalizer {
    /// Takes in a batch's scores.
    pub fn observe(&mut self, scores: impl IntoIterator<Item = f32>) {
        for score in scores.into_iter().map(f64::from).filter(|score| score.is_finite()) {
            self.n += 1;
            let distance = score - self.mean;
            self.mean += distance / self.n as f64;
            self.sum_of_squares += distance * (score - self.mean);
        }
    }

    /// Population standard deviation of the scores seen; 1 while they are all equal, so that dividing by it is safe.
    pub fn std(&self) -> f64 {
        let std = (self.sum_of_squares / self.n.max(1) as f64).sqrt();
        if std > 0.0 { std } else { 1.0 }
    }

    /// A score, shifted and scaled.
    pub fn normalize(&self, score: f32) -> f32 {
        ((f64::from(score) - self.mean) / self.std()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_stands_on_the_last_token_and_rewards_sum_to_score_less_kl() {
        let (logprobs, ref_logprobs) = ([-1.0, -2.0, -0.5], [-1.5, -1.0, -0.5]);
        let rewards = rewards(&logprobs, &ref_logprobs, 0.1, 2.0);
        assert_eq!(rewards, [-0.05, 0.1, 2.0]);
        let kl: f32 = logprobs.iter().zip(&ref_logprobs).map(|(a, b)| a - b).sum();
        assert!((rewards.iter().sum::<f32>() - (2.0 - 0.1 * kl)).abs() < 1e-6);
    }

    #[test]
    fn an_empty_response_has_no_rewards() {
        assert!(rewards(&[], &[], 0.1, 2.0).is_empty());
    }

    #[test]
    fn the_cutoff_penalty_is_keyed_on_the_finish_reason() {
        assert_eq!(cut_off_score(2.0, FinishReason::End, 0.5), 2.0);
        assert_eq!(cut_off_score(2.0, FinishReason::Length, 0.5), 1.5);
        assert_eq!(cut_off_score(2.0, FinishReason::Length, 0.0), 2.0);
    }

    #[test]
    fn scores_of_any_scale_come_out_with_mean_zero_and_deviation_one() {
        let scores = [1e6f32, 3e6, 5e6, 7e6];
        let mut normalizer = ScoreNormalizer::default();
        normalizer.observe(scores[..2].iter().copied());
        normalizer.observe(scores[2..].iter().copied());
        assert_eq!(normalizer.mean, 4e6);
        assert!((normalizer.std() - 5e12f64.sqrt()).abs() < 1e-3);
        let normalized = scores.map(|score| f64::from(normalizer.normalize(score)));
        assert!(normalized.iter().sum::<f64>().abs() < 1e-6);
        assert!((normalized.iter().map(|x| x * x).sum::<f64>() / 4.0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn equal_or_non_finite_scores_do_not_break_the_normalizer() {
        let mut normalizer = ScoreNormalizer::default();
        normalizer.observe([2.0, f32::NAN, 2.0]);
        assert_eq!((normalizer.n, normalizer.normalize(2.0), normalizer.normalize(3.0)), (2, 0.0, 1.0));
    }
}
