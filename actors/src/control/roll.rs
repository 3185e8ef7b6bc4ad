//! The roll of a run: which roles run, which have ended, who failed first.

use std::collections::BTreeMap;

use collimate_protocol::RoleId;
use collimate_protocol::messages::RoleState;

/// Each role's state. Pure: the supervisor tells it what was reported.
#[derive(Clone, Debug)]
pub(super) struct Roll {
    states: BTreeMap<RoleId, RoleState>,
    first_failure: Option<(RoleId, String)>,
    is_stopping: bool,
    is_paused: bool,
}

impl Roll {
    pub fn new(roles: impl IntoIterator<Item = RoleId>) -> Self {
        let states = roles.into_iter().map(|role| (role, RoleState::Starting)).collect();
        Self { states, first_failure: None, is_stopping: false, is_paused: false }
    }

    pub fn state(&self, role: RoleId) -> RoleState {
        match self.states.get(&role) {
            Some(RoleState::Running) if self.is_paused => RoleState::Paused,
            Some(state) => *state,
            None => RoleState::Starting,
        }
    }

    pub fn started(&mut self, role: RoleId) {
        if self.has_not_ended(role) {
            self.states.insert(role, RoleState::Running);
        }
    }

    pub fn finished(&mut self, role: RoleId) {
        if self.has_not_ended(role) {
            self.states.insert(role, RoleState::Finished);
        }
    }

    /// Whether this is the run's first failure.
    pub fn failed(&mut self, role: RoleId, error: String) -> bool {
        if !self.has_not_ended(role) {
            return false;
        }
        self.states.insert(role, RoleState::Failed);
        let is_first = self.first_failure.is_none();
        self.first_failure.get_or_insert((role, error));
        is_first
    }

    /// Whether the run was not yet told to stop.
    pub fn stop(&mut self) -> bool {
        self.is_paused = false;
        !std::mem::replace(&mut self.is_stopping, true)
    }

    /// A run that stops can't be paused.
    pub fn pause(&mut self) -> bool {
        self.is_paused = !self.is_stopping;
        self.is_paused
    }

    pub fn resume(&mut self) {
        self.is_paused = false;
    }

    pub fn has_not_ended(&self, role: RoleId) -> bool {
        !matches!(self.states.get(&role), Some(RoleState::Finished | RoleState::Failed))
    }

    pub fn all_have_ended(&self) -> bool {
        self.states.keys().all(|role| !self.has_not_ended(*role))
    }

    pub fn first_failure(&self) -> Option<&(RoleId, String)> {
        self.first_failure.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::Role;

    use super::*;

    const LEARNER: RoleId = RoleId { role: Role::Learner, idx: 0 };
    const GENERATOR: RoleId = RoleId { role: Role::Generator, idx: 0 };

    #[test]
    fn the_first_failure_is_kept_and_the_run_ends_when_all_have() {
        let mut roll = Roll::new([LEARNER, GENERATOR]);
        roll.started(LEARNER);
        roll.started(GENERATOR);
        assert!(roll.failed(GENERATOR, "first".into()));
        assert!(!roll.all_have_ended());
        assert!(!roll.failed(LEARNER, "second".into()));
        assert!(roll.all_have_ended());
        assert_eq!(roll.first_failure(), Some(&(GENERATOR, "first".to_owned())));
    }

    #[test]
    fn a_role_that_has_ended_stays_so() {
        let mut roll = Roll::new([LEARNER]);
        roll.finished(LEARNER);
        roll.started(LEARNER);
        assert!(!roll.failed(LEARNER, "late".into()));
        assert_eq!(roll.state(LEARNER), RoleState::Finished);
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
