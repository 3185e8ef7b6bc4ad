//! The recorder: hands each update, with what it trained on, to whoever writes it down.

use std::sync::Arc;

use collimate_protocol::messages::RunEvent;
use collimate_protocol::records::UpdateMetrics;
use collimate_protocol::{Experience, ExperienceBatch, Role, RoleError, RoleId};
use crossbeam_channel::Select;

use super::alarms::Alarms;
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
    fn updated(&mut self, metrics: &UpdateMetrics, trained: &[Experience]) -> Result<(), RoleError>;
}

/// Records nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

impl RunSink for NoSink {
    fn updated(&mut self, _: &UpdateMetrics, _: &[Experience]) -> Result<(), RoleError> {
        Ok(())
    }
}

/// An update and what it trained on. Learner to recorder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TrainedBatch {
    pub metrics: UpdateMetrics,
    pub batch: Arc<ExperienceBatch>,
}

/// The worker around a [`RunSink`].
pub(super) struct Recorder {
    pub sink: Box<dyn RunSink>,
    pub trained: Inlet<TrainedBatch>,
    pub in_hand: Option<TrainedBatch>,
    pub state: Arc<FlowState>,
    pub alarms: Alarms,
    pub events: Vec<RunEvent>,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
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
        let Some(TrainedBatch { metrics, batch }) = self.in_hand.take() else { return Ok(()) };
        // A sink that panics has not recorded the update: no reason to stop either.
        let recorded = uncaught(|| self.sink.updated(&metrics, &batch.experiences));
        let recorded = recorded.map_err(RoleError::from).and_then(|recorded| recorded);
        if let Err(error) = recorded
            && self.state.count_sink_failure() == 1
        {
            let message = format!("{} could not be recorded, training goes on: {error}", metrics.version);
            self.events.push(RunEvent::Warning { role: self.role(), message });
        }
        for message in self.alarms.of(&metrics) {
            self.events.push(RunEvent::Warning { role: self.role(), message });
        }
        self.counters.count(1, 0);
        self.events.push(RunEvent::Updated(Box::new(metrics)));
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
