//! Reward by length.

use collimate_protocol::roles::{RewardFunction, RewardRequest};
use collimate_protocol::{FinishReason, RoleError};

use crate::error::{Error, Result};

/// `−|n − target| / target` for a response of n tokens, the end token not counted: 0 at best, −1 for an empty one.
#[derive(Clone, Copy, Debug)]
pub struct LengthReward {
    target_tokens: usize,
}

impl LengthReward {
    /// # Errors
    /// A target of 0.
    pub fn new(target_tokens: usize) -> Result<Self> {
        if target_tokens == 0 {
            return Err(Error::invalid("`target_tokens` is 0, expected a positive length"));
        }
        Ok(Self { target_tokens })
    }
}

impl RewardFunction for LengthReward {
    fn scores(&mut self, requests: &[RewardRequest]) -> std::result::Result<Vec<f32>, RoleError> {
        let score = |request: &RewardRequest| {
            let has_end_token = request.finish == FinishReason::End;
            let n_tokens = request.response_tokens.len().saturating_sub(usize::from(has_end_token));
            -(n_tokens.abs_diff(self.target_tokens) as f32) / self.target_tokens as f32
        };
        Ok(requests.iter().map(score).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::*;

    #[test]
    fn the_distance_counts_to_both_sides_and_the_end_token_does_not() {
        let mut reward = LengthReward::new(4).unwrap();
        let cut_off = RewardRequest { finish: FinishReason::Length, ..request("", "a b c") };
        let requests = [request("", "a b c d"), request("", "a"), request("", "a b c d e f"), request("", ""), cut_off];
        assert_eq!(reward.scores(&requests).unwrap(), [0.0, -0.75, -0.5, -1.0, 0.0]);
        assert!(LengthReward::new(0).is_err());
    }
}
