//! Whether a role that has failed is started again. Pure: the time is told.

use std::collections::VecDeque;
use std::time::Duration;

use collimate_protocol::RoleId;
use collimate_protocol::messages::RoleFailure;

use super::config::RestartConfig;

/// What follows a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The role is started again after this long.
    Restart(Duration),
    /// The run ends, because of this role and with this error: the first of those that were too many.
    GiveUp(RoleId, String),
}

/// The failures that still count.
#[derive(Clone, Debug)]
pub(crate) struct Restarts {
    config: RestartConfig,
    recent: VecDeque<(Duration, RoleFailure)>,
}

impl Restarts {
    pub fn new(config: &RestartConfig) -> Self {
        Self { config: config.clone(), recent: VecDeque::new() }
    }

    /// A role has failed at `now`, as time is counted since the run's start.
    pub fn failed(&mut self, now: Duration, failure: RoleFailure) -> Verdict {
        if !failure.is_mendable {
            return Verdict::GiveUp(failure.role, failure.error);
        }
        let window = Duration::from_secs_f64(self.config.window_s);
        while self.recent.front().is_some_and(|(then, _)| now.saturating_sub(*then) > window) {
            self.recent.pop_front();
        }
        self.recent.push_back((now, failure));
        match self.recent.front() {
            Some((_, first)) if self.recent.len() > self.config.most_failures => {
                Verdict::GiveUp(first.role, first.error.clone())
            }
            _ => {
                let doublings = self.recent.len().min(16) as i32 - 1;
                Verdict::Restart(Duration::from_secs_f64(self.config.backoff_s * 2f64.powi(doublings)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::Role;

    use super::*;

    fn failure(role: Role, error: &str) -> RoleFailure {
        RoleFailure { role: RoleId::only(role), error: error.to_owned(), is_mendable: true }
    }

    fn restarts(most_failures: usize) -> Restarts {
        Restarts::new(&RestartConfig { most_failures, window_s: 10.0, backoff_s: 1.0, stall_s: 0.0 })
    }

    #[test]
    fn each_further_failure_waits_twice_as_long_and_one_too_many_ends_the_run_with_the_first_error() {
        let mut restarts = restarts(2);
        let second = Duration::from_secs(1);
        assert_eq!(restarts.failed(second, failure(Role::Generator, "first")), Verdict::Restart(second));
        assert_eq!(restarts.failed(second * 2, failure(Role::Learner, "second")), Verdict::Restart(second * 2));
        let verdict = restarts.failed(second * 3, failure(Role::Learner, "third"));
        assert_eq!(verdict, Verdict::GiveUp(RoleId::only(Role::Generator), "first".to_owned()));
    }

    #[test]
    fn a_failure_is_forgotten_after_the_window() {
        let mut restarts = restarts(1);
        let at = Duration::from_secs;
        assert!(matches!(restarts.failed(at(0), failure(Role::Learner, "a")), Verdict::Restart(_)));
        assert!(matches!(restarts.failed(at(11), failure(Role::Learner, "b")), Verdict::Restart(_)));
        assert!(matches!(restarts.failed(at(12), failure(Role::Learner, "c")), Verdict::GiveUp(..)));
    }

    #[test]
    fn what_cannot_be_mended_ends_the_run_at_once_with_its_own_error() {
        let mut restarts = restarts(5);
        restarts.failed(Duration::ZERO, failure(Role::Generator, "mended"));
        let fatal = RoleFailure { is_mendable: false, ..failure(Role::Learner, "fatal") };
        let verdict = restarts.failed(Duration::ZERO, fatal);
        assert_eq!(verdict, Verdict::GiveUp(RoleId::only(Role::Learner), "fatal".to_owned()));
    }
}
