//! A run that goes on from a checkpoint: nothing is lost, nothing is trained on twice, and on one thread nothing
//! differs from a run that was never interrupted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use collimate::flow::{Checkpoint, FlowMode, OnStop, RestartConfig, RunSink, StateFile, TrainedUpdate};
use collimate_protocol::messages::{RoleReport, RunEvent};
use collimate_protocol::{PolicyVersion, Role, RoleError, TicketId};
use collimate_tests::cases::cases;
use collimate_tests::fakes::{Lengths, Log, SharedLog};
use collimate_tests::laws::{check_any, check_batches};
use collimate_tests::run::{Outcome, within};
use collimate_tests::sabotage::{Sabotage, sabotaged, unwrapped};
use collimate_tests::scenario::Scenario;
use collimate_tests::wrap::{Fault, stopped_at};
use proptest::prelude::*;

/// Keeps every checkpoint.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Checkpoint>>>);

impl RunSink for Kept {
    fn updated(&mut self, _: &TrainedUpdate) -> Result<(), RoleError> {
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<bool, RoleError> {
        assert_eq!(checkpoint.ledger.problem(), None);
        self.0.lock().unwrap().push(checkpoint.clone());
        Ok(true)
    }
}

impl Kept {
    fn all(&self) -> Vec<Checkpoint> {
        self.0.lock().unwrap().clone()
    }
}

fn scenario(mode: FlowMode, every: u64) -> Scenario {
    let mut scenario = Scenario::narrow(mode);
    scenario.config.n_updates = 9;
    scenario.config.checkpoints.every = every;
    scenario.lengths = Lengths { min: 1, max: 9, stragglers_per_mille: 50, straggler_factor: 12 };
    scenario.nan_per_mille = 30;
    scenario
}

/// Runs it on this thread, from a checkpoint or from the start, to its end or to a stop after so many turns.
fn run(scenario: &Scenario, resume: Option<Checkpoint>, stop_at: Option<u64>) -> (SharedLog, Kept, Outcome) {
    let (log, kept) = (SharedLog::default(), Kept::default());
    log.read().first_version = resume.as_ref().map(|checkpoint| checkpoint.version).unwrap_or_default();
    let mut parts = scenario.parts_with_sink(&log, Box::new(kept.clone()));
    parts.resume = resume;
    let graph = parts.wire(&scenario.config).unwrap();
    let (reports, outcome) = match stop_at {
        Some(at) => graph.map_workers(stopped_at(at)).run_here(),
        None => graph.run_here(),
    };
    assert!(!reports.iter().any(|report| matches!(report, RoleReport::Failed(_))), "{reports:?}");
    check_batches(scenario, &log.read());
    (log, kept, outcome.unwrap())
}

fn trained(log: &Log) -> Vec<TicketId> {
    let experiences = log.batches.iter().flat_map(|batch| &batch.experiences);
    experiences.map(|experience| experience.scored.rollout.prompt.ticket.id).collect()
}

#[test]
fn from_every_checkpoint_a_run_comes_to_the_weights_of_one_that_was_never_interrupted() {
    for max_staleness in [0, 1, 2, 5] {
        let mut scenario = scenario(FlowMode::Deterministic, 2);
        scenario.config.max_staleness = max_staleness;
        let (log, kept, straight) = run(&scenario, None, None);
        let versions: Vec<u64> = kept.all().iter().map(|checkpoint| checkpoint.version.0).collect();
        assert_eq!(versions, [2, 4, 6, 8, 9]);
        for checkpoint in kept.all() {
            assert!(checkpoint.ledger.open.is_empty(), "something is in flight at a checkpoint");
            let first = checkpoint.version.0 as usize;
            let (resumed_log, _, resumed) = run(&scenario, Some(checkpoint), None);
            assert_eq!(resumed.trainer.weights, straight.trainer.weights, "from {first}");
            assert_eq!(resumed.tickets, straight.tickets);
            assert_eq!(resumed_log.read().batches[..], log.read().batches[first..]);
        }
    }
}

#[test]
fn a_checkpoint_of_other_weights_or_another_version_is_refused() {
    let scenario = scenario(FlowMode::Deterministic, 2);
    let (_, kept, _) = run(&scenario, None, None);
    let of = |checkpoint: Checkpoint| {
        let mut parts = scenario.parts(&SharedLog::default());
        parts.resume = Some(checkpoint);
        parts.wire(&scenario.config).unwrap_err().to_string()
    };
    let good = kept.all()[0].clone();
    let error = of(Checkpoint { checksum: 1, ..good.clone() });
    assert!(
        error.starts_with("the checkpoint is of v2 and weights 0000000000000001, but the trainer came to v2"),
        "{error}"
    );
    assert!(of(Checkpoint { version: PolicyVersion(7), ..good.clone() }).contains("is of v7"));
    let short = StateFile::write(&std::env::temp_dir(), |path| Ok(std::fs::write(path, "short")?)).unwrap();
    assert!(of(Checkpoint { trainer: Arc::new(short), ..good }).contains("cut short"));
}

proptest! {
    #![proptest_config(cases(128))]

    /// Stopped, continued, stopped again: each ticket is trained on once, or dropped for its own reason, and those that
    /// were in flight are sampled again.
    #[test]
    fn stopped_anywhere_and_continued_nothing_is_lost_or_trained_on_twice(
        max_staleness in 0..=3u64,
        every in 0..=3u64,
        stops in prop::collection::vec(0..400u64, 1..4),
        seed in any::<u64>(),
    ) {
        let mut scenario = Scenario { seed, ..scenario(FlowMode::Deterministic, every) };
        scenario.config.max_staleness = max_staleness;
        let mut checkpoint = None;
        let mut all = Vec::new();
        for stop_at in stops.into_iter().map(Some).chain([None]) {
            let (log, kept, outcome) = run(&scenario, checkpoint, stop_at);
            let last = kept.all().pop().unwrap();
            prop_assert_eq!(last.version, outcome.version);
            prop_assert_eq!(last.ledger.counts.trained, outcome.tickets.trained);
            all.extend(trained(&log.read()));
            checkpoint = Some(last);
        }
        let distinct: BTreeSet<_> = all.iter().collect();
        prop_assert_eq!(all.len(), distinct.len(), "a ticket was trained on twice");
        prop_assert_eq!(all.len() as u64, scenario.config.n_rollouts());
        let ledger = checkpoint.unwrap().ledger;
        prop_assert!(ledger.open.is_empty());
        // Whoever was not trained on was dropped: no ticket is missing.
        prop_assert_eq!(ledger.counts.issued, ledger.counts.trained + ledger.counts.dropped);
    }

    /// Synchronous, what is in flight at a stop is of the weights that sample it again.
    #[test]
    fn at_staleness_0_a_stop_changes_no_bit(stop_at in 0..600u64, every in 0..=3u64) {
        let mut scenario = scenario(FlowMode::Deterministic, every);
        scenario.config.max_staleness = 0;
        let (_, _, straight) = run(&scenario, None, None);
        let (_, kept, _) = run(&scenario, None, Some(stop_at));
        let (_, _, resumed) = run(&scenario, kept.all().pop(), None);
        prop_assert_eq!(resumed.trainer.weights, straight.trainer.weights);
    }
}

/// The learner's trainer is lost after a checkpoint: what it has done since is done again, from there.
#[test]
fn a_learner_that_fails_goes_on_from_the_last_checkpoint_in_memory() {
    for every in [0, 1, 2, 3] {
        let mut scenario = scenario(FlowMode::Deterministic, every);
        scenario.config.max_staleness = 0;
        scenario.config.restarts = RestartConfig { most_failures: 9, backoff_s: 0.0, ..RestartConfig::default() };
        let (_, _, straight) = run(&scenario, None, None);
        for first in 0..9 {
            let sabotage = Sabotage::new(Fault::Panic, first, 1);
            let flow = sabotaged(scenario.parts(&SharedLog::default()), Role::Learner, &sabotage);
            let (_, result) = flow.wire(&scenario.config).unwrap().run_here();
            assert_eq!(unwrapped(result.unwrap()).trainer.weights, straight.trainer.weights, "{every} {first}");
        }
    }
}

#[tokio::test]
async fn a_run_that_ends_by_failure_leaves_a_checkpoint_of_where_it_was() {
    for mode in [FlowMode::Deterministic, FlowMode::Threaded] {
        let scenario = scenario(mode, 0);
        let (log, kept) = (SharedLog::default(), Kept::default());
        let sabotage = Sabotage::new(Fault::Error, 20, u64::MAX - 20);
        let flow = sabotaged(scenario.parts_with_sink(&log, Box::new(kept.clone())), Role::RewardScorer, &sabotage);
        let handle = flow.start(&scenario.config).await.unwrap();
        within(handle.wait(), "a failing scorer").await.unwrap_err();
        let checkpoint = kept.all().pop().expect("a checkpoint");
        assert_eq!(checkpoint.version.0, log.read().batches.len() as u64);
        assert!(!checkpoint.ledger.open.is_empty());
        let mut resumed = scenario.clone();
        resumed.config.mode = FlowMode::Deterministic;
        let (_, _, outcome) = run(&resumed, Some(checkpoint), None);
        assert_eq!(outcome.tickets.trained, scenario.config.n_rollouts());
    }
}

#[tokio::test]
async fn a_run_that_is_told_to_drain_trains_on_what_is_in_flight_first() {
    for mode in [FlowMode::Deterministic, FlowMode::Threaded] {
        let mut scenario = scenario(mode, 0);
        scenario.config.n_updates = 100_000;
        scenario.config.on_stop = OnStop::Drain;
        (scenario.config.max_staleness, scenario.nan_per_mille) = (3, 0);
        let (log, kept) = (SharedLog::default(), Kept::default());
        let parts = scenario.parts_with_sink(&log, Box::new(kept.clone()));
        let handle = parts.start(&scenario.config).await.unwrap();
        let mut events = handle.events();
        loop {
            let event = within(events.recv(), "no update comes").await.unwrap();
            if matches!(event, RunEvent::Updated(update) if update.version.0 == 3) {
                break;
            }
        }
        handle.stop();
        let outcome = within(handle.wait(), "it does not run dry").await.unwrap();
        check_any(&scenario, &outcome, &log.read());
        assert!(outcome.stopped);
        // What fills no batch is in the checkpoint.
        let checkpoint = kept.all().pop().unwrap();
        assert!((checkpoint.ledger.open.len()) < scenario.config.batch_size, "{checkpoint:?}");
    }
}
