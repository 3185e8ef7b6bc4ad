//! Runs workers: one on a thread of its own, or all in turn on one thread.

use std::fmt::Write;

use collimate_protocol::messages::RoleReport;
use collimate_protocol::roles::Unmendable;
use crossbeam_channel::{Receiver, Select, never};

use super::counters::FlowState;
use super::seat::{Seat, Turn};

/// Runs one worker until it ends. `wake` ends its waiting: for a command.
pub fn run_alone(mut seat: Seat, mut wake: Receiver<()>) {
    seat.report(RoleReport::Started(seat.role()));
    loop {
        // Before the commands are read, so that a wake-up for one that comes later is kept.
        while wake.try_recv().is_ok() {}
        match seat.turn() {
            Turn::Ready | Turn::Progressed => {}
            Turn::Starved => {
                let mut select = Select::new();
                if seat.is_orphaned() {
                    // A disconnected channel is always ready: waiting on it would spin.
                    wake = never();
                }
                select.recv(&wake);
                seat.wait(&mut select);
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
        seat.report(RoleReport::Started(seat.role()));
    }
    while !seats.iter().all(Seat::has_ended) {
        while wake.try_recv().is_ok() {}
        let (mut any_progress, mut any_paused) = (false, false);
        for seat in seats.iter_mut().filter(|seat| !seat.has_ended()) {
            match seat.turn() {
                Turn::Ready | Turn::Progressed | Turn::Ended => any_progress = true,
                Turn::Starved => {}
                Turn::Paused => any_paused = true,
                Turn::Failed => {
                    any_progress = true;
                    seat.await_verdict(&wake);
                }
            }
        }
        let n_stopping = seats.iter().filter(|seat| seat.is_stopping()).count();
        if (1..seats.len()).contains(&n_stopping) {
            // A command to stop is for all but reaches one after another: those who do not know of it yet would look
            // stuck.
            seats.iter_mut().for_each(Seat::stop);
        } else if !any_progress && any_paused {
            let _ = wake.recv();
        } else if !any_progress {
            let report = Unmendable(stuck(&seats, state).into()).into();
            if let Some(seat) = seats.iter_mut().find(|seat| !seat.has_ended()) {
                seat.fail(&report);
                seat.await_verdict(&wake);
            }
        }
    }
}

/// What to say of a flow in which nobody can go on.
pub(super) fn stuck(seats: &[Seat], state: &FlowState) -> String {
    let mut text = format!("deadlock: no role can go on, {}", state.describe());
    for (role, in_hand) in seats.iter().filter_map(|seat| Some((seat.role(), seat.describe()?))) {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{role}: {in_hand}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use collimate_protocol::messages::{RoleCommand, RoleFailure};
    use collimate_protocol::{Role, RoleError, RoleId};
    use crossbeam_channel::unbounded;

    use super::super::config::FlowConfig;
    use super::super::counters::RoleCounters;
    use super::super::office::TicketOffice;
    use super::super::worker::{Step, Worker};
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
        commands.iter().for_each(|command| to_second.send(command.clone()).unwrap());
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
