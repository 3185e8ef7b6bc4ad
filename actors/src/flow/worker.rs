//! What a driver runs: a role as a state machine that never blocks.

use collimate_protocol::messages::RunEvent;
use collimate_protocol::{RoleError, RoleId, SettingChange};
use crossbeam_channel::Select;

use super::office::TicketOffice;

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is work in hand: [`Worker::work`] is to follow.
    Ready,
    /// Something was done; more may be possible at once.
    Progressed,
    /// Nothing can be done before another role has done something.
    Starved,
    /// All is done. Not to be stepped again; dropping the worker tells the next role that nothing more comes.
    Finished,
}

/// A piece of work, in numbers: what a simulation needs to say how long it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Rollouts, or sequences.
    pub n_items: usize,
    /// Tokens that go through a model.
    pub n_tokens: usize,
}

/// A role at work. The same worker runs on a thread of its own, in turn with all others on one, or in simulated time.
///
/// A step has two halves. The first takes what is there and computes nothing; the second computes on it and sends on
/// what comes of it. What was taken stays in hand until the second has succeeded, so that a failure loses nothing.
///
/// An end of the data is what finishes a worker, and an upstream that is gone is not enough for that: it may have
/// crashed. Only with the ledger complete, or after [`stop`](Worker::stop), is nothing more to come.
pub trait Worker: Send {
    /// Who this is.
    fn role(&self) -> RoleId;

    /// Takes the next piece of work, if there is any, without waiting for anybody.
    ///
    /// # Errors
    /// The role can't go on without [`recover`](Worker::recover).
    fn take(&mut self) -> Result<Step, RoleError>;

    /// Does the work in hand. Only called after [`Step::Ready`].
    ///
    /// # Errors
    /// As for [`take`](Worker::take).
    fn work(&mut self) -> Result<(), RoleError> {
        Ok(())
    }

    /// The work in hand.
    fn workload(&self) -> Workload {
        Workload::default()
    }

    /// After a failed step: throws away what computes, and sees to it that the next steps do again what was in hand.
    fn recover(&mut self) {}

    /// Changes a setting. Only the experience buffer is told: the change travels on from there, with the data.
    fn change(&mut self, _: SettingChange) {}

    /// Keeps the whole state before the next update. Only the learner is told.
    fn checkpoint(&mut self) {}

    /// Registers what would let a starved worker go on.
    fn wait<'a>(&'a self, select: &mut Select<'a>);

    /// From now on steps finish nothing but send every ticket home, until all upstream is gone.
    fn stop(&mut self);

    /// What the run's listeners are to hear, since the last call.
    fn take_events(&mut self) -> Vec<RunEvent> {
        Vec::new()
    }

    /// What is in hand, in words: for the report of a flow that is stuck.
    fn describe(&self) -> String;
}

/// What a worker without work does once its upstream is gone.
pub(super) fn at_the_end(office: &TicketOffice) -> Step {
    if office.is_complete() { Step::Finished } else { Step::Starved }
}
