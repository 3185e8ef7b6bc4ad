//! A role's actor: owns the role's compute thread, passes commands to it and its reports on.

use collimate_protocol::RoleId;
use collimate_protocol::messages::{RoleCommand, RoleReport};
use crossbeam_channel::{Receiver, Sender};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::supervisor::SupervisorMessage;
use crate::flow::driver::run_alone;
use crate::flow::seat::Seat;

pub(super) struct RoleActor;

pub(super) enum RoleMessage {
    /// From the supervisor, once, first, in a threaded run: runs the role on a thread of its own. In a deterministic
    /// run one thread runs all roles, and the supervisor owns it.
    Run(Box<Seat>, Receiver<()>),
    /// From the supervisor.
    Command(RoleCommand),
    /// From the compute thread.
    Report(RoleReport),
}

pub(super) struct RoleArguments {
    pub role: RoleId,
    pub supervisor: ActorRef<SupervisorMessage>,
    pub commands: Sender<RoleCommand>,
    /// Ends the compute thread's waiting, so that it reads its commands.
    pub wake: Sender<()>,
}

impl Actor for RoleActor {
    type Msg = RoleMessage;
    type State = RoleArguments;
    type Arguments = RoleArguments;

    async fn pre_start(
        &self,
        _: ActorRef<RoleMessage>,
        arguments: RoleArguments,
    ) -> Result<RoleArguments, ActorProcessingErr> {
        Ok(arguments)
    }

    async fn handle(
        &self,
        _: ActorRef<RoleMessage>,
        message: RoleMessage,
        state: &mut RoleArguments,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RoleMessage::Run(seat, wake) => {
                std::thread::Builder::new()
                    .name(state.role.to_string())
                    .spawn(move || run_alone(*seat, wake))
                    .map_err(|error| format!("no thread for it: {error}"))?;
            }
            RoleMessage::Command(command) => {
                // The thread is gone once the role has ended: a command then has no meaning.
                let _ = state.commands.send(command);
                // A full channel holds a wake-up that was not yet read: it serves for this command too.
                let _ = state.wake.try_send(());
            }
            RoleMessage::Report(report) => {
                // After the last one the supervisor stops this actor: it would learn of an actor's own end before it
                // reads a report that was sent earlier.
                state.supervisor.cast(SupervisorMessage::Report(report))?;
            }
        }
        Ok(())
    }
}
