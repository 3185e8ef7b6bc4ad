//! Tickets: nothing is lost, nothing is trained twice.
//!
//! Every prompt that is issued carries a ticket, and a ticket ends in exactly one of trained or dropped. At every
//! moment `issued = trained + dropped + in flight`. The number of tickets is the staleness gate too: with
//! `max_staleness = k` and a batch of `B` there are `(k + 1) * B` (AReaL's rule, arXiv 2505.24298).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{PolicyVersion, PromptId, TicketId};

/// What a prompt carries from its issue to its end. The sampling seed is a function of the run's seed,
/// `prompt_id` and `sample_idx`, so that a ticket issued again samples the same response from the same weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// Order of issue.
    pub id: TicketId,
    /// Which prompt it was issued for.
    pub prompt_id: PromptId,
    /// How many samples of this prompt were issued before.
    pub sample_idx: u32,
}

/// Why a rollout was not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Its oldest token was sampled more than `max_staleness` updates ago.
    TooStale,
    /// A log-probability, the score or a value was not finite.
    NonFinite,
    /// The run was stopped while it was in flight.
    Shutdown,
}

impl DropReason {
    /// The reason as metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::TooStale => "too_stale",
            DropReason::NonFinite => "non_finite",
            DropReason::Shutdown => "shutdown",
        }
    }
}

/// How a ticket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TicketOutcome {
    /// Trained on in the update that starts from this version.
    Trained(PolicyVersion),
    /// Not trained on.
    Dropped(DropReason),
}

/// A ticket on its way home to the prompt source, which may then issue another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketHome {
    /// Whose.
    pub ticket: Ticket,
    /// How it ended.
    pub outcome: TicketOutcome,
}

/// The ledger's totals. `issued == trained + dropped + in_flight` always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketCounts {
    /// Tickets issued so far.
    pub issued: u64,
    /// Tickets that ended in an update.
    pub trained: u64,
    /// Tickets that ended otherwise.
    pub dropped: u64,
    /// `dropped` by its reason; a reason that never occurred is absent.
    pub dropped_by_reason: BTreeMap<DropReason, u64>,
    /// Tickets that have not ended.
    pub in_flight: u64,
}

impl TicketCounts {
    /// Whether the conservation law holds.
    pub fn is_conserved(&self) -> bool {
        self.issued == self.trained + self.dropped + self.in_flight
            && self.dropped == self.dropped_by_reason.values().sum::<u64>()
    }
}
