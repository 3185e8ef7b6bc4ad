//! Keeps what a run of PPO goes on from, and what it can be run again by: checkpoints and the journal.

use std::collections::BTreeMap;
use std::path::Path;

use collimate_protocol::records::LedgerState;
use collimate_protocol::{PolicyVersion, RoleError, SettingChange};

use super::context::StageError;
use crate::flow::{Checkpoint, RunSink, TrainedUpdate};
use crate::rundir::{Checkpoints, Journal, JournalWriter, StageDir};

/// What an earlier attempt left.
pub(super) struct Earlier {
    /// What to go on from; `None` to start anew.
    pub checkpoint: Option<Checkpoint>,
    /// Settings that were changed in updates that are done again: what somebody has asked for is not to be lost. Only the
    /// last change of each.
    pub changes: Vec<SettingChange>,
    /// What a person should know of it.
    pub notes: Vec<String>,
}

/// Looks for what an earlier attempt at the stage left in its folder.
pub(super) fn earlier(dir: &StageDir) -> Result<Earlier, StageError> {
    let checkpoints = Checkpoints::at(&dir.checkpoints());
    checkpoints.remove_left_over()?;
    let found = checkpoints.newest()?;
    let mut notes: Vec<String> =
        found.damaged.iter().map(|problem| format!("passed over a checkpoint: {problem}")).collect();
    let mut changes = Vec::new();
    if let Some(checkpoint) = &found.checkpoint {
        changes = changes_since(&dir.journal(), checkpoint.version)?;
        changes.retain(|change| !is_in(&checkpoint.ledger, change));
        if !changes.is_empty() {
            let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
            notes.push(format!("changed anew, as before in updates that are done again: {}", changes.join(", ")));
        }
        checkpoints.remove_after(checkpoint.version)?;
        let n_open = checkpoint.ledger.open.len();
        notes.push(format!("goes on from the checkpoint of {}; {n_open} tickets are issued again", checkpoint.version));
    }
    Ok(Earlier { checkpoint: found.checkpoint, changes, notes })
}

/// The last change of each setting from the update of `version` on. A journal that is absent has none; that it should be
/// there is for whoever goes on with it to say.
fn changes_since(journal: &Path, version: PolicyVersion) -> Result<Vec<SettingChange>, StageError> {
    if !journal.exists() {
        return Ok(Vec::new());
    }
    let journal = Journal::read(journal)?;
    let again = journal.updates.iter().filter(|update| update.version >= version);
    let mut last = BTreeMap::new();
    last.extend(again.flat_map(|update| &update.changes).map(|change| (change.key(), change.clone())));
    Ok(last.into_values().collect())
}

/// Whether the checkpoint has this reward model already: in use, or to take over where its flow has run dry. Asked for
/// again, it would be put in its own place later, and the value model would be warmed up twice.
fn is_in(ledger: &LedgerState, change: &SettingChange) -> bool {
    let SettingChange::RewardModel(model) = change else { return false };
    [&ledger.reward_model, &ledger.next_reward_model].into_iter().flatten().any(|since| since.model == *model)
}

/// A sink around another.
pub(super) struct Keeper {
    sink: Box<dyn RunSink>,
    /// `None` once it could not be written: a journal with a gap is worth nothing.
    journal: Option<JournalWriter>,
    checkpoints: Checkpoints,
    n_kept: usize,
}

impl Keeper {
    /// Goes on, or begins, at the version of `checkpoint`.
    pub fn open(
        dir: &StageDir,
        sink: Box<dyn RunSink>,
        checkpoint: Option<&Checkpoint>,
        n_kept: usize,
    ) -> Result<Self, StageError> {
        let version = checkpoint.map(|checkpoint| checkpoint.version).unwrap_or_default();
        let journal = Some(JournalWriter::open(&dir.journal(), version)?);
        Ok(Self { sink, journal, checkpoints: Checkpoints::at(&dir.checkpoints()), n_kept })
    }
}

impl RunSink for Keeper {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        let journaled = self.journal.as_mut().map_or(Ok(()), |journal| journal.append(&update.journaled()));
        if journaled.is_err() {
            self.journal = None;
        }
        self.sink.updated(update)?;
        journaled.map_err(|error| format!("the journal ends here, the run can't be replayed beyond: {error}").into())
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<bool, RoleError> {
        if let Some(journal) = &self.journal {
            journal.sync()?;
        }
        self.checkpoints.save(checkpoint, self.n_kept)?;
        self.sink.checkpoint(checkpoint)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::RewardModelId;
    use collimate_protocol::records::RewardModelSince;

    use super::*;

    #[test]
    fn a_reward_model_that_the_checkpoint_has_is_not_asked_for_again() {
        let id = |dir: &str| RewardModelId { dir: dir.into(), weights: "0".into() };
        let since = |dir, version| Some(RewardModelSince { model: id(dir), version: PolicyVersion(version) });
        let ledger =
            LedgerState { reward_model: since("a", 3), next_reward_model: since("b", 5), ..LedgerState::default() };
        let is_in = |change| is_in(&ledger, &change);
        assert!(is_in(SettingChange::RewardModel(id("a"))) && is_in(SettingChange::RewardModel(id("b"))));
        assert!(!is_in(SettingChange::RewardModel(id("c"))) && !is_in(SettingChange::Lr(0.5)));
    }
}
