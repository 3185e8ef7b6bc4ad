//! The pretrain mixer: cuts batches of pretraining text, by its own channel to the learner.

use std::sync::Arc;

use collimate_protocol::roles::PretrainSource;
use collimate_protocol::{PretrainBatch, Role, RoleError, RoleId};
use crossbeam_channel::Select;

use super::counters::RoleCounters;
use super::hop::Outlet;
use super::worker::{Step, Worker};

/// The worker around a [`PretrainSource`].
pub(super) struct PretrainMixer {
    pub source: Box<dyn PretrainSource>,
    /// Batches that the run still takes: no text is cut that nobody reads.
    pub n_left: u64,
    pub batches: Outlet<PretrainBatch>,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
}

impl Worker for PretrainMixer {
    fn role(&self) -> RoleId {
        RoleId::only(Role::PretrainMixer)
    }

    fn step(&mut self) -> Result<Step, RoleError> {
        if self.is_stopping {
            return Ok(Step::Finished);
        }
        if !self.batches.flush() {
            return Ok(Step::Starved);
        }
        if self.n_left == 0 {
            return Ok(Step::Finished);
        }
        let batch = self.source.next_batch()?;
        self.n_left -= 1;
        self.counters.count(1, batch.sequences.iter().map(Vec::len).sum());
        self.batches.push(batch);
        Ok(Step::Progressed)
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        self.batches.wait(select);
    }

    fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn describe(&self) -> String {
        format!("{} batches still to cut, blocked: {}", self.n_left, self.batches.is_blocked())
    }
}
