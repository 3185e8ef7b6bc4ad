//! The flow's laws over random flows: any sizes, delays, lengths and numbers of roles. A failure prints the flow,
//! which with its seed is the whole run. `PROPTEST_CASES` and `PROPTEST_RNG_SEED` look further than these tests do.

use std::collections::BTreeSet;

use collimate::flow::{FlowMode, WeightUpdates};
use collimate_protocol::DropReason;
use collimate_protocol::messages::{RoleReport, RunEvent};
use collimate_tests::cases::cases;
use collimate_tests::fakes::SharedLog;
use collimate_tests::laws::{check_any, check_complete, check_reports};
use collimate_tests::run::{run_here, run_on_actors};
use collimate_tests::strategies::scenarios;
use collimate_tests::wrap::stopped_at;
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(256))]

    /// The harness checks `issued = trained + dropped + in flight` and the gate after each step of each role.
    #[test]
    fn every_batch_fills_nothing_stale_is_trained_on_and_every_role_ends(scenario in scenarios()) {
        let (log, reports, outcome) = run_here(&scenario);
        check_complete(&scenario, &outcome, &log.read());
        check_reports(&scenario, &reports);
        let dropped = &outcome.tickets.dropped_by_reason;
        prop_assert!(!dropped.contains_key(&DropReason::Shutdown));
        if scenario.config.max_staleness == 0 {
            prop_assert!(!dropped.contains_key(&DropReason::TooStale), "synchronous, and yet stale");
        }
        if scenario.nan_per_mille == 0 {
            prop_assert!(!dropped.contains_key(&DropReason::NonFinite));
        }
    }

    /// By tickets alone, whatever the hops hold: only what a response's own length makes stale is dropped. With one
    /// actor for each role, where none overtakes another.
    #[test]
    fn no_finished_response_waits_for_more_than_max_staleness_updates(
        mut scenario in scenarios(),
        max_staleness in 0..=8u64,
    ) {
        scenario.config.max_staleness = max_staleness;
        scenario.config.weight_updates = WeightUpdates::InFlight;
        (scenario.n_generators, scenario.n_scorers, scenario.nan_per_mille) = (1, 1, 0);
        let (log, ..) = run_here(&scenario);
        let log = log.read();
        let experiences = log.batches.iter().flat_map(|batch| &batch.experiences);
        let trained: BTreeSet<_> = experiences.map(|e| e.scored.rollout.prompt.ticket.id).collect();
        for dropped in log.sampled.iter().filter(|rollout| !trained.contains(&rollout.prompt.ticket.id)) {
            prop_assert_ne!(dropped.versions.first(), dropped.versions.last(), "stale from waiting");
        }
    }

    #[test]
    fn a_stop_at_any_moment_sends_every_ticket_home(scenario in scenarios(), at in 0..1500u64) {
        let log = SharedLog::default();
        let (reports, outcome) = scenario.graph(&log).map_workers(stopped_at(at)).run_here();
        let outcome = outcome.unwrap();
        check_any(&scenario, &outcome, &log.read());
        check_reports(&scenario, &reports);
        prop_assert_eq!(outcome.stopped, outcome.tickets.trained < scenario.config.n_rollouts());
        let is_update = |report: &&RoleReport| {
            matches!(report, RoleReport::Event(event) if matches!(**event, RunEvent::Updated(_)))
        };
        let n_recorded = reports.iter().filter(is_update).count();
        prop_assert_eq!(n_recorded as u64, outcome.version.0, "an update was not recorded");
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn the_laws_hold_on_threads(mut scenario in scenarios()) {
        scenario.config.mode = FlowMode::Threaded;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (log, outcome) = runtime.block_on(run_on_actors(&scenario));
        check_complete(&scenario, &outcome, &log.read());
    }
}
