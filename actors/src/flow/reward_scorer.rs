//! The reward scorer: gives each response its score.

use std::sync::Arc;

use collimate_protocol::roles::{Detokenizer, RewardFunction, RewardRequest};
use collimate_protocol::{ReferencedRollout, RoleError, Rollout, ScoredRollout};

use super::scorer::Score;

/// Adds what a [`RewardFunction`] says.
#[derive(Clone)]
pub(super) struct RewardScore {
    pub detokenizer: Arc<dyn Detokenizer>,
}

impl Score for RewardScore {
    type Engine = dyn RewardFunction;
    type Unscored = ReferencedRollout;
    type Verdict = f32;
    type Scored = ScoredRollout;

    fn rollout(unscored: &ReferencedRollout) -> &Rollout {
        &unscored.rollout
    }

    fn judge(
        &self,
        reward: &mut (dyn RewardFunction + 'static),
        referenced: &[ReferencedRollout],
    ) -> Result<Vec<f32>, RoleError> {
        let request = |referenced: &ReferencedRollout| RewardRequest::of(&referenced.rollout, &*self.detokenizer);
        let requests = referenced.iter().map(request).collect::<Result<Vec<_>, _>>()?;
        let scores = reward.scores(&requests)?;
        check(&requests, &scores)?;
        Ok(scores)
    }

    fn scored(referenced: ReferencedRollout, score: f32) -> ScoredRollout {
        let ReferencedRollout { rollout, ref_logprobs } = referenced;
        ScoredRollout { rollout, ref_logprobs, score }
    }
}

fn check(requests: &[RewardRequest], scores: &[f32]) -> Result<(), RoleError> {
    if scores.len() != requests.len() {
        let (found, expected) = (scores.len(), requests.len());
        return Err(format!("the reward function returned {found} scores for {expected} responses").into());
    }
    match scores.iter().zip(requests).find(|(score, _)| !score.is_finite()) {
        None => Ok(()),
        Some((score, request)) => {
            Err(format!("the reward function returned {score} for the response {:?}", request.response).into())
        }
    }
}
