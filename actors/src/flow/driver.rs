//! Runs workers: one on a thread of its own, or all in turn on one thread.

use std::any::Any;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use collimate_protocol::messages::{RoleCommand, RoleReport};
use collimate_protocol::{RoleError, RoleId};
use crossbeam_channel::{Receiver, Select, TryRecvError, never};

use super::counters::{FlowState, RoleCounters};
use super::worker::{Step, Worker};

/// A worker with its ends of the control path.
pub struct Seat {
    role: RoleId,
    /// `None` once it has ended.
    worker: Option<Box<dyn Worker>>,
    counters: Arc<RoleCounters>,
    pool: Option<rayon::ThreadPool>,
    commands: Receiver<RoleCommand>,
    report: Box<dyn Fn(RoleReport) + Send>,
    is_paused: bool,
    /// Told to stop, or failed: the run ends for all.
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
    Ended,
    Failed,
}

impl Seat {
    /// Seats a worker. `pool` is what it computes on, `None` for the pool of the process.
    pub fn new(
        worker: Box<dyn Worker>,
        counters: Arc<RoleCounters>,
        pool: Option<rayon::ThreadPool>,
        commands: Receiver<RoleCommand>,
        report: Box<dyn Fn(RoleReport) + Send>,
    ) -> Self {
        let role = worker.role();
        Self {
            role,
            worker: Some(worker),
            counters,
            pool,
            commands,
            report,
            is_paused: false,
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
        if self.is_paused {
            return Turn::Paused;
        }
        match self.step() {
            Ok(Step::Progressed) => Turn::Progressed,
            Ok(Step::Starved) => Turn::Starved,
            Ok(Step::Finished) => match self.leave() {
                Ok(()) => {
                    (self.report)(RoleReport::Finished(self.role));
                    Turn::Ended
                }
                Err(error) => self.fail(error),
            },
            Err(error) => self.fail(error),
        }
    }

    fn step(&mut self) -> Result<Step, String> {
        let Some(worker) = &mut self.worker else { return Ok(Step::Finished) };
        let (counters, pool) = (&self.counters, &self.pool);
        let stepped: Result<Step, RoleError> = uncaught(|| {
            counters.timed(|| match pool {
                Some(pool) => pool.install(|| worker.step()),
                None => worker.step(),
            })
        })?;
        for event in worker.take_events() {
            (self.report)(RoleReport::Event(Box::new(event)));
        }
        stepped.map_err(|error| error.to_string())
    }

    fn obey(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(RoleCommand::Pause) => self.is_paused = true,
                Ok(RoleCommand::Resume) => self.is_paused = false,
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

    /// A pause ends with the command to stop: a paused role could send no ticket home.
    fn stop(&mut self) {
        self.is_paused = false;
        self.is_stopping = true;
        if let Some(worker) = &mut self.worker {
            worker.stop();
        }
    }

    /// The worker and its ends of the channels go; a panic in a destructor is a failure like any other.
    fn leave(&mut self) -> Result<(), String> {
        let worker = self.worker.take();
        uncaught(|| drop(worker))
    }

    fn fail(&mut self, error: String) -> Turn {
        // The first error is what counts.
        let _ = self.leave();
        self.is_stopping = true;
        (self.report)(RoleReport::Failed(self.role, error));
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
            Turn::Paused => {
                let _ = wake.recv();
            }
            Turn::Ended | Turn::Failed => return,
        }
    }
}

/// Runs all workers in turn, always in the same order, until all have ended. A round in which nobody could go on
/// will be followed by the same round for ever: that is an error which shows every queue and ticket. The first
/// failure stops all others.
pub fn run_in_turn(mut seats: Vec<Seat>, wake: Receiver<()>, state: &FlowState) {
    for seat in &seats {
        (seat.report)(RoleReport::Started(seat.role));
    }
    while seats.iter().any(|seat| seat.worker.is_some()) {
        while wake.try_recv().is_ok() {}
        let (mut any_progress, mut any_paused) = (false, false);
        for seat in seats.iter_mut().filter(|seat| seat.worker.is_some()) {
            match seat.turn() {
                Turn::Progressed | Turn::Ended | Turn::Failed => any_progress = true,
                Turn::Starved => {}
                Turn::Paused => any_paused = true,
            }
        }
        let n_stopping = seats.iter().filter(|seat| seat.is_stopping).count();
        if (1..seats.len()).contains(&n_stopping) {
            // A command to stop is for all but reaches one after another, and a failure is seen by one alone: those
            // who do not know of it would look stuck.
            seats.iter_mut().for_each(Seat::stop);
        } else if !any_progress && any_paused {
            let _ = wake.recv();
        } else if !any_progress {
            let report = stuck(&seats, state);
            if let Some(seat) = seats.iter_mut().find(|seat| seat.worker.is_some()) {
                seat.fail(report);
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

/// The closure's result, or what it panicked with. What it leaves behind is only ever dropped.
fn uncaught<R>(closure: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(closure)).map_err(|payload| format!("panicked: {}", panic_message(&*payload)))
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("with something that is no text")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use collimate_protocol::Role;
    use crossbeam_channel::unbounded;

    use super::super::config::FlowConfig;
    use super::super::ledger::TicketOffice;
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

        fn step(&mut self) -> Result<Step, RoleError> {
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

    /// Runs two idle workers in turn, the second with these commands; what was reported besides that they started.
    fn reports_with(commands: &[RoleCommand]) -> Vec<RoleReport> {
        let started = Instant::now();
        let (reported, reports) = unbounded();
        let (to_first, first) = unbounded();
        let (to_second, second) = unbounded();
        commands.iter().for_each(|command| to_second.send(*command).unwrap());
        let seat = |(idx, commands)| {
            let worker = Box::new(Idle { idx, is_stopping: false });
            let counters = Arc::new(RoleCounters::new(worker.role(), started));
            let reported = reported.clone();
            Seat::new(worker, counters, None, commands, Box::new(move |report| reported.send(report).unwrap()))
        };
        let seats = [first, second].into_iter().enumerate().map(seat).collect();
        let state = FlowState {
            n_updates: 1,
            office: TicketOffice::open(&FlowConfig::default()).0,
            counters: Vec::new(),
            gauges: Vec::new(),
            started,
            version: Default::default(),
            n_sink_failures: Default::default(),
        };
        run_in_turn(seats, never(), &state);
        drop(to_first);
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
        let RoleReport::Failed(_, error) = &reports[0] else { panic!("{reports:?}") };
        assert!(error.starts_with("deadlock") && error.contains("generator-1: idle"), "{error}");
        assert!(matches!(reports[1..], [RoleReport::Finished(_)]), "{reports:?}");
    }
}
