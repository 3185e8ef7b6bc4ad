//! PPO's updates: to the terminal, to `metrics.jsonl`, `rollouts.jsonl` and TensorBoard, and to the gauges.

use std::fmt;
use std::sync::Arc;

use collimate_protocol::records::UpdateMetrics;
use collimate_protocol::roles::{Detokenizer, RewardFunction, RewardRequest};
use collimate_protocol::{ExperienceBatch, PolicyVersion, RoleError, SettingChange};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::console::{Console, ConsoleEvent};
use super::tensorboard::EventWriter;
use super::update_line::update_line;
use super::{gauges, numbers};
use crate::flow::{RunSink, TrainedUpdate};
use crate::rundir::samples::record_of;
use crate::rundir::{JsonlWriter, Recorded, RolloutWriter, RunDirError, StageDir, branches, reward_summary};
use crate::view::Live;

/// A line of PPO's `metrics.jsonl`: the update, and what only the recorder knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateRecord {
    /// The update.
    #[serde(flatten)]
    pub update: UpdateMetrics,
    /// Mean gold score of the batch, where the run has a gold scorer. Only shown: PPO never sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold: Option<f64>,
    /// Labels that the reward model which scored the batch has learnt from: the rankings of its training set, whoever gave
    /// them. Absent where something else gave the scores, or nothing beside the reward model tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_labels: Option<u64>,
}

/// Records updates with the rollouts that they trained on.
pub struct PpoRecorder {
    console: Console,
    bar: ProgressBar,
    n_updates: u64,
    detokenizer: Arc<dyn Detokenizer>,
    gold: Option<Box<dyn RewardFunction>>,
    /// Of the reward model in force.
    n_labels: Option<u64>,
    live: Live,
    files: Files,
}

impl fmt::Debug for PpoRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PpoRecorder").field("n_updates", &self.n_updates).finish_non_exhaustive()
    }
}

/// What a recorder is made of.
pub struct PpoRecorderParts {
    /// How many updates there will be.
    pub n_updates: u64,
    /// Rollouts of each update that are written out.
    pub recorded: Recorded,
    /// For the text of rollouts.
    pub detokenizer: Arc<dyn Detokenizer>,
    /// Judges each batch, for the curves alone.
    pub gold: Option<Box<dyn RewardFunction>>,
    /// Labels that the reward model has learnt from which gives the scores at first, where that is known.
    pub n_labels: Option<u64>,
    /// Updates that are done and recorded already.
    pub version: PolicyVersion,
    /// Who looks at the run in this process.
    pub live: Live,
}

impl PpoRecorder {
    /// Starts the stage's files, or goes on with them. What an earlier attempt recorded beyond the version that it goes
    /// on from is set aside: those updates are done again.
    pub fn open(dir: &StageDir, console: &Console, parts: PpoRecorderParts) -> Result<Self, RunDirError> {
        let PpoRecorderParts { n_updates, recorded, detokenizer, gold, n_labels, version, live } = parts;
        branches::set_aside(&dir.metrics(), &dir.abandoned_metrics(), version.0)?;
        let is_done = |record: &Value| record["version"].as_u64().is_some_and(|done| done <= version.0);
        let mut tensorboard = EventWriter::create(&dir.tensorboard())?;
        if version > PolicyVersion(0) {
            tensorboard.forget_from(version.next().0)?;
        }
        let files = Files {
            metrics: JsonlWriter::resume(&dir.metrics(), is_done)?,
            rollouts: RolloutWriter::open(&dir.rollouts(), version, detokenizer.clone(), recorded)?,
            tensorboard,
            failed: false,
        };
        let bar = console.bar("ppo", n_updates);
        bar.set_position(version.0);
        bar.reset_eta();
        live.load(dir);
        Ok(Self { console: console.clone(), bar, n_updates, detokenizer, gold, n_labels, live, files })
    }

    /// Records one update. Files that can't be written any more are told of once; only a failing gold scorer or
    /// detokenizer is an error.
    pub fn record(&mut self, update: &UpdateMetrics, batch: &ExperienceBatch) -> Result<(), RoleError> {
        let gold_scores = self.gold_of(batch)?;
        let gold = gold_scores.as_deref().and_then(mean);
        let n_labels = self.n_labels;
        gauges::show_update(update);
        gauges::show_labels(n_labels);
        self.console.line(&update_line(update, gold, self.n_updates));
        self.console.event(&ConsoleEvent::Updated { gold, n_labels, update });
        self.bar.set_position(update.version.0);
        let record = UpdateRecord { update: update.clone(), gold, n_labels };
        if let Err(error) = self.files.write(&record, batch, gold_scores.as_deref(), &*self.detokenizer) {
            self.files.failed = true;
            let problem = format!("metrics are no longer written: {error}");
            self.console.warn(&problem);
            self.live.warn(update.version, problem);
        }
        self.live.updated(&record);
        Ok(())
    }

    /// The stage ends: the bar goes.
    pub fn finish(&mut self) {
        self.bar.finish_and_clear();
    }

    fn gold_of(&mut self, batch: &ExperienceBatch) -> Result<Option<Vec<f32>>, RoleError> {
        let Some(gold) = &mut self.gold else { return Ok(None) };
        let requests = batch
            .experiences
            .iter()
            .map(|experience| RewardRequest::of(&experience.scored.rollout, &*self.detokenizer))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Some(gold.scores(&requests)?))
    }
}

/// The mean of some numbers, if there are any.
fn mean(numbers: &[f32]) -> Option<f64> {
    let sum: f64 = numbers.iter().copied().map(f64::from).sum();
    (!numbers.is_empty()).then(|| sum / numbers.len() as f64)
}

impl RunSink for PpoRecorder {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        // The reward model of such a change scored this batch, and scores those that follow.
        for change in update.changes.iter() {
            if let SettingChange::RewardModel(model) = change {
                self.n_labels = reward_summary::n_labels(&model.dir);
            }
        }
        self.record(&update.metrics, &update.batch)
    }
}

impl Drop for PpoRecorder {
    fn drop(&mut self) {
        self.finish();
    }
}

struct Files {
    metrics: JsonlWriter<UpdateRecord>,
    rollouts: RolloutWriter,
    tensorboard: EventWriter,
    failed: bool,
}

impl Files {
    fn write(
        &mut self,
        record: &UpdateRecord,
        batch: &ExperienceBatch,
        gold: Option<&[f32]>,
        detokenizer: &dyn Detokenizer,
    ) -> Result<(), RoleError> {
        if self.failed {
            return Ok(());
        }
        self.metrics.write(record)?;
        let version = record.update.version.0;
        let scalars = numbers::of(&serde_json::to_value(record)?);
        let scalars = scalars.iter().filter(|(name, _)| name != "version");
        self.tensorboard.scalars(version, scalars.map(|(name, number)| (name.as_str(), *number)))?;
        self.rollouts.write(batch, gold)?;
        if let Some(first) = batch.experiences.first() {
            let sample = record_of(batch, first, None, detokenizer)?;
            let text =
                format!("{}**{}**\n\nscore {:.3}, kl {:.2}", sample.prompt, sample.response, sample.score, sample.kl);
            self.tensorboard.text(version, "rollout", &text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use collimate_protocol::RewardModelId;
    use collimate_protocol::records::RolloutRecord;
    use serde_json::json;

    use super::*;
    use crate::observe::console::tests::Shared;
    use crate::rundir::samples::tests::{Digits, batch, experience};
    use crate::rundir::{RunDir, Stage, StageMarker, read_jsonl};

    struct LastToken;

    impl RewardFunction for LastToken {
        fn scores(&mut self, requests: &[RewardRequest]) -> Result<Vec<f32>, RoleError> {
            Ok(requests.iter().map(|request| request.response_tokens.len() as f32).collect())
        }
    }

    fn parts(live: Live) -> PpoRecorderParts {
        PpoRecorderParts {
            n_updates: 2,
            recorded: Recorded { n_rollouts: 1, n_in_detail: 1 },
            detokenizer: Arc::new(Digits),
            gold: None,
            n_labels: None,
            version: PolicyVersion(0),
            live,
        }
    }

    #[test]
    fn an_update_goes_to_every_file_and_to_the_console() {
        let dir = tempfile::tempdir().unwrap();
        let stage = RunDir::open(dir.path(), &toml::Table::new()).unwrap().begin(Stage::Ppo).unwrap();
        let out = Shared::default();
        let parts = PpoRecorderParts { gold: Some(Box::new(LastToken)), n_labels: Some(800), ..parts(Live::default()) };
        let mut recorder = PpoRecorder::open(&stage, &Console::json_to(Box::new(out.clone())), parts).unwrap();
        let mut update = UpdateMetrics { version: PolicyVersion(1), ..UpdateMetrics::default() };
        update.train.policy_loss = f64::NAN;
        recorder.record(&update, &batch(0, vec![experience(0, 0.5), experience(1, 1.5)])).unwrap();

        let lines: Vec<Value> = read_jsonl(&stage.metrics()).unwrap();
        assert_eq!((&lines[0]["version"], &lines[0]["gold"]), (&1.into(), &3.0.into()));
        assert_eq!((&lines[0]["n_labels"], &out.lines()[0]["n_labels"]), (&800.into(), &800.into()));
        assert!(lines[0]["train"]["policy_loss"].is_null());
        let rollouts: Vec<RolloutRecord> = read_jsonl(&stage.rollouts()).unwrap();
        assert_eq!(rollouts.len(), 1);
        assert_eq!(rollouts[0].version, PolicyVersion(0));
        assert_eq!(out.lines()[0]["event"], "updated");
    }

    #[test]
    fn an_update_says_how_many_labels_the_reward_model_learnt_from_that_scored_its_batch() {
        let dir = tempfile::tempdir().unwrap();
        let stage = RunDir::open(dir.path(), &toml::Table::new()).unwrap().begin(Stage::Ppo).unwrap();
        let better = dir.path().join("better");
        std::fs::create_dir(&better).unwrap();
        let marker = StageMarker { config: Value::Null, summary: json!({ "bias": 0.5, "n_comparisons": 1200 }) };
        marker.write(&StageDir::at(&better).marker()).unwrap();
        let replaced = |dir: &Path| {
            let model = RewardModelId { dir: dir.into(), weights: "0f".into() };
            vec![SettingChange::Lr(1e-4), SettingChange::RewardModel(model)]
        };
        let parts = PpoRecorderParts { n_labels: Some(800), ..parts(Live::default()) };
        let mut recorder = PpoRecorder::open(&stage, &Console::silent(), parts).unwrap();
        let changes = [
            vec![],
            vec![SettingChange::Lr(2e-4)],
            replaced(&better.join("model")),
            vec![],
            replaced(Path::new("/elsewhere/model")),
        ];
        for (version, changes) in (1..).zip(changes) {
            let metrics = UpdateMetrics { version: PolicyVersion(version), ..UpdateMetrics::default() };
            let batch = Arc::new(batch(version - 1, vec![experience(version, 0.5)]));
            recorder.updated(&TrainedUpdate { metrics, changes: changes.into(), batch, checksum: 0 }).unwrap();
        }
        let lines: Vec<Value> = read_jsonl(&stage.metrics()).unwrap();
        let n_labels: Vec<Option<u64>> = lines.iter().map(|line| line["n_labels"].as_u64()).collect();
        assert_eq!(n_labels, [Some(800), Some(800), Some(1200), Some(1200), None]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn where_the_disk_is_full_whoever_looks_is_told_once_and_sees_the_updates_all_the_same() {
        use crate::view::live::Watched;

        let dir = tempfile::tempdir().unwrap();
        let stage = RunDir::open(dir.path(), &toml::Table::new()).unwrap().begin(Stage::Ppo).unwrap();
        let (out, watched) = (Shared::default(), Arc::new(Watched::of(dir.path())));
        let parts = parts(Live::to(watched.clone()));
        let mut recorder = PpoRecorder::open(&stage, &Console::json_to(Box::new(out.clone())), parts).unwrap();
        recorder.files.metrics = JsonlWriter::append(Path::new("/dev/full")).unwrap();
        for version in 1..=2 {
            let update = UpdateMetrics { version: PolicyVersion(version), ..UpdateMetrics::default() };
            recorder.record(&update, &batch(version - 1, vec![experience(version, 0.5)])).unwrap();
        }
        watched.hub.read(|known| {
            assert_eq!(known.history.n_updates(), 2);
            let [told] = &*known.events.iter().collect::<Vec<_>>() else { panic!("{:?}", known.events) };
            let told = serde_json::to_value(&told.event).unwrap()["message"].as_str().unwrap().to_owned();
            assert!(told.starts_with("metrics are no longer written: ") && told.contains("No space left"), "{told}");
        });
        let warnings = out.lines().iter().filter(|event| event["event"] == "warning").count();
        assert_eq!(warnings, 1);
    }
}
