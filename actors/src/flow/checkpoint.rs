//! What a run goes on from: its whole state between two updates.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use collimate_models::durable::keeping_permissions;
use collimate_protocol::records::LedgerState;
use collimate_protocol::{PolicyVersion, RoleError};
use tempfile::TempPath;

/// What the names of state files begin with.
pub const STATE_PREFIX: &str = ".state-";

/// The whole state of a PPO run between two updates. What is a function of seed and version (prompts, pretraining
/// text, sampling seeds) is not in it.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Updates done.
    pub version: PolicyVersion,
    /// Every ticket.
    pub ledger: LedgerState,
    /// Checksum of the weights ([`Trainer::checksum`](collimate_protocol::roles::Trainer::checksum)).
    pub checksum: u64,
    /// The trainer's state ([`Trainer::save_state`](collimate_protocol::roles::Trainer::save_state)).
    pub trainer: Arc<StateFile>,
    /// The experience maker's state after the batch that the last update trained on; `None` before the first.
    pub experience_maker: Option<Vec<u8>>,
}

/// A trainer's state on disk, under a name of its own: it is there as long as this is. It is as large as both models with
/// their moments, which is why it is not in memory.
#[derive(Debug)]
pub struct StateFile(TempPath);

impl StateFile {
    /// Has `write` fill a new file in this folder, which is made where it is absent.
    ///
    /// # Errors
    /// The folder can't be written to, or what `write` says.
    pub fn write(dir: &Path, write: impl FnOnce(&Path) -> Result<(), RoleError>) -> Result<Self, RoleError> {
        let made = Self::make_in(dir, |path| File::create_new(path).map(drop));
        let file = made.map_err(|error| format!("{}: {error}", dir.display()))?;
        keeping_permissions(file.path(), write)?;
        Ok(file)
    }

    /// A file that is there, and that may lose its own name later.
    ///
    /// # Errors
    /// There is none, or it can't be given a second name.
    pub fn of(path: &Path) -> io::Result<Self> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::make_in(dir, |other| link(path, other))
    }

    fn make_in(dir: &Path, make: impl FnMut(&Path) -> io::Result<()>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let made = tempfile::Builder::new().prefix(STATE_PREFIX).make_in(dir, make)?;
        Ok(Self(made.into_temp_path()))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Gives it another name too, under which it stays.
    ///
    /// # Errors
    /// The name is taken, or its folder can't be written to.
    pub fn keep(&self, path: &Path) -> io::Result<()> {
        link(&self.0, path)
    }
}

/// A second name; a copy where the file system has no second names.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
            fs::copy(from, to).map(drop)
        }
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_lies_there_as_long_as_somebody_has_it_and_what_was_kept_stays() {
        let dir = tempfile::tempdir().unwrap();
        let states = dir.path().join("states");
        let state = StateFile::write(&states, |path| Ok(fs::write(path, "state")?)).unwrap();
        let (path, kept) = (state.path().to_owned(), dir.path().join("kept"));
        state.keep(&kept).unwrap();
        drop(state);
        assert!(!path.exists());
        let again = StateFile::of(&kept).unwrap();
        fs::remove_file(&kept).unwrap();
        assert_eq!(fs::read(again.path()).unwrap(), b"state");
        drop(again);
        assert_eq!((fs::read_dir(&states).unwrap().count(), fs::read_dir(dir.path()).unwrap().count()), (0, 1));
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_a_state_as_they_may_any_file() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let usual = dir.path().join("usual");
        fs::write(&usual, "").unwrap();
        let write = |path: &Path| Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?);
        let state = StateFile::write(dir.path(), write).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(state.path()), mode(&usual));
    }

    #[test]
    fn what_can_not_be_written_leaves_nothing_and_names_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let failed = StateFile::write(dir.path(), |_| Err("no state".into()));
        assert_eq!(failed.unwrap_err().to_string(), "no state");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateFile::write(&file, |_| Ok(())).unwrap_err().to_string();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
        assert!(StateFile::of(&dir.path().join("absent")).is_err());
    }
}
