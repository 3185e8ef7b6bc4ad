//! `journal.bin`: a frame for each update. Append-only; a frame that was being written when the process died is
//! recognised and dropped, any other damage is an error.
//!
//! ```text
//! header   "collimate journal 2\n"
//! frame    n (u32) | CRC32C of n and the payload (u32) | payload: n bytes, a JournaledUpdate in postcard's encoding
//! ```
//!
//! Numbers are little endian.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use collimate_protocol::PolicyVersion;
use collimate_protocol::records::JournaledUpdate;

use super::RunDirError;

const HEADER: &[u8] = b"collimate journal 2\n";
const FRAME_HEAD: usize = 8;

/// A journal as it was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Journal {
    /// The updates, in order and without a gap.
    pub updates: Vec<JournaledUpdate>,
    /// Bytes of an unfinished frame at the end; 0 where there is none.
    pub n_torn: u64,
    /// Where each update's frame ends.
    ends: Vec<u64>,
}

impl Journal {
    /// Reads a journal.
    ///
    /// # Errors
    /// The file is none, or is damaged before its last frame: which byte, and what is wrong there.
    pub fn read(path: &Path) -> Result<Self, RunDirError> {
        let bytes = std::fs::read(path).map_err(RunDirError::io(path))?;
        Self::parse(&bytes).map_err(|problem| RunDirError::bad(path, problem))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Some(mut rest) = bytes.strip_prefix(HEADER) else {
            // Cut within the header: nothing was written yet.
            if HEADER.starts_with(bytes) {
                return Ok(Self { n_torn: bytes.len() as u64, ..Self::default() });
            }
            return Err("this is not a journal, or one of another version".to_owned());
        };
        let mut journal = Self::default();
        while !rest.is_empty() {
            let offset = bytes.len() - rest.len();
            match frame(rest) {
                Ok((payload, after)) => {
                    let update = journal.check(payload).map_err(|problem| format!("byte {offset}: {problem}"))?;
                    journal.updates.push(update);
                    journal.ends.push((bytes.len() - after.len()) as u64);
                    rest = after;
                }
                Err(problem) if holds_a_frame(rest) => return Err(format!("byte {offset}: {problem}")),
                Err(_) => {
                    journal.n_torn = rest.len() as u64;
                    break;
                }
            }
        }
        Ok(journal)
    }

    fn check(&self, payload: &[u8]) -> Result<JournaledUpdate, String> {
        let update: JournaledUpdate =
            postcard::from_bytes(payload).map_err(|error| format!("a frame that holds no update: {error}"))?;
        let expected = self.updates.last().map(|last| last.version.next());
        match expected {
            Some(expected) if update.version != expected => {
                Err(format!("the update of {} follows that of the version before {expected}", update.version))
            }
            _ => Ok(update),
        }
    }
}

/// The first frame's payload, and what follows it.
fn frame(bytes: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD).ok_or("a frame that is cut short")?;
    let n = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let checksum = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    // A tail of zeros, as a power failure leaves it, would read as empty frames.
    if n == 0 {
        return Err("an empty frame");
    }
    let (payload, after) = rest.split_at_checked(n).ok_or("a frame that is cut short")?;
    if crc32c::crc32c_append(crc32c::crc32c(&head[..4]), payload) != checksum {
        return Err("a frame whose checksum is wrong");
    }
    Ok((payload, after))
}

/// Whether a whole frame begins anywhere after the first byte: then what stands before it is damaged, not torn.
fn holds_a_frame(bytes: &[u8]) -> bool {
    (1..bytes.len()).any(|offset| frame(&bytes[offset..]).is_ok())
}

/// Appends to a journal.
#[derive(Debug)]
pub struct JournalWriter {
    path: PathBuf,
    file: File,
}

impl JournalWriter {
    /// Starts a journal whose next update is that of `version`: anew, or with what is there of the updates before it.
    /// Later ones, and an unfinished frame, are dropped.
    ///
    /// # Errors
    /// What is there is damaged, or ends before `version`; or the file can't be written.
    pub fn open(path: &Path, version: PolicyVersion) -> Result<Self, RunDirError> {
        let io = RunDirError::io;
        let (keep, is_new) = match Journal::read(path) {
            Ok(journal) => (kept(&journal, version).map_err(|problem| RunDirError::bad(path, problem))?, false),
            Err(RunDirError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => (None, true),
            Err(error) => return Err(error),
        };
        if is_new && version != PolicyVersion(0) {
            return Err(RunDirError::bad(path, format!("it is gone, and {version} goes on from there")));
        }
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io(path))?;
        match keep {
            Some(end) => {
                file.set_len(end).map_err(io(path))?;
                file.seek(SeekFrom::End(0)).map_err(io(path))?;
            }
            None => {
                file.set_len(0).map_err(io(path))?;
                file.write_all(HEADER).map_err(io(path))?;
            }
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds an update, and hands it to the operating system: a killed process loses none.
    ///
    /// # Errors
    /// The file can't be written. What is there stays whole but for a torn end.
    pub fn append(&mut self, update: &JournaledUpdate) -> Result<(), RunDirError> {
        let bad = |problem: String| RunDirError::bad(&self.path, problem);
        let payload = postcard::to_stdvec(update).map_err(|error| bad(error.to_string()))?;
        let n = u32::try_from(payload.len()).map_err(|_| bad("an update of over 4 GiB".to_owned()))?.to_le_bytes();
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&n), &payload).to_le_bytes();
        let frame = [&n[..], &checksum, &payload].concat();
        self.file.write_all(&frame).map_err(RunDirError::io(&self.path))
    }

    /// Waits until the disk has it.
    ///
    /// # Errors
    /// The disk says so.
    pub fn sync(&self) -> Result<(), RunDirError> {
        self.file.sync_data().map_err(RunDirError::io(&self.path))
    }
}

/// Where the updates before `version` end; `None` where there are none.
fn kept(journal: &Journal, version: PolicyVersion) -> Result<Option<u64>, String> {
    let n_before = journal.updates.iter().take_while(|update| update.version < version).count();
    let last = n_before.checked_sub(1);
    let next = last.map_or(PolicyVersion(0), |last| journal.updates[last].version.next());
    if next != version {
        return Err(format!("it ends before the update of {next}, and the run goes on at {version}"));
    }
    Ok(last.map(|last| journal.ends[last]))
}

#[cfg(test)]
mod tests;
