//! The reference scorer: adds the frozen SFT model's log-probabilities.

use collimate_protocol::roles::ReferencePolicy;
use collimate_protocol::{ReferencedRollout, RoleError, Rollout};

use super::scorer::Score;

/// Adds what a [`ReferencePolicy`] says.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReferenceScore;

impl Score for ReferenceScore {
    type Engine = dyn ReferencePolicy;
    type Unscored = Rollout;
    type Verdict = Vec<f32>;
    type Scored = ReferencedRollout;

    fn rollout(unscored: &Rollout) -> &Rollout {
        unscored
    }

    fn judge(
        &self,
        reference: &mut (dyn ReferencePolicy + 'static),
        rollouts: &[Rollout],
    ) -> Result<Vec<Vec<f32>>, RoleError> {
        let ref_logprobs = reference.logprobs(rollouts)?;
        check(rollouts, &ref_logprobs)?;
        Ok(ref_logprobs)
    }

    fn scored(rollout: Rollout, ref_logprobs: Vec<f32>) -> ReferencedRollout {
        ReferencedRollout { rollout, ref_logprobs }
    }
}

fn check(rollouts: &[Rollout], all_ref_logprobs: &[Vec<f32>]) -> Result<(), RoleError> {
    let (found, expected) = (all_ref_logprobs.len(), rollouts.len());
    if found != expected {
        return Err(format!("the reference returned log-probabilities of {found} responses, not of {expected}").into());
    }
    for (rollout, ref_logprobs) in rollouts.iter().zip(all_ref_logprobs) {
        let (found, expected) = (ref_logprobs.len(), rollout.response.len());
        if found != expected {
            let id = rollout.prompt.ticket.id.0;
            return Err(
                format!("the reference returned {found} log-probabilities for ticket {id}, not {expected}").into()
            );
        }
    }
    Ok(())
}
