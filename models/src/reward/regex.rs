//! Reward by a regular expression.

use collimate_protocol::RoleError;
use collimate_protocol::roles::{RewardFunction, RewardRequest};
use regex::Regex;

use crate::error::{Error, Result};

/// 1 where the expression is found in the response, else 0.
#[derive(Clone, Debug)]
pub struct RegexReward {
    pattern: Regex,
}

impl RegexReward {
    /// # Errors
    /// The pattern is no regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        let pattern = Regex::new(pattern)
            .map_err(|error| Error::invalid(format!("`pattern` is no regular expression: {error}")))?;
        Ok(Self { pattern })
    }
}

impl RewardFunction for RegexReward {
    fn scores(&mut self, requests: &[RewardRequest]) -> std::result::Result<Vec<f32>, RoleError> {
        Ok(requests.iter().map(|request| f32::from(u8::from(self.pattern.is_match(&request.response)))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::*;

    #[test]
    fn the_response_is_searched_and_not_the_prompt() {
        let mut reward = RegexReward::new(r"(?i)\bthank").unwrap();
        let requests = [request("", "and thanks"), request("thanks", "no"), request("", "Thank you"), request("", "")];
        assert_eq!(reward.scores(&requests).unwrap(), [1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_pattern_that_is_none_is_refused() {
        let message = RegexReward::new("a(").unwrap_err().to_string();
        assert!(message.contains("`pattern` is no regular expression") && message.contains("a("), "{message}");
    }
}
