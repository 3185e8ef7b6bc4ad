//! The prompt source: issues prompts with tickets while the gate is open.

use std::sync::Arc;

use collimate_models::rng;
use collimate_protocol::{DropReason, Prompt, PromptId, Role, RoleError, RoleId, Ticket, TicketOutcome};
use crossbeam_channel::{Receiver, Select};
use rand::seq::SliceRandom;

use super::counters::RoleCounters;
use super::error::RunError;
use super::hop::Outlet;
use super::office::TicketOffice;
use super::worker::{Step, Worker};

/// All prompts, pass after pass, each pass in an order of its own. The n-th prompt is a function of the seed and n.
#[derive(Clone, Debug)]
pub struct PromptSupply {
    prompts: Vec<Vec<u32>>,
    seed: u64,
    /// Prompts handed out so far.
    n_taken: u64,
    /// Of the pass that the next prompt belongs to.
    order: Vec<usize>,
}

impl PromptSupply {
    /// Prompts as token ids; a prompt's index is its [`PromptId`].
    ///
    /// # Errors
    /// There is no prompt, or one is empty.
    pub fn new(prompts: Vec<Vec<u32>>, seed: u64) -> Result<Self, RunError> {
        if prompts.is_empty() {
            return Err(RunError::Config("there are no prompts to sample from".to_owned()));
        }
        if let Some(idx) = prompts.iter().position(Vec::is_empty) {
            return Err(RunError::Config(format!("prompt {idx} has no token")));
        }
        Ok(Self { prompts, seed, n_taken: 0, order: Vec::new() })
    }

    /// How many prompts there are.
    pub fn n_prompts(&self) -> usize {
        self.prompts.len()
    }

    /// Goes on after this many prompts.
    pub fn skip_to(&mut self, n_taken: u64) {
        let place = n_taken % self.prompts.len() as u64;
        // The order of a pass is made with its first prompt.
        self.n_taken = n_taken - place;
        (0..place).for_each(|_| drop(self.next_prompt()));
    }

    /// The tokens of a prompt that was handed out before.
    pub fn tokens_of(&self, prompt_id: PromptId) -> Option<&[u32]> {
        self.prompts.get(prompt_id.0 as usize).map(Vec::as_slice)
    }

    /// The next prompt, which of its samples this will be, and its tokens.
    pub fn next_prompt(&mut self) -> (PromptId, u32, Vec<u32>) {
        let n_prompts = self.prompts.len() as u64;
        let (pass, place) = (self.n_taken / n_prompts, (self.n_taken % n_prompts) as usize);
        if place == 0 {
            self.order = (0..self.prompts.len()).collect();
            self.order.shuffle(&mut rng::for_purpose(self.seed, &format!("prompts of pass {pass}")));
        }
        self.n_taken += 1;
        let prompt_idx = self.order[place];
        (PromptId(prompt_idx as u64), pass as u32, self.prompts[prompt_idx].clone())
    }
}

/// The worker around a [`PromptSupply`].
pub(super) struct PromptSource {
    pub supply: PromptSupply,
    pub office: TicketOffice,
    /// Tickets of the checkpoint that the run goes on from, last first: open, and to be issued again.
    pub to_issue_again: Vec<Ticket>,
    /// Says that a ticket has come home.
    pub came_home: Receiver<()>,
    pub prompts: Outlet<Prompt>,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
}

impl Worker for PromptSource {
    fn role(&self) -> RoleId {
        RoleId::only(Role::PromptSource)
    }

    fn take(&mut self) -> Result<Step, RoleError> {
        if self.is_stopping {
            let tickets = std::mem::take(&mut self.to_issue_again);
            self.office.take_home(tickets, TicketOutcome::Dropped(DropReason::Shutdown))?;
            self.prompts.shut_down(&self.office)?;
            return Ok(Step::Finished);
        }
        let was_blocked = self.prompts.is_blocked();
        if !self.prompts.flush() {
            return Ok(Step::Starved);
        }
        // Before the gate is looked at, so that a notice that comes after that is kept.
        while self.came_home.try_recv().is_ok() {}
        let mut n_issued = 0;
        while !self.prompts.is_blocked()
            && let Some(ticket) = self.to_issue_again.pop()
        {
            let tokens = self.supply.tokens_of(ticket.prompt_id);
            let unknown =
                || format!("the checkpoint has an open ticket of prompt {}, which is not there", ticket.prompt_id.0);
            let tokens = tokens.ok_or_else(unknown)?.to_vec();
            self.counters.count(1, tokens.len());
            self.prompts.push(Prompt { ticket, tokens });
            n_issued += 1;
        }
        while !self.prompts.is_blocked()
            && let Some(prompt) = self.office.issue(|| self.supply.next_prompt())?
        {
            self.counters.count(1, prompt.tokens.len());
            self.prompts.push(prompt);
            n_issued += 1;
        }
        if n_issued == 0 && self.office.is_complete() {
            return Ok(Step::Finished);
        }
        Ok(if n_issued > 0 || was_blocked { Step::Progressed } else { Step::Starved })
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if self.prompts.is_blocked() {
            self.prompts.wait(select);
        } else {
            select.recv(&self.came_home);
        }
    }

    fn stop(&mut self) {
        self.office.close_gate();
        self.is_stopping = true;
    }

    fn describe(&self) -> String {
        format!("{} prompts taken, blocked: {}", self.supply.n_taken, self.prompts.is_blocked())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn supply(seed: u64) -> PromptSupply {
        PromptSupply::new((0..10).map(|n| vec![n]).collect(), seed).unwrap()
    }

    fn pass(supply: &mut PromptSupply) -> Vec<(u64, u32)> {
        (0..10).map(|_| supply.next_prompt()).map(|(id, sample_idx, _)| (id.0, sample_idx)).collect()
    }

    #[test]
    fn each_pass_has_every_prompt_once_in_its_own_order_with_the_next_sample_idx() {
        let mut supply = supply(3);
        let (first, second) = (pass(&mut supply), pass(&mut supply));
        for (sample_idx, pass) in [(0, &first), (1, &second)] {
            assert_eq!(pass.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>(), (0..10).collect());
            assert!(pass.iter().all(|(_, s)| *s == sample_idx));
        }
        assert_ne!(first.iter().map(|p| p.0).collect::<Vec<_>>(), second.iter().map(|p| p.0).collect::<Vec<_>>());
    }

    #[test]
    fn the_order_is_a_function_of_the_seed() {
        assert_eq!(pass(&mut supply(3)), pass(&mut supply(3)));
        assert_ne!(pass(&mut supply(3)), pass(&mut supply(4)));
    }

    #[test]
    fn a_supply_goes_on_anywhere() {
        let mut straight = supply(3);
        let prompts: Vec<_> = (0..35).map(|_| straight.next_prompt()).collect();
        for n_taken in [0, 7, 10, 23, 30] {
            let mut resumed = supply(3);
            resumed.skip_to(n_taken);
            assert_eq!(resumed.next_prompt(), prompts[n_taken as usize]);
            assert_eq!(resumed.next_prompt(), prompts[n_taken as usize + 1]);
        }
    }

    #[test]
    fn no_prompt_and_an_empty_prompt_are_refused() {
        assert!(PromptSupply::new(vec![], 0).is_err());
        let error = PromptSupply::new(vec![vec![1], vec![]], 0).unwrap_err();
        assert_eq!(error.to_string(), "prompt 1 has no token");
    }
}
