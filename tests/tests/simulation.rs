//! The flow in virtual time: any durations, any devices, failures at any moment. A failure prints the flow, which with
//! its seed is the whole run.

use std::collections::BTreeMap;

use collimate::flow::simulation::{Load, Simulated};
use collimate::flow::{FlowConfig, RestartConfig, RunError, Workload};
use collimate_protocol::messages::RoleReport;
use collimate_protocol::{DropReason, Role, RoleId};
use collimate_tests::cases::cases;
use collimate_tests::fakes::{FakeTrainer, FakeWeights, Lengths, SharedLog, hash};
use collimate_tests::laws::{check_complete, check_reports};
use collimate_tests::scenario::Scenario;
use collimate_tests::strategies::scenarios;
use collimate_tests::wrap::{Fault, failing};
use proptest::prelude::*;

/// Durations that scatter over some orders of magnitude, on devices that some roles share.
#[derive(Clone, Debug)]
struct Machine {
    cores: Vec<f64>,
    seed: u64,
}

impl Machine {
    fn load(&self, role: RoleId, workload: Workload, n_before: u64) -> Load {
        let h = hash(&[self.seed, role.role as u64, role.idx as u64, n_before]);
        // 0, or from a millisecond to 16 seconds, and as much again for each ten tokens.
        let base = if h.is_multiple_of(8) { 0.0 } else { 0.001 * f64::from(1u32 << (h % 15)) };
        Load {
            device_idx: hash(&[self.seed, role.role as u64]) as usize % self.cores.len(),
            core_s: base * (1.0 + workload.n_tokens as f64 / 10.0),
            most_cores: [0.5, 1.0, 4.0][(h >> 8) as usize % 3],
        }
    }
}

/// A role that fails once it has got on so often, and so many times in a row.
#[derive(Clone, Debug)]
struct Failure {
    role: RoleId,
    fault: Fault,
    after: u64,
    n_times: u64,
}

fn machines() -> impl Strategy<Value = Machine> {
    let cores = prop::collection::vec(prop_oneof![Just(1.0), Just(2.0), Just(8.0)], 1..=3);
    (cores, any::<u64>()).prop_map(|(cores, seed)| Machine { cores, seed })
}

fn failures() -> impl Strategy<Value = Vec<Failure>> {
    let role = prop::sample::select(Role::ALL.to_vec());
    let fault = prop_oneof![Just(Fault::Panic), Just(Fault::Error)];
    let failure = (role, fault, 0..200u64, 1..=3u64).prop_map(|(role, fault, after, n_times)| Failure {
        role: RoleId::only(role),
        fault,
        after,
        n_times,
    });
    prop::collection::vec(failure, 0..4)
}

fn simulate(
    scenario: &Scenario,
    machine: &Machine,
    failures: &[Failure],
) -> (SharedLog, Simulated<FakeWeights, FakeTrainer>) {
    let (log, mut n_begun) = (SharedLog::default(), 0);
    let mut graph = scenario.graph(&log);
    for Failure { role, fault, after, n_times } in failures.iter().cloned() {
        graph = graph.map_workers(failing(role, fault, after, n_times).1);
    }
    let simulated = graph.simulate(&machine.cores, |role, workload| {
        n_begun += 1;
        machine.load(role, workload, n_begun)
    });
    (log, simulated)
}

fn mending(mut scenario: Scenario) -> Scenario {
    scenario.config.restarts =
        RestartConfig { most_failures: 100, backoff_s: 0.25, window_s: 30.0, ..RestartConfig::default() };
    // The clock is what delays.
    scenario.delays.clear();
    scenario
}

proptest! {
    #![proptest_config(cases(256))]

    /// The harness checks `issued = trained + dropped + in flight` and the gate after each step of each role.
    #[test]
    fn the_laws_hold_whatever_takes_how_long(scenario in scenarios(), machine in machines()) {
        let scenario = mending(scenario);
        let (log, simulated) = simulate(&scenario, &machine, &[]);
        let outcome = simulated.outcome.unwrap();
        check_complete(&scenario, &outcome, &log.read());
        check_reports(&scenario, &simulated.reports);
        let dropped = &outcome.tickets.dropped_by_reason;
        prop_assert!(!dropped.contains_key(&DropReason::Shutdown));
        for (role, busy_s) in &simulated.busy_s {
            prop_assert!(*busy_s <= simulated.elapsed_s * 1.000_001, "{} was busy for longer than the run", role);
        }
        for (core_s, cores) in simulated.core_s.iter().zip(&machine.cores) {
            prop_assert!(*core_s <= cores * simulated.elapsed_s * 1.000_001, "more cores than there are");
        }
    }

    #[test]
    fn the_laws_hold_whoever_fails_when(scenario in scenarios(), machine in machines(), failures in failures()) {
        let scenario = mending(scenario);
        let (log, simulated) = simulate(&scenario, &machine, &failures);
        check_complete(&scenario, &simulated.outcome.unwrap(), &log.read());
        let n = |of: fn(&RoleReport) -> bool| simulated.reports.iter().filter(|report| of(report)).count();
        prop_assert_eq!(
            n(|report| matches!(report, RoleReport::Failed(_))),
            n(|report| matches!(report, RoleReport::Restarted(_)))
        );
        prop_assert_eq!(n(|report| matches!(report, RoleReport::Lost(..))), 0);
    }

    #[test]
    fn the_same_run_takes_the_same_time_and_comes_to_the_same(
        scenario in scenarios(),
        machine in machines(),
        failures in failures(),
    ) {
        let scenario = mending(scenario);
        let run = || {
            let (_, simulated) = simulate(&scenario, &machine, &failures);
            (simulated.elapsed_s, simulated.busy_s, simulated.outcome.unwrap().trainer.weights)
        };
        prop_assert_eq!(run(), run());
    }
}

/// Three hundred generators, a slow learner, and responses of which some take forty times as long as others.
fn large() -> (Scenario, Machine) {
    let scenario = Scenario {
        config: FlowConfig {
            n_updates: 6,
            batch_size: 600,
            max_staleness: 2,
            scorer_batch: 64,
            scorer_waits_for: 32,
            ..Scenario::default().config
        },
        n_prompts: 1000,
        n_generators: 300,
        n_slots: 4,
        n_scorers: 4,
        lengths: Lengths { min: 4, max: 12, stragglers_per_mille: 50, straggler_factor: 40 },
        ..Scenario::default()
    };
    (mending(scenario), Machine { cores: vec![8.0, 8.0], seed: 5 })
}

#[test]
fn hundreds_of_generators_with_stragglers_and_failures_keep_the_laws() {
    let (scenario, machine) = large();
    let failures: Vec<Failure> = (0..20)
        .map(|idx| Failure {
            role: RoleId { role: Role::Generator, idx: idx * 15 },
            fault: Fault::Panic,
            after: idx as u64 % 5,
            n_times: 2,
        })
        .collect();
    let (log, simulated) = simulate(&scenario, &machine, &failures);
    let outcome = simulated.outcome.unwrap();
    check_complete(&scenario, &outcome, &log.read());
    let dropped = outcome.tickets.dropped_by_reason.get(&DropReason::TooStale);
    assert!(dropped.is_some_and(|n| *n > 0), "no straggler was dropped: the bound was never reached");
    let n_restarts = simulated.reports.iter().filter(|report| matches!(report, RoleReport::Restarted(_))).count();
    assert_eq!(n_restarts, 40);
}

/// Synchronous, so that after each batch nothing is on its way before the next update.
#[test]
fn a_scorer_waits_for_its_fill_unless_nothing_more_is_on_its_way() {
    let mut scenario = mending(Scenario { lengths: Lengths::all(3), ..Scenario::default() });
    scenario.lengths.max = 9;
    (scenario.config.batch_size, scenario.config.max_staleness) = (14, 0);
    (scenario.config.scorer_batch, scenario.config.scorer_waits_for) = (6, 4);
    let mut n_scored: BTreeMap<Role, Vec<usize>> = BTreeMap::new();
    let simulated = scenario.graph(&SharedLog::default()).simulate(&[1.0], |role, work| {
        n_scored.entry(role.role).or_default().push(work.n_items);
        Load { device_idx: 0, core_s: if role.role == Role::Generator { 1.0 } else { 0.1 }, most_cores: 1.0 }
    });
    assert_eq!(simulated.outcome.unwrap().version.0, scenario.config.n_updates);
    for role in [Role::ReferenceScorer, Role::RewardScorer] {
        let mut n_in_batch = 0;
        for n in &n_scored[&role] {
            n_in_batch += n;
            assert!(*n >= 4 || n_in_batch == 14, "{n} scored with more on their way: {:?}", n_scored[&role]);
            n_in_batch %= 14;
        }
    }
}

#[test]
fn a_role_waits_out_its_back_off_in_virtual_time() {
    let mut scenario = mending(Scenario::default());
    scenario.config.restarts.backoff_s = 1000.0;
    scenario.config.restarts.window_s = 1e6;
    let machine = Machine { cores: vec![1.0], seed: 3 };
    let undisturbed = simulate(&scenario, &machine, &[]).1.elapsed_s;
    let failure = Failure { role: RoleId::only(Role::Learner), fault: Fault::Error, after: 2, n_times: 2 };
    let (_, simulated) = simulate(&scenario, &machine, &[failure]);
    assert!(simulated.elapsed_s > 1000.0 + 2000.0 && undisturbed < 1000.0, "{}", simulated.elapsed_s);
}

#[test]
fn one_failure_too_many_ends_the_run_with_the_first_error_in_virtual_time_too() {
    let mut scenario = mending(Scenario::default());
    scenario.config.restarts.most_failures = 3;
    let failure = Failure { role: RoleId::only(Role::RewardScorer), fault: Fault::Error, after: 1, n_times: 9 };
    let (_, simulated) = simulate(&scenario, &Machine { cores: vec![1.0], seed: 3 }, &[failure]);
    let Err(RunError::Role { role, error, tickets, .. }) = simulated.outcome.map(drop) else {
        panic!("a run whose scorer always fails has ended well")
    };
    assert_eq!((role.role, &*error), (Role::RewardScorer, "injected error"));
    assert!(tickets.is_conserved() && tickets.in_flight == 0, "{tickets:?}");
}
