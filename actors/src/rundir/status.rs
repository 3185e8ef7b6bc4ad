//! `status.json`: a run as it was a moment ago, for whoever looks from outside.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use collimate_protocol::messages::RunStatus;

use super::RunDirError;

/// How old the file may get while the run goes on.
const INTERVAL: Duration = Duration::from_secs(1);

/// Writes the status, not more often than anybody would look.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    last: Option<Instant>,
}

impl StatusFile {
    /// The file at `path`, not yet written.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), last: None }
    }

    /// Shows a status. One that can't be written is no reason for a run to stop, nor worth a word.
    pub fn show(&mut self, status: &RunStatus) {
        if self.last.is_some_and(|last| last.elapsed() < INTERVAL) && !status.has_ended {
            return;
        }
        self.last = Some(Instant::now());
        // A reader sees the old file or the new one. Nobody needs it after a power failure: it is not synced.
        let temporary = self.path.with_extension("json.tmp");
        if let Ok(text) = serde_json::to_vec(status)
            && std::fs::write(&temporary, text).is_ok()
        {
            let _ = std::fs::rename(&temporary, &self.path);
        }
    }
}

/// Reads a status.
///
/// # Errors
/// There is none, or it is damaged.
pub fn read(path: &Path) -> Result<RunStatus, RunDirError> {
    let text = std::fs::read_to_string(path).map_err(RunDirError::io(path))?;
    serde_json::from_str(&text).map_err(|error| RunDirError::bad(path, error.to_string()))
}
