//! Every control message. Experience never travels here: it goes through bounded channels between the compute
//! threads.
//!
//! ```text
//! caller --RunCommand--> supervisor --RoleCommand--> role actor --RoleCommand--> compute thread
//! caller <--RunEvent---- supervisor <--RoleReport--- role actor <--RoleReport--- compute thread
//! ```

use serde::{Deserialize, Serialize};

use crate::change::{RewardModelId, SettingChange};
use crate::ids::{PolicyVersion, RoleId};
use crate::records::{UpdateMetrics, WorkSums};
use crate::ticket::TicketCounts;

/// From whoever holds the run's handle to the supervisor.
#[derive(Clone, Debug, PartialEq)]
pub enum RunCommand {
    /// Every role stops taking work at its next item. Promise: nothing in flight is lost.
    Pause,
    /// Takes back a pause.
    Resume,
    /// Keep the whole state before the next update begins. What is in flight then is open in it: a run that goes on from
    /// there issues it again. Where roles pause, it is kept once they go on.
    Checkpoint,
    /// Change a setting from the next batch on; the reward model, from the next batch of which nothing is issued yet.
    /// Promise: the journal has it with the first update that it holds for.
    Change(SettingChange),
    /// The update in progress finishes and is published, what else is in flight is dropped as
    /// [`Shutdown`](crate::DropReason::Shutdown) (a checkpoint has it open), then the run ends. A flow that is set to
    /// drain first trains on what fills whole batches; a second `Stop` cuts that short. Promise: every ticket comes home.
    Stop,
}

/// From the supervisor to a role's actor, and from there to its compute thread.
#[derive(Clone, Debug, PartialEq)]
pub enum RoleCommand {
    /// Take no more work until `Resume`.
    Pause,
    /// Go on.
    Resume,
    /// To the learner alone: keep the whole state before the next update.
    Checkpoint,
    /// To the experience buffer alone: it holds from the next batch on, and travels with that batch to the learner.
    Change(SettingChange),
    /// To a role that has failed: make anew what computes, start what was in hand again, and go on.
    Restart,
    /// Send every ticket in hand home as dropped, then end.
    Stop,
}

/// From a compute thread to its role's actor, and from there to the supervisor.
#[derive(Clone, Debug, PartialEq)]
pub enum RoleReport {
    /// The compute thread runs. Sent once, first.
    Started(RoleId),
    /// Something that the run's listeners are to hear. From the recorder alone.
    Event(Box<RunEvent>),
    /// A step of the role has failed, panicked or stalled. What it has in hand is kept; it does nothing more before
    /// `Restart` or `Stop`.
    Failed(RoleFailure),
    /// The role goes on after a failure.
    Restarted(RoleId),
    /// The role has ended in good order. Sent once, last.
    Finished(RoleId),
    /// The role could not even end: what it had in hand is gone. Sent once, last.
    Lost(RoleId, String),
}

/// How a step of a role failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleFailure {
    /// Whose.
    pub role: RoleId,
    /// With what.
    pub error: String,
    /// Whether starting the role again may mend it. A violated ledger, for one, it does not.
    pub is_mendable: bool,
}

/// A role's state, as status shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleState {
    /// Not yet started.
    Starting,
    /// Working, or waiting for work.
    Running,
    /// Told to take no work.
    Paused,
    /// Failed, and about to be started again.
    Restarting,
    /// Ended in good order.
    Finished,
    /// The run ends because of this role's failure.
    Failed,
}

/// A role's line in the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleStatus {
    /// Who.
    pub role: RoleId,
    /// How it is.
    pub state: RoleState,
    /// How often it was started again after a failure.
    pub n_restarts: u64,
    /// Items done so far (prompts issued, rollouts, batches, updates).
    pub n_items: u64,
    /// Tokens processed so far.
    pub n_tokens: u64,
    /// Seconds spent computing so far.
    pub busy_s: f64,
    /// Items waiting in its inbox now.
    pub queue_depth: usize,
    /// How long its pieces of work took.
    pub work: WorkSums,
}

/// A run as it is now. The supervisor publishes it; the latest wins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Updates done.
    pub version: PolicyVersion,
    /// Updates to do in all.
    pub n_updates: u64,
    /// Seconds since the start.
    pub elapsed_s: f64,
    /// The ledger.
    pub tickets: TicketCounts,
    /// How often a ticket's work was started again because its holder failed.
    pub n_issued_again: u64,
    /// The version of the newest checkpoint.
    pub checkpoint: Option<PolicyVersion>,
    /// Whether the run has ended, or is gone.
    pub has_ended: bool,
    /// Each role, in the order of the flow.
    pub roles: Vec<RoleStatus>,
}

/// From the run to whoever listens: the recorder, a progress line, a service's clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// An update is done and its snapshot published.
    Updated(Box<UpdateMetrics>),
    /// Something is wrong that training does not depend on: metrics that can't be written. The run goes on.
    Warning {
        /// Who noticed.
        role: RoleId,
        /// What is wrong.
        message: String,
    },
    /// A role has failed, and was started again: what it had in hand is done again, from the same seeds.
    Restarted {
        /// Whose.
        role: RoleId,
        /// With what it had failed.
        error: String,
    },
    /// Settings were changed, from this update on.
    Changed {
        /// The version that the first update with them started from.
        version: PolicyVersion,
        /// In the order in which they were asked for.
        changes: Vec<SettingChange>,
    },
    /// The reward model is about to be replaced: the flow runs dry first.
    Replacing {
        /// The version that the first update with the new one will start from.
        version: PolicyVersion,
        /// The new one.
        reward_model: RewardModelId,
    },
    /// The run has been told to pause.
    Paused,
    /// A pause was taken back.
    Resumed,
    /// The run's whole state has been kept.
    Checkpointed {
        /// Updates done.
        version: PolicyVersion,
    },
    /// The run has been told to stop.
    Stopping,
    /// The run has ended: all updates done, or stopped in good order.
    Ended {
        /// Updates done.
        version: PolicyVersion,
        /// Whether it was told to stop.
        stopped: bool,
    },
    /// The run has failed.
    Failed {
        /// Whose failure was one too many, or the first that nothing mends.
        role: RoleId,
        /// With what.
        error: String,
    },
}
