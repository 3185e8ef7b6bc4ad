//! `metrics.abandoned.jsonl`: updates that a run had done, and does again because it went on from an earlier checkpoint.
//! Each line is one of `metrics.jsonl`, with the number of its branch: how many times the run had been left before.

use std::path::Path;

use serde_json::Value;

use super::jsonl::{text_if_there, whole_lines};
use super::{RunDirError, atomic};

const BRANCH: &str = "branch";

/// Moves a copy of the updates after `version` to the branches, before they are dropped from `metrics`.
///
/// # Errors
/// A file can't be read or written, or a line of `metrics` is broken.
pub fn set_aside(metrics: &Path, branches: &Path, version: u64) -> Result<(), RunDirError> {
    let mut dropped = Vec::new();
    for line in whole_lines(metrics, &text_if_there(metrics)?) {
        let (_, record) = line?;
        if record["version"].as_u64().is_some_and(|done| done > version) {
            dropped.push(record);
        }
    }
    let there = text_if_there(branches)?;
    let last = there.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok()?[BRANCH].as_u64());
    let numbered = |number: u64| -> String {
        let line = |record: &Value| {
            let mut record = record.clone();
            record[BRANCH] = number.into();
            format!("{record}\n")
        };
        dropped.iter().map(line).collect()
    };
    // A process that died between the two files has set them aside already.
    if dropped.is_empty() || last.is_some_and(|last| there.ends_with(&numbered(last))) {
        return Ok(());
    }
    atomic::write(branches, format!("{there}{}", numbered(last.unwrap_or(0) + 1)).as_bytes())
}

/// The number of a line's branch; 0 for a line of the run itself.
pub fn branch_of(record: &Value) -> u64 {
    record[BRANCH].as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rundir::read_jsonl;

    #[test]
    fn what_is_done_again_is_a_branch_and_each_time_another() {
        let dir = tempfile::tempdir().unwrap();
        let (metrics, branches) = (dir.path().join("metrics.jsonl"), dir.path().join("abandoned.jsonl"));
        let line = |version: u64| format!("{{\"version\":{version}}}\n");
        std::fs::write(&metrics, format!("{}{}{}{{\"ver", line(1), line(2), line(3))).unwrap();
        set_aside(&metrics, &branches, 1).unwrap();
        // Killed before the lines were dropped.
        set_aside(&metrics, &branches, 1).unwrap();
        std::fs::write(&metrics, format!("{}{}", line(1), line(2))).unwrap();
        set_aside(&metrics, &branches, 2).unwrap();
        set_aside(&metrics, &branches, 1).unwrap();
        let there: Vec<Value> = read_jsonl(&branches).unwrap();
        let found: Vec<(u64, u64)> =
            there.iter().map(|line| (branch_of(line), line["version"].as_u64().unwrap())).collect();
        assert_eq!(found, [(1, 2), (1, 3), (2, 2)]);
    }
}
