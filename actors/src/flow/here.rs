//! Runs a flow on the caller's thread, without actors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use collimate_protocol::RoleId;
use collimate_protocol::messages::{RoleCommand, RoleReport};
use crossbeam_channel::{Sender, never, unbounded};

use super::config::FlowConfig;
use super::counters::RoleCounters;
use super::driver::{Seat, run_in_turn};
use super::error::RunError;
use super::restarts::{Restarts, Verdict};
use super::wiring::{FlowOutcome, Graph};
use super::worker::Worker;

impl<W, T> Graph<W, T> {
    /// Runs the flow on this thread to its end, in turn as in a deterministic run, without actors: for simulations
    /// and tests. Returns what was reported, in order, too.
    pub fn run_here(self) -> (Vec<RoleReport>, Result<FlowOutcome<W, T>, RunError>) {
        let overseer = Arc::new(Mutex::new(Overseer::new(&self.config)));
        let seat = |(worker, counters): (Box<dyn Worker>, &Arc<RoleCounters>)| {
            let (commands, commanded) = unbounded();
            overseer.lock().unwrap_or_else(PoisonError::into_inner).commands.insert(worker.role(), commands);
            let overseer = overseer.clone();
            let report = Box::new(move |report| {
                overseer.lock().unwrap_or_else(PoisonError::into_inner).report(report);
            });
            Seat::new(worker, counters.clone(), commanded, report)
        };
        let seats = self.workers.into_iter().zip(&self.state.counters).map(seat).collect();
        run_in_turn(seats, never(), &self.state);
        let mut overseer = overseer.lock().unwrap_or_else(PoisonError::into_inner);
        let reports = std::mem::take(&mut overseer.reports);
        let result = match overseer.failure.take() {
            Some((role, error)) => {
                let (version, tickets) = (self.state.version(), self.state.office.counts());
                Err(RunError::Role { role, error, version, tickets })
            }
            None => self.remains.outcome(),
        };
        (reports, result)
    }
}

/// Does what the supervisor does, where there are no actors: answers each failure at once.
struct Overseer {
    restarts: Restarts,
    commands: BTreeMap<RoleId, Sender<RoleCommand>>,
    reports: Vec<RoleReport>,
    failure: Option<(RoleId, String)>,
}

impl Overseer {
    fn new(config: &FlowConfig) -> Self {
        let restarts = Restarts::new(&config.restarts);
        Self { restarts, commands: BTreeMap::new(), reports: Vec::new(), failure: None }
    }

    fn report(&mut self, report: RoleReport) {
        match &report {
            // In a run without a clock every failure is recent.
            RoleReport::Failed(failure) => match self.restarts.failed(Duration::ZERO, failure.clone()) {
                Verdict::Restart(_) => self.command(failure.role, RoleCommand::Restart),
                Verdict::GiveUp(role, error) => self.give_up(role, error),
            },
            RoleReport::Lost(role, error) => self.give_up(*role, error.clone()),
            RoleReport::Started(_) | RoleReport::Restarted(_) | RoleReport::Event(_) | RoleReport::Finished(_) => {}
        }
        self.reports.push(report);
    }

    fn give_up(&mut self, role: RoleId, error: String) {
        self.failure.get_or_insert((role, error));
        for role in self.commands.keys().copied().collect::<Vec<_>>() {
            self.command(role, RoleCommand::Stop);
        }
    }

    fn command(&self, role: RoleId, command: RoleCommand) {
        if let Some(commands) = self.commands.get(&role) {
            // A role that has ended obeys nobody, and needs not.
            let _ = commands.send(command);
        }
    }
}
