//! The ledger between two updates, as a checkpoint has it.

use serde::{Deserialize, Serialize};

use crate::change::RewardModelId;
use crate::ids::PolicyVersion;
use crate::ticket::{Ticket, TicketCounts};

/// The ledger at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerState {
    /// The totals.
    pub counts: TicketCounts,
    /// Tickets that have not ended, in order of id: a run that goes on from here issues each again, with the same
    /// sampling seed.
    pub open: Vec<Ticket>,
    /// The reward model, where it is not the one that the run began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_model: Option<RewardModelSince>,
    /// The one that is to follow, where the flow was running dry for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_reward_model: Option<RewardModelSince>,
}

/// A reward model that was put in the place of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardModelSince {
    /// Which.
    pub model: RewardModelId,
    /// The version that the first update on its scores starts from: nothing is in flight there.
    pub version: PolicyVersion,
}

impl LedgerState {
    /// What is wrong with it, if anything is.
    pub fn problem(&self) -> Option<String> {
        let Self { counts, open, .. } = self;
        if !counts.is_conserved() {
            return Some(format!("issued = trained + dropped + in flight does not hold: {counts:?}"));
        }
        if counts.in_flight != open.len() as u64 {
            return Some(format!("{} tickets are in flight, but {} are open", counts.in_flight, open.len()));
        }
        if !open.is_sorted_by(|a, b| a.id < b.id) || open.last().is_some_and(|last| last.id.0 >= counts.issued) {
            return Some(format!("the open tickets are not {} of the first {}", open.len(), counts.issued));
        }
        None
    }
}
