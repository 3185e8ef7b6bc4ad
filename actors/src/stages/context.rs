//! What every stage is given, and what it fails with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use collimate_models::Device;
use collimate_models::arch::Precision;
use collimate_protocol::RoleError;

use super::memory::MemoryEstimate;
use crate::device::DeviceError;
use crate::flow::RunError;
use crate::flow::replay::ReplayError;
use crate::hub::HubError;
use crate::label::server::ServeError;
use crate::label::store::StoreError;
use crate::label::transfer::TransferError;
use crate::process;
use crate::rundir::{RunDirError, TRAINING_FILE};
use crate::view::Live;

/// Why a stage did not complete.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A file, a setting or a computation.
    #[error(transparent)]
    Model(#[from] collimate_models::Error),
    /// A role of PPO, a labeler or a reward function.
    #[error("{0}")]
    Role(RoleError),
    /// A setting that makes no sense, or that needs another.
    #[error("{0}")]
    Setting(String),
    /// The flow of PPO.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A run of PPO that was done again.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The stage's own folder.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The database of a labelling project.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of tasks or answers of a labelling project.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The page of a labelling project.
    #[error(transparent)]
    Page(#[from] ServeError),
    /// A model of the hub that can't be had.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What an earlier attempt at the stage left of its training can't be gone on from.
    #[error("{0}; remove it to begin the stage anew")]
    OldTraining(#[source] collimate_models::Error),
    /// The run was told to stop.
    #[error("stopped before the stage was complete")]
    Stopped,
}

impl From<RoleError> for StageError {
    fn from(error: RoleError) -> Self {
        Self::Role(error)
    }
}

/// Asks a stage to stop at its next step. Clones share one flag.
#[derive(Clone, Debug)]
pub struct StopFlag {
    asked: Arc<watch::Sender<bool>>,
    heard: watch::Receiver<bool>,
}

impl Default for StopFlag {
    fn default() -> Self {
        let (asked, heard) = watch::channel(false);
        Self { asked: Arc::new(asked), heard }
    }
}

impl StopFlag {
    /// Asks.
    pub fn stop(&self) {
        self.asked.send_replace(true);
    }

    /// Whether somebody asked.
    pub fn is_stopped(&self) -> bool {
        *self.heard.borrow()
    }

    /// Waits until somebody asks.
    pub async fn stopped(&mut self) {
        // The sender lives as long as this flag.
        let _ = self.heard.wait_for(|asked| *asked).await;
    }
}

/// What watches a stage: progress on the terminal, metrics files. A failing observer must not fail the stage.
pub trait StageObserver: Send {
    /// A part of the stage begins: what it does, and how many steps it will take.
    fn phase(&mut self, name: &str, n_steps: u64);

    /// `n_done` steps of the phase are done; `metrics` are named numbers of the last one, by the last parts of their
    /// names in `metrics.jsonl`.
    fn step(&mut self, n_done: u64, metrics: &[(&'static str, f64)]);

    /// An earlier attempt has done so many steps of the phase: the next one is the one after.
    fn goes_on(&mut self, n_done: u64);

    /// Something that a person should read.
    fn note(&mut self, text: &str);

    /// Something that a person must read for the stage to go on.
    fn tell(&mut self, text: &str) {
        self.note(text);
    }

    /// Something is wrong that stops nothing.
    fn warn(&mut self, text: &str);
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl StageObserver for Unobserved {
    fn phase(&mut self, _name: &str, _n_steps: u64) {}
    fn step(&mut self, _n_done: u64, _metrics: &[(&'static str, f64)]) {}
    fn goes_on(&mut self, _n_done: u64) {}
    fn note(&mut self, _text: &str) {}
    fn warn(&mut self, _text: &str) {}
}

/// What every stage is given.
pub struct StageContext<'a> {
    /// The run's seed.
    pub seed: u64,
    /// Where to compute.
    pub device: Device,
    /// What matrices are multiplied in.
    pub precision: Precision,
    /// The stage's own folder in the run directory; it exists.
    pub out_dir: PathBuf,
    /// Checked between steps.
    pub stop: StopFlag,
    /// Who looks at the run in this process.
    pub live: Live,
    /// Told what happens.
    pub observer: &'a mut dyn StageObserver,
    /// When the stage began.
    pub started: Instant,
}

impl StageContext<'_> {
    /// Where the stage writes its model.
    pub fn model_dir(&self) -> PathBuf {
        self.out_dir.join("model")
    }

    /// Where the stage writes its adapters, where it trains those.
    pub fn adapter_dir(&self) -> PathBuf {
        self.out_dir.join("adapter")
    }

    /// Where the stage keeps its training until it is complete.
    pub fn training_file(&self) -> PathBuf {
        self.out_dir.join(TRAINING_FILE)
    }

    /// Tells what the stage will take of memory, before it reads a model, and refuses what can't fit.
    pub fn check_memory(&mut self, estimate: MemoryEstimate) -> Result<(), StageError> {
        let available = process::available_memory();
        self.observer.note(&estimate.table(process::memory_in_use(), available));
        available.map_or(Ok(()), |available| estimate.check(available))
    }

    /// Ends the stage here if the run was told to stop.
    pub fn check_stop(&self) -> Result<(), StageError> {
        if self.stop.is_stopped() { Err(StageError::Stopped) } else { Ok(()) }
    }

    /// Seconds since the stage began.
    pub fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
