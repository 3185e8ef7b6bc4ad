//! The reward model is replaced while PPO runs: at the boundary between two updates, so that no batch has scores of two;
//! the journal has it, and whoever goes on from a checkpoint or does the run again uses the right one.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use collimate::flow::replay::ReplayError;
use collimate::flow::{Checkpoint, FlowConfig, FlowMode, NoSink, PpoFlow, RestartConfig, RunSink, TrainedUpdate};
use collimate_models::arch::Weights;
use collimate_models::roles::PpoLearner;
use collimate_protocol::messages::RunEvent;
use collimate_protocol::records::JournaledUpdate;
use collimate_protocol::roles::Trainer;
use collimate_protocol::{RoleError, SettingChange};
use collimate_tests::fakes::{FakeRewardModels, FakeTrainer, FakeWeights, Lengths, SharedLog};
use collimate_tests::run::{replayed, within};
use collimate_tests::scenario::Scenario;
use collimate_tests::tiny::{BATCH_SIZE, Models};

const N_UPDATES: u64 = 40;
const MODES: [FlowMode; 2] = [FlowMode::Threaded, FlowMode::Deterministic];

#[derive(Default)]
struct Kept {
    updates: Vec<JournaledUpdate>,
    checkpoints: Vec<Checkpoint>,
}

impl Kept {
    /// The update that each reward model began with, in order.
    fn replaced(&self) -> Vec<(u64, SettingChange)> {
        let changes =
            self.updates.iter().flat_map(|update| update.changes.iter().map(|c| (update.version.0, c.clone())));
        changes.filter(|(_, change)| matches!(change, SettingChange::RewardModel(_))).collect()
    }

    fn checkpoint(&self, version: u64) -> Checkpoint {
        self.checkpoints.iter().find(|checkpoint| checkpoint.version.0 == version).expect("it was kept").clone()
    }
}

type At<'a> = Box<dyn Fn(u64) + Send + 'a>;

/// Keeps what goes to the journal, and commands the run after some updates.
struct Commanding {
    kept: Arc<Mutex<Kept>>,
    after: At<'static>,
}

impl RunSink for Commanding {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        self.kept.lock().unwrap().updates.push(update.journaled());
        (self.after)(update.metrics.version.0);
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<bool, RoleError> {
        assert_eq!(checkpoint.ledger.problem(), None);
        self.kept.lock().unwrap().checkpoints.push(checkpoint.clone());
        Ok(true)
    }
}

/// Runs a flow to its end. After the update that makes such a version, the reward model of that name is to take over.
async fn run<W: Send + Sync + 'static, T: Trainer<W> + 'static>(
    flow: PpoFlow<W, T>,
    config: &FlowConfig,
    replacements: &[(u64, &str)],
) -> (Kept, Vec<RunEvent>) {
    let kept = Arc::new(Mutex::new(Kept::default()));
    let control = Arc::new(Mutex::new(None::<collimate::control::RunControl>));
    let (commanded, wanted) = (control.clone(), replacements.iter().map(|(at, dir)| (*at, (*dir).to_owned())));
    let wanted: Vec<(u64, String)> = wanted.collect();
    let after = move |version: u64| {
        // The first update may be done before the run's handle is there.
        while commanded.lock().unwrap().is_none() {
            std::thread::yield_now();
        }
        for (_, dir) in wanted.iter().filter(|(at, _)| *at == version) {
            commanded.lock().unwrap().as_ref().unwrap().replace_reward_model(Path::new(dir)).unwrap();
        }
    };
    let sink = Box::new(Commanding { kept: kept.clone(), after: Box::new(after) });
    let handle = PpoFlow { sink, ..flow }.start(config).await.unwrap();
    let mut events = handle.events();
    *control.lock().unwrap() = Some(handle.control());
    within(handle.wait(), "no end").await.map(drop).unwrap();
    control.lock().unwrap().take();
    let mut heard = Vec::new();
    while let Ok(event) = events.try_recv() {
        heard.push(event);
    }
    let kept = std::mem::take(&mut *kept.lock().unwrap());
    (kept, heard)
}

fn config(mode: FlowMode, max_staleness: u64, batch_size: usize) -> FlowConfig {
    let mut config = FlowConfig {
        n_updates: N_UPDATES,
        batch_size,
        max_staleness,
        scorer_batch: 3,
        scorer_waits_for: 2,
        mode,
        restarts: RestartConfig { backoff_s: 0.0, ..RestartConfig::default() },
        ..FlowConfig::default()
    };
    config.checkpoints.every = 0;
    config
}

fn fakes() -> PpoFlow<FakeWeights, FakeTrainer> {
    let lengths = Lengths { min: 1, max: 9, stragglers_per_mille: 100, straggler_factor: 8 };
    let scenario = Scenario { n_generators: 2, n_scorers: 2, lengths, nan_per_mille: 30, ..Scenario::default() };
    scenario.parts(&SharedLog::default())
}

/// By which reward model each rollout of each update was scored; all of one update by one.
fn scored_by(updates: &[JournaledUpdate]) -> Vec<u64> {
    let of_update = |update: &JournaledUpdate| {
        let mut numbers: Vec<u64> = update.rollouts.iter().map(|r| FakeRewardModels::number_of(r.score)).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), 1, "the update of {} has scores of several", update.version);
        numbers[0]
    };
    updates.iter().map(of_update).collect()
}

/// What the journal says of it.
fn expected(kept: &Kept) -> Vec<u64> {
    let mut number = 0;
    let of_update = |update: &JournaledUpdate| {
        for change in &update.changes {
            if let SettingChange::RewardModel(model) = change {
                number = model.dir.to_str().unwrap().parse().unwrap();
            }
        }
        number
    };
    kept.updates.iter().map(of_update).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_boundary_on_all_scores_are_the_new_ones_and_no_batch_has_both() {
    for mode in MODES {
        for max_staleness in [0, 1, 4] {
            // So many that what is asked for after a few of them comes long before the last, however late it is heard.
            let config = FlowConfig { n_updates: 5 * N_UPDATES, ..config(mode, max_staleness, 4) };
            let (kept, events) = run(fakes(), &config, &[(2, "3"), (20, "1"), (20, "2")]).await;
            assert_eq!(kept.updates.len() as u64, config.n_updates);
            let replaced = kept.replaced();
            let numbers: Vec<u64> = scored_by(&kept.updates);
            assert_eq!(numbers, expected(&kept));
            // Of two that are asked for at one time, the last gives the scores.
            assert_eq!((numbers[0], replaced[0].1.to_string().contains("= 3 ("), numbers.last()), (0, true, Some(&2)));
            // What was in flight when it was asked for is trained on first; how much that is, is the machine's affair.
            let since = replaced[0].0;
            assert!((2..config.n_updates).contains(&since), "k = {max_staleness}: from {since} on");
            // The state is kept there, so that what somebody asked for is not lost.
            for (version, _) in &replaced {
                assert_eq!(kept.checkpoint(*version).ledger.reward_model.unwrap().version.0, *version);
            }
            let told = |is_it: fn(&RunEvent) -> Option<u64>| events.iter().filter_map(is_it).collect::<Vec<_>>();
            let announced = told(|event| match event {
                RunEvent::Replacing { version, .. } => Some(version.0),
                _ => None,
            });
            assert_eq!((announced.len(), announced[0]), (3, since));
            let changed = told(|event| match event {
                RunEvent::Changed { version, .. } => Some(version.0),
                _ => None,
            });
            assert_eq!(changed, replaced.iter().map(|(version, _)| *version).collect::<Vec<_>>());
            assert_eq!(replayed(fakes(), &config, &kept.updates).unwrap().0, config.n_updates);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_real_models_a_replay_holds_bit_for_bit_and_only_with_the_same_reward_model() {
    for mode in MODES {
        for models in Models::each() {
            let config = config(mode, 2, BATCH_SIZE);
            let flow = || -> PpoFlow<Weights, PpoLearner> { models.flow(2, Box::new(NoSink)) };
            let (kept, _) = run(flow(), &config, &[(3, "another")]).await;
            let [(since, _)] = kept.replaced()[..] else { panic!("{:?}", kept.replaced()) };
            assert_eq!(replayed(flow(), &config, &kept.updates).unwrap().0, N_UPDATES);

            let mut without = kept.updates.clone();
            without.iter_mut().for_each(|update| update.changes.clear());
            match replayed(flow(), &config, &without).unwrap_err() {
                ReplayError::Differs { version, what } => {
                    assert!(version.0 == since && what.contains("score"), "{version}: {what}");
                }
                error => panic!("{error}"),
            }
            let mut other = kept.updates.clone();
            for change in other.iter_mut().flat_map(|update| &mut update.changes) {
                if let SettingChange::RewardModel(model) = change {
                    model.weights = "0".repeat(32);
                }
            }
            let error = replayed(flow(), &config, &other).unwrap_err();
            assert!(matches!(error, ReplayError::Failed { .. }), "{error}");
            assert!(error.to_string().contains("is another one now"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_with_the_reward_model_of_its_checkpoint() {
    for mode in MODES {
        let mut config = config(mode, 1, 4);
        config.checkpoints.every = 3;
        let (kept, _) = run(fakes(), &config, &[(4, "5")]).await;
        let [(since, _)] = kept.replaced()[..] else { panic!("{:?}", kept.replaced()) };
        for checkpoint in &kept.checkpoints {
            let version = checkpoint.version.0;
            let is_after = checkpoint.ledger.reward_model.is_some();
            // At the boundary itself one may be kept before the command comes, and another one after it.
            assert!(version == since || is_after == (version > since), "at {version} of {since}");
            let resume = Some(checkpoint.clone());
            let (resumed, _) = run(PpoFlow { resume, ..fakes() }, &config, &[]).await;
            let is_pending = checkpoint.ledger.next_reward_model.is_some();
            let before = &kept.updates[..version as usize];
            let updates = [before, &resumed.updates].concat();
            assert_eq!(updates.len() as u64, N_UPDATES);
            let numbers = scored_by(&resumed.updates);
            assert!(numbers.iter().all(|number| *number == if is_after { 5 } else { 0 }) || is_pending, "{numbers:?}");
            assert_eq!(replayed(fakes(), &config, &updates).unwrap().0, N_UPDATES);
            if mode == FlowMode::Deterministic && checkpoint.ledger.open.is_empty() && (is_after || is_pending) {
                assert_eq!(resumed.updates, kept.updates[version as usize..], "from {version}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reward_scorer_that_fails_at_the_boundary_is_started_again_with_the_new_one() {
    for mode in MODES {
        let config = config(mode, 1, 4);
        let models = FakeRewardModels { n_failures: Arc::new(AtomicU64::new(2)) };
        let flow = PpoFlow { reward_models: Some(Arc::new(models.clone())), ..fakes() };
        let (kept, events) = run(flow, &config, &[(3, "7")]).await;
        assert_eq!(models.n_failures.load(Ordering::SeqCst), 0);
        assert_eq!(events.iter().filter(|event| matches!(event, RunEvent::Restarted { .. })).count(), 2);
        assert_eq!(scored_by(&kept.updates), expected(&kept));
        assert_eq!(scored_by(&kept.updates).last(), Some(&7));
        assert_eq!(replayed(fakes(), &config, &kept.updates).unwrap().0, N_UPDATES);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_give_no_scores_or_comes_too_late_is_refused_and_changes_nothing() {
    for mode in MODES {
        let config = config(mode, 0, 4);
        let handle = fakes().start(&config).await.unwrap();
        let error = handle.control().replace_reward_model(Path::new("no-number")).unwrap_err().to_string();
        assert!(error.contains("no-number: this is no reward model"), "{error}");
        within(handle.wait(), "no end").await.map(drop).unwrap();
        let handle = PpoFlow { reward_models: None, ..fakes() }.start(&config).await.unwrap();
        let error = handle.control().replace_reward_model(Path::new("1")).unwrap_err().to_string();
        assert!(error.contains("come from no reward model"), "{error}");
        within(handle.wait(), "no end").await.map(drop).unwrap();

        let (kept, events) = run(fakes(), &config, &[(N_UPDATES, "1")]).await;
        assert_eq!(kept.replaced(), []);
        let warned = events
            .iter()
            .any(|event| matches!(event, RunEvent::Warning { message, .. } if message.contains("comes too late")));
        let has_ended = matches!(events.last(), Some(RunEvent::Ended { .. }));
        assert!(warned || has_ended, "{events:?}");
    }
}
