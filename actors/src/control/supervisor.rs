//! The supervisor: passes commands down and events up, has roles that failed started again, and ends the run when
//! that is too often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use collimate_protocol::messages::{RoleCommand, RoleReport, RunCommand, RunEvent, RunStatus};
use collimate_protocol::{RewardModelId, Role, RoleId, SettingChange};
use crossbeam_channel::{bounded, unbounded};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{broadcast, oneshot, watch};

use super::role_actor::{RoleActor, RoleArguments, RoleMessage};
use super::roll::Roll;
use crate::flow::counters::{FlowState, RoleCounters};
use crate::flow::driver::run_in_turn;
use crate::flow::restarts::{Restarts, Verdict};
use crate::flow::seat::Seat;
use crate::flow::worker::Worker;
use crate::flow::{FlowConfig, FlowMode, OnStop, RunError};

/// How often the status is refreshed besides at events: often enough for a person who looks at it.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);

/// How long the others have to end once a role is stuck where nothing reaches it. They may never learn that it is gone.
const GRACE: Duration = Duration::from_secs(10);

pub(super) struct Supervisor;

pub(super) enum SupervisorMessage {
    /// From the run's handle.
    Command(RunCommand),
    /// From a role's actor.
    Report(RoleReport),
    /// From a timer: a role that failed is to be started again.
    Restart(RoleId),
    /// From a timer: the run ends, whoever has not.
    Abandon,
    /// From a timer: the status is due.
    Tick,
}

/// A worker and what it counts.
pub(super) type CountedWorker = (Box<dyn Worker>, Arc<RoleCounters>);

pub(super) struct SupervisorArguments {
    pub config: FlowConfig,
    pub workers: Vec<CountedWorker>,
    pub state: Arc<FlowState>,
    pub events: broadcast::Sender<RunEvent>,
    pub status: watch::Sender<RunStatus>,
    /// Told once every role has ended.
    pub ended: oneshot::Sender<Result<(), RunError>>,
}

pub(super) struct SupervisorState {
    roll: Roll,
    restarts: Restarts,
    /// What each role that waits for its restart had failed with.
    errors: BTreeMap<RoleId, String>,
    /// How long a step may last, wherever it computes.
    patience: Option<Duration>,
    /// Told to stop once what is in flight is trained on.
    is_draining: bool,
    config: FlowConfig,
    myself: ActorRef<SupervisorMessage>,
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
        let SupervisorArguments { config, workers, state: flow, events, status, ended } = arguments;
        let roles: Vec<RoleId> = workers.iter().map(|(worker, ..)| worker.role()).collect();
        let mut actors = BTreeMap::new();
        let mut seats = Vec::new();
        // In a deterministic run all seats are on one thread, and any wake-up is for it.
        let shared_wake = bounded(1);
        for (worker, counters) in workers {
            let role = worker.role();
            let (commands, commanded) = unbounded();
            let wake = match config.mode {
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
            seats.push((Seat::new(worker, counters, commanded, report), wake.1));
            actors.insert(role, actor);
        }
        match config.mode {
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
        Ok(SupervisorState {
            roll: Roll::new(roles),
            restarts: Restarts::new(&config.restarts),
            errors: BTreeMap::new(),
            // Twice: what computes on a thread of its own is given up after one.
            patience: config.restarts.patience().filter(|_| config.mode == FlowMode::Threaded).map(|once| once * 2),
            is_draining: false,
            config,
            myself,
            actors,
            flow,
            events,
            status,
            ended: Some(ended),
        })
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
            SupervisorMessage::Restart(role) => state.restart(role),
            SupervisorMessage::Abandon => state.abandon(),
            SupervisorMessage::Tick => state.look_for_stuck(),
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
            state.report(RoleReport::Lost(role, error));
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
                    self.tell(RunEvent::Paused);
                }
            }
            RunCommand::Resume => {
                if self.roll.resume() {
                    self.command_all(RoleCommand::Resume);
                    self.tell(RunEvent::Resumed);
                }
            }
            RunCommand::Checkpoint => self.command_role(Role::Learner, RoleCommand::Checkpoint),
            RunCommand::Change(SettingChange::RewardModel(model)) => self.replace_reward_model(model),
            RunCommand::Change(change) => self.command_role(Role::ExperienceBuffer, RoleCommand::Change(change)),
            RunCommand::Stop => self.drain_or_stop(),
        }
    }

    fn replace_reward_model(&mut self, reward_model: RewardModelId) {
        match self.flow.office.replace_reward_model(reward_model.clone()) {
            Some(version) => {
                self.tell(RunEvent::Replacing { version, reward_model });
                // Where nothing was in flight it has been replaced between two updates already, and not by one's end.
                if self.flow.office.reward_model().is_some_and(|since| since.version == version) {
                    self.command_role(Role::Learner, RoleCommand::Checkpoint);
                }
            }
            None => self.tell(RunEvent::Warning {
                role: RoleId::only(Role::RewardScorer),
                message: format!("{reward_model} comes too late: the run ends without another batch"),
            }),
        }
    }

    /// The first order to stop may let the flow run dry first; the second does not.
    fn drain_or_stop(&mut self) {
        if self.config.on_stop == OnStop::Drain && !self.is_draining && !self.roll.is_stopping() {
            self.is_draining = true;
            self.roll.resume();
            self.command_all(RoleCommand::Resume);
            self.tell(RunEvent::Stopping);
            self.flow.office.drain(self.config.batch_size as u64);
        } else {
            self.stop();
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
            RoleReport::Failed(failure) => {
                tracing::error!(role = %failure.role, error = %failure.error, "a role failed");
                let role = failure.role;
                self.roll.failed(role);
                if self.roll.is_stopping() {
                    // The command to stop is under way to it, and mends as much as is needed.
                    return;
                }
                self.errors.insert(role, failure.error.clone());
                match self.restarts.failed(self.flow.started.elapsed(), failure) {
                    Verdict::Restart(after) => {
                        // Detached: nothing waits for the timer itself.
                        drop(self.myself.send_after(after, move || SupervisorMessage::Restart(role)));
                    }
                    Verdict::GiveUp(role, error) => self.give_up(role, error),
                }
            }
            RoleReport::Restarted(role) => {
                self.roll.restarted(role);
                let error = self.errors.remove(&role).unwrap_or_default();
                self.tell(RunEvent::Restarted { role, error });
            }
            RoleReport::Lost(role, error) => {
                self.dismiss(role);
                if self.roll.lost(role) {
                    self.give_up(role, error);
                }
            }
        }
    }

    fn restart(&self, role: RoleId) {
        if self.roll.is_stopping() {
            return;
        }
        if let Some(actor) = self.actors.get(&role) {
            // Its end, if it has come, is reported on its own.
            let _ = actor.cast(RoleMessage::Command(RoleCommand::Restart));
        }
    }

    fn give_up(&mut self, role: RoleId, error: String) {
        if self.roll.gave_up(role, error.clone()) {
            self.tell(RunEvent::Failed { role, error });
        }
        self.stop();
    }

    /// A role whose step lasts for ever is lost: unlike what computes behind it, it can't be made anew.
    fn look_for_stuck(&mut self) {
        let Some(patience) = self.patience else { return };
        for role in self.roll.not_ended() {
            let lasts = self.flow.step_lasts(role);
            if lasts > patience {
                self.report(RoleReport::Lost(role, format!("stalled: its step has lasted {lasts:?}")));
                drop(self.myself.send_after(GRACE, || SupervisorMessage::Abandon));
            }
        }
    }

    fn abandon(&mut self) {
        for role in self.roll.not_ended() {
            self.report(RoleReport::Lost(role, "it waits for a role that is stuck".to_owned()));
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
            let _ = actor.cast(RoleMessage::Command(command.clone()));
        }
    }

    /// As above; each of these roles is played by one actor.
    fn command_role(&self, role: Role, command: RoleCommand) {
        if let Some(actor) = self.actors.get(&RoleId::only(role)) {
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
        if !self.roll.not_ended().is_empty() {
            return false;
        }
        let Some(ended) = self.ended.take() else { return false };
        let (version, tickets) = (self.flow.version(), self.flow.office.counts());
        let result = match self.roll.failure().cloned() {
            Some((role, error)) => Err(RunError::Role { role, error, version, tickets }),
            None => {
                self.tell(RunEvent::Ended { version, stopped: self.flow.office.is_cut_short() });
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
        n_issued_again: flow.office.n_issued_again(),
        checkpoint: flow.checkpoint_version(),
        has_ended: roll.not_ended().is_empty(),
        roles: flow.roles(|role| (roll.state(role), roll.n_restarts(role))),
    }
}
