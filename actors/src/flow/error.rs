//! How a run of the flow fails.

use collimate_protocol::{PolicyVersion, RoleId, TicketCounts};

/// Why a run did not come to its end.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RunError {
    /// A role failed too often, or in a way that nothing mends, or none could go on. All others have ended.
    #[error("{role} failed: {error} (at {version}; tickets: {tickets:?})")]
    Role {
        /// Whose failure it was: of those that were too many, the first.
        role: RoleId,
        /// With what.
        error: String,
        /// Updates done and published.
        version: PolicyVersion,
        /// The ledger at the end. What is in flight was in the hands of a role that could not even end.
        tickets: TicketCounts,
    },

    /// A setting, or a part of the flow, makes no sense. Nothing has run.
    #[error("{0}")]
    Config(String),

    /// The actors could not be started, or are gone.
    #[error("the actors of the run: {0}")]
    Actors(String),
}
