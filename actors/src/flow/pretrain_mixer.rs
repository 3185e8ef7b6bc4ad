//! The pretrain mixer: cuts batches of pretraining text, by its own channel to the learner.

use std::sync::Arc;

use collimate_protocol::roles::PretrainSource;
use collimate_protocol::{PretrainBatch, Role, RoleError, RoleId};
use crossbeam_channel::Select;

use super::compute::Compute;
use super::counters::RoleCounters;
use super::hop::Outlet;
use super::office::TicketOffice;
use super::worker::{Step, Worker};

/// The worker around a [`PretrainSource`].
pub(super) struct PretrainMixer {
    pub source: Compute<dyn PretrainSource>,
    /// The number of the next batch.
    pub next_idx: u64,
    /// Batches that the run takes in all: no text is cut that nobody reads.
    pub n_batches: u64,
    pub office: TicketOffice,
    pub batches: Outlet<PretrainBatch>,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
}

impl Worker for PretrainMixer {
    fn role(&self) -> RoleId {
        RoleId::only(Role::PretrainMixer)
    }

    fn take(&mut self) -> Result<Step, RoleError> {
        // A run that drains ends before all text is used.
        if self.is_stopping || self.office.is_complete() {
            return Ok(Step::Finished);
        }
        if !self.batches.flush() {
            return Ok(Step::Starved);
        }
        Ok(if self.next_idx < self.n_batches { Step::Ready } else { Step::Finished })
    }

    fn work(&mut self) -> Result<(), RoleError> {
        let idx = self.next_idx;
        let batch = self.source.call(move |source| source.batch(idx))?;
        self.next_idx += 1;
        self.counters.count(1, batch.sequences.iter().map(Vec::len).sum());
        self.batches.push(batch);
        Ok(())
    }

    fn recover(&mut self) {
        self.source.discard();
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        self.batches.wait(select);
    }

    fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn describe(&self) -> String {
        format!("{} of {} batches cut, blocked: {}", self.next_idx, self.n_batches, self.batches.is_blocked())
    }
}
