//! Opening a run directory, and where everything in it lies.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::{Checkpoints, RunDirError, StageMarker, atomic};
use crate::config::{self, ConfigError, KeyDiff};

/// A stage of the recipe, in the order in which they build on one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Raw text to base model.
    Pretrain,
    /// Demonstrations to SFT model.
    Sft,
    /// A policy's responses to comparisons of them.
    Collect,
    /// Comparisons to reward model.
    Reward,
    /// SFT model to aligned policy.
    Ppo,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Stage; 5] = [Stage::Pretrain, Stage::Sft, Stage::Collect, Stage::Reward, Stage::Ppo];

    /// The stage's command, table and folder.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Pretrain => "pretrain",
            Stage::Sft => "sft",
            Stage::Collect => "collect",
            Stage::Reward => "reward",
            Stage::Ppo => "ppo",
        }
    }
}

/// Settings that change how fast a run goes, what is shown of it or how it is kept, how long people are waited for or
/// whether another round follows, but not what was come to so far. They, and what stands below them, may differ when a run
/// is continued.
pub const EXEMPT_KEYS: [&str; 9] = [
    "ppo.n_rollouts_recorded",
    "ppo.n_rollouts_in_detail",
    "ppo.threads",
    "ppo.restarts",
    "ppo.checkpoints.n_kept",
    "ppo.on_stop",
    "collect.n_enough",
    "collect.page",
    "iterate.n_rounds",
];

/// What a stage other than PPO goes on from, in its folder.
pub const TRAINING_FILE: &str = "training.safetensors";

const LOCK_NAME: &str = ".lock";
/// The temporary name of `config.toml`; see [`atomic::write`].
const UNFINISHED_CONFIG: &str = ".config.toml.tmp";

/// A run directory. One opened by [`RunDir::open`] is locked against other runs until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    changed: Vec<String>,
    /// The lock goes with the file handle, also when the process is killed.
    _lock: Option<File>,
}

impl RunDir {
    /// Opens a directory for a run with this config, or makes it. A directory that holds a run is continued if its
    /// config is the same but for [`EXEMPT_KEYS`], or if it has begun no stage yet.
    pub fn open<C: Serialize>(root: &Path, config: &C) -> Result<Self, RunDirError> {
        std::fs::create_dir_all(root).map_err(RunDirError::io(root))?;
        let lock = lock(root)?;
        let mut run = Self { root: root.to_owned(), changed: Vec::new(), _lock: Some(lock) };

        let path = run.config();
        let text = toml::to_string(config).map_err(|error| RunDirError::bad(&path, error.to_string()))?;
        let now: Table = toml::from_str(&text).map_err(|error| RunDirError::bad(&path, error.to_string()))?;
        if path.exists() {
            let there = config::load_table(&path).map_err(|error| match error {
                ConfigError::Io { path, source } => RunDirError::Io { path, source },
                bad => RunDirError::bad(&path, bad.to_string()),
            })?;
            let differences = config::differences(&there, &now);
            let (differences, harmless): (Vec<&KeyDiff>, Vec<&KeyDiff>) =
                differences.iter().partition(|difference| counts(difference));
            let in_words = |differences: Vec<&KeyDiff>| differences.into_iter().map(KeyDiff::to_string).collect();
            let differences: Vec<String> = in_words(differences);
            run.changed = in_words(harmless);
            if !differences.is_empty() && Stage::ALL.iter().any(|stage| run.stage(*stage).path.exists()) {
                return Err(RunDirError::OtherConfig { path: root.to_owned(), differences });
            }
        } else if holds_other_files(root).map_err(RunDirError::io(root))? {
            // A stage clears its folder before it begins: nobody's own files may lie there.
            return Err(RunDirError::bad(root, "this directory is not empty and holds no run; take another --out"));
        }
        let header = "# The recipe of this run, every default filled in. It is a recipe itself.\n";
        atomic::write(&path, format!("{header}{text}").as_bytes())?;
        Ok(run)
    }

    /// Opens a directory that holds a run, to read it.
    pub fn existing(root: &Path) -> Result<Self, RunDirError> {
        let run = Self { root: root.to_owned(), changed: Vec::new(), _lock: None };
        std::fs::metadata(run.config()).map_err(RunDirError::io(&run.config()))?;
        Ok(run)
    }

    /// Whether a run has the directory open.
    ///
    /// # Errors
    /// The lock can't be looked at.
    pub fn is_in_use(&self) -> Result<bool, RunDirError> {
        match lock(&self.root) {
            Ok(_) => Ok(false),
            Err(RunDirError::InUse { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Settings that differ from those that the directory was last opened with, and may: a line for each.
    pub fn changed(&self) -> &[String] {
        &self.changed
    }

    /// The resolved recipe.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// What the run came to.
    pub fn summary(&self) -> PathBuf {
        self.root.join("summary.json")
    }

    /// The page.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// The run directory of a round of `collimate iterate`, from 1, whether it is there or not.
    pub fn round(&self, round: usize) -> PathBuf {
        self.root.join(format!("round-{round}"))
    }

    /// The run directories of the rounds that have begun, in order.
    pub fn rounds(&self) -> Vec<Self> {
        (1..).map_while(|round| Self::existing(&self.round(round)).ok()).collect()
    }

    /// A stage's folder, whether it is there or not.
    pub fn stage(&self, stage: Stage) -> StageDir {
        StageDir { path: self.root.join(stage.name()) }
    }

    /// Starts a stage: its folder is there, and holds nothing of an earlier attempt that did not finish, unless that
    /// left something to go on from.
    pub fn begin(&self, stage: Stage) -> Result<StageDir, RunDirError> {
        let stage = self.stage(stage);
        // What people have ranked, or are ranking, is not to be lost.
        let can_go_on = stage.tasks().exists()
            || stage.training().exists()
            || !Checkpoints::at(&stage.checkpoints()).versions()?.is_empty();
        if stage.path.exists() && !can_go_on {
            std::fs::remove_dir_all(&stage.path).map_err(RunDirError::io(&stage.path))?;
        }
        std::fs::create_dir_all(&stage.path).map_err(RunDirError::io(&stage.path))?;
        Ok(stage)
    }

    /// What a finished stage came to; `None` if it has not finished.
    pub fn finished<S: Serialize + DeserializeOwned>(&self, stage: Stage) -> Result<Option<S>, RunDirError> {
        Ok(StageMarker::read(&self.stage(stage).marker())?.map(|marker| marker.summary))
    }
}

fn counts(difference: &KeyDiff) -> bool {
    let is_below = |exempt: &str| difference.key.strip_prefix(exempt).is_some_and(|rest| rest.starts_with('.'));
    !EXEMPT_KEYS.iter().any(|exempt| difference.key == *exempt || is_below(exempt))
}

fn holds_other_files(root: &Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(root)? {
        // A run that was killed as it began may have left its lock, or a config that it was still writing.
        if ![LOCK_NAME, UNFINISHED_CONFIG].contains(&&*entry?.file_name().to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lock(root: &Path) -> Result<File, RunDirError> {
    let path = root.join(LOCK_NAME);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(RunDirError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunDirError::InUse { path: root.to_owned() }),
        Err(TryLockError::Error(error)) => Err(RunDirError::io(&path)(error)),
    }
}

/// A stage's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageDir {
    path: PathBuf,
}

impl StageDir {
    /// The stage whose folder this is.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The marker of a finished stage.
    pub fn marker(&self) -> PathBuf {
        self.path.join("complete.json")
    }

    /// A line a step, for PPO a line an update.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The folder of TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tb")
    }

    /// The model that the stage made.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// The adapters that the stage trained, as PEFT reads them.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// PPO: the value model, where it is kept.
    pub fn value_model(&self) -> PathBuf {
        self.path.join("value_model")
    }

    /// All other stages, while they are not complete: what training goes on from.
    pub fn training(&self) -> PathBuf {
        self.path.join(TRAINING_FILE)
    }

    /// PPO: updates that were done again.
    pub fn abandoned_metrics(&self) -> PathBuf {
        self.path.join("metrics.abandoned.jsonl")
    }

    /// PPO: what both policies answered to the held-out prompts.
    pub fn evaluation(&self) -> PathBuf {
        self.path.join("evaluation.jsonl")
    }

    /// PPO: what happened besides updates.
    pub fn events(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// PPO: sampled rollouts.
    pub fn rollouts(&self) -> PathBuf {
        self.path.join("rollouts.jsonl")
    }

    /// PPO: the run's state at some versions.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// PPO: what it takes to run it again bit for bit.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal.bin")
    }

    /// PPO: the run as it was last seen.
    pub fn status(&self) -> PathBuf {
        self.path.join("status.json")
    }

    /// Collect: what people are asked.
    pub fn tasks(&self) -> PathBuf {
        self.path.join("tasks.jsonl")
    }

    /// Collect: what they answered, where they write a file.
    pub fn rankings(&self) -> PathBuf {
        self.path.join("rankings.jsonl")
    }

    /// Collect: all comparisons, earlier ones too. Reward: those that simulated labelers made.
    pub fn comparisons(&self) -> PathBuf {
        self.path.join("comparisons.jsonl")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_same_settings_continue_a_run_and_its_config_can_be_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("runs/one");
        let config = recipe("seed = 1\n[ppo]\nptx_coef = 27.8");
        drop(RunDir::open(&root, &config).unwrap());
        let run = RunDir::open(&root, &config).unwrap();
        let loaded: Table = config::load(&run.config(), &[]).unwrap();
        assert_eq!(loaded, config);
    }

    #[test]
    fn other_settings_are_refused_with_every_key_that_differs_and_both_values() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path(), &recipe("seed = 0")).unwrap();
        drop(run);
        // Nothing has begun, so nothing was made by those settings.
        let run = RunDir::open(dir.path(), &recipe("seed = 1\n[ppo]\nptx_coef = 27.8")).unwrap();
        run.begin(Stage::Sft).unwrap();
        drop(run);
        let error = RunDir::open(dir.path(), &recipe("seed = 2\n[ppo]\nptx_coef = 0.0")).unwrap_err().to_string();
        assert!(error.contains("  ppo.ptx_coef: 27.8 there, 0.0 now\n  seed: 1 there, 2 now\n"), "{error}");
        assert!(error.contains("--out"), "{error}");
        let kept: Table = config::load(&dir.path().join("config.toml"), &[]).unwrap();
        assert_eq!(kept, recipe("seed = 1\n[ppo]\nptx_coef = 27.8"), "the refused run changed nothing");
    }

    #[test]
    fn a_directory_with_other_files_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let error = RunDir::open(dir.path(), &Table::new()).unwrap_err().to_string();
        assert!(error.contains("holds no run"), "{error}");
    }

    #[test]
    fn settings_that_do_not_change_the_outcome_may_differ() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunDir::open(dir.path(), &recipe("[ppo]\nn_rollouts_recorded = 1")).unwrap());
        RunDir::open(dir.path(), &recipe("[ppo]\nn_rollouts_recorded = 8")).unwrap();
    }

    #[test]
    fn two_runs_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunDir::open(dir.path(), &Table::new()).unwrap();
        let error = RunDir::open(dir.path(), &Table::new()).unwrap_err();
        assert!(matches!(error, RunDirError::InUse { .. }), "{error}");
        RunDir::existing(dir.path()).expect("reading is free");
        drop(first);
        RunDir::open(dir.path(), &Table::new()).unwrap();
    }

    #[test]
    fn beginning_a_stage_removes_an_unfinished_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path(), &Table::new()).unwrap();
        let stage = run.begin(Stage::Ppo).unwrap();
        std::fs::write(stage.metrics(), "half").unwrap();
        assert_eq!(run.finished::<u32>(Stage::Ppo).unwrap(), None);
        assert!(!run.begin(Stage::Ppo).unwrap().metrics().exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_or_holds_no_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = RunDir::open(&file.join("run"), &Table::new()).unwrap_err().to_string();
        assert!(error.starts_with(&file.join("run").display().to_string()), "{error}");
        let error = RunDir::existing(dir.path()).unwrap_err().to_string();
        assert!(error.contains("config.toml"), "{error}");
    }
}
