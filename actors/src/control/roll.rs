//! The roll of a run: how each role is, which have ended, and why the run failed.

use std::collections::BTreeMap;

use collimate_protocol::RoleId;
use collimate_protocol::messages::RoleState;

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: RoleState,
    n_restarts: u64,
}

/// Each role's state. Pure: the supervisor tells it what was reported.
#[derive(Clone, Debug)]
pub(super) struct Roll {
    entries: BTreeMap<RoleId, Entry>,
    /// Why the run fails: what was known first.
    failure: Option<(RoleId, String)>,
    is_stopping: bool,
    is_paused: bool,
}

impl Roll {
    pub fn new(roles: impl IntoIterator<Item = RoleId>) -> Self {
        let entry = Entry { state: RoleState::Starting, n_restarts: 0 };
        let entries = roles.into_iter().map(|role| (role, entry)).collect();
        Self { entries, failure: None, is_stopping: false, is_paused: false }
    }

    pub fn state(&self, role: RoleId) -> RoleState {
        if self.failure.as_ref().is_some_and(|(failed, _)| *failed == role) {
            return RoleState::Failed;
        }
        match self.entries.get(&role).map(|entry| entry.state) {
            Some(RoleState::Running) if self.is_paused => RoleState::Paused,
            Some(state) => state,
            None => RoleState::Starting,
        }
    }

    pub fn n_restarts(&self, role: RoleId) -> u64 {
        self.entries.get(&role).map_or(0, |entry| entry.n_restarts)
    }

    pub fn started(&mut self, role: RoleId) {
        self.set(role, RoleState::Running);
    }

    pub fn failed(&mut self, role: RoleId) {
        self.set(role, RoleState::Restarting);
    }

    pub fn restarted(&mut self, role: RoleId) {
        self.set(role, RoleState::Running);
        if let Some(entry) = self.entries.get_mut(&role) {
            entry.n_restarts += 1;
        }
    }

    pub fn finished(&mut self, role: RoleId) {
        self.set(role, RoleState::Finished);
    }

    /// The role has ended in disorder; whether that is news.
    pub fn lost(&mut self, role: RoleId) -> bool {
        let is_news = self.has_not_ended(role);
        self.set(role, RoleState::Failed);
        is_news
    }

    /// The run fails; whether that is news.
    pub fn gave_up(&mut self, role: RoleId, error: String) -> bool {
        let is_news = self.failure.is_none();
        self.failure.get_or_insert((role, error));
        is_news
    }

    /// Whether the run was not yet told to stop.
    pub fn stop(&mut self) -> bool {
        self.is_paused = false;
        !std::mem::replace(&mut self.is_stopping, true)
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// Whether the run pauses from now on. One that stops can't be paused.
    pub fn pause(&mut self) -> bool {
        if self.is_stopping || self.is_paused {
            return false;
        }
        self.is_paused = true;
        true
    }

    /// Whether there was a pause to take back.
    pub fn resume(&mut self) -> bool {
        std::mem::take(&mut self.is_paused)
    }

    pub fn has_not_ended(&self, role: RoleId) -> bool {
        let state = self.entries.get(&role).map(|entry| entry.state);
        !matches!(state, Some(RoleState::Finished | RoleState::Failed))
    }

    pub fn not_ended(&self) -> Vec<RoleId> {
        self.entries.keys().copied().filter(|role| self.has_not_ended(*role)).collect()
    }

    pub fn failure(&self) -> Option<&(RoleId, String)> {
        self.failure.as_ref()
    }

    /// What has ended stays so.
    fn set(&mut self, role: RoleId, state: RoleState) {
        if self.has_not_ended(role)
            && let Some(entry) = self.entries.get_mut(&role)
        {
            entry.state = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::Role;

    use super::*;

    const LEARNER: RoleId = RoleId { role: Role::Learner, idx: 0 };
    const GENERATOR: RoleId = RoleId { role: Role::Generator, idx: 0 };

    #[test]
    fn the_first_reason_to_give_up_is_kept_and_the_run_ends_when_all_have() {
        let mut roll = Roll::new([LEARNER, GENERATOR]);
        roll.started(LEARNER);
        roll.started(GENERATOR);
        roll.failed(GENERATOR);
        assert_eq!(roll.state(GENERATOR), RoleState::Restarting);
        assert!(roll.gave_up(GENERATOR, "first".into()));
        assert!(!roll.gave_up(LEARNER, "second".into()));
        roll.finished(GENERATOR);
        assert_eq!(roll.not_ended(), [LEARNER]);
        assert!(roll.lost(LEARNER));
        assert!(roll.not_ended().is_empty());
        assert_eq!(roll.failure(), Some(&(GENERATOR, "first".to_owned())));
        assert_eq!(roll.state(GENERATOR), RoleState::Failed);
    }

    #[test]
    fn a_role_that_has_ended_stays_so() {
        let mut roll = Roll::new([LEARNER]);
        roll.finished(LEARNER);
        roll.started(LEARNER);
        assert!(!roll.lost(LEARNER));
        assert_eq!(roll.state(LEARNER), RoleState::Finished);
    }

    #[test]
    fn restarts_are_counted() {
        let mut roll = Roll::new([LEARNER, GENERATOR]);
        roll.failed(LEARNER);
        roll.restarted(LEARNER);
        assert_eq!((roll.state(LEARNER), roll.n_restarts(LEARNER)), (RoleState::Running, 1));
        assert_eq!(roll.n_restarts(GENERATOR), 0);
    }

    #[test]
    fn a_run_that_stops_is_not_paused() {
        let mut roll = Roll::new([LEARNER]);
        roll.started(LEARNER);
        assert!(roll.pause());
        assert_eq!(roll.state(LEARNER), RoleState::Paused);
        assert!(roll.stop());
        assert!(!roll.stop());
        assert!(!roll.pause());
        assert_eq!(roll.state(LEARNER), RoleState::Running);
    }
}
