//! What travels between Collimate's actors, and what lies on disk: plain data, no tensors.
//!
//! In the order of the flow:
//!
//! - [`ids`]: what names a prompt, a ticket, a policy version, a role.
//! - [`ticket`]: the promise that every issued prompt is trained on once, or dropped for a named reason.
//! - [`rollout`]: one type per hop, from [`Prompt`] to [`ExperienceBatch`].
//! - [`roles`]: what an actor asks of the model (or the fake) behind it.
//! - [`change`]: settings that may be changed while a run goes on.
//! - [`messages`]: every control message, with its sender, its receiver and its promise.
//! - [`records`]: the formats of the run directory and of the data files.
//!
//! Not here: anything that computes (`collimate-models`), anything that runs (`collimate`).

pub mod change;
pub mod ids;
pub mod messages;
pub mod records;
pub mod roles;
pub mod rollout;
pub mod ticket;

pub use change::{RewardModelId, SettingChange};
pub use ids::{PolicyVersion, PromptId, Role, RoleId, TicketId};
pub use roles::RoleError;
pub use rollout::{
    Experience, ExperienceBatch, FinishReason, PretrainBatch, Prompt, ReferencedRollout, Rollout, ScoredRollout,
    Snapshot,
};
pub use ticket::{DropReason, Ticket, TicketCounts, TicketHome, TicketOutcome};
