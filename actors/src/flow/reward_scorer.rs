//! The reward scorer: gives each response its score.

use std::sync::Arc;

use collimate_protocol::roles::{Detokenizer, RewardFunction, RewardRequest};
use collimate_protocol::{ReferencedRollout, Role, RoleError, Rollout, ScoredRollout};

use super::scorer::Score;

/// Adds what a [`RewardFunction`] says.
pub(super) struct RewardScore {
    pub reward: Box<dyn RewardFunction>,
    pub detokenizer: Arc<dyn Detokenizer>,
}

impl Score for RewardScore {
    const ROLE: Role = Role::RewardScorer;
    type Unscored = ReferencedRollout;
    type Scored = ScoredRollout;

    fn rollout(unscored: &ReferencedRollout) -> &Rollout {
        &unscored.rollout
    }

    fn score(&mut self, referenced: Vec<ReferencedRollout>) -> Result<Vec<ScoredRollout>, RoleError> {
        let requests = referenced
            .iter()
            .map(|referenced| RewardRequest::of(&referenced.rollout, &*self.detokenizer))
            .collect::<Result<Vec<_>, _>>()?;
        let scores = self.reward.scores(&requests)?;
        if scores.len() != requests.len() {
            let (found, expected) = (scores.len(), requests.len());
            return Err(format!("the reward function returned {found} scores for {expected} responses").into());
        }
        if let Some((score, request)) = scores.iter().zip(&requests).find(|(score, _)| !score.is_finite()) {
            return Err(format!("the reward function returned {score} for the response {:?}", request.response).into());
        }
        let add = |(referenced, score): (ReferencedRollout, f32)| {
            let ReferencedRollout { rollout, ref_logprobs } = referenced;
            ScoredRollout { rollout, ref_logprobs, score }
        };
        Ok(referenced.into_iter().zip(scores).map(add).collect())
    }
}
