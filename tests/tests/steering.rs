//! Settings are changed and checkpoints are asked for while a run goes on: each takes effect between two updates, the
//! journal has it, and a replay comes to the same weights.

use std::sync::{Arc, Mutex};

use collimate::control::RunHandle;
use collimate::flow::replay::ReplayError;
use collimate::flow::{Checkpoint, FlowConfig, FlowMode, PpoFlow, RestartConfig, RunSink, TrainedUpdate};
use collimate_models::arch::Weights;
use collimate_models::roles::PpoLearner;
use collimate_protocol::messages::RunEvent;
use collimate_protocol::records::JournaledUpdate;
use collimate_protocol::roles::Trainer;
use collimate_protocol::{Role, RoleError, SettingChange};
use collimate_tests::fakes::{FakeTrainer, FakeWeights, SharedLog};
use collimate_tests::run::{replayed, within};
use collimate_tests::sabotage::{Sabotage, sabotaged};
use collimate_tests::scenario::Scenario;
use collimate_tests::tiny::{BATCH_SIZE, Models};
use collimate_tests::wrap::Fault;
use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::broadcast;

const N_UPDATES: u64 = 60;
const MODES: [FlowMode; 2] = [FlowMode::Threaded, FlowMode::Deterministic];

#[derive(Default)]
struct Kept {
    updates: Vec<JournaledUpdate>,
    rates: Vec<(f64, f64)>,
    checkpoints: Vec<Checkpoint>,
}

/// Keeps what goes to the journal; needs a permit for each update until whoever gives them hangs up, so that the flow
/// can't run ahead of the test.
struct ByPermit {
    kept: Arc<Mutex<Kept>>,
    permits: Receiver<()>,
}

impl RunSink for ByPermit {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        let _ = self.permits.recv();
        let mut kept = self.kept.lock().unwrap();
        kept.updates.push(update.journaled());
        kept.rates.push((update.metrics.batch.kl_coef, update.metrics.train.lr));
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<bool, RoleError> {
        self.kept.lock().unwrap().checkpoints.push(checkpoint.clone());
        Ok(true)
    }
}

struct Run<W, T> {
    handle: RunHandle<W, T>,
    events: broadcast::Receiver<RunEvent>,
    permits: Sender<()>,
    kept: Arc<Mutex<Kept>>,
}

impl<W: Send + Sync + 'static, T: Trainer<W> + 'static> Run<W, T> {
    async fn start(flow: PpoFlow<W, T>, config: &FlowConfig) -> Self {
        let (permits, permitted) = unbounded();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let sink = Box::new(ByPermit { kept: kept.clone(), permits: permitted });
        let handle = PpoFlow { sink, ..flow }.start(config).await.unwrap();
        let events = handle.events();
        Self { handle, events, permits, kept }
    }

    /// Lets updates pass one by one until this is heard.
    async fn pass_until(&mut self, is_it: impl Fn(&RunEvent) -> bool) -> RunEvent {
        self.permits.send(()).unwrap();
        loop {
            let event = within(self.events.recv(), "the event does not come").await.expect("it comes before the end");
            if is_it(&event) {
                return event;
            }
            if matches!(event, RunEvent::Updated(_)) {
                self.permits.send(()).unwrap();
            }
        }
    }

    async fn end(self) -> Kept {
        drop(self.permits);
        within(self.handle.wait(), "no end").await.map(drop).unwrap();
        std::mem::take(&mut self.kept.lock().unwrap())
    }
}

fn config(mode: FlowMode) -> FlowConfig {
    let mut config = FlowConfig {
        n_updates: N_UPDATES,
        batch_size: BATCH_SIZE,
        max_staleness: 2,
        scorer_batch: 2,
        scorer_waits_for: 2,
        mode,
        restarts: RestartConfig { backoff_s: 0.0, ..RestartConfig::default() },
        ..FlowConfig::default()
    };
    config.checkpoints.every = 0;
    config
}

fn is_update(event: &RunEvent) -> bool {
    matches!(event, RunEvent::Updated(_))
}

fn changed(event: RunEvent) -> (u64, Vec<SettingChange>) {
    let RunEvent::Changed { version, changes } = event else { panic!("{event:?}") };
    (version.0, changes)
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_settings_hold_from_the_update_that_the_journal_has_them_with_and_are_replayed() {
    for mode in MODES {
        for models in Models::each() {
            let config = config(mode);
            let flow = || -> PpoFlow<Weights, PpoLearner> { models.flow(2, Box::new(collimate::flow::NoSink)) };
            let mut run = Run::start(flow(), &config).await;
            run.pass_until(is_update).await;
            run.handle.control().change(SettingChange::KlCoef(0.75)).unwrap();
            run.handle.control().change(SettingChange::Lr(1e-4)).unwrap();
            let mut heard = Vec::new();
            let mut since = None;
            // One batch may have been made between the two.
            while heard.len() < 2 {
                let (version, changes) =
                    changed(run.pass_until(|event| matches!(event, RunEvent::Changed { .. })).await);
                since.get_or_insert(version);
                heard.extend(changes);
            }
            assert_eq!(heard, [SettingChange::KlCoef(0.75), SettingChange::Lr(1e-4)]);
            let kept = run.end().await;
            assert_eq!(kept.updates.len() as u64, N_UPDATES);
            let since = since.unwrap() as usize;
            assert!(since > 0, "an update was done before");
            let coefs: Vec<f64> = kept.rates.iter().map(|(kl_coef, _)| *kl_coef).collect();
            assert!(coefs[..since].iter().all(|coef| (coef - 0.05).abs() < 1e-6), "{coefs:?}");
            assert!(coefs[since..].iter().all(|coef| *coef == 0.75), "{coefs:?}");
            // The schedule is constant after its warm-up of one update.
            let lr = kept.rates.last().unwrap().1;
            assert!((lr - 1e-4).abs() < 1e-12, "{lr}");
            assert_eq!(replayed(flow(), &config, &kept.updates).unwrap().0, N_UPDATES);
            for setting in ["kl_coef", "lr"] {
                let mut without = kept.updates.clone();
                without.iter_mut().for_each(|update| update.changes.retain(|change| change.key() != setting));
                let error = replayed(flow(), &config, &without).unwrap_err();
                assert!(matches!(error, ReplayError::Differs { .. }), "without {setting}: {error}");
            }
        }
    }
}

fn fakes() -> impl Fn() -> PpoFlow<FakeWeights, FakeTrainer> {
    let scenario = Scenario { n_generators: 2, n_scorers: 2, ..Scenario::default() };
    move || scenario.parts(&SharedLog::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_afterwards_a_change_is_not_lost() {
    for mode in MODES {
        for role in [Role::ExperienceBuffer, Role::Learner] {
            let (config, flow) = (config(mode), fakes());
            // Strikes long after the changes.
            let sabotage = Sabotage::new(Fault::Panic, 40, 1);
            let mut run = Run::start(sabotaged(flow(), role, &sabotage), &config).await;
            run.pass_until(is_update).await;
            run.handle.control().change(SettingChange::KlCoef(3.0)).unwrap();
            run.handle.control().change(SettingChange::Lr(5.0)).unwrap();
            let kept = {
                run.pass_until(|event| matches!(event, RunEvent::Changed { .. })).await;
                run.end().await
            };
            assert!(sabotage.has_struck(), "{role:?} was not lost");
            assert_eq!(kept.updates.iter().map(|update| update.changes.len()).sum::<usize>(), 2);
            assert_eq!(replayed(flow(), &config, &kept.updates).unwrap().0, N_UPDATES);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_comes_when_it_is_asked_for_and_a_run_goes_on_from_it_with_what_was_changed() {
    for mode in MODES {
        let (config, flow) = (config(mode), fakes());
        let mut run = Run::start(flow(), &config).await;
        run.pass_until(is_update).await;
        run.handle.control().change(SettingChange::KlCoef(3.0)).unwrap();
        run.handle.control().change(SettingChange::Lr(5.0)).unwrap();
        let (_, first) = changed(run.pass_until(|event| matches!(event, RunEvent::Changed { .. })).await);
        if first.len() < 2 {
            run.pass_until(|event| matches!(event, RunEvent::Changed { .. })).await;
        }
        run.handle.control().checkpoint();
        let event = run.pass_until(|event| matches!(event, RunEvent::Checkpointed { .. })).await;
        let RunEvent::Checkpointed { version } = event else { panic!("{event:?}") };
        assert!(version.0 < N_UPDATES, "the one at the end");
        let kept = run.end().await;
        assert_eq!(kept.updates.len() as u64, N_UPDATES, "the run went on as before");
        assert_eq!(replayed(flow(), &config, &kept.updates).unwrap().0, N_UPDATES);

        let checkpoint = kept.checkpoints.iter().find(|checkpoint| checkpoint.version == version).unwrap().clone();
        assert_eq!(checkpoint.ledger.problem(), None);
        let resumed = Run::start(PpoFlow { resume: Some(checkpoint), ..flow() }, &config).await.end().await;
        let before = &kept.updates[..version.0 as usize];
        let updates = [before, &resumed.updates].concat();
        assert_eq!(updates.len() as u64, N_UPDATES);
        assert_eq!(replayed(flow(), &config, &updates).unwrap().0, N_UPDATES);
        let mut tickets: Vec<_> = updates.iter().flat_map(|update| &update.rollouts).map(|r| r.ticket.id).collect();
        let n = tickets.len();
        tickets.sort();
        tickets.dedup();
        assert_eq!(tickets.len(), n, "a ticket was trained on twice");
    }
}

#[tokio::test]
async fn a_change_that_makes_no_sense_is_refused_and_changes_nothing() {
    let config = config(FlowMode::Threaded);
    let run = Run::start(fakes()(), &config).await;
    let error = run.handle.control().change(SettingChange::Lr(f64::NAN)).unwrap_err().to_string();
    assert!(error.contains("`lr` is NaN, expected a number of at least 0"), "{error}");
    assert!(run.end().await.updates.iter().all(|update| update.changes.is_empty()));
}
