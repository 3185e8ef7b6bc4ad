//! The reward scorer: gives each response its score. The reward model may be replaced while the run goes on: the ledger
//! says by which one a ticket is scored.

use std::sync::Arc;

use collimate_protocol::roles::{Detokenizer, RewardFunction, RewardModels, RewardRequest};
use collimate_protocol::{ReferencedRollout, RewardModelId, RoleError, Rollout, ScoredRollout};

use super::compute::Factory;
use super::office::TicketOffice;
use super::scorer::Score;

/// What gives the scores at this time: what the run began with, or a reward model that was put in its place.
pub(super) struct RewardInUse {
    first: Factory<dyn RewardFunction>,
    others: Option<Arc<dyn RewardModels>>,
    /// The one in memory: `None` stands for the first. Only one is.
    loaded: Option<(Option<RewardModelId>, Box<dyn RewardFunction>)>,
}

impl RewardInUse {
    /// Nothing is made before the first scores are asked for.
    pub fn new(first: Factory<dyn RewardFunction>, others: Option<Arc<dyn RewardModels>>) -> Self {
        Self { first, others, loaded: None }
    }

    /// Gives scores by this reward model; `None` for what the run began with.
    pub fn scores(&mut self, model: Option<&RewardModelId>, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
        if self.loaded.as_ref().is_none_or(|(loaded, _)| loaded.as_ref() != model) {
            // Before the next one is read, so that they are never in memory together.
            self.loaded = None;
            self.loaded = Some((model.cloned(), self.make(model)?));
        }
        let Some((_, function)) = &mut self.loaded else { return Err("there is nothing that gives scores".into()) };
        let scores = function.scores(requests)?;
        check(requests, &scores)?;
        Ok(scores)
    }

    fn make(&self, model: Option<&RewardModelId>) -> Result<Box<dyn RewardFunction>, RoleError> {
        let Some(model) = model else { return self.first.make() };
        let others = self.others.as_ref().ok_or_else(|| no_other(model))?;
        others.load(model)
    }
}

fn no_other(model: &RewardModelId) -> String {
    format!("the scores of this run come from no reward model that could be replaced, but {model} is to give them")
}

/// Adds what the reward model in use says.
#[derive(Clone)]
pub(super) struct RewardScore {
    pub detokenizer: Arc<dyn Detokenizer>,
    pub office: TicketOffice,
}

impl Score for RewardScore {
    type Engine = RewardInUse;
    type Unscored = ReferencedRollout;
    type Verdict = f32;
    type Scored = ScoredRollout;

    fn rollout(unscored: &ReferencedRollout) -> &Rollout {
        &unscored.rollout
    }

    fn judge(&self, reward: &mut RewardInUse, referenced: &[ReferencedRollout]) -> Result<Vec<f32>, RoleError> {
        let request = |referenced: &ReferencedRollout| RewardRequest::of(&referenced.rollout, &*self.detokenizer);
        let requests = referenced.iter().map(request).collect::<Result<Vec<_>, _>>()?;
        // All of them are in flight, so it is the same for all, now and until their batch has been trained on.
        let model = self.office.reward_model().map(|since| since.model);
        reward.scores(model.as_ref(), &requests)
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
