//! A stage's training on disk, so that what is stopped or killed goes on near where it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use collimate_models::{Error, durable};

use super::context::{StageContext, StageError};

/// How much work a killed process may lose. Writing takes well under a second for a model of a hundred million parameters.
const EVERY: Duration = Duration::from_secs(600);

/// `training.safetensors` in a stage's folder: there while the stage is not complete.
#[derive(Debug)]
pub struct TrainingFile {
    path: PathBuf,
    written: Instant,
}

impl TrainingFile {
    /// Of this stage. Goes on with what an earlier attempt left, if it left any: `restore` takes its state, and says how
    /// many steps that had done.
    ///
    /// # Errors
    /// What was left is broken, or of other training.
    pub fn open(
        context: &mut StageContext<'_>,
        restore: impl FnOnce(&Path) -> collimate_models::Result<u64>,
    ) -> Result<(Self, u64), StageError> {
        let path = context.training_file();
        let n_done = match path.try_exists().map_err(|error| Error::io(&path, error))? {
            true => restore(&path).map_err(|error| match error {
                Error::Io { .. } => error.into(),
                _ => StageError::OldTraining(error),
            })?,
            false => 0,
        };
        if n_done > 0 {
            context.observer.goes_on(n_done);
        }
        Ok((Self { path, written: Instant::now() }, n_done))
    }

    /// After a step: writes the state if the last one is old, and ends the stage here, with its state, if the run was told
    /// to stop.
    pub fn after_step(
        &mut self,
        context: &StageContext<'_>,
        save_state: impl FnOnce(&Path) -> collimate_models::Result<()>,
    ) -> Result<(), StageError> {
        let stops = context.stop.is_stopped();
        if stops || self.written.elapsed() >= EVERY {
            durable::replace_file(&self.path, |path| save_state(path).map_err(std::io::Error::other))?;
            self.written = Instant::now();
        }
        if stops { Err(StageError::Stopped) } else { Ok(()) }
    }

    /// The stage's model is written: the state has served its purpose.
    pub fn remove(self) -> Result<(), StageError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.path, error).into()),
            _ => Ok(()),
        }
    }
}
