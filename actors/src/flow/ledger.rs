//! The ledger: every ticket that was issued, until it comes home.
//!
//! `issued = trained + dropped + in flight` is checked after every event. The ledger is the staleness gate too: it
//! issues only while fewer than `(max_staleness + 1) * batch_size` tickets are in flight, and only as many as the
//! run still has to train on. Before a checkpoint it lets the flow run dry, so that a checkpoint has nothing in flight; and
//! before the reward model is replaced, so that whatever is issued at one side of that is scored at the same side.

use std::collections::BTreeMap;
use std::fmt::Write;

use collimate_protocol::records::{LedgerState, RewardModelSince};
use collimate_protocol::{
    DropReason, PolicyVersion, PromptId, RewardModelId, Ticket, TicketCounts, TicketHome, TicketId, TicketOutcome,
};

/// Open tickets that an error shows; a run may have thousands.
const N_TICKETS_SHOWN: usize = 20;

/// The ledger was violated: a bug in a role or in the wiring. The run stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ledger violated: {problem}\n{state}")]
pub struct LedgerError {
    /// What happened.
    pub problem: String,
    /// The ledger as it was then.
    pub state: String,
}

/// All tickets of a run. Pure: no clock, no channel.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Tickets that the run will train on in all.
    n_wanted: u64,
    /// Most tickets in flight.
    n_tickets: u64,
    /// Tickets that are trained on before it ends: fewer than `n_wanted` once the run is told to drain.
    goal: u64,
    /// Tickets trained on from one checkpoint to the next: none is issued that would be trained on beyond one.
    barrier: Option<u64>,
    /// Tickets that one update trains on.
    batch_size: u64,
    /// The reward model, where it is not the first.
    reward_model: Option<RewardModelSince>,
    /// The one that is to follow: none is issued that would be trained on beyond its version.
    next_reward_model: Option<RewardModelSince>,
    open: BTreeMap<TicketId, Ticket>,
    /// Those that came home because the run was told to stop: open again when it goes on.
    shut_down: BTreeMap<TicketId, Ticket>,
    /// `in_flight` is derived from `open`, the rest is counted on its own: so the law can fail, and be checked.
    counts: TicketCounts,
    /// Times that an open ticket's work was started again because its holder failed.
    n_issued_again: u64,
    closed_for_good: bool,
}

impl Ledger {
    /// An empty ledger. One update trains on `batch_size` tickets.
    pub fn new(n_wanted: u64, n_tickets: u64, batch_size: u64) -> Self {
        Self {
            n_wanted,
            goal: n_wanted,
            n_tickets,
            barrier: None,
            batch_size,
            reward_model: None,
            next_reward_model: None,
            open: BTreeMap::new(),
            shut_down: BTreeMap::new(),
            counts: TicketCounts::default(),
            n_issued_again: 0,
            closed_for_good: false,
        }
    }

    /// With a checkpoint each time that so many tickets were trained on.
    pub fn with_barrier(mut self, barrier: Option<u64>) -> Self {
        self.barrier = barrier.filter(|barrier| *barrier > 0);
        self
    }

    /// Goes on from a state: what was open is open, and is for the caller to issue again.
    pub fn resumed(mut self, state: &LedgerState) -> Self {
        self.open = state.open.iter().map(|ticket| (ticket.id, *ticket)).collect();
        self.counts = TicketCounts { in_flight: 0, ..state.counts.clone() };
        self.reward_model.clone_from(&state.reward_model);
        self.next_reward_model.clone_from(&state.next_reward_model);
        self
    }

    /// The ledger for a checkpoint: what was shut down is open.
    pub fn state(&self) -> LedgerState {
        let mut counts = self.counts.clone();
        let n_shut_down = self.shut_down.len() as u64;
        counts.dropped -= n_shut_down;
        if let Some(n) = counts.dropped_by_reason.get_mut(&DropReason::Shutdown) {
            *n -= n_shut_down;
        }
        counts.dropped_by_reason.retain(|_, n| *n > 0);
        let open: BTreeMap<TicketId, Ticket> =
            self.open.iter().chain(&self.shut_down).map(|(id, ticket)| (*id, *ticket)).collect();
        counts.in_flight = open.len() as u64;
        LedgerState {
            counts,
            open: open.into_values().collect(),
            reward_model: self.reward_model.clone(),
            next_reward_model: self.next_reward_model.clone(),
        }
    }

    /// Whether another ticket may be issued now.
    pub fn may_issue(&self) -> bool {
        let in_flight = self.open.len() as u64;
        let next_barrier = self.barrier.map_or(u64::MAX, |barrier| (self.counts.trained / barrier + 1) * barrier);
        let n_until_next = |next: &RewardModelSince| next.version.0 * self.batch_size;
        let replacement = self.next_reward_model.as_ref().map_or(u64::MAX, n_until_next);
        let limit = self.goal.min(next_barrier).min(replacement);
        !self.closed_for_good && self.counts.trained + in_flight < limit && in_flight < self.n_tickets
    }

    /// Opens a ticket.
    ///
    /// # Errors
    /// The gate is closed.
    pub fn issue(&mut self, prompt_id: PromptId, sample_idx: u32) -> Result<Ticket, LedgerError> {
        if !self.may_issue() {
            return Err(self.violation(format!("prompt {} was issued though the gate is closed", prompt_id.0)));
        }
        let ticket = Ticket { id: TicketId(self.counts.issued), prompt_id, sample_idx };
        self.open.insert(ticket.id, ticket);
        self.counts.issued += 1;
        self.check()?;
        Ok(ticket)
    }

    /// Closes a ticket.
    ///
    /// # Errors
    /// It was never issued, has come home before, or names another prompt than it was issued for.
    pub fn close(&mut self, home: TicketHome) -> Result<(), LedgerError> {
        let TicketHome { ticket, outcome } = home;
        match self.open.remove(&ticket.id) {
            Some(issued) if issued == ticket => {}
            Some(issued) => {
                return Err(self.violation(format!("{ticket:?} came home, but {issued:?} was issued")));
            }
            None if ticket.id.0 < self.counts.issued => {
                return Err(self.violation(format!("{ticket:?} came home a second time, as {outcome:?}")));
            }
            None => return Err(self.violation(format!("{ticket:?} came home, but was never issued"))),
        }
        match outcome {
            TicketOutcome::Trained(_) => {
                self.counts.trained += 1;
                self.replace_if_due();
            }
            TicketOutcome::Dropped(reason) => {
                self.counts.dropped += 1;
                if reason == DropReason::Shutdown {
                    self.shut_down.insert(ticket.id, ticket);
                }
                *self.counts.dropped_by_reason.entry(reason).or_default() += 1;
            }
        }
        self.check()
    }

    /// Lets the flow run dry at the end of the last batch that has tickets in flight, and puts this reward model in the
    /// place of the one before there: every ticket that is issued afterwards is scored by it, and none of those before.
    /// The version that the first update on its scores starts from; `None` where the run ends before that.
    pub fn replace_reward_model(&mut self, model: RewardModelId) -> Option<PolicyVersion> {
        let n_before = self.counts.trained + self.open.len() as u64;
        let version = PolicyVersion(n_before.div_ceil(self.batch_size));
        if self.closed_for_good || version.0 * self.batch_size >= self.goal {
            return None;
        }
        self.next_reward_model = Some(RewardModelSince { model, version });
        self.replace_if_due();
        Some(version)
    }

    fn replace_if_due(&mut self) {
        let is_due = |next: &mut RewardModelSince| next.version.0 * self.batch_size == self.counts.trained;
        if let Some(due) = self.next_reward_model.take_if(is_due) {
            self.reward_model = Some(due);
        }
    }

    /// The reward model by which every open ticket is scored; `None` for the first.
    pub fn reward_model(&self) -> Option<&RewardModelSince> {
        self.reward_model.as_ref()
    }

    /// Counts tickets whose work is started again.
    pub fn issued_again(&mut self, n_tickets: usize) {
        self.n_issued_again += n_tickets as u64;
    }

    /// How often tickets were issued again because their holder failed. No part of the law: they were open all along.
    pub fn n_issued_again(&self) -> u64 {
        self.n_issued_again
    }

    /// Issues nothing any more.
    pub fn close_gate(&mut self) {
        self.closed_for_good = true;
    }

    /// From now on only what fills whole batches of this size is still trained on.
    pub fn drain(&mut self, batch_size: u64) {
        let n_batches = self.open.len() as u64 / batch_size;
        self.goal = self.goal.min(self.counts.trained + n_batches * batch_size);
    }

    /// Whether everything that is to be trained on before the end has been.
    pub fn is_complete(&self) -> bool {
        self.counts.trained == self.goal
    }

    /// Whether the run has been told to end before all was trained on.
    pub fn is_cut_short(&self) -> bool {
        self.counts.trained < self.n_wanted
    }

    /// Tickets issued so far.
    pub fn n_issued(&self) -> u64 {
        self.counts.issued
    }

    /// Tickets that ended without being trained on, so far.
    pub fn n_dropped(&self) -> u64 {
        self.counts.dropped
    }

    /// The totals.
    pub fn counts(&self) -> TicketCounts {
        TicketCounts { in_flight: self.open.len() as u64, ..self.counts.clone() }
    }

    /// The state in words, for errors.
    pub fn describe(&self) -> String {
        let counts = self.counts();
        let mut text = format!(
            "tickets: {} issued, {} trained of {}, {} dropped {:?}, {} in flight of {}",
            counts.issued,
            counts.trained,
            self.n_wanted,
            counts.dropped,
            counts.dropped_by_reason,
            counts.in_flight,
            self.n_tickets
        );
        for ticket in self.open.values().take(N_TICKETS_SHOWN) {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\n  open: {} of prompt {}, sample {}",
                ticket.id.0, ticket.prompt_id.0, ticket.sample_idx
            );
        }
        if self.open.len() > N_TICKETS_SHOWN {
            let _ = write!(text, "\n  and {} more", self.open.len() - N_TICKETS_SHOWN);
        }
        text
    }

    fn check(&self) -> Result<(), LedgerError> {
        if self.counts().is_conserved() && self.counts.trained <= self.n_wanted {
            return Ok(());
        }
        Err(self.violation("issued = trained + dropped + in flight does not hold".to_owned()))
    }

    fn violation(&self, problem: String) -> LedgerError {
        LedgerError { problem, state: self.describe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(ticket: Ticket) -> TicketHome {
        TicketHome { ticket, outcome: TicketOutcome::Trained(PolicyVersion(0)) }
    }

    fn dropped(ticket: Ticket) -> TicketHome {
        TicketHome { ticket, outcome: TicketOutcome::Dropped(DropReason::TooStale) }
    }

    #[test]
    fn the_gate_closes_at_the_number_of_tickets_and_opens_when_one_comes_home() {
        let mut ledger = Ledger::new(10, 2, 1);
        let first = ledger.issue(PromptId(0), 0).unwrap();
        ledger.issue(PromptId(1), 0).unwrap();
        assert!(!ledger.may_issue());
        ledger.close(trained(first)).unwrap();
        assert!(ledger.may_issue());
    }

    #[test]
    fn no_more_is_issued_than_the_run_still_trains_on_and_a_drop_is_issued_again() {
        let mut ledger = Ledger::new(2, 8, 1);
        let first = ledger.issue(PromptId(0), 0).unwrap();
        let second = ledger.issue(PromptId(1), 0).unwrap();
        assert!(!ledger.may_issue());
        ledger.close(dropped(first)).unwrap();
        let third = ledger.issue(PromptId(2), 0).unwrap();
        ledger.close(trained(second)).unwrap();
        ledger.close(trained(third)).unwrap();
        assert!(!ledger.may_issue());
        assert!(ledger.is_complete());
        let counts = ledger.counts();
        assert_eq!((counts.issued, counts.trained, counts.dropped, counts.in_flight), (3, 2, 1, 0));
        assert_eq!(counts.dropped_by_reason, BTreeMap::from([(DropReason::TooStale, 1)]));
    }

    #[test]
    fn a_ticket_that_comes_home_twice_is_a_violation_that_shows_the_ledger() {
        let mut ledger = Ledger::new(4, 4, 1);
        let ticket = ledger.issue(PromptId(7), 2).unwrap();
        ledger.issue(PromptId(8), 2).unwrap();
        ledger.close(trained(ticket)).unwrap();
        let error = ledger.close(dropped(ticket)).unwrap_err().to_string();
        assert!(error.contains("a second time"), "{error}");
        assert!(error.contains("open: 1 of prompt 8, sample 2"), "{error}");
    }

    #[test]
    fn a_ticket_that_was_never_issued_or_was_altered_is_a_violation() {
        let mut ledger = Ledger::new(4, 4, 1);
        let ticket = ledger.issue(PromptId(7), 0).unwrap();
        let unknown = Ticket { id: TicketId(9), ..ticket };
        assert!(ledger.close(trained(unknown)).unwrap_err().to_string().contains("never issued"));
        let altered = Ticket { sample_idx: 1, ..ticket };
        assert!(ledger.close(trained(altered)).unwrap_err().to_string().contains("was issued"));
    }

    #[test]
    fn nothing_is_in_flight_at_a_barrier_and_a_drop_before_it_is_issued_again() {
        let mut ledger = Ledger::new(6, 4, 1).with_barrier(Some(2));
        let first = ledger.issue(PromptId(0), 0).unwrap();
        let second = ledger.issue(PromptId(1), 0).unwrap();
        assert!(!ledger.may_issue(), "a ticket that would be trained on beyond the barrier");
        ledger.close(dropped(first)).unwrap();
        let third = ledger.issue(PromptId(2), 0).unwrap();
        ledger.close(trained(second)).unwrap();
        assert!(!ledger.may_issue());
        ledger.close(trained(third)).unwrap();
        assert!(ledger.state().open.is_empty());
        assert!(ledger.may_issue());
    }

    fn reward_model(dir: &str) -> RewardModelId {
        RewardModelId { dir: dir.into(), weights: "0".into() }
    }

    #[test]
    fn a_reward_model_is_replaced_where_nothing_is_in_flight_and_the_gate_waits_for_that() {
        let mut ledger = Ledger::new(8, 4, 2);
        let tickets: Vec<Ticket> = (0..3).map(|n| ledger.issue(PromptId(n), 0).unwrap()).collect();
        // Three are in flight: one more belongs to their second batch, and none to the third.
        assert_eq!(ledger.replace_reward_model(reward_model("b")), Some(PolicyVersion(2)));
        ledger.close(dropped(tickets[2])).unwrap();
        let last: Vec<Ticket> = (3..5).map(|n| ledger.issue(PromptId(n), 0).unwrap()).collect();
        assert!(!ledger.may_issue());
        tickets[..2].iter().for_each(|ticket| ledger.close(trained(*ticket)).unwrap());
        assert!(!ledger.may_issue(), "a ticket of the batch that the new one scores, while others are in flight");
        assert_eq!((ledger.reward_model(), ledger.state().next_reward_model.unwrap().version.0), (None, 2));
        let resumed = Ledger::new(8, 4, 2).resumed(&ledger.state());
        assert!(!resumed.may_issue() && resumed.reward_model().is_none());
        last.iter().for_each(|ticket| ledger.close(trained(*ticket)).unwrap());
        assert_eq!(ledger.reward_model().unwrap().model, reward_model("b"));
        assert!(ledger.may_issue() && ledger.state().open.is_empty());
        assert_eq!(Ledger::new(8, 4, 2).resumed(&ledger.state()).reward_model(), ledger.reward_model());
    }

    #[test]
    fn of_two_that_are_to_follow_the_last_does_and_one_that_comes_too_late_is_refused() {
        let mut ledger = Ledger::new(4, 2, 2);
        assert_eq!(ledger.replace_reward_model(reward_model("b")), Some(PolicyVersion(0)));
        assert_eq!(ledger.reward_model().unwrap().model, reward_model("b"), "nothing was in flight");
        let tickets: Vec<Ticket> = (0..2).map(|n| ledger.issue(PromptId(n), 0).unwrap()).collect();
        ledger.replace_reward_model(reward_model("c")).unwrap();
        ledger.replace_reward_model(reward_model("d")).unwrap();
        tickets.iter().for_each(|ticket| ledger.close(trained(*ticket)).unwrap());
        assert_eq!(ledger.reward_model().unwrap().model, reward_model("d"));
        ledger.issue(PromptId(3), 0).unwrap();
        assert_eq!(ledger.replace_reward_model(reward_model("e")), None, "the last batch has begun");
        assert_eq!(ledger.state().next_reward_model, None);
    }

    #[test]
    fn what_was_shut_down_is_open_where_a_run_goes_on() {
        let mut ledger = Ledger::new(10, 4, 1);
        let tickets: Vec<Ticket> = (0..4).map(|n| ledger.issue(PromptId(n), 0).unwrap()).collect();
        ledger.close(trained(tickets[0])).unwrap();
        ledger.close(dropped(tickets[2])).unwrap();
        let outcome = TicketOutcome::Dropped(DropReason::Shutdown);
        ledger.close(TicketHome { ticket: tickets[3], outcome }).unwrap();
        let state = ledger.state();
        assert_eq!((&*state.open, state.problem()), (&[tickets[1], tickets[3]][..], None));
        assert_eq!((state.counts.dropped, state.counts.in_flight), (1, 2));

        let mut resumed = Ledger::new(10, 4, 1).resumed(&state);
        assert_eq!(resumed.state(), state);
        assert_eq!(resumed.issue(PromptId(4), 0).unwrap().id, TicketId(4));
        resumed.close(trained(tickets[3])).unwrap();
        assert!(resumed.close(trained(tickets[0])).is_err(), "trained on twice");
    }

    #[test]
    fn a_run_that_drains_trains_on_whole_batches_alone() {
        let mut ledger = Ledger::new(10, 8, 1);
        let tickets: Vec<Ticket> = (0..5).map(|n| ledger.issue(PromptId(n), 0).unwrap()).collect();
        ledger.drain(2);
        assert!(!ledger.may_issue());
        tickets[..4].iter().for_each(|ticket| ledger.close(trained(*ticket)).unwrap());
        assert!(ledger.is_complete() && ledger.is_cut_short());
    }

    #[test]
    fn a_prompt_past_the_gate_is_a_violation() {
        let mut ledger = Ledger::new(4, 1, 1);
        ledger.issue(PromptId(0), 0).unwrap();
        assert!(ledger.issue(PromptId(1), 0).unwrap_err().to_string().contains("the gate is closed"));
    }
}
