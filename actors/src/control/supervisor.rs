//! The supervisor: passes commands down and events up, and ends the run at the first failure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use collimate_protocol::RoleId;
use collimate_protocol::messages::{RoleCommand, RoleReport, RunCommand, RunEvent, RunStatus};
use crossbeam_channel::{bounded, unbounded};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{broadcast, oneshot, watch};

use super::role_actor::{RoleActor, RoleArguments, RoleMessage};
use super::roll::Roll;
use crate::flow::counters::{FlowState, RoleCounters};
use crate::flow::driver::{Seat, run_in_turn};
use crate::flow::worker::Worker;
use crate::flow::{FlowMode, RunError};

/// How often the status is refreshed besides at events: often enough for a person who looks at it.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);

pub(super) struct Supervisor;

pub(super) enum SupervisorMessage {
    /// From the run's handle.
    Command(RunCommand),
    /// From a role's actor.
    Report(RoleReport),
    /// From a timer: the status is due.
    Tick,
}

/// A worker and what it computes on.
pub(super) type PooledWorker = (Box<dyn Worker>, Arc<RoleCounters>, Option<rayon::ThreadPool>);

pub(super) struct SupervisorArguments {
    pub mode: FlowMode,
    pub workers: Vec<PooledWorker>,
    pub state: Arc<FlowState>,
    pub events: broadcast::Sender<RunEvent>,
    pub status: watch::Sender<RunStatus>,
    /// Told once every role has ended.
    pub ended: oneshot::Sender<Result<(), RunError>>,
}

pub(super) struct SupervisorState {
    roll: Roll,
    actors: BTreeMap<RoleId, ActorRef<RoleMessage>>,
    flow: Arc<FlowState>,
    events: broadcast::Sender<RunEvent>,
    status: watch::Sender<RunStatus>,
    ended: Option<oneshot::Sender<Result<(), RunError>>>,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        arguments: SupervisorArguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let SupervisorArguments { mode, workers, state: flow, events, status, ended } = arguments;
        let roles: Vec<RoleId> = workers.iter().map(|(worker, ..)| worker.role()).collect();
        let mut actors = BTreeMap::new();
        let mut seats = Vec::new();
        // In a deterministic run all seats are on one thread, and any wake-up is for it.
        let shared_wake = bounded(1);
        for (worker, counters, pool) in workers {
            let role = worker.role();
            let (commands, commanded) = unbounded();
            let wake = match mode {
                FlowMode::Threaded => bounded(1),
                FlowMode::Deterministic => shared_wake.clone(),
            };
            let arguments = RoleArguments { role, supervisor: myself.clone(), commands, wake: wake.0 };
            let (actor, _) = Actor::spawn_linked(None, RoleActor, arguments, myself.get_cell()).await?;
            let to_actor = actor.clone();
            let report = Box::new(move |report| {
                // A report to an actor that is gone has no reader; the command channel is gone with it, which ends
                // the role.
                let _ = to_actor.cast(RoleMessage::Report(report));
            });
            seats.push((Seat::new(worker, counters, pool, commanded, report), wake.1));
            actors.insert(role, actor);
        }
        match mode {
            FlowMode::Threaded => {
                for (seat, wake) in seats {
                    let Some(actor) = actors.get(&seat.role()) else { continue };
                    actor.cast(RoleMessage::Run(Box::new(seat), wake))?;
                }
            }
            FlowMode::Deterministic => {
                let seats = seats.into_iter().map(|(seat, _)| seat).collect();
                let state = flow.clone();
                std::thread::Builder::new()
                    .name("flow".to_owned())
                    .spawn(move || run_in_turn(seats, shared_wake.1, &state))?;
            }
        }
        myself.send_interval(STATUS_INTERVAL, || SupervisorMessage::Tick);
        Ok(SupervisorState { roll: Roll::new(roles), actors, flow, events, status, ended: Some(ended) })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Command(command) => state.command(command),
            SupervisorMessage::Report(report) => state.report(report),
            SupervisorMessage::Tick => {}
        }
        state.show_status();
        if state.end_if_all_have_ended() {
            myself.stop(None);
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let (id, error) = match event {
            SupervisionEvent::ActorFailed(who, error) => (who.get_id(), error.to_string()),
            // In good order it is stopped from here, after its role's last report.
            SupervisionEvent::ActorTerminated(who, ..) => (who.get_id(), "its actor is gone".to_owned()),
            _ => return Ok(()),
        };
        if let Some(role) = state.role_of(id)
            && state.roll.has_not_ended(role)
        {
            state.report(RoleReport::Failed(role, error));
            state.show_status();
            if state.end_if_all_have_ended() {
                myself.stop(None);
            }
        }
        Ok(())
    }
}

impl SupervisorState {
    fn command(&mut self, command: RunCommand) {
        match command {
            RunCommand::Pause => {
                if self.roll.pause() {
                    self.command_all(RoleCommand::Pause);
                }
            }
            RunCommand::Resume => {
                self.roll.resume();
                self.command_all(RoleCommand::Resume);
            }
            RunCommand::Stop => self.stop(),
        }
    }

    fn stop(&mut self) {
        if self.roll.stop() {
            self.tell(RunEvent::Stopping);
            self.command_all(RoleCommand::Stop);
        }
    }

    fn report(&mut self, report: RoleReport) {
        match report {
            RoleReport::Started(role) => self.roll.started(role),
            RoleReport::Event(event) => self.tell(*event),
            RoleReport::Finished(role) => {
                self.roll.finished(role);
                self.dismiss(role);
            }
            RoleReport::Failed(role, error) => {
                self.dismiss(role);
                if self.roll.failed(role, error.clone()) {
                    tracing::error!(%role, %error, "a role failed");
                    self.tell(RunEvent::Failed { role, error });
                    self.stop();
                }
            }
        }
    }

    fn dismiss(&self, role: RoleId) {
        if let Some(actor) = self.actors.get(&role) {
            actor.stop(None);
        }
    }

    /// Roles that have ended are not listening any more, which is as good.
    fn command_all(&self, command: RoleCommand) {
        for actor in self.actors.values() {
            let _ = actor.cast(RoleMessage::Command(command));
        }
    }

    /// Whether anybody listens makes no difference.
    fn tell(&self, event: RunEvent) {
        let _ = self.events.send(event);
    }

    fn show_status(&self) {
        self.status.send_replace(status_of(&self.flow, &self.roll));
    }

    fn role_of(&self, id: ActorId) -> Option<RoleId> {
        self.actors.iter().find(|(_, actor)| actor.get_id() == id).map(|(role, _)| *role)
    }

    /// Whether the run has just ended.
    fn end_if_all_have_ended(&mut self) -> bool {
        if !self.roll.all_have_ended() {
            return false;
        }
        let Some(ended) = self.ended.take() else { return false };
        let (version, tickets) = (self.flow.version(), self.flow.office.counts());
        let result = match self.roll.first_failure().cloned() {
            Some((role, error)) => Err(RunError::Role { role, error, version, tickets }),
            None => {
                self.tell(RunEvent::Ended { version, stopped: !self.flow.office.is_complete() });
                Ok(())
            }
        };
        // Whoever started the run may have lost interest.
        let _ = ended.send(result);
        true
    }
}

/// The run as it is now.
pub(super) fn status_of(flow: &FlowState, roll: &Roll) -> RunStatus {
    RunStatus {
        version: flow.version(),
        n_updates: flow.n_updates,
        elapsed_s: flow.started.elapsed().as_secs_f64(),
        tickets: flow.office.counts(),
        roles: flow.roles(|role| roll.state(role)),
    }
}
