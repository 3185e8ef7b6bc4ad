//! What every run must satisfy.

use std::collections::BTreeSet;

use collimate::flow::{FlowOutcome, WeightUpdates};
use collimate_protocol::PolicyVersion;
use collimate_protocol::messages::RoleReport;

use crate::fakes::{FakeTrainer, FakeWeights, Log, fake_token};
use crate::scenario::Scenario;

/// A run to its end: every update done on a full batch, every ticket home.
pub fn check_complete(scenario: &Scenario, outcome: &FlowOutcome<FakeWeights, FakeTrainer>, log: &Log) {
    let config = &scenario.config;
    assert!(!outcome.stopped);
    assert_eq!(outcome.version, PolicyVersion(config.n_updates));
    assert_eq!(outcome.tickets.trained, config.n_rollouts());
    assert_eq!(outcome.tickets.in_flight, 0);
    assert_eq!(log.batches.len() as u64, config.n_updates);
    check_any(scenario, outcome, log);
}

/// A run that ended in good order, at its end or before.
pub fn check_any(scenario: &Scenario, outcome: &FlowOutcome<FakeWeights, FakeTrainer>, log: &Log) {
    let tickets = &outcome.tickets;
    assert!(tickets.is_conserved(), "{tickets:?}");
    assert_eq!(tickets.in_flight, 0, "a ticket did not come home");
    assert_eq!(outcome.version.0, log.first_version.0 + log.batches.len() as u64);
    assert_eq!(tickets.trained, outcome.version.0 * scenario.config.batch_size as u64);
    assert_eq!(*outcome.snapshot.policy, outcome.trainer.weights, "the last update was not published");
    check_batches(scenario, log);
    check_weights(log);
}

/// Every batch is full, in order, nowhere too stale, and was sampled by the weights that its versions name.
pub fn check_batches(scenario: &Scenario, log: &Log) {
    let config = &scenario.config;
    let mut trained = BTreeSet::new();
    for (n, batch) in log.batches.iter().enumerate() {
        assert_eq!(batch.version, PolicyVersion(log.first_version.0 + n as u64));
        assert_eq!(batch.experiences.len(), config.batch_size, "a batch that is not full");
        let ids: Vec<_> = batch.experiences.iter().map(|e| e.scored.rollout.prompt.ticket.id).collect();
        assert!(ids.is_sorted(), "a batch out of order: {ids:?}");
        for id in ids {
            assert!(trained.insert(id), "ticket {id:?} was trained on twice");
        }
        for rollout in batch.experiences.iter().map(|experience| &experience.scored.rollout) {
            for (position, (&token, &version)) in rollout.response.iter().zip(&rollout.versions).enumerate() {
                assert!(version <= batch.version);
                assert!(batch.version.staleness_of(version) <= config.max_staleness, "trained on a stale token");
                assert_eq!(token, fake_token(rollout.prompt.ticket, position, log.published[&version]));
            }
            assert!(rollout.versions.is_sorted());
            if config.weight_updates == WeightUpdates::BetweenRollouts {
                assert_eq!(rollout.versions.first(), rollout.versions.last(), "weights changed within a rollout");
            }
        }
    }
    for (n, pretrain) in log.pretrain.iter().enumerate() {
        let first = (log.first_version.0 as usize + n) * scenario.n_pretrain;
        let expected: Vec<u32> = (first..first + scenario.n_pretrain).map(|idx| idx as u32 + 1).collect();
        let found: Vec<u32> = pretrain.iter().map(|batch| batch.sequences[0][0]).collect();
        assert_eq!(found, expected, "pretraining text was skipped or used twice");
    }
}

/// The weights in every generator are those that were published.
pub fn check_weights(log: &Log) {
    for (version, weights) in &log.loads {
        assert_eq!(log.published.get(version), Some(weights), "a generator with weights that nobody published");
    }
}

/// Every worker started and then ended in good order, once.
pub fn check_reports(scenario: &Scenario, reports: &[RoleReport]) {
    let mut started = BTreeSet::new();
    let mut finished = BTreeSet::new();
    for report in reports {
        match report {
            RoleReport::Started(role) => assert!(started.insert(*role)),
            RoleReport::Finished(role) => assert!(finished.insert(*role)),
            RoleReport::Event(_) => {}
            RoleReport::Failed(failure) => panic!("{failure:?}"),
            RoleReport::Restarted(role) => panic!("{role} was started again"),
            RoleReport::Lost(role, error) => panic!("{role} is lost: {error}"),
        }
    }
    let n_workers = 4 + scenario.n_generators + 2 * scenario.n_scorers + usize::from(scenario.n_pretrain > 0);
    assert_eq!(started.len(), n_workers);
    assert_eq!(started, finished);
}
