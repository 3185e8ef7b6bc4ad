//! Does what the supervisor does, where there are no actors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use collimate_protocol::RoleId;
use collimate_protocol::messages::{RoleCommand, RoleReport};
use crossbeam_channel::{Sender, unbounded};

use super::config::RestartConfig;
use super::counters::FlowState;
use super::error::RunError;
use super::restarts::{Restarts, Verdict};
use super::seat::Seat;
use super::wiring::{FlowOutcome, Remains};
use super::worker::Worker;

/// Answers the failures of a flow on one thread. Seats hold it too: their reports come here.
#[derive(Clone)]
pub(super) struct Overseer(Arc<Mutex<Desk>>);

struct Desk {
    restarts: Restarts,
    /// Whether a role waits out its back-off. Without a clock it is started again at once.
    keeps_time: bool,
    now: Duration,
    /// Who is to be started again, and when.
    due: Vec<(Duration, RoleId)>,
    commands: BTreeMap<RoleId, Sender<RoleCommand>>,
    n_commands: u64,
    reports: Vec<RoleReport>,
    failure: Option<(RoleId, String)>,
}

impl Overseer {
    pub fn new(config: &RestartConfig, keeps_time: bool) -> Self {
        Self(Arc::new(Mutex::new(Desk {
            restarts: Restarts::new(config),
            keeps_time,
            now: Duration::ZERO,
            due: Vec::new(),
            commands: BTreeMap::new(),
            n_commands: 0,
            reports: Vec::new(),
            failure: None,
        })))
    }

    /// Seats workers under its eyes.
    pub fn seats(&self, workers: Vec<Box<dyn Worker>>, state: &FlowState) -> Vec<Seat> {
        let seat = |(worker, counters): (Box<dyn Worker>, &Arc<_>)| {
            let (commands, commanded) = unbounded();
            self.desk().commands.insert(worker.role(), commands);
            let overseer = self.clone();
            Seat::new(worker, Arc::clone(counters), commanded, Box::new(move |report| overseer.desk().report(report)))
        };
        workers.into_iter().zip(&state.counters).map(seat).collect()
    }

    /// It is `now`: whoever has waited long enough is started again.
    pub fn advance(&self, now: Duration) {
        let mut desk = self.desk();
        desk.now = now;
        let all = std::mem::take(&mut desk.due);
        let (due, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|(at, _)| *at <= now);
        desk.due = later;
        due.into_iter().for_each(|(_, role)| desk.command(role, RoleCommand::Restart));
    }

    /// When somebody is to be started again next.
    pub fn next_due(&self) -> Option<Duration> {
        self.desk().due.iter().map(|(at, _)| *at).min()
    }

    /// Commands given so far.
    pub fn n_commands(&self) -> u64 {
        self.desk().n_commands
    }

    /// What was reported, in order, and what the run came to.
    pub fn result<W, T>(
        &self,
        state: &FlowState,
        remains: Remains<W, T>,
    ) -> (Vec<RoleReport>, Result<FlowOutcome<W, T>, RunError>) {
        let mut desk = self.desk();
        let reports = std::mem::take(&mut desk.reports);
        let result = match desk.failure.take() {
            Some((role, error)) => {
                let (version, tickets) = (state.version(), state.office.counts());
                Err(RunError::Role { role, error, version, tickets })
            }
            None => remains.outcome(),
        };
        (reports, result)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    fn report(&mut self, report: RoleReport) {
        match &report {
            RoleReport::Failed(failure) => match self.restarts.failed(self.now, failure.clone()) {
                Verdict::Restart(after) if self.keeps_time => self.due.push((self.now + after, failure.role)),
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
        self.due.clear();
        for role in self.commands.keys().copied().collect::<Vec<_>>() {
            self.command(role, RoleCommand::Stop);
        }
    }

    fn command(&mut self, role: RoleId, command: RoleCommand) {
        self.n_commands += 1;
        if let Some(commands) = self.commands.get(&role) {
            // A role that has ended obeys nobody, and needs not.
            let _ = commands.send(command);
        }
    }
}
