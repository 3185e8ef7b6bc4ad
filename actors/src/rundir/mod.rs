//! The run directory: what a run leaves behind, and what it continues from.
//!
//! ```text
//! DIR/config.toml      the resolved recipe, itself loadable
//! DIR/summary.json     what each stage came to (`collimate_protocol::records::Summary`)
//! DIR/report.html      curves and samples
//! DIR/round-N/         a run directory of its own for each round of `collimate iterate`
//! DIR/STAGE/           pretrain, sft, collect, reward, ppo
//!     complete.json    written last: a stage that has it is not run again
//!     metrics.jsonl    a line a step; for PPO a line an update
//!     tb/              the same for TensorBoard
//!     model/           HuggingFace layout
//! DIR/reward/comparisons.jsonl   what the labelers ranked
//! DIR/collect/comparisons.jsonl  the same, after all that was ranked before
//! DIR/collect/tasks.jsonl        what people were asked; rankings.jsonl or answers.db holds what they answered
//! DIR/ppo/metrics.abandoned.jsonl   updates that were done again, because the run went on from before them
//! DIR/ppo/rollouts.jsonl         samples with their scores, and rollouts.sqlite, an index of them
//! DIR/ppo/events.jsonl           what else happened
//! DIR/ppo/evaluation.jsonl       what both policies answered to the held-out prompts
//! DIR/ppo/checkpoints/           the run's whole state at some versions, newest last
//! DIR/ppo/journal.bin            what it takes to run it again bit for bit
//! DIR/ppo/status.json            the run as it was a moment ago
//! ```
//!
//! - [`layout`]: opening a directory, and where everything lies.
//! - [`stage_marker`]: the file `complete.json`. [`reward_summary`]: what that of the reward stage tells of its model.
//! - [`jsonl`]: files of one JSON object a line.
//! - [`samples`]: the file `rollouts.jsonl`; [`watched_prompts`]: which rollouts are in it; [`pieces`]: the text of each
//!   token. [`rollout_index`] and [`rollout_query`]: the file beside it.
//! - [`branches`]: the file `metrics.abandoned.jsonl`. [`event_log`]: the file `events.jsonl`.
//! - [`status`]: the file `status.json`.
//! - [`summary`]: the file `summary.json`, made from the markers.
//! - [`checkpoints`]: the folder `checkpoints`. [`journal`]: the file `journal.bin`.
//! - [`atomic`]: a file is whole or absent.

pub mod atomic;
pub mod branches;
pub mod checkpoints;
pub mod event_log;
pub mod journal;
pub mod jsonl;
pub mod layout;
pub mod pieces;
pub mod reward_summary;
pub mod rollout_index;
pub mod rollout_query;
pub mod samples;
pub mod stage_marker;
pub mod status;
pub mod summary;
#[cfg(test)]
mod testing;
pub mod watched_prompts;

use std::path::{Path, PathBuf};

pub use checkpoints::Checkpoints;
pub use journal::{Journal, JournalWriter};
pub use jsonl::{JsonlWriter, read_jsonl};
pub use layout::{RunDir, Stage, StageDir, TRAINING_FILE};
pub use rollout_index::RolloutIndex;
pub use rollout_query::RolloutQuery;
pub use samples::{Recorded, RolloutWriter};
pub use stage_marker::StageMarker;
pub use status::StatusFile;

/// What goes wrong with a run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A file is not what it should be.
    #[error("{}: {problem}", path.display())]
    BadFile {
        /// Which file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },

    /// The directory holds a run of another recipe.
    #[error(
        "{} holds a run whose settings differ, so it can't be continued; these do:\n{}\nTake another --out, or the \
         same settings (config.toml in it has them)",
        path.display(),
        differences.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    )]
    OtherConfig {
        /// The directory.
        path: PathBuf,
        /// A line for each key.
        differences: Vec<String>,
    },

    /// Another process has the directory open.
    #[error("{}: another run is using this directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl RunDirError {
    /// For `map_err`: an [`RunDirError::Io`] about `path`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// An [`RunDirError::BadFile`] about `path`.
    pub fn bad(path: &Path, problem: impl Into<String>) -> Self {
        Self::BadFile { path: path.to_owned(), problem: problem.into() }
    }
}
