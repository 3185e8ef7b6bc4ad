//! A stage's training on disk, so that what is stopped or killed goes on near where it was.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use collimate_models::durable;

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
        restore: impl FnOnce(&[u8]) -> collimate_models::Result<u64>,
    ) -> Result<(Self, u64), StageError> {
        let path = context.training_file();
        let n_done = match fs::read(&path) {
            Ok(state) => restore(&state).map_err(|error| {
                let problem = format!("{error}; remove it to begin the stage anew");
                StageError::Model(collimate_models::Error::bad_file(&path, problem))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(collimate_models::Error::io(&path, error).into()),
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
        state: impl FnOnce() -> collimate_models::Result<Vec<u8>>,
    ) -> Result<(), StageError> {
        let stops = context.stop.is_stopped();
        if stops || self.written.elapsed() >= EVERY {
            durable::write_file(&self.path, &state()?)?;
            self.written = Instant::now();
        }
        if stops { Err(StageError::Stopped) } else { Ok(()) }
    }

    /// The stage's model is written: the state has served its purpose.
    pub fn remove(self) -> Result<(), StageError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(collimate_models::Error::io(&self.path, error).into())
            }
            _ => Ok(()),
        }
    }
}
