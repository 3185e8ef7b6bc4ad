//! A seat: a worker with its ends of the control path. Drivers give it turns.

use std::sync::Arc;

use collimate_protocol::messages::{RoleCommand, RoleFailure, RoleReport};
use collimate_protocol::roles::Unmendable;
use collimate_protocol::{RoleError, RoleId};
use crossbeam_channel::{Receiver, Select, TryRecvError};

use super::compute::uncaught;
use super::counters::RoleCounters;
use super::ledger::LedgerError;
use super::worker::{Step, Worker, Workload};

/// A worker with its ends of the control path.
pub struct Seat {
    role: RoleId,
    /// `None` once it has ended.
    worker: Option<Box<dyn Worker>>,
    counters: Arc<RoleCounters>,
    commands: Receiver<RoleCommand>,
    report: Box<dyn Fn(RoleReport) + Send>,
    is_paused: bool,
    /// Failed, and not yet told what now.
    has_failed: bool,
    /// Told to stop: the run ends for all.
    is_stopping: bool,
    /// Whoever commanded is gone; there is nothing to wait for on that side.
    is_orphaned: bool,
}

/// What a seat's turn, or the first half of it, came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is work in hand.
    Ready,
    Progressed,
    Starved,
    Paused,
    /// Has failed, now or before, and waits to be told what now.
    Failed,
    Ended,
}

impl Seat {
    /// Seats a worker.
    pub fn new(
        worker: Box<dyn Worker>,
        counters: Arc<RoleCounters>,
        commands: Receiver<RoleCommand>,
        report: Box<dyn Fn(RoleReport) + Send>,
    ) -> Self {
        let role = worker.role();
        Self {
            role,
            worker: Some(worker),
            counters,
            commands,
            report,
            is_paused: false,
            has_failed: false,
            is_stopping: false,
            is_orphaned: false,
        }
    }

    /// Tells whoever watches.
    pub(super) fn report(&self, report: RoleReport) {
        (self.report)(report);
    }

    /// Registers what would let a starved worker go on.
    pub(super) fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if let Some(worker) = &self.worker {
            worker.wait(select);
        }
    }

    /// What its worker has in hand, in words; `None` once it has ended.
    pub(super) fn describe(&self) -> Option<String> {
        self.worker.as_ref().map(|worker| worker.describe())
    }

    /// Whether nobody commands it any more.
    pub(super) fn is_orphaned(&self) -> bool {
        self.is_orphaned
    }

    /// Who sits here.
    pub fn role(&self) -> RoleId {
        self.role
    }

    /// Obeys what was commanded, then takes one step.
    pub(super) fn turn(&mut self) -> Turn {
        match self.begin() {
            Turn::Ready => self.finish(),
            turn => turn,
        }
    }

    /// The first half of a turn: obeys what was commanded, then takes what is there.
    pub(super) fn begin(&mut self) -> Turn {
        self.obey();
        if self.worker.is_none() {
            return Turn::Ended;
        }
        if self.has_failed {
            return Turn::Failed;
        }
        if self.is_paused {
            return Turn::Paused;
        }
        match self.half(|worker, counters| counters.timed(|| worker.take())) {
            Ok(Step::Ready) => Turn::Ready,
            Ok(Step::Progressed) => Turn::Progressed,
            Ok(Step::Starved) => Turn::Starved,
            Ok(Step::Finished) => self.leave(None),
            Err(error) => self.fail(&error),
        }
    }

    /// The second half, after [`Turn::Ready`]: does the work in hand.
    pub(super) fn finish(&mut self) -> Turn {
        match self.half(|worker, counters| counters.timed_work(worker.workload(), || worker.work())) {
            Ok(()) => Turn::Progressed,
            Err(error) => self.fail(&error),
        }
    }

    fn half<R>(
        &mut self,
        half: impl FnOnce(&mut dyn Worker, &RoleCounters) -> Result<R, RoleError>,
    ) -> Result<R, RoleError> {
        let Some(worker) = &mut self.worker else { return Err("there is nobody to do it".into()) };
        let counters = &self.counters;
        let done = uncaught(|| half(&mut **worker, counters));
        for event in worker.take_events() {
            self.report(RoleReport::Event(Box::new(event)));
        }
        done.unwrap_or_else(|panic| Err(panic.into()))
    }

    /// The work in hand.
    pub(super) fn workload(&self) -> Workload {
        self.worker.as_ref().map(|worker| worker.workload()).unwrap_or_default()
    }

    /// Whether its worker has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.worker.is_none()
    }

    /// Whether it was told that the run ends.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// Waits until a failure has been answered.
    pub(super) fn await_verdict(&mut self, wake: &Receiver<()>) {
        self.obey();
        while self.has_failed {
            let _ = wake.recv();
            self.obey();
        }
    }

    fn obey(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(RoleCommand::Pause) => self.is_paused = true,
                Ok(RoleCommand::Resume) => self.is_paused = false,
                Ok(RoleCommand::Restart) => {
                    if self.recover() {
                        (self.report)(RoleReport::Restarted(self.role));
                    }
                }
                Ok(RoleCommand::Change(change)) => self.tell(|worker| worker.change(change)),
                Ok(RoleCommand::Checkpoint) => self.tell(|worker| worker.checkpoint()),
                Ok(RoleCommand::Stop) => self.stop(),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    // Without a commander the run can't be watched or ended: it ends in good order.
                    if !self.is_orphaned {
                        self.is_orphaned = true;
                        self.stop();
                    }
                    return;
                }
            }
        }
    }

    /// What ended needs to hear nothing.
    fn tell(&mut self, tell: impl FnOnce(&mut dyn Worker)) {
        if let Some(worker) = &mut self.worker {
            tell(&mut **worker);
        }
    }

    /// A pause ends with the command to stop: a paused role could send no ticket home. A role that has failed sends
    /// home what it had in hand, as all others do.
    pub(super) fn stop(&mut self) {
        self.recover();
        self.is_paused = false;
        self.is_stopping = true;
        if let Some(worker) = &mut self.worker {
            worker.stop();
        }
    }

    /// Whether a failure has been got over.
    fn recover(&mut self) -> bool {
        if !std::mem::take(&mut self.has_failed) {
            return false;
        }
        if let Some(worker) = &mut self.worker
            && let Err(panic) = uncaught(|| worker.recover())
        {
            self.leave(Some(panic));
            return false;
        }
        true
    }

    /// The worker and its ends of the channels go; a panic in a destructor is a failure like any other.
    fn leave(&mut self, failure: Option<String>) -> Turn {
        let worker = self.worker.take();
        let left = uncaught(|| drop(worker));
        let report = match failure.map_or(left, Err) {
            Ok(()) => RoleReport::Finished(self.role),
            Err(error) => RoleReport::Lost(self.role, error),
        };
        (self.report)(report);
        Turn::Ended
    }

    /// A role that fails even to stop is lost.
    pub(super) fn fail(&mut self, error: &RoleError) -> Turn {
        if self.is_stopping {
            return self.leave(Some(error.to_string()));
        }
        self.has_failed = true;
        let is_mendable = !error.is::<Unmendable>() && !error.is::<LedgerError>();
        (self.report)(RoleReport::Failed(RoleFailure { role: self.role, error: error.to_string(), is_mendable }));
        Turn::Failed
    }
}
