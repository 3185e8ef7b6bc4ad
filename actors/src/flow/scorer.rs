//! What both scorers have in common: take what is there, score it, send it on.
//!
//! A pass over a few rollouts costs nearly as much as one over many, and takes cores from whoever shares them. So a
//! scorer waits until some are there, unless no more are on their way, or a batch waits for those that are there.

use std::sync::Arc;

use collimate_protocol::{RoleError, RoleId, Rollout};
use crossbeam_channel::Select;

use super::approach::Approach;
use super::compute::Compute;
use super::counters::RoleCounters;
use super::hop::{Inlet, Outlet, Taken};
use super::office::{CarriesTickets, TicketOffice};
use super::worker::{Step, Worker, Workload, at_the_end};

/// How rollouts are scored.
pub(super) trait Score: Clone + Send + 'static {
    /// What computes.
    type Engine: ?Sized + Send + 'static;
    /// What is scored.
    type Unscored: CarriesTickets + Clone + Send + 'static;
    /// What is computed for each.
    type Verdict: Send + 'static;
    /// What comes of it.
    type Scored: CarriesTickets + Send;

    /// The rollout within.
    fn rollout(unscored: &Self::Unscored) -> &Rollout;

    /// A verdict on each, in order.
    fn judge(&self, engine: &mut Self::Engine, unscored: &[Self::Unscored]) -> Result<Vec<Self::Verdict>, RoleError>;

    /// Puts a verdict to what it is about.
    fn scored(unscored: Self::Unscored, verdict: Self::Verdict) -> Self::Scored;
}

/// The worker around a [`Score`].
pub(super) struct Scorer<S: Score> {
    pub role: RoleId,
    pub score: S,
    pub engine: Compute<S::Engine>,
    /// Most rollouts at once.
    pub scorer_batch: usize,
    /// Fewest, as long as more are on their way.
    pub scorer_waits_for: usize,
    pub approach: Approach,
    pub office: TicketOffice,
    pub unscored: Inlet<S::Unscored>,
    pub in_hand: Vec<S::Unscored>,
    /// The number of the first in hand among all that came to scorers of its kind.
    pub first_number: u64,
    pub scored: Outlet<S::Scored>,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
}

impl<S: Score> Scorer<S> {
    /// Whether what is in hand need not wait for more.
    fn may_begin(&self) -> bool {
        match self.in_hand.len() {
            0 => false,
            n if n >= self.scorer_waits_for => true,
            _ => !self.approach.is_more_to_come() || self.approach.has_whole_batch(self.first_number),
        }
    }
}

impl<S: Score> Worker for Scorer<S> {
    fn role(&self) -> RoleId {
        self.role
    }

    fn take(&mut self) -> Result<Step, RoleError> {
        self.approach.hear();
        if self.is_stopping {
            self.in_hand.drain(..).try_for_each(|unscored| self.office.shut_down(&unscored))?;
            self.scored.shut_down(&self.office)?;
            return self.unscored.shut_down(&self.office);
        }
        let was_blocked = self.scored.is_blocked();
        if !self.scored.flush() {
            return Ok(Step::Starved);
        }
        let mut any = false;
        while self.in_hand.len() < self.scorer_batch {
            let Taken::Item(unscored) = self.unscored.take() else { break };
            let number = self.approach.took_one();
            if self.in_hand.is_empty() {
                self.first_number = number;
            }
            self.in_hand.push(unscored);
            any = true;
        }
        if self.may_begin() {
            return Ok(Step::Ready);
        }
        if self.in_hand.is_empty() && self.unscored.has_ended() {
            return Ok(at_the_end(&self.office));
        }
        Ok(if was_blocked || any { Step::Progressed } else { Step::Starved })
    }

    fn work(&mut self) -> Result<(), RoleError> {
        let (score, unscored) = (self.score.clone(), self.in_hand.clone());
        let verdicts = self.engine.call(move |engine| score.judge(engine, &unscored))?;
        let Workload { n_items, n_tokens } = self.workload();
        self.counters.count(n_items, n_tokens);
        for (unscored, verdict) in self.in_hand.drain(..).zip(verdicts) {
            self.scored.push(S::scored(unscored, verdict));
        }
        Ok(())
    }

    fn workload(&self) -> Workload {
        let n_tokens = self.in_hand.iter().map(S::rollout).map(|r| r.prompt.tokens.len() + r.response.len()).sum();
        Workload { n_items: self.in_hand.len(), n_tokens }
    }

    fn recover(&mut self) {
        self.engine.discard();
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if self.scored.is_blocked() {
            self.scored.wait(select);
        } else {
            self.unscored.wait(select);
            self.approach.wait(select);
        }
    }

    fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn describe(&self) -> String {
        format!(
            "{} in hand, blocked: {}, upstream gone: {}",
            self.in_hand.len(),
            self.scored.is_blocked(),
            self.unscored.has_ended()
        )
    }
}
