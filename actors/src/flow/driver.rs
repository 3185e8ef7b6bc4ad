//! Runs workers: one on a thread of its own, or all in turn on one thread.

use std::fmt::Write;
use std::sync::Arc;

use collimate_protocol::messages::{RoleCommand, RoleFailure, RoleReport};
use collimate_protocol::roles::Unmendable;
use collimate_protocol::{RoleError, RoleId};
use crossbeam_channel::{Receiver, Select, TryRecvError, never};

use super::compute::uncaught;
use super::counters::{FlowState, RoleCounters};
use super::ledger::LedgerError;
use super::worker::{Step, Worker};

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

/// What a seat's turn came to.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
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

    /// Who sits here.
    pub fn role(&self) -> RoleId {
        self.role
    }

    /// Obeys what was commanded, then takes one step.
    fn turn(&mut self) -> Turn {
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
        match self.step() {
            Ok(Step::Ready | Step::Progressed) => Turn::Progressed,
            Ok(Step::Starved) => Turn::Starved,
            Ok(Step::Finished) => self.leave(None),
            Err(error) => self.fail(&error),
        }
    }

    fn step(&mut self) -> Result<Step, RoleError> {
        let Some(worker) = &mut self.worker else { return Ok(Step::Finished) };
        let counters = &self.counters;
        let stepped = uncaught(|| counters.timed(|| worker.step()));
        for event in worker.take_events() {
            (self.report)(RoleReport::Event(Box::new(event)));
        }
        stepped.unwrap_or_else(|panic| Err(panic.into()))
    }

    /// Waits until a failure has been answered.
    fn await_verdict(&mut self, wake: &Receiver<()>) {
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

    /// A pause ends with the command to stop: a paused role could send no ticket home. A role that has failed sends
    /// home what it had in hand, as all others do.
    fn stop(&mut self) {
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
    fn fail(&mut self, error: &RoleError) -> Turn {
        if self.is_stopping {
            return self.leave(Some(error.to_string()));
        }
        self.has_failed = true;
        let is_mendable = !error.is::<Unmendable>() && !error.is::<LedgerError>();
        (self.report)(RoleReport::Failed(RoleFailure { role: self.role, error: error.to_string(), is_mendable }));
        Turn::Failed
    }
}

/// Runs one worker until it ends. `wake` ends its waiting: for a command.
pub fn run_alone(mut seat: Seat, mut wake: Receiver<()>) {
    (seat.report)(RoleReport::Started(seat.role));
    loop {
        // Before the commands are read, so that a wake-up for one that comes later is kept.
        while wake.try_recv().is_ok() {}
        match seat.turn() {
            Turn::Progressed => {}
            Turn::Starved => {
                let mut select = Select::new();
                if seat.is_orphaned {
                    // A disconnected channel is always ready: waiting on it would spin.
                    wake = never();
                }
                select.recv(&wake);
                if let Some(worker) = &seat.worker {
                    worker.wait(&mut select);
                }
                select.ready();
            }
            Turn::Paused | Turn::Failed => {
                let _ = wake.recv();
            }
            Turn::Ended => return,
        }
    }
}

/// Runs all workers in turn, always in the same order, until all have ended. A round in which nobody could go on
/// will be followed by the same round for ever: that is an error which shows every queue and ticket. After a failure
/// nobody moves before it is known what follows, so that two runs stay equal.
pub fn run_in_turn(mut seats: Vec<Seat>, wake: Receiver<()>, state: &FlowState) {
    for seat in &seats {
        (seat.report)(RoleReport::Started(seat.role));
    }
    while seats.iter().any(|seat| seat.worker.is_some()) {
        while wake.try_recv().is_ok() {}
        let (mut any_progress, mut any_paused) = (false, false);
        for seat in seats.iter_mut().filter(|seat| seat.worker.is_some()) {
            match seat.turn() {
                Turn::Progressed | Turn::Ended => any_progress = true,
                Turn::Starved => {}
                Turn::Paused => any_paused = true,
                Turn::Failed => {
                    any_progress = true;
                    seat.await_verdict(&wake);
                }
            }
        }
        let n_stopping = seats.iter().filter(|seat| seat.is_stopping).count();
        if (1..seats.len()).contains(&n_stopping) {
            // A command to stop is for all but reaches one after another: those who do not know of it yet would look
            // stuck.
            seats.iter_mut().for_each(Seat::stop);
        } else if !any_progress && any_paused {
            let _ = wake.recv();
        } else if !any_progress {
            let report = Unmendable(stuck(&seats, state).into()).into();
            if let Some(seat) = seats.iter_mut().find(|seat| seat.worker.is_some()) {
                seat.fail(&report);
                seat.await_verdict(&wake);
            }
        }
    }
}

fn stuck(seats: &[Seat], state: &FlowState) -> String {
    let mut text = format!("deadlock: no role can go on, {}", state.describe());
    for worker in seats.iter().filter_map(|seat| seat.worker.as_ref()) {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{}: {}", worker.role(), worker.describe());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use collimate_protocol::Role;
    use crossbeam_channel::unbounded;

    use super::super::config::FlowConfig;
    use super::super::office::TicketOffice;
    use super::*;

    /// Does nothing until it is told to stop.
    struct Idle {
        idx: usize,
        is_stopping: bool,
    }

    impl Worker for Idle {
        fn role(&self) -> RoleId {
            RoleId { role: Role::Generator, idx: self.idx }
        }

        fn take(&mut self) -> Result<Step, RoleError> {
            Ok(if self.is_stopping { Step::Finished } else { Step::Starved })
        }

        fn wait<'a>(&'a self, _: &mut Select<'a>) {}

        fn stop(&mut self) {
            self.is_stopping = true;
        }

        fn describe(&self) -> String {
            "idle".to_owned()
        }
    }

    /// Runs two idle workers in turn, the second with these commands, and stops both at a failure; what was reported
    /// besides that they started.
    fn reports_with(commands: &[RoleCommand]) -> Vec<RoleReport> {
        let started = Instant::now();
        let (reported, reports) = unbounded();
        let (to_first, first) = unbounded();
        let (to_second, second) = unbounded();
        commands.iter().for_each(|command| to_second.send(*command).unwrap());
        let seat = |(idx, commands)| {
            let worker = Box::new(Idle { idx, is_stopping: false });
            let counters = Arc::new(RoleCounters::new(worker.role(), started));
            let (reported, to_both) = (reported.clone(), [to_first.clone(), to_second.clone()]);
            let report = move |report| {
                if matches!(report, RoleReport::Failed(_)) {
                    to_both.iter().for_each(|commands| commands.send(RoleCommand::Stop).unwrap());
                }
                reported.send(report).unwrap();
            };
            Seat::new(worker, counters, commands, Box::new(report))
        };
        let seats = [first, second].into_iter().enumerate().map(seat).collect();
        let state = FlowState {
            n_updates: 1,
            office: TicketOffice::open(&FlowConfig::default(), None).0,
            counters: Vec::new(),
            gauges: Vec::new(),
            started,
            version: Default::default(),
            n_sink_failures: Default::default(),
            checkpoint_version: super::super::counters::NO_CHECKPOINT.into(),
        };
        run_in_turn(seats, never(), &state);
        reports.try_iter().filter(|report| !matches!(report, RoleReport::Started(_))).collect()
    }

    #[test]
    fn an_order_to_stop_that_has_not_yet_reached_all_is_no_deadlock() {
        let finished = |idx| RoleReport::Finished(RoleId { role: Role::Generator, idx });
        // The second is told first; it has ended before the first is told.
        assert_eq!(reports_with(&[RoleCommand::Stop]), [finished(1), finished(0)]);
    }

    #[test]
    fn where_nobody_can_go_on_the_run_fails_and_says_what_each_has_in_hand() {
        let reports = reports_with(&[]);
        let RoleReport::Failed(RoleFailure { error, is_mendable: false, .. }) = &reports[0] else {
            panic!("{reports:?}")
        };
        assert!(error.starts_with("deadlock") && error.contains("generator-1: idle"), "{error}");
        assert!(matches!(reports[1..], [RoleReport::Finished(_), RoleReport::Finished(_)]), "{reports:?}");
    }
}
