//! The reference scorer: adds the frozen SFT model's log-probabilities.

use collimate_protocol::roles::ReferencePolicy;
use collimate_protocol::{ReferencedRollout, Role, RoleError, Rollout};

use super::scorer::Score;

/// Adds what a [`ReferencePolicy`] says.
pub(super) struct ReferenceScore {
    pub reference: Box<dyn ReferencePolicy>,
}

impl Score for ReferenceScore {
    const ROLE: Role = Role::ReferenceScorer;
    type Unscored = Rollout;
    type Scored = ReferencedRollout;

    fn rollout(unscored: &Rollout) -> &Rollout {
        unscored
    }

    fn score(&mut self, rollouts: Vec<Rollout>) -> Result<Vec<ReferencedRollout>, RoleError> {
        let all_ref_logprobs = self.reference.logprobs(&rollouts)?;
        if all_ref_logprobs.len() != rollouts.len() {
            let (found, expected) = (all_ref_logprobs.len(), rollouts.len());
            return Err(
                format!("the reference returned log-probabilities of {found} responses, not of {expected}").into()
            );
        }
        let pair = |(rollout, ref_logprobs): (Rollout, Vec<f32>)| {
            let (found, expected) = (ref_logprobs.len(), rollout.response.len());
            if found != expected {
                let id = rollout.prompt.ticket.id.0;
                let error = format!("the reference returned {found} log-probabilities for ticket {id}, not {expected}");
                return Err(error.into());
            }
            Ok(ReferencedRollout { rollout, ref_logprobs })
        };
        rollouts.into_iter().zip(all_ref_logprobs).map(pair).collect()
    }
}
