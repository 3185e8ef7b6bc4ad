//! The folder `checkpoints`: a folder for each version that was kept. Each is whole or absent, whatever happened while
//! it was written; one that was damaged later is recognised by its checksums and refused by name.
//!
//! ```text
//! checkpoints/v00000040/manifest.json            version, ledger, and size and checksum of the files
//! checkpoints/v00000040/trainer.safetensors
//! checkpoints/v00000040/experience_maker.json    absent before the first batch
//! ```

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use collimate_protocol::PolicyVersion;
use collimate_protocol::records::LedgerState;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{RunDirError, atomic};
use crate::flow::checkpoint::STATE_PREFIX;
use crate::flow::{Checkpoint, StateFile};

const MANIFEST: &str = "manifest.json";
const TRAINER: &str = "trainer.safetensors";
const EXPERIENCE_MAKER: &str = "experience_maker.json";
/// What a folder's name begins with until it is whole, and from when on it is to go.
const UNFINISHED: &str = ".unfinished-";
const FORMAT: u32 = 1;

/// The manifest, and the checksum of its very bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    crc32c: u32,
    manifest: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    version: PolicyVersion,
    checksum: u64,
    ledger: LedgerState,
    trainer: FileSeal,
    experience_maker: Option<FileSeal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSeal {
    n_bytes: u64,
    crc32c: u32,
}

impl FileSeal {
    fn of(bytes: &[u8]) -> Self {
        Self { n_bytes: bytes.len() as u64, crc32c: crc32c::crc32c(bytes) }
    }

    /// Of a file, which is read piece by piece.
    fn of_file(path: &Path) -> std::io::Result<Self> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut seal = Self { n_bytes: 0, crc32c: 0 };
        loop {
            let piece = file.fill_buf()?;
            if piece.is_empty() {
                return Ok(seal);
            }
            let n = piece.len();
            seal = Self { n_bytes: seal.n_bytes + n as u64, crc32c: crc32c::crc32c_append(seal.crc32c, piece) };
            file.consume(n);
        }
    }

    /// Refuses a file that is another than was sealed.
    fn check(self, found: Self, path: &Path) -> Result<(), RunDirError> {
        if found.n_bytes != self.n_bytes {
            let problem = format!("it has {} bytes, expected {}: it is damaged", found.n_bytes, self.n_bytes);
            return Err(RunDirError::bad(path, problem));
        }
        if found != self {
            return Err(RunDirError::bad(path, "its checksum is wrong: it is damaged"));
        }
        Ok(())
    }
}

/// The newest whole checkpoint.
#[derive(Debug)]
pub struct Found {
    /// `None` where there is none at all.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that are damaged, each with what is wrong, newest first.
    pub damaged: Vec<String>,
}

/// A folder of checkpoints.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// The checkpoints of this folder, which may be absent.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The versions that are there, in order, whole or not.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn versions(&self) -> Result<Vec<PolicyVersion>, RunDirError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RunDirError::io(&self.dir)(error)),
        };
        let mut versions = Vec::new();
        for entry in entries {
            let name = entry.map_err(RunDirError::io(&self.dir))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix('v')).and_then(|number| number.parse().ok());
            versions.extend(number.map(PolicyVersion));
        }
        versions.sort_unstable();
        Ok(versions)
    }

    /// Keeps a checkpoint; then removes the oldest beyond `n_kept`, which is at least 1. Where there is a whole one of
    /// that version already, a run has gone on from it and done nothing since: it stays as it is.
    ///
    /// # Errors
    /// It can't be written. Those that are there stay.
    pub fn save(&self, checkpoint: &Checkpoint, n_kept: usize) -> Result<(), RunDirError> {
        fs::create_dir_all(&self.dir).map_err(RunDirError::io(&self.dir))?;
        self.remove_unfinished()?;
        if self.load(checkpoint.version).is_err() {
            self.write(checkpoint)?;
        }
        let versions = self.versions()?;
        for version in versions.iter().take(versions.len().saturating_sub(n_kept.max(1))) {
            self.remove(*version)?;
        }
        Ok(())
    }

    /// Puts a checkpoint in the place of what is there of its version: nothing, or a damaged one.
    fn write(&self, checkpoint: &Checkpoint) -> Result<(), RunDirError> {
        let (path, unfinished) = (self.path(checkpoint.version), self.unfinished(checkpoint.version));
        if path.exists() {
            self.remove(checkpoint.version)?;
        }
        write_folder(&unfinished, checkpoint)?;
        fs::rename(&unfinished, &path).map_err(RunDirError::io(&path))?;
        atomic::sync_parent(&path)
    }

    /// Removes what is newer than a version: a run goes on from there, and comes to other ones.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove_after(&self, version: PolicyVersion) -> Result<(), RunDirError> {
        self.versions()?.into_iter().filter(|newer| *newer > version).try_for_each(|newer| self.remove(newer))
    }

    /// The newest whole checkpoint.
    ///
    /// # Errors
    /// There are some, but all are damaged: which, and how.
    pub fn newest(&self) -> Result<Found, RunDirError> {
        let mut damaged = Vec::new();
        for version in self.versions()?.into_iter().rev() {
            match self.load(version) {
                Ok(checkpoint) => return Ok(Found { checkpoint: Some(checkpoint), damaged }),
                Err(error) => damaged.push(error.to_string()),
            }
        }
        if damaged.is_empty() {
            return Ok(Found { checkpoint: None, damaged });
        }
        Err(RunDirError::bad(&self.dir, format!("every checkpoint is damaged:\n  {}", damaged.join("\n  "))))
    }

    /// The checkpoint of a version.
    ///
    /// # Errors
    /// It is absent or damaged: which file, and what is wrong with it.
    pub fn load(&self, version: PolicyVersion) -> Result<Checkpoint, RunDirError> {
        let folder = self.path(version);
        let path = folder.join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(RunDirError::io(&path))?;
        let manifest = unsealed(&text).map_err(|problem| RunDirError::bad(&path, problem))?;
        if manifest.version != version {
            return Err(RunDirError::bad(&path, format!("it is of {}, in the folder of {version}", manifest.version)));
        }
        if let Some(problem) = manifest.ledger.problem() {
            return Err(RunDirError::bad(&path, problem));
        }
        let experience_maker =
            manifest.experience_maker.map(|seal| read_sealed(&folder.join(EXPERIENCE_MAKER), seal)).transpose()?;
        Ok(Checkpoint {
            version,
            ledger: manifest.ledger,
            checksum: manifest.checksum,
            trainer: Arc::new(open_sealed(&folder.join(TRAINER), manifest.trainer)?),
            experience_maker,
        })
    }

    fn path(&self, version: PolicyVersion) -> PathBuf {
        self.dir.join(format!("v{:08}", version.0))
    }

    fn unfinished(&self, version: PolicyVersion) -> PathBuf {
        self.dir.join(format!("{UNFINISHED}v{:08}", version.0))
    }

    /// A folder loses its name before its files, so that half of it is never taken for a checkpoint.
    fn remove(&self, version: PolicyVersion) -> Result<(), RunDirError> {
        let (path, outgoing) = (self.path(version), self.unfinished(version));
        fs::rename(&path, &outgoing).map_err(RunDirError::io(&path))?;
        fs::remove_dir_all(&outgoing).map_err(RunDirError::io(&outgoing))
    }

    /// Removes what a killed process left, before another begins.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove_left_over(&self) -> Result<(), RunDirError> {
        if !self.dir.exists() {
            return Ok(());
        }
        self.remove_unfinished()?;
        self.remove_each(STATE_PREFIX, fs::remove_file)
    }

    /// What an interrupted save or removal left.
    fn remove_unfinished(&self) -> Result<(), RunDirError> {
        self.remove_each(UNFINISHED, fs::remove_dir_all)
    }

    /// Removes what has a name that begins like this.
    fn remove_each(&self, prefix: &str, remove: impl Fn(PathBuf) -> std::io::Result<()>) -> Result<(), RunDirError> {
        for entry in fs::read_dir(&self.dir).map_err(RunDirError::io(&self.dir))? {
            let entry = entry.map_err(RunDirError::io(&self.dir))?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                remove(entry.path()).map_err(RunDirError::io(&entry.path()))?;
            }
        }
        Ok(())
    }
}

fn write_folder(folder: &Path, checkpoint: &Checkpoint) -> Result<(), RunDirError> {
    fs::create_dir(folder).map_err(RunDirError::io(folder))?;
    let trainer = folder.join(TRAINER);
    checkpoint.trainer.keep(&trainer).map_err(RunDirError::io(&trainer))?;
    File::open(&trainer).and_then(|file| file.sync_all()).map_err(RunDirError::io(&trainer))?;
    if let Some(state) = &checkpoint.experience_maker {
        atomic::write_synced(&folder.join(EXPERIENCE_MAKER), state)?;
    }
    let manifest = Manifest {
        format: FORMAT,
        version: checkpoint.version,
        checksum: checkpoint.checksum,
        ledger: checkpoint.ledger.clone(),
        trainer: FileSeal::of_file(&trainer).map_err(RunDirError::io(&trainer))?,
        experience_maker: checkpoint.experience_maker.as_deref().map(FileSeal::of),
    };
    let path = folder.join(MANIFEST);
    let text = sealed(&manifest).map_err(|error| RunDirError::bad(&path, error.to_string()))?;
    atomic::write_synced(&path, text.as_bytes())?;
    atomic::sync_parent(&path)
}

fn sealed(manifest: &Manifest) -> serde_json::Result<String> {
    let manifest = RawValue::from_string(serde_json::to_string(manifest)?)?;
    serde_json::to_string(&Sealed { crc32c: crc32c::crc32c(manifest.get().as_bytes()), manifest })
}

fn unsealed(text: &str) -> Result<Manifest, String> {
    let Sealed { crc32c, manifest } =
        serde_json::from_str(text).map_err(|error| format!("this is not a manifest: {error}"))?;
    if crc32c::crc32c(manifest.get().as_bytes()) != crc32c {
        return Err("its checksum is wrong: it is damaged".to_owned());
    }
    let manifest: Manifest = serde_json::from_str(manifest.get()).map_err(|error| error.to_string())?;
    match manifest.format {
        FORMAT => Ok(manifest),
        other => Err(format!("it has format {other}, expected {FORMAT}")),
    }
}

fn read_sealed(path: &Path, seal: FileSeal) -> Result<Vec<u8>, RunDirError> {
    let bytes = fs::read(path).map_err(RunDirError::io(path))?;
    seal.check(FileSeal::of(&bytes), path)?;
    Ok(bytes)
}

fn open_sealed(path: &Path, seal: FileSeal) -> Result<StateFile, RunDirError> {
    seal.check(FileSeal::of_file(path).map_err(RunDirError::io(path))?, path)?;
    StateFile::of(path).map_err(RunDirError::io(path))
}

#[cfg(test)]
mod tests;
