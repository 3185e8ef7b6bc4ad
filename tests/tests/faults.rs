//! Any role fails at any time: the run ends, with just that failure.

use std::sync::atomic::Ordering;

use collimate::flow::{Factory, FlowMode, PpoFlow, RunError};
use collimate_protocol::messages::{RoleReport, RoleState, RunEvent, RunStatus};
use collimate_protocol::roles::{ReferencePolicy, RewardFunction, RewardRequest};
use collimate_protocol::{Role, RoleError, RoleId, Rollout};
use collimate_tests::cases::cases;
use collimate_tests::fakes::{FakeTrainer, FakeWeights, Log, SharedLog};
use collimate_tests::laws::{check_any, check_batches, check_complete, check_reports};
use collimate_tests::run::{Outcome, within};
use collimate_tests::scenario::Scenario;
use collimate_tests::wrap::{Fault, failing};
use proptest::prelude::*;

/// Every role, and the second generator.
fn everybody() -> impl Iterator<Item = RoleId> {
    Role::ALL.into_iter().map(RoleId::only).chain([RoleId { role: Role::Generator, idx: 1 }])
}

/// A run in which `role` has failed ends with just that, and what it trained on before is as it should be.
fn check_failed(scenario: &Scenario, role: RoleId, fault: Fault, result: Result<Outcome, RunError>, log: &Log) {
    let error = result.expect_err("a crash was taken for the end of the data");
    let message = error.to_string();
    let RunError::Role { role: found, error, version, tickets } = error else { panic!("{message}") };
    match fault {
        Fault::Panic => assert_eq!((found, &*error), (role, "panicked: injected panic")),
        Fault::Error => assert_eq!((found, &*error), (role, "injected error")),
        Fault::Stall => assert!(error.starts_with("deadlock: no role can go on"), "{error}"),
        Fault::Hang => assert!(found == role && error.starts_with("stalled: its step has lasted"), "{error}"),
    }
    assert!(message.contains(found.role.name()), "{message}");
    assert!(tickets.is_conserved(), "{tickets:?}");
    assert_eq!(tickets.trained, version.0 * scenario.config.batch_size as u64);
    assert_eq!(version.0, log.batches.len() as u64);
    check_batches(scenario, log);
}

#[test]
fn a_failure_of_any_role_at_any_time_ends_a_deterministic_run_with_that_failure() {
    let scenario = Scenario::narrow(FlowMode::Deterministic);
    for role in everybody() {
        for fault in [Fault::Panic, Fault::Error, Fault::Stall] {
            let mut n_failed = 0;
            for after in 0.. {
                let log = SharedLog::default();
                let (has_failed, wrap) = failing(role, fault, after, u64::MAX);
                let (reports, result) = scenario.graph(&log).map_workers(wrap).run_here();
                if !has_failed.load(Ordering::Relaxed) {
                    check_complete(&scenario, &result.unwrap(), &log.read());
                    check_reports(&scenario, &reports);
                    break;
                }
                n_failed += 1;
                check_failed(&scenario, role, fault, result, &log.read());
                let ended = |r: &&RoleReport| matches!(r, RoleReport::Finished(_) | RoleReport::Lost(..));
                assert_eq!(reports.iter().filter(ended).count(), 9, "a role has not ended: {reports:?}");
            }
            assert!(n_failed > 1, "{role} never failed");
        }
    }
}

async fn run_with_fault(scenario: &Scenario, role: RoleId, fault: Fault, after: u64) {
    let what = format!("{role}, {fault:?} after {after}");
    let log = SharedLog::default();
    let (has_failed, wrap) = failing(role, fault, after, u64::MAX);
    let handle = scenario.graph(&log).map_workers(wrap).start().await.unwrap();
    let (mut events, control) = (handle.events(), handle.control());
    let result = within(handle.wait(), &what).await;
    let mut failures = Vec::new();
    let mut ended = false;
    while let Ok(event) = events.recv().await {
        match event {
            RunEvent::Failed { role, error } => failures.push((role, error)),
            RunEvent::Ended { .. } => ended = true,
            _ => {}
        }
    }
    if !has_failed.load(Ordering::Relaxed) {
        assert!(ended && failures.is_empty());
        check_complete(scenario, &result.unwrap(), &log.read());
        return;
    }
    let Err(RunError::Role { role: found, error, .. }) = &result else { panic!("{what}: {result:?}") };
    assert!(!ended);
    assert_eq!(failures, [(*found, error.clone())], "{what}");
    let failed = |status: &RunStatus| status.roles.iter().filter(|r| r.state == RoleState::Failed).count();
    assert_eq!(failed(&control.status().borrow()), 1, "{what}");
    check_failed(scenario, role, fault, result, &log.read());
}

#[tokio::test]
async fn a_failure_of_any_role_ends_a_run_on_actors_with_that_failure() {
    for after in [0, 1, 3, 8] {
        for role in everybody() {
            for fault in [Fault::Panic, Fault::Error] {
                run_with_fault(&Scenario::narrow(FlowMode::Threaded), role, fault, after).await;
                run_with_fault(&Scenario::narrow(FlowMode::Deterministic), role, fault, after).await;
            }
            run_with_fault(&Scenario::narrow(FlowMode::Deterministic), role, Fault::Stall, after).await;
        }
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_failure_at_a_random_moment_ends_a_threaded_run(
        role in 0..9usize,
        fault in prop_oneof![Just(Fault::Panic), Just(Fault::Error)],
        after in 0..40u64,
        max_staleness in 0..=3u64,
        seed in any::<u64>(),
    ) {
        let mut scenario = Scenario { seed, delays: vec![0, 9, 2], ..Scenario::narrow(FlowMode::Threaded) };
        scenario.config.max_staleness = max_staleness;
        let role = everybody().nth(role).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run_with_fault(&scenario, role, fault, after));
    }
}

/// Whoever is stalled in a threaded run may be computing, for all that anybody knows: the run waits, and ends when it
/// is told to.
#[tokio::test]
async fn a_threaded_run_that_stalls_ends_in_good_order_when_it_is_told_to_stop() {
    let scenario = Scenario::narrow(FlowMode::Threaded);
    for role in everybody() {
        let log = SharedLog::default();
        let (has_stalled, wrap) = failing(role, Fault::Stall, 3, u64::MAX);
        let handle = scenario.graph(&log).map_workers(wrap).start().await.unwrap();
        let stalled = async {
            while !has_stalled.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
        };
        within(stalled, &format!("{role} does not stall")).await;
        handle.stop();
        let outcome = within(handle.wait(), &role.to_string()).await.unwrap();
        assert!(outcome.stopped || role.role == Role::PretrainMixer);
        check_any(&scenario, &outcome, &log.read());
    }
}

/// A part that does not do what its trait promises.
struct Broken(Breach);

enum Breach {
    OneTooFew,
    NotANumber,
}

impl RewardFunction for Broken {
    fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
        let mut scores = vec![0.5; requests.len()];
        match self.0 {
            Breach::OneTooFew => drop(scores.pop()),
            Breach::NotANumber => scores.fill(f32::NAN),
        }
        Ok(scores)
    }
}

impl ReferencePolicy for Broken {
    fn logprobs(&mut self, rollouts: &[Rollout]) -> Result<Vec<Vec<f32>>, RoleError> {
        let mut all: Vec<Vec<f32>> = rollouts.iter().map(|rollout| vec![-1.0; rollout.response.len()]).collect();
        match self.0 {
            Breach::OneTooFew => drop(all[0].pop()),
            Breach::NotANumber => all.iter_mut().for_each(|logprobs| logprobs.fill(f32::NAN)),
        }
        Ok(all)
    }
}

fn error_with(change: impl FnOnce(&mut PpoFlow<FakeWeights, FakeTrainer>)) -> String {
    let scenario = Scenario::default();
    let mut parts = scenario.parts(&SharedLog::default());
    change(&mut parts);
    parts.wire(&scenario.config).unwrap().run_here().1.unwrap_err().to_string()
}

#[test]
fn a_part_that_breaks_its_promise_fails_the_run_by_the_name_of_its_role() {
    let error = error_with(|parts| parts.rewards = vec![Factory::once(Box::new(Broken(Breach::OneTooFew)))]);
    assert!(error.starts_with("reward_scorer-0 failed: the reward function returned"), "{error}");
    let error = error_with(|parts| parts.rewards = vec![Factory::once(Box::new(Broken(Breach::NotANumber)))]);
    assert!(error.starts_with("reward_scorer-0 failed: the reward function returned NaN for the response"), "{error}");
    let error = error_with(|parts| parts.references = vec![Factory::once(Box::new(Broken(Breach::OneTooFew)))]);
    assert!(error.starts_with("reference_scorer-0 failed: the reference returned"), "{error}");
}

#[test]
fn log_probabilities_that_are_never_finite_end_the_run_instead_of_being_sampled_again_for_ever() {
    let error = error_with(|parts| parts.references = vec![Factory::once(Box::new(Broken(Breach::NotANumber)))]);
    assert!(error.starts_with("experience_buffer-0 failed: 17 rollouts in a row"), "{error}");
}
