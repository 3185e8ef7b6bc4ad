//! A training stage's steps: to the terminal, to `metrics.jsonl` and to TensorBoard.

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::console::{Console, ConsoleEvent};
use super::tensorboard::EventWriter;
use crate::rundir::{JsonlWriter, RunDirError, Stage, StageDir};
use crate::stages::context::StageObserver;

/// A line of a training stage's `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The part of the stage.
    pub phase: String,
    /// How many of its steps are done.
    pub step: u64,
    /// The last step's numbers, by name.
    #[serde(flatten)]
    pub metrics: Map<String, Value>,
}

/// Records a stage's phases and steps.
#[derive(Debug)]
pub struct StageRecorder {
    stage: Stage,
    console: Console,
    files: Option<Files>,
    phase: String,
    bar: ProgressBar,
}

impl StageRecorder {
    /// Starts the stage's metrics files, or goes on with those of an attempt that left its training.
    pub fn create(stage: Stage, dir: &StageDir, console: &Console) -> Result<Self, RunDirError> {
        Ok(Self { files: Some(Files::create(dir)?), ..Self::without_files(stage, console) })
    }

    /// Shows the stage on the console alone.
    pub fn without_files(stage: Stage, console: &Console) -> Self {
        Self { stage, console: console.clone(), files: None, phase: String::new(), bar: ProgressBar::hidden() }
    }

    /// The stage ends, whether complete or not: the bar goes.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

impl StageObserver for StageRecorder {
    fn phase(&mut self, name: &str, n_steps: u64) {
        self.bar.finish_and_clear();
        self.phase = name.to_owned();
        let label = if name == self.stage.name() { name.to_owned() } else { format!("{}: {name}", self.stage.name()) };
        self.bar = self.console.bar(&label, n_steps);
        self.console.event(&ConsoleEvent::Phase { stage: self.stage, phase: name, n_steps });
    }

    /// A step without numbers moves the bar alone.
    fn step(&mut self, n_done: u64, metrics: &[(&'static str, f64)]) {
        self.bar.set_position(n_done);
        if Some(n_done) == self.bar.length() {
            self.bar.finish_and_clear();
        }
        let message = metrics.iter().find(|(name, _)| *name == "loss").map(|(_, loss)| format!("loss {loss:.3}"));
        self.bar.set_message(message.unwrap_or_default());
        let metrics: Map<String, Value> =
            metrics.iter().map(|&(name, number)| (name.to_owned(), Value::from(number))).collect();
        let (stage, phase) = (self.stage, self.phase.as_str());
        self.console.event(&ConsoleEvent::Step { stage, phase, step: n_done, metrics: &metrics });
        if let Some(files) = &mut self.files
            && !metrics.is_empty()
        {
            let record = StepRecord { phase: phase.to_owned(), step: n_done, metrics };
            files.write(&record, &self.console);
        }
    }

    fn goes_on(&mut self, n_done: u64) {
        self.bar.set_position(n_done);
        self.bar.reset_eta();
        self.console.line(&format!("goes on after step {n_done} of an earlier attempt"));
        if let Some(files) = &mut self.files {
            files.go_on(n_done, &self.phase, &self.console);
        }
    }

    fn note(&mut self, text: &str) {
        self.console.line(text);
    }

    fn tell(&mut self, text: &str) {
        self.console.tell(text);
    }

    fn warn(&mut self, text: &str) {
        self.console.warn(text);
    }
}

/// The metrics files. When they can't be written any more (a full disk), the stage goes on without them: the user is
/// told once, and the model is worth more than its curves.
#[derive(Debug)]
struct Files {
    metrics: JsonlWriter<StepRecord>,
    tensorboard: EventWriter,
    dir: StageDir,
    failed: bool,
}

impl Files {
    fn create(dir: &StageDir) -> Result<Self, RunDirError> {
        let metrics = match dir.training().exists() {
            true => JsonlWriter::resume(&dir.metrics(), |_| true)?,
            false => JsonlWriter::create(&dir.metrics())?,
        };
        Ok(Self { metrics, tensorboard: EventWriter::create(&dir.tensorboard())?, dir: dir.clone(), failed: false })
    }

    /// Drops the phase's steps after `n_done`, which an earlier attempt has recorded and which come again.
    fn go_on(&mut self, n_done: u64, phase: &str, console: &Console) {
        let is_kept =
            |record: &Value| record["phase"] != phase || record["step"].as_u64().is_some_and(|step| step <= n_done);
        let resumed = JsonlWriter::resume(&self.dir.metrics(), is_kept)
            .and_then(|metrics| self.tensorboard.forget_from(n_done + 1).map(|()| self.metrics = metrics));
        if let Err(error) = resumed {
            self.failed = true;
            console.warn(&format!("metrics are no longer written: {error}"));
        }
    }

    fn write(&mut self, record: &StepRecord, console: &Console) {
        if self.failed {
            return;
        }
        let scalars: Vec<(String, f64)> = record
            .metrics
            .iter()
            .filter_map(|(name, number)| Some((format!("{}/{name}", record.phase), number.as_f64()?)))
            .collect();
        let scalars = scalars.iter().map(|(name, number)| (name.as_str(), *number));
        let written = self.metrics.write(record).and_then(|()| self.tensorboard.scalars(record.step, scalars));
        if let Err(error) = written {
            self.failed = true;
            console.warn(&format!("metrics are no longer written: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::console::tests::Shared;
    use crate::rundir::{RunDir, read_jsonl};

    #[test]
    fn steps_go_to_the_console_and_to_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let stage = RunDir::open(dir.path(), &toml::Table::new()).unwrap().begin(Stage::Sft).unwrap();
        let out = Shared::default();
        let mut recorder = StageRecorder::create(Stage::Sft, &stage, &Console::json_to(Box::new(out.clone()))).unwrap();
        recorder.phase("sft", 2);
        recorder.step(1, &[("loss", 2.5), ("lr", f64::NAN)]);
        recorder.step(2, &[]);
        recorder.finish();

        let records: Vec<StepRecord> = read_jsonl(&stage.metrics()).unwrap();
        assert_eq!(records.len(), 1, "a step without numbers is no line");
        assert_eq!(
            (records[0].step, &records[0].metrics["loss"], &records[0].metrics["lr"]),
            (1, &2.5.into(), &Value::Null)
        );
        let events = out.lines();
        assert_eq!(events[0], serde_json::json!({"event": "phase", "stage": "sft", "phase": "sft", "n_steps": 2}));
        assert_eq!((&events[1]["step"], &events[1]["metrics"]["loss"]), (&1.into(), &2.5.into()));
        assert_eq!(std::fs::read_dir(stage.tensorboard()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_once_and_the_stage_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let stage = RunDir::open(dir.path(), &toml::Table::new()).unwrap().begin(Stage::Sft).unwrap();
        std::os::unix::fs::symlink("/dev/full", stage.metrics()).unwrap();
        let out = Shared::default();
        let mut recorder = StageRecorder::create(Stage::Sft, &stage, &Console::json_to(Box::new(out.clone()))).unwrap();
        recorder.phase("sft", 2);
        recorder.step(1, &[("loss", 2.5)]);
        recorder.step(2, &[("loss", 2.4)]);
        let warnings: Vec<String> = out
            .lines()
            .iter()
            .filter(|event| event["event"] == "warning")
            .map(|event| event["message"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("metrics.jsonl: No space left on device"), "{}", warnings[0]);
    }
}
