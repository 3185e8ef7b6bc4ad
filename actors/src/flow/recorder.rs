//! The recorder: hands each update, with what it trained on, to whoever writes it down.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use collimate_protocol::messages::RunEvent;
use collimate_protocol::records::{JournaledUpdate, UpdateMetrics};
use collimate_protocol::{ExperienceBatch, PolicyVersion, Role, RoleError, RoleId, SettingChange};
use crossbeam_channel::Select;

use super::alarms::Alarms;
use super::checkpoint::Checkpoint;
use super::compute::uncaught;
use super::counters::{FlowState, RoleCounters};
use super::hop::{Inlet, Taken};
use super::worker::{Step, Worker, at_the_end};

/// Writes updates down: to files, to a terminal, to a dashboard. It runs on the recorder's own thread; training goes
/// on meanwhile, and goes on when it fails.
pub trait RunSink: Send {
    /// An update is done. Called once for each, in order.
    ///
    /// # Errors
    /// It could not be recorded. The run's listeners are warned the first time, and training goes on.
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError>;

    /// The run's whole state may be kept; whether it was. Called after the update that it is of.
    ///
    /// # Errors
    /// It could not be kept. The run's listeners are warned, and training goes on.
    fn checkpoint(&mut self, _checkpoint: &Checkpoint) -> Result<bool, RoleError> {
        Ok(false)
    }
}

/// Records nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

impl RunSink for NoSink {
    fn updated(&mut self, _: &TrainedUpdate) -> Result<(), RoleError> {
        Ok(())
    }
}

/// An update and what it trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedUpdate {
    /// What came of it.
    pub metrics: UpdateMetrics,
    /// Settings that hold from this update on.
    pub changes: Arc<[SettingChange]>,
    /// What it trained on.
    pub batch: Arc<ExperienceBatch>,
    /// Checksum of the weights after it.
    pub checksum: u64,
}

impl TrainedUpdate {
    /// As the journal has it.
    pub fn journaled(&self) -> JournaledUpdate {
        JournaledUpdate::of(&self.batch, &self.changes, self.metrics.flow.tickets.clone(), self.checksum)
    }
}

/// Learner to recorder.
#[derive(Debug)]
pub(super) enum ToRecord {
    Update(Box<TrainedUpdate>),
    Checkpoint(Box<Checkpoint>),
    /// The state of this version could not be written.
    NoCheckpoint {
        version: PolicyVersion,
        error: RoleError,
    },
}

/// The worker around a [`RunSink`].
pub(super) struct Recorder {
    pub sink: Box<dyn RunSink>,
    pub trained: Inlet<ToRecord>,
    pub in_hand: Option<ToRecord>,
    pub state: Arc<FlowState>,
    pub alarms: Alarms,
    pub events: Vec<RunEvent>,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
}

impl Recorder {
    fn record(&mut self, update: TrainedUpdate) {
        // A sink that panics has not recorded the update: no reason to stop either.
        let recorded = uncaught(|| self.sink.updated(&update));
        let recorded = recorded.map_err(RoleError::from).and_then(|recorded| recorded);
        let TrainedUpdate { metrics, changes, batch, .. } = update;
        if !changes.is_empty() {
            self.events.push(RunEvent::Changed { version: batch.version, changes: changes.to_vec() });
        }
        if let Err(error) = recorded
            && self.state.count_sink_failure() == 1
        {
            self.warn(format!("{} could not be recorded, training goes on: {error}", metrics.version));
        }
        self.alarms.of(&metrics).into_iter().for_each(|message| self.warn(message));
        self.counters.count(1, 0);
        self.events.push(RunEvent::Updated(Box::new(metrics)));
    }

    fn keep(&mut self, checkpoint: &Checkpoint) {
        let version = checkpoint.version;
        let kept = uncaught(|| self.sink.checkpoint(checkpoint));
        match kept.map_err(RoleError::from).and_then(|kept| kept) {
            Ok(false) => {}
            Ok(true) => {
                self.state.checkpoint_version.store(version.0, Ordering::Relaxed);
                self.events.push(RunEvent::Checkpointed { version });
            }
            Err(error) => self.warn_of_checkpoint(version, &error),
        }
    }

    fn warn_of_checkpoint(&mut self, version: PolicyVersion, error: &RoleError) {
        self.warn(format!("the checkpoint of {version} could not be kept, training goes on: {error}"));
    }

    fn warn(&mut self, message: String) {
        self.events.push(RunEvent::Warning { role: RoleId::only(Role::Recorder), message });
    }
}

impl Worker for Recorder {
    fn role(&self) -> RoleId {
        RoleId::only(Role::Recorder)
    }

    fn take(&mut self) -> Result<Step, RoleError> {
        match self.trained.take() {
            Taken::Item(trained) => {
                self.in_hand = Some(trained);
                Ok(Step::Ready)
            }
            Taken::Nothing => Ok(Step::Starved),
            // What was trained on before the stop has been recorded.
            Taken::Ended if self.is_stopping => Ok(Step::Finished),
            Taken::Ended => Ok(at_the_end(&self.state.office)),
        }
    }

    fn work(&mut self) -> Result<(), RoleError> {
        match self.in_hand.take() {
            None => {}
            Some(ToRecord::Update(update)) => self.record(*update),
            Some(ToRecord::Checkpoint(checkpoint)) => self.keep(&checkpoint),
            Some(ToRecord::NoCheckpoint { version, error }) => self.warn_of_checkpoint(version, &error),
        }
        Ok(())
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        self.trained.wait(select);
    }

    fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn take_events(&mut self) -> Vec<RunEvent> {
        std::mem::take(&mut self.events)
    }

    fn describe(&self) -> String {
        format!("upstream gone: {}", self.trained.has_ended())
    }
}
