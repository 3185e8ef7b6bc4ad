//! A threaded run is done again from its journal, on one thread, to the same weights; and what differs is named.

use std::sync::{Arc, Mutex};

use collimate::flow::{Checkpoint, FlowConfig, FlowMode, PpoFlow, RestartConfig, RunSink, TrainedUpdate};
use collimate_models::generate::CachePolicy;
use collimate_protocol::records::JournaledUpdate;
use collimate_protocol::roles::Trainer;
use collimate_protocol::{PolicyVersion, Role, RoleError};
use collimate_tests::fakes::{FakeTrainer, FakeWeights, Lengths, SharedLog};
use collimate_tests::run::{replayed, within};
use collimate_tests::sabotage::{Sabotage, sabotaged};
use collimate_tests::scenario::Scenario;
use collimate_tests::tiny::{BATCH_SIZE, Models};
use collimate_tests::wrap::Fault;

/// Keeps what goes to the journal, and every checkpoint.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<(Vec<JournaledUpdate>, Vec<Checkpoint>)>>);

impl RunSink for Kept {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        self.0.lock().unwrap().0.push(update.journaled());
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<bool, RoleError> {
        self.0.lock().unwrap().1.push(checkpoint.clone());
        Ok(true)
    }
}

/// Runs the flow on actors, with what computes behind `role` lost once.
async fn record<W: Send + Sync + 'static, T: Trainer<W> + 'static>(
    flow: PpoFlow<W, T>,
    config: &FlowConfig,
    role: Role,
) -> (Vec<JournaledUpdate>, Vec<Checkpoint>) {
    let kept = Kept::default();
    let sabotage = Sabotage::new(Fault::Panic, 7, 1);
    let flow = sabotaged(PpoFlow { sink: Box::new(kept.clone()), ..flow }, role, &sabotage);
    let handle = flow.start(config).await.unwrap();
    within(handle.wait(), "a crash of one role").await.map(drop).unwrap();
    assert!(sabotage.has_struck(), "{role:?} was not lost");
    let kept = kept.0.lock().unwrap();
    kept.clone()
}

fn config(n_updates: u64) -> FlowConfig {
    FlowConfig {
        n_updates,
        batch_size: BATCH_SIZE,
        max_staleness: 2,
        // So that a scorer is called often enough to be lost in mid-run, however late it comes to its turn.
        scorer_batch: 2,
        scorer_waits_for: 2,
        mode: FlowMode::Threaded,
        restarts: RestartConfig { backoff_s: 0.0, ..RestartConfig::default() },
        ..FlowConfig::default()
    }
}

/// Two generators, up to two updates stale, weights that change under way, one role lost.
#[tokio::test]
async fn ten_threaded_runs_of_real_models_are_replayed_to_the_same_checksums() {
    // The role that is lost changes from run to run; the sampler is called most often.
    let roles = [Role::Generator, Role::ReferenceScorer, Role::Generator, Role::RewardScorer];
    let mut n_changed_under_way = 0;
    for run in 0..10 {
        for models in Models::each() {
            let cache_policy = if run % 2 == 0 { CachePolicy::Keep } else { CachePolicy::Recompute };
            let models = Models { cache_policy, ..models };
            let config = config(8);
            let flow = || models.flow(2, Box::new(Kept::default()));
            let (updates, _) = record(flow(), &config, roles[run % roles.len()]).await;
            assert_eq!(updates.len(), 8);
            let rollouts = updates.iter().flat_map(|update| &update.rollouts);
            n_changed_under_way += rollouts.filter(|rollout| rollout.versions.len() > 1).count();
            assert_eq!(replayed(flow(), &config, &updates).unwrap(), PolicyVersion(8));
        }
    }
    assert!(n_changed_under_way > 0, "no response was sampled by two versions");
}

fn fakes() -> (Scenario, impl Fn() -> PpoFlow<FakeWeights, FakeTrainer>) {
    let mut scenario = Scenario { n_generators: 2, n_scorers: 2, ..Scenario::default() };
    scenario.config = FlowConfig { batch_size: 4, ..config(12) };
    scenario.config.checkpoints.every = 4;
    scenario.lengths = Lengths { min: 0, max: 9, stragglers_per_mille: 80, straggler_factor: 6 };
    let parts = scenario.clone();
    (scenario, move || parts.parts(&SharedLog::default()))
}

#[tokio::test]
async fn whichever_role_is_lost_a_threaded_run_is_replayed_from_its_start_and_from_every_checkpoint() {
    let (scenario, flow) = fakes();
    for role in [Role::Generator, Role::ReferenceScorer, Role::RewardScorer, Role::ExperienceBuffer, Role::Learner] {
        let (updates, checkpoints) = record(flow(), &scenario.config, role).await;
        assert_eq!(replayed(flow(), &scenario.config, &updates).unwrap(), PolicyVersion(12));
        assert_eq!(checkpoints.iter().map(|c| c.version.0).collect::<Vec<_>>(), [4, 8, 12, 12]);
        for checkpoint in checkpoints {
            let after = &updates[checkpoint.version.0 as usize..];
            let resumed = PpoFlow { resume: Some(checkpoint), ..flow() };
            assert_eq!(replayed(resumed, &scenario.config, after).unwrap(), PolicyVersion(12));
        }
    }
}

/// It waits for as long as the buffer likes: by then the weights that read its prompt are gone.
#[tokio::test]
async fn an_empty_response_is_replayed_however_old_it_is() {
    let (scenario, flow) = fakes();
    let (mut updates, _) = record(flow(), &scenario.config, Role::RewardScorer).await;
    let late = updates.iter_mut().filter(|update| update.version.0 > scenario.config.max_staleness + 1);
    let empty = late.flat_map(|update| &mut update.rollouts).filter(|rollout| rollout.versions.is_empty());
    let n_empty = empty.map(|rollout| rollout.prompt_version = PolicyVersion(0)).count();
    assert!(n_empty > 0, "no response is empty");
    assert_eq!(replayed(flow(), &scenario.config, &updates).unwrap(), PolicyVersion(12));
}

#[tokio::test]
async fn the_first_thing_that_differs_is_named() {
    let (scenario, flow) = fakes();
    let (updates, _) = record(flow(), &scenario.config, Role::RewardScorer).await;
    let first_difference = |change: &dyn Fn(&mut JournaledUpdate)| {
        let mut updates = updates.clone();
        change(&mut updates[5]);
        replayed(flow(), &scenario.config, &updates).unwrap_err().to_string()
    };
    let id = updates[5].rollouts[1].ticket.id.0;
    let error = first_difference(&|update| update.rollouts[1].digest ^= 1);
    let expected = format!("the update of v5 differs: the tokens or log-probabilities of ticket {id} ");
    assert!(error.starts_with(&expected), "{error}");
    let error = first_difference(&|update| update.rollouts[1].score += 1.0);
    assert!(error.starts_with(&format!("the update of v5 differs: the score of ticket {id} ")), "{error}");
    let error = first_difference(&|update| update.kl_coef += 1.0);
    assert!(error.starts_with("the update of v5 differs: the KL coefficient was "), "{error}");
    let error = first_difference(&|update| update.checksum = 1);
    assert!(
        error.starts_with("the update of v5 differs: the weights after it had checksum 0000000000000001"),
        "{error}"
    );
    let error = first_difference(&|update| update.values_version = PolicyVersion(0));
    assert!(error.contains("it refers to the weights of v0"), "{error}");
}
