//! The ticket office: the ledger as all roles share it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collimate_protocol::records::{LedgerState, RewardModelSince};
use collimate_protocol::{
    DropReason, ExperienceBatch, PolicyVersion, Prompt, PromptId, ReferencedRollout, RewardModelId, Rollout,
    ScoredRollout, Ticket, TicketCounts, TicketHome, TicketOutcome,
};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::config::FlowConfig;
use super::experience_buffer::ReadyBatch;
use super::ledger::{Ledger, LedgerError};

/// Where tickets come home: the ledger as all roles share it. The prompt source is told of each return.
#[derive(Clone, Debug)]
pub struct TicketOffice {
    ledger: Arc<Mutex<Ledger>>,
    came_home: Sender<()>,
}

impl TicketOffice {
    /// An office, and the notice that a ticket has come home (one notice may stand for several).
    pub fn open(config: &FlowConfig, resumed: Option<&LedgerState>) -> (Self, Receiver<()>) {
        let ledger = Ledger::new(config.n_rollouts(), config.n_tickets(), config.batch_size as u64);
        let ledger = ledger.with_barrier(config.barrier());
        let ledger = match resumed {
            Some(state) => ledger.resumed(state),
            None => ledger,
        };
        let (came_home, notice) = bounded(1);
        (Self { ledger: Arc::new(Mutex::new(ledger)), came_home }, notice)
    }

    /// Opens a ticket for the next prompt, if the gate is open. `next` gives the prompt's id, which of its samples this
    /// will be, and its tokens; it is not called in vain.
    ///
    /// # Errors
    /// See [`Ledger::issue`].
    pub fn issue(&self, next: impl FnOnce() -> (PromptId, u32, Vec<u32>)) -> Result<Option<Prompt>, LedgerError> {
        // Under one lock: whoever tells the flow to drain may close the gate at any time.
        let mut ledger = self.ledger();
        if !ledger.may_issue() {
            return Ok(None);
        }
        let (prompt_id, sample_idx, tokens) = next();
        let ticket = ledger.issue(prompt_id, sample_idx)?;
        Ok(Some(Prompt { ticket, tokens }))
    }

    /// See [`Ledger::may_issue`].
    pub fn may_issue(&self) -> bool {
        self.ledger().may_issue()
    }

    /// Takes tickets home, all with one outcome.
    ///
    /// # Errors
    /// See [`Ledger::close`].
    pub fn take_home(
        &self,
        tickets: impl IntoIterator<Item = Ticket>,
        outcome: TicketOutcome,
    ) -> Result<(), LedgerError> {
        self.take_home_then(tickets, outcome, |_| ())
    }

    /// Takes tickets home, all with one outcome, and reads the ledger before anybody else changes it.
    ///
    /// # Errors
    /// See [`Ledger::close`].
    pub fn take_home_then<R>(
        &self,
        tickets: impl IntoIterator<Item = Ticket>,
        outcome: TicketOutcome,
        read: impl FnOnce(&Ledger) -> R,
    ) -> Result<R, LedgerError> {
        let result = {
            let mut ledger = self.ledger();
            for ticket in tickets {
                ledger.close(TicketHome { ticket, outcome })?;
            }
            read(&ledger)
        };
        // A full channel holds a notice that was not yet read: it stands for this one too. Without a prompt source
        // there is nobody to tell.
        let _ = self.came_home.try_send(());
        Ok(result)
    }

    /// See [`Ledger::replace_reward_model`].
    pub fn replace_reward_model(&self, model: RewardModelId) -> Option<PolicyVersion> {
        self.ledger().replace_reward_model(model)
    }

    /// See [`Ledger::reward_model`]. It stays the same as long as any ticket is in flight.
    pub fn reward_model(&self) -> Option<RewardModelSince> {
        self.ledger().reward_model().cloned()
    }

    /// See [`Ledger::drain`].
    pub fn drain(&self, batch_size: u64) {
        self.ledger().drain(batch_size);
        // The prompt source may have to end.
        let _ = self.came_home.try_send(());
    }

    /// See [`Ledger::is_cut_short`].
    pub fn is_cut_short(&self) -> bool {
        self.ledger().is_cut_short()
    }

    /// See [`Ledger::state`].
    pub fn state(&self) -> LedgerState {
        self.ledger().state()
    }

    /// Takes home what will not be trained on because the run was told to stop.
    pub fn shut_down(&self, item: &impl CarriesTickets) -> Result<(), LedgerError> {
        self.take_home(item.tickets(), TicketOutcome::Dropped(DropReason::Shutdown))
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

    /// Tickets issued so far.
    pub fn n_issued(&self) -> u64 {
        self.ledger().n_issued()
    }

    /// Tickets that ended without being trained on, so far.
    pub fn n_dropped(&self) -> u64 {
        self.ledger().n_dropped()
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

impl CarriesTickets for ReadyBatch {
    fn tickets(&self) -> Vec<Ticket> {
        self.batch.tickets()
    }
}

impl CarriesTickets for ExperienceBatch {
    fn tickets(&self) -> Vec<Ticket> {
        self.experiences.iter().map(|experience| experience.scored.rollout.prompt.ticket).collect()
    }
}
