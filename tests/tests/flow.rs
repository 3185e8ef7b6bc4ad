//! The flow of PPO with fake models: what it computes, and that it ends.

use std::sync::{Arc, Mutex};

use collimate::flow::{FlowMode, RunSink, TrainedUpdate, WeightUpdates};
use collimate_protocol::messages::{RoleReport, RoleState, RunEvent};
use collimate_protocol::records::UpdateMetrics;
use collimate_protocol::roles::{
    ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardRequest, Sampler, Trainer,
};
use collimate_protocol::{
    Experience, ExperienceBatch, PretrainBatch, Prompt, RoleError, ScoredRollout, Ticket, TicketId,
};
use collimate_tests::fakes::{
    FakeDetokenizer, FakeExperienceMaker, FakePretrain, FakeReference, FakeReward, FakeSampler, FakeTrainer,
    FakeWeights, SharedLog,
};
use collimate_tests::laws::{check_complete, check_reports};
use collimate_tests::run::{run_here, run_on_actors};
use collimate_tests::scenario::Scenario;
use tokio::sync::broadcast::Receiver;

fn threaded(mut scenario: Scenario) -> Scenario {
    scenario.config.mode = FlowMode::Threaded;
    scenario
}

fn with_staleness(max_staleness: u64) -> Scenario {
    let mut scenario = Scenario::default();
    scenario.config.max_staleness = max_staleness;
    scenario
}

/// PPO as a plain loop: the oracle for staleness 0.
fn synchronous_loop(scenario: &Scenario) -> (FakeWeights, Vec<ExperienceBatch>) {
    let log = SharedLog::default();
    let mut prompts = scenario.prompts();
    let mut sampler = FakeSampler::new(scenario.config.batch_size, scenario.lengths, log.clone());
    let mut trainer = FakeTrainer::new(scenario.n_pretrain, log.clone());
    let mut maker = FakeExperienceMaker::default();
    let mut next_ticket = 0;
    for _ in 0..scenario.config.n_updates {
        let snapshot = trainer.snapshot().unwrap();
        sampler.load(&snapshot).unwrap();
        for _ in 0..scenario.config.batch_size {
            let (prompt_id, sample_idx, tokens) = prompts.next_prompt();
            let ticket = Ticket { id: TicketId(next_ticket), prompt_id, sample_idx };
            next_ticket += 1;
            sampler.admit(Prompt { ticket, tokens }).unwrap();
        }
        let mut rollouts = Vec::new();
        while sampler.n_running() > 0 {
            rollouts.extend(sampler.step().unwrap());
        }
        rollouts.sort_by_key(|rollout| rollout.prompt.ticket.id);
        let requests: Vec<_> = rollouts.iter().map(|r| RewardRequest::of(r, &FakeDetokenizer).unwrap()).collect();
        let all_ref_logprobs = FakeReference::default().logprobs(&rollouts).unwrap();
        let scores = FakeReward.scores(&requests).unwrap();
        let scored = rollouts.into_iter().zip(all_ref_logprobs).zip(scores);
        let scored = scored.map(|((rollout, ref_logprobs), score)| ScoredRollout { rollout, ref_logprobs, score });
        let batch = maker.assemble(trainer.version, scored.collect(), &snapshot).unwrap();
        let n_pretrain = scenario.n_pretrain as u64;
        let numbers = trainer.version.0 * n_pretrain..(trainer.version.0 + 1) * n_pretrain;
        let pretrain: Vec<PretrainBatch> = numbers.map(|idx| FakePretrain.batch(idx).unwrap()).collect();
        trainer.update(&batch, &pretrain).unwrap();
    }
    let batches = std::mem::take(&mut log.read().batches);
    (trainer.weights, batches)
}

#[test]
fn staleness_0_is_a_plain_synchronous_loop_for_any_number_of_generators() {
    let scenario = with_staleness(0);
    let (weights, batches) = synchronous_loop(&scenario);
    for n_generators in 1..=3 {
        let scenario = Scenario { n_generators, ..scenario.clone() };
        let (log, _, outcome) = run_here(&scenario);
        assert_eq!(outcome.trainer.weights, weights, "{n_generators} generators");
        assert_eq!(log.read().batches, batches);
    }
}

#[tokio::test]
async fn staleness_0_is_a_plain_synchronous_loop_on_threads_too() {
    let scenario = threaded(Scenario { n_generators: 2, ..with_staleness(0) });
    let (weights, batches) = synchronous_loop(&scenario);
    let (log, outcome) = run_on_actors(&scenario).await;
    assert_eq!(outcome.trainer.weights, weights);
    assert_eq!(log.read().batches, batches);
}

#[test]
fn two_deterministic_runs_are_equal_event_for_event() {
    for max_staleness in 0..=2 {
        for weight_updates in [WeightUpdates::InFlight, WeightUpdates::BetweenRollouts] {
            let mut scenario = Scenario { n_generators: 2, delays: vec![0, 3, 1, 2], ..with_staleness(max_staleness) };
            scenario.config.weight_updates = weight_updates;
            let ((first_log, first_reports, first), (log, reports, second)) =
                (run_here(&scenario), run_here(&scenario));
            assert_eq!(first_reports, reports);
            assert_eq!(first_log.read().batches, log.read().batches);
            assert_eq!(first.trainer.weights, second.trainer.weights);
            check_complete(&scenario, &first, &first_log.read());
            check_reports(&scenario, &reports);
        }
    }
}

#[test]
fn the_number_of_generators_changes_no_event_at_staleness_0() {
    let updates = |n_generators| {
        let scenario = Scenario { n_generators, ..with_staleness(0) };
        let is_event = |report: &RoleReport| matches!(report, RoleReport::Event(_));
        run_here(&scenario).1.into_iter().filter(is_event).collect::<Vec<_>>()
    };
    let one = updates(1);
    assert_eq!(one.len(), 4);
    assert_eq!(updates(2), one);
    assert_eq!(updates(3), one);
}

#[tokio::test]
async fn a_deterministic_run_on_actors_equals_one_without() {
    let scenario = Scenario { n_generators: 2, ..with_staleness(1) };
    let (log, outcome) = run_on_actors(&scenario).await;
    let (bare_log, _, bare) = run_here(&scenario);
    assert_eq!(log.read().batches, bare_log.read().batches);
    assert_eq!(outcome.trainer.weights, bare.trainer.weights);
}

#[tokio::test]
async fn threaded_runs_end_with_every_batch_full() {
    for max_staleness in 0..=2 {
        for weight_updates in [WeightUpdates::InFlight, WeightUpdates::BetweenRollouts] {
            let mut scenario = threaded(Scenario { n_generators: 3, ..with_staleness(max_staleness) });
            scenario.config.weight_updates = weight_updates;
            scenario.config.n_updates = 20;
            scenario.lengths.stragglers_per_mille = 50;
            scenario.lengths.straggler_factor = 40;
            let (log, outcome) = run_on_actors(&scenario).await;
            check_complete(&scenario, &outcome, &log.read());
        }
    }
}

#[tokio::test]
async fn roles_with_threads_of_their_own_compute_the_same() {
    let mut scenario = threaded(with_staleness(0));
    let shared = run_on_actors(&scenario).await.1;
    scenario.config.threads.generator = 2;
    scenario.config.threads.learner = 1;
    assert_eq!(run_on_actors(&scenario).await.1.trainer.weights, shared.trainer.weights);
}

#[tokio::test]
async fn listeners_hear_every_update_in_order_and_then_the_end() {
    for mode in [FlowMode::Threaded, FlowMode::Deterministic] {
        let mut scenario = with_staleness(1);
        scenario.config.mode = mode;
        let handle = scenario.graph(&SharedLog::default()).start().await.unwrap();
        let (control, mut events) = (handle.control(), handle.events());
        let mut heard = Vec::new();
        while let Ok(event) = events.recv().await {
            heard.push(event);
        }
        let Some(RunEvent::Ended { version, stopped: false }) = heard.pop() else { panic!("{heard:?}") };
        assert_eq!(version.0, 4);
        let versions: Vec<u64> = heard
            .iter()
            .map(|event| match event {
                RunEvent::Updated(update) => {
                    assert!(update.flow.tickets.is_conserved());
                    assert_eq!(update.flow.tickets.trained, update.version.0 * 4);
                    assert_eq!(mode == FlowMode::Deterministic, update.flow.elapsed_s == 0.0);
                    update.version.0
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(versions, [1, 2, 3, 4]);

        let status = control.status().borrow().clone();
        assert!(status.roles.iter().all(|role| role.state == RoleState::Finished), "{status:?}");
        assert_eq!(status.version.0, 4);
        assert!(control.events().recv().await.is_err(), "a listener that comes late hears the end");
        assert_eq!(handle.wait().await.unwrap().version.0, 4);
    }
}

#[tokio::test]
async fn a_run_without_pretraining_text_has_no_mixer() {
    let scenario = threaded(Scenario { n_pretrain: 0, ..with_staleness(1) });
    let (log, outcome) = run_on_actors(&scenario).await;
    check_complete(&scenario, &outcome, &log.read());
}

#[test]
fn a_trainer_that_wants_text_where_there_is_none_is_refused_before_anything_runs() {
    let scenario = Scenario::default();
    let mut parts = scenario.parts(&SharedLog::default());
    parts.pretrain = None;
    let error = parts.wire(&scenario.config).unwrap_err();
    assert!(error.to_string().contains("2 batches of pretraining text"), "{error}");
}

#[test]
fn empty_responses_are_trained_on_as_any_other() {
    let mut scenario = with_staleness(0);
    scenario.lengths.min = 0;
    scenario.lengths.max = 1;
    let (log, _, outcome) = run_here(&scenario);
    check_complete(&scenario, &outcome, &log.read());
    let log = log.read();
    assert!(log.batches.iter().flat_map(|b| &b.experiences).any(|e| e.scored.rollout.response.is_empty()));
}

/// Keeps what it is given.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<KeptUpdate>>>);

type KeptUpdate = (UpdateMetrics, Vec<Experience>);

impl RunSink for Kept {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        self.0.lock().unwrap().push((update.metrics.clone(), update.batch.experiences.clone()));
        Ok(())
    }
}

#[tokio::test]
async fn the_sink_sees_each_update_with_what_it_trained_on() {
    let scenario = threaded(with_staleness(1));
    let (log, kept) = (SharedLog::default(), Kept::default());
    let parts = scenario.parts_with_sink(&log, Box::new(kept.clone()));
    parts.start(&scenario.config).await.unwrap().wait().await.unwrap();
    let (log, kept) = (log.read(), kept.0.lock().unwrap());
    assert_eq!(kept.len(), 4);
    for ((metrics, trained), batch) in kept.iter().zip(&log.batches) {
        assert_eq!(metrics.version, batch.version.next());
        assert_eq!(metrics.batch.n_rollouts, 4);
        assert_eq!(trained, &batch.experiences);
        assert!((0.0..=1.0).contains(&metrics.flow.busy["learner"]), "{:?}", metrics.flow);
        assert_eq!(metrics.flow.queues["learner"].capacity, 1);
    }
}

/// A disk that is full.
struct Full;

impl RunSink for Full {
    fn updated(&mut self, _: &TrainedUpdate) -> Result<(), RoleError> {
        Err("no space left on device".into())
    }
}

/// Those that are there, and come until the run's end.
async fn warnings(events: &mut Receiver<RunEvent>) -> Vec<String> {
    let mut warnings = Vec::new();
    while let Ok(event) = events.recv().await {
        if let RunEvent::Warning { message, .. } = event {
            warnings.push(message);
        }
    }
    warnings
}

#[tokio::test]
async fn a_sink_that_fails_is_told_of_once_and_training_goes_on() {
    let scenario = threaded(with_staleness(1));
    let parts = scenario.parts_with_sink(&SharedLog::default(), Box::new(Full));
    let handle = parts.start(&scenario.config).await.unwrap();
    let mut events = handle.events();
    let outcome = handle.wait().await.unwrap();
    assert_eq!((outcome.version.0, outcome.n_sink_failures), (4, 4));
    let warnings = warnings(&mut events).await;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("no space left"), "{warnings:?}");
}

#[tokio::test]
async fn a_state_that_can_not_be_written_is_told_of_and_training_goes_on() {
    let mut scenario = threaded(with_staleness(1));
    scenario.config.checkpoints.every = 2;
    let (log, kept) = (SharedLog::default(), Kept::default());
    let mut parts = scenario.parts_with_sink(&log, Box::new(kept.clone()));
    let no_folder = tempfile::NamedTempFile::new().unwrap();
    parts.state_dir = Some(no_folder.path().to_owned());
    let handle = parts.start(&scenario.config).await.unwrap();
    let mut events = handle.events();
    let outcome = handle.wait().await.unwrap();
    assert_eq!((outcome.version.0, kept.0.lock().unwrap().len()), (4, 4));
    let warnings = warnings(&mut events).await;
    let folder = no_folder.path().display().to_string();
    assert!(warnings.iter().all(|warning| warning.contains("could not be kept") && warning.contains(&folder)));
    // After the second and the fourth update, and at the end.
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}
