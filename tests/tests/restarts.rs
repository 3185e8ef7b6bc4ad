//! Any role fails at any time, and is started again: nothing is lost, and where nothing else differs, nothing differs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use collimate::flow::{FlowMode, RestartConfig, RunError};
use collimate_protocol::messages::{RoleReport, RunEvent};
use collimate_protocol::{Role, RoleId};
use collimate_tests::fakes::SharedLog;
use collimate_tests::laws::check_complete;
use collimate_tests::run::{run_here, within};
use collimate_tests::sabotage::{Sabotage, sabotaged, unwrapped};
use collimate_tests::scenario::Scenario;
use collimate_tests::wrap::{Fault, failing};

/// Roles behind which something computes.
const COMPUTING: [Role; 6] = [
    Role::Generator,
    Role::ReferenceScorer,
    Role::RewardScorer,
    Role::ExperienceBuffer,
    Role::PretrainMixer,
    Role::Learner,
];

fn mending(mode: FlowMode) -> Scenario {
    let mut scenario = Scenario::narrow(mode);
    scenario.config.restarts = RestartConfig { most_failures: 3, backoff_s: 0.0, ..RestartConfig::default() };
    scenario
}

#[test]
fn whoever_fails_whenever_the_run_comes_to_its_end_with_as_many_trained_samples() {
    let scenario = mending(FlowMode::Deterministic);
    for role in Role::ALL.into_iter().map(RoleId::only).chain([RoleId { role: Role::Generator, idx: 1 }]) {
        for fault in [Fault::Panic, Fault::Error] {
            let mut n_failed = 0;
            for after in 0.. {
                let log = SharedLog::default();
                let (has_failed, wrap) = failing(role, fault, after, 2);
                let (reports, result) = scenario.graph(&log).map_workers(wrap).run_here();
                check_complete(&scenario, &result.unwrap(), &log.read());
                if !has_failed.load(Ordering::Relaxed) {
                    break;
                }
                n_failed += 1;
                let restarted = |report: &&RoleReport| **report == RoleReport::Restarted(role);
                assert_eq!(reports.iter().filter(restarted).count(), 2, "{role}");
            }
            assert!(n_failed > 1, "{role} never failed");
        }
    }
}

/// Synchronous, so that no timing shows: what is done again comes to the same bits.
#[test]
fn what_is_done_again_comes_to_the_same() {
    let mut scenario = mending(FlowMode::Deterministic);
    scenario.config.max_staleness = 0;
    let (log, _, outcome) = run_here(&scenario);
    for role in COMPUTING {
        for fault in [Fault::Panic, Fault::Error] {
            for first in 0..12 {
                let (sabotage, its_log) = (Sabotage::new(fault, first, 1), SharedLog::default());
                let flow = sabotaged(scenario.parts(&its_log), role, &sabotage);
                let (_, result) = flow.wire(&scenario.config).unwrap().run_here();
                let its_outcome = unwrapped(result.unwrap());
                assert_eq!(its_outcome.trainer.weights, outcome.trainer.weights, "{role:?} {fault:?} {first}");
                assert_eq!(its_outcome.tickets, outcome.tickets);
                assert_eq!(its_log.read().published, log.read().published);
            }
        }
    }
}

#[tokio::test]
async fn the_compute_thread_of_each_role_is_lost_in_turn_and_as_many_samples_are_trained_on() {
    let mut scenario = mending(FlowMode::Threaded);
    scenario.n_scorers = 2;
    // Far longer than a step of a fake takes, and not long to wait for.
    scenario.config.restarts.stall_s = 0.2;
    for role in COMPUTING {
        for fault in [Fault::Panic, Fault::Error, Fault::Stall] {
            let (sabotage, log) = (Sabotage::new(fault, 5, 1), SharedLog::default());
            let flow = sabotaged(scenario.parts(&log), role, &sabotage);
            let handle = flow.start(&scenario.config).await.unwrap();
            let mut events = handle.events();
            let outcome = within(handle.wait(), &format!("{role:?} {fault:?}")).await.unwrap();
            assert!(sabotage.has_struck(), "{role:?}");
            let mut n_restarts = 0;
            while let Ok(event) = events.recv().await {
                if let RunEvent::Restarted { role: restarted, error } = event {
                    assert_eq!(restarted.role, role);
                    let expected = match fault {
                        Fault::Panic => "panicked: injected panic",
                        Fault::Error => "injected error",
                        Fault::Stall | Fault::Hang => "stalled",
                    };
                    assert!(error.starts_with(expected), "{error}");
                    n_restarts += 1;
                }
            }
            assert_eq!(n_restarts, 1, "{role:?} {fault:?}");
            check_complete(&scenario, &unwrapped(outcome), &log.read());
        }
    }
}

/// The clock is tokio's and paused, so that what the others are given to end in takes no time.
#[tokio::test(start_paused = true)]
async fn a_role_that_hangs_outside_of_its_compute_thread_ends_the_run_by_its_name() {
    let mut scenario = mending(FlowMode::Threaded);
    scenario.config.restarts.stall_s = 0.2;
    for role in Role::ALL {
        let log = SharedLog::default();
        let (has_failed, wrap) = failing(RoleId::only(role), Fault::Hang, 3, 1);
        let handle = scenario.graph(&log).map_workers(wrap).start().await.unwrap();
        let Err(RunError::Role { role: found, error, tickets, .. }) = handle.wait().await.map(drop) else {
            panic!("{role:?} hung, and the run has ended well")
        };
        assert!(has_failed.load(Ordering::Relaxed));
        assert_eq!(found.role, role, "{error}");
        assert!(error.starts_with("stalled: its step has lasted"), "{error}");
        assert!(tickets.is_conserved(), "{tickets:?}");
    }
}

#[tokio::test]
async fn one_failure_too_many_ends_the_run_with_the_first_error() {
    for mode in [FlowMode::Deterministic, FlowMode::Threaded] {
        let scenario = mending(mode);
        for role in COMPUTING {
            let (sabotage, log) = (Sabotage::new(Fault::Panic, 2, u64::MAX - 2), SharedLog::default());
            let flow = sabotaged(scenario.parts(&log), role, &sabotage);
            let handle = flow.start(&scenario.config).await.unwrap();
            let result = within(handle.wait(), &format!("{role:?}")).await;
            let Err(RunError::Role { role: found, error, tickets, .. }) = result.map(drop) else {
                panic!("a crash was taken for the end of the data")
            };
            assert_eq!((found.role, &*error), (role, "panicked: injected panic"));
            assert!(tickets.is_conserved() && tickets.in_flight == 0, "{tickets:?}");
        }
    }
}

/// The clock is tokio's and paused: the back-off takes no time, and is as long as it should be.
#[tokio::test(start_paused = true)]
async fn a_role_waits_longer_after_each_failure() {
    let mut scenario = mending(FlowMode::Threaded);
    scenario.config.restarts.backoff_s = 100.0;
    let (sabotage, log) = (Sabotage::new(Fault::Error, 4, 3), SharedLog::default());
    let flow = sabotaged(scenario.parts(&log), Role::RewardScorer, &sabotage);
    let since = tokio::time::Instant::now();
    let handle = flow.start(&scenario.config).await.unwrap();
    handle.wait().await.unwrap();
    let waited = since.elapsed();
    assert!(waited >= Duration::from_secs(100 + 200 + 400), "{waited:?}");
}
