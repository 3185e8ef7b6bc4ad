//! The ledger: every ticket that was issued, until it comes home.
//!
//! `issued = trained + dropped + in flight` is checked after every event. The ledger is the staleness gate too: it
//! issues only while fewer than `(max_staleness + 1) * batch_size` tickets are in flight, and only as many as the
//! run still has to train on.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collimate_protocol::{
    DropReason, Prompt, PromptId, ReferencedRollout, Rollout, ScoredRollout, Ticket, TicketCounts, TicketHome,
    TicketId, TicketOutcome,
};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::config::FlowConfig;

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
    open: BTreeMap<TicketId, Ticket>,
    /// `in_flight` is derived from `open`, the rest is counted on its own: so the law can fail, and be checked.
    counts: TicketCounts,
    /// Times that an open ticket's work was started again because its holder failed.
    n_issued_again: u64,
    closed_for_good: bool,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(n_wanted: u64, n_tickets: u64) -> Self {
        Self {
            n_wanted,
            n_tickets,
            open: BTreeMap::new(),
            counts: TicketCounts::default(),
            n_issued_again: 0,
            closed_for_good: false,
        }
    }

    /// Whether another ticket may be issued now.
    pub fn may_issue(&self) -> bool {
        let in_flight = self.open.len() as u64;
        !self.closed_for_good && self.counts.trained + in_flight < self.n_wanted && in_flight < self.n_tickets
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
            TicketOutcome::Trained(_) => self.counts.trained += 1,
            TicketOutcome::Dropped(reason) => {
                self.counts.dropped += 1;
                *self.counts.dropped_by_reason.entry(reason).or_default() += 1;
            }
        }
        self.check()
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

    /// Whether everything that was to be trained on has been.
    pub fn is_complete(&self) -> bool {
        self.counts.trained == self.n_wanted
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

/// Where tickets come home: the ledger as all roles share it. The prompt source is told of each return.
#[derive(Clone, Debug)]
pub struct TicketOffice {
    ledger: Arc<Mutex<Ledger>>,
    came_home: Sender<()>,
}

impl TicketOffice {
    /// An office, and the notice that a ticket has come home (one notice may stand for several).
    pub fn open(config: &FlowConfig) -> (Self, Receiver<()>) {
        let ledger = Ledger::new(config.n_rollouts(), config.n_tickets());
        let (came_home, notice) = bounded(1);
        (Self { ledger: Arc::new(Mutex::new(ledger)), came_home }, notice)
    }

    /// See [`Ledger::may_issue`].
    pub fn may_issue(&self) -> bool {
        self.ledger().may_issue()
    }

    /// See [`Ledger::issue`].
    pub fn issue(&self, prompt_id: PromptId, sample_idx: u32) -> Result<Ticket, LedgerError> {
        self.ledger().issue(prompt_id, sample_idx)
    }

    /// Takes tickets home, all with one outcome; the totals after that.
    pub fn take_home(
        &self,
        tickets: impl IntoIterator<Item = Ticket>,
        outcome: TicketOutcome,
    ) -> Result<TicketCounts, LedgerError> {
        let counts = {
            let mut ledger = self.ledger();
            for ticket in tickets {
                ledger.close(TicketHome { ticket, outcome })?;
            }
            ledger.counts()
        };
        // A full channel holds a notice that was not yet read: it stands for this one too. Without a prompt source
        // there is nobody to tell.
        let _ = self.came_home.try_send(());
        Ok(counts)
    }

    /// Takes home what will not be trained on because the run was told to stop.
    pub fn shut_down(&self, item: &impl CarriesTickets) -> Result<(), LedgerError> {
        self.take_home(item.tickets(), TicketOutcome::Dropped(DropReason::Shutdown)).map(drop)
    }

    /// See [`Ledger::issued_again`].
    pub fn issued_again(&self, n_tickets: usize) {
        self.ledger().issued_again(n_tickets);
    }

    /// See [`Ledger::n_issued_again`].
    pub fn n_issued_again(&self) -> u64 {
        self.ledger().n_issued_again()
    }

    /// See [`Ledger::close_gate`].
    pub fn close_gate(&self) {
        self.ledger().close_gate();
    }

    /// See [`Ledger::is_complete`].
    pub fn is_complete(&self) -> bool {
        self.ledger().is_complete()
    }

    /// The totals now.
    pub fn counts(&self) -> TicketCounts {
        self.ledger().counts()
    }

    /// See [`Ledger::describe`].
    pub fn describe(&self) -> String {
        self.ledger().describe()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every method leaves the ledger whole before it can panic: a poisoned lock is as good as any.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What travels with tickets.
pub trait CarriesTickets {
    /// Every ticket it carries.
    fn tickets(&self) -> Vec<Ticket>;
}

impl CarriesTickets for Prompt {
    fn tickets(&self) -> Vec<Ticket> {
        vec![self.ticket]
    }
}

impl CarriesTickets for Rollout {
    fn tickets(&self) -> Vec<Ticket> {
        vec![self.prompt.ticket]
    }
}

impl CarriesTickets for ReferencedRollout {
    fn tickets(&self) -> Vec<Ticket> {
        self.rollout.tickets()
    }
}

impl CarriesTickets for ScoredRollout {
    fn tickets(&self) -> Vec<Ticket> {
        self.rollout.tickets()
    }
}

impl CarriesTickets for collimate_protocol::ExperienceBatch {
    fn tickets(&self) -> Vec<Ticket> {
        self.experiences.iter().map(|experience| experience.scored.rollout.prompt.ticket).collect()
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::PolicyVersion;

    use super::*;

    fn trained(ticket: Ticket) -> TicketHome {
        TicketHome { ticket, outcome: TicketOutcome::Trained(PolicyVersion(0)) }
    }

    fn dropped(ticket: Ticket) -> TicketHome {
        TicketHome { ticket, outcome: TicketOutcome::Dropped(DropReason::TooStale) }
    }

    #[test]
    fn the_gate_closes_at_the_number_of_tickets_and_opens_when_one_comes_home() {
        let mut ledger = Ledger::new(10, 2);
        let first = ledger.issue(PromptId(0), 0).unwrap();
        ledger.issue(PromptId(1), 0).unwrap();
        assert!(!ledger.may_issue());
        ledger.close(trained(first)).unwrap();
        assert!(ledger.may_issue());
    }

    #[test]
    fn no_more_is_issued_than_the_run_still_trains_on_and_a_drop_is_issued_again() {
        let mut ledger = Ledger::new(2, 8);
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
        let mut ledger = Ledger::new(4, 4);
        let ticket = ledger.issue(PromptId(7), 2).unwrap();
        ledger.issue(PromptId(8), 2).unwrap();
        ledger.close(trained(ticket)).unwrap();
        let error = ledger.close(dropped(ticket)).unwrap_err().to_string();
        assert!(error.contains("a second time"), "{error}");
        assert!(error.contains("open: 1 of prompt 8, sample 2"), "{error}");
    }

    #[test]
    fn a_ticket_that_was_never_issued_or_was_altered_is_a_violation() {
        let mut ledger = Ledger::new(4, 4);
        let ticket = ledger.issue(PromptId(7), 0).unwrap();
        let unknown = Ticket { id: TicketId(9), ..ticket };
        assert!(ledger.close(trained(unknown)).unwrap_err().to_string().contains("never issued"));
        let altered = Ticket { sample_idx: 1, ..ticket };
        assert!(ledger.close(trained(altered)).unwrap_err().to_string().contains("was issued"));
    }

    #[test]
    fn a_prompt_past_the_gate_is_a_violation() {
        let mut ledger = Ledger::new(4, 1);
        ledger.issue(PromptId(0), 0).unwrap();
        assert!(ledger.issue(PromptId(1), 0).unwrap_err().to_string().contains("the gate is closed"));
    }
}
