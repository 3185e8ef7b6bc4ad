//! `events.jsonl`: what happened in a run besides its updates. Only ever added to: it tells of every attempt.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use collimate_protocol::PolicyVersion;
use collimate_protocol::messages::RunEvent;
use serde::{Deserialize, Serialize};

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// Seconds since 1970.
    pub at_s: f64,
    /// Updates done when it happened.
    pub updates: PolicyVersion,
    /// What happened.
    #[serde(flatten)]
    pub event: RunEvent,
}

impl LoggedEvent {
    /// Something that has just happened.
    pub fn now(updates: PolicyVersion, event: RunEvent) -> Self {
        // A clock before 1970 is no reason to fail.
        let at_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { at_s, updates, event }
    }
}

/// Adds to the file.
#[derive(Debug)]
pub struct EventLog {
    /// `None` where it can't be written: a run does not end for that, and whatever is wrong with the disk is told
    /// elsewhere.
    file: Option<File>,
}

impl EventLog {
    /// The file at `path`, whether it is there or not. A line that was being written when a process died is ended first.
    pub fn open(path: &Path) -> Self {
        let file = File::options().create(true).append(true).open(path);
        let is_torn = last_byte(path).is_ok_and(|last| last.is_some_and(|last| last != b'\n'));
        let mut log = Self { file: file.ok() };
        if is_torn {
            log.write(b"\n");
        }
        log
    }

    /// Adds an event, unless it is an update: those have a file of their own.
    pub fn add(&mut self, event: &LoggedEvent) {
        if matches!(event.event, RunEvent::Updated(_)) {
            return;
        }
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            self.write(&line);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_err()
        {
            self.file = None;
        }
    }
}

/// The last byte of a file, where it has any.
fn last_byte(path: &Path) -> std::io::Result<Option<u8>> {
    let mut file = File::open(path)?;
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(None);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(Some(last[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_after_a_torn_line_and_leaves_updates_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "{\"at_s\":1.5,\"upd").unwrap();
        let mut log = EventLog::open(&path);
        log.add(&LoggedEvent::now(PolicyVersion(2), RunEvent::Updated(Box::default())));
        log.add(&LoggedEvent::now(PolicyVersion(3), RunEvent::Checkpointed { version: PolicyVersion(3) }));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let event: LoggedEvent = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(event.event, RunEvent::Checkpointed { version: PolicyVersion(3) });
        assert!(event.at_s > 1.7e9);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_no_reason_to_fail() {
        let mut log = EventLog::open(Path::new("/dev/full"));
        log.add(&LoggedEvent::now(PolicyVersion(0), RunEvent::Stopping));
        log.add(&LoggedEvent::now(PolicyVersion(0), RunEvent::Stopping));
    }
}
