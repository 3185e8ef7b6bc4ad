//! What both scorers have in common: take what is there, score it, send it on.

use std::sync::Arc;

use collimate_protocol::{Role, RoleError, RoleId, Rollout};
use crossbeam_channel::Select;

use super::counters::RoleCounters;
use super::hop::{Inlet, Outlet, Taken};
use super::ledger::{CarriesTickets, TicketOffice};
use super::worker::{Step, Worker, at_the_end};

/// Scores rollouts.
pub(super) trait Score: Send {
    /// Which role this is.
    const ROLE: Role;
    /// What is scored.
    type Unscored: CarriesTickets + Send;
    /// What comes of it.
    type Scored: CarriesTickets + Send;

    /// The rollout within.
    fn rollout(unscored: &Self::Unscored) -> &Rollout;

    /// Scores some, in order.
    fn score(&mut self, unscored: Vec<Self::Unscored>) -> Result<Vec<Self::Scored>, RoleError>;
}

/// The worker around a [`Score`].
pub(super) struct Scorer<S: Score> {
    pub score: S,
    /// Most rollouts at once.
    pub scorer_batch: usize,
    pub office: TicketOffice,
    pub unscored: Inlet<S::Unscored>,
    pub scored: Outlet<S::Scored>,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
}

impl<S: Score> Worker for Scorer<S> {
    fn role(&self) -> RoleId {
        RoleId::only(S::ROLE)
    }

    fn step(&mut self) -> Result<Step, RoleError> {
        if self.is_stopping {
            self.scored.shut_down(&self.office)?;
            return self.unscored.shut_down(&self.office);
        }
        let was_blocked = self.scored.is_blocked();
        if !self.scored.flush() {
            return Ok(Step::Starved);
        }
        let mut in_hand = Vec::new();
        while in_hand.len() < self.scorer_batch {
            let Taken::Item(unscored) = self.unscored.take() else { break };
            in_hand.push(unscored);
        }
        if in_hand.is_empty() {
            if self.unscored.has_ended() {
                return Ok(at_the_end(&self.office));
            }
            return Ok(if was_blocked { Step::Progressed } else { Step::Starved });
        }
        let n_tokens = in_hand.iter().map(S::rollout).map(|r| r.prompt.tokens.len() + r.response.len()).sum();
        self.counters.count(in_hand.len(), n_tokens);
        for scored in self.score.score(in_hand)? {
            self.scored.push(scored);
        }
        Ok(Step::Progressed)
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if self.scored.is_blocked() {
            self.scored.wait(select);
        } else {
            self.unscored.wait(select);
        }
    }

    fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn describe(&self) -> String {
        format!("blocked: {}, upstream gone: {}", self.scored.is_blocked(), self.unscored.has_ended())
    }
}
