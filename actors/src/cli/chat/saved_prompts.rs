//! What users typed, kept as prompts for labelers.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use collimate_protocol::records::{Message, PromptRecord, PromptText};

use crate::rundir::{RunDirError, atomic};

/// A file of prompts that grows by a line a prompt.
#[derive(Debug)]
pub struct SavedPrompts {
    path: PathBuf,
    file: File,
    /// What begins the next line: an end for the one before, where that has none.
    begin: &'static str,
}

impl SavedPrompts {
    /// Opens the file to add to it, and makes it if it is absent.
    ///
    /// # Errors
    /// It can't be made, read or written; the file is named.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let mut file =
            File::options().create(true).append(true).read(true).open(path).map_err(RunDirError::io(path))?;
        let is_whole = ends_with_line_end(&mut file).map_err(RunDirError::io(path))?;
        atomic::sync_parent(path)?;
        Ok(Self { path: path.to_owned(), file, begin: if is_whole { "" } else { "\n" } })
    }

    /// Adds a dialogue whose next turn is the assistant's, and waits until the disk has it.
    ///
    /// # Errors
    /// It can't be written; the file is named. What comes next begins a line of its own.
    pub fn add(&mut self, messages: &[Message]) -> Result<(), RunDirError> {
        let record = PromptRecord { prompt: PromptText::Messages(messages.to_vec()) };
        let line = serde_json::to_string(&record).expect("plain data is JSON");
        let written = self.file.write_all(format!("{}{line}\n", self.begin).as_bytes());
        self.begin = if written.is_ok() { "" } else { "\n" };
        written.and_then(|()| self.file.sync_data()).map_err(RunDirError::io(&self.path))
    }
}

/// An empty file has no line to end.
fn ends_with_line_end(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
