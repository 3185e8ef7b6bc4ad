//! Which labels a reward model learnt from.
//!
//! A labeler may change an answer after a reward model has read it. A file of comparisons that `collimate label` exported
//! names task, labeler and revision in each line; the reward stage keeps these names beside its model.

use std::path::Path;

use collimate_models::data::corpus::is_heldout;
use collimate_models::data::rows::rows;
use collimate_models::durable::write_file;
use collimate_protocol::records::{LabelUse, UsedFor};
use serde_json::{Map, Value};

use super::context::StageError;

/// Where they are written, in the stage's folder.
pub const LABELS_FILE: &str = "labels.jsonl";

/// Writes the names of the labels in this file of comparisons, one for each that has some. `is_kept` says of each
/// comparison whether it was short enough. Where no comparison has a name, nothing is written.
pub fn write(out_dir: &Path, comparisons: &Path, is_kept: &[bool], heldout_share: f64) -> Result<(), StageError> {
    let mut lines = Vec::new();
    let mut n_kept = 0;
    for (row, is_kept) in rows(comparisons)?.zip(is_kept) {
        let used = match (is_kept, is_heldout(n_kept, heldout_share)) {
            (false, _) => UsedFor::Nothing,
            (true, true) => UsedFor::Heldout,
            (true, false) => UsedFor::Training,
        };
        n_kept += usize::from(*is_kept);
        if let Some(label) = name_of(&row?.columns, used) {
            serde_json::to_writer(&mut lines, &label).expect("plain data is JSON");
            lines.push(b'\n');
        }
    }
    match lines.is_empty() {
        true => Ok(()),
        false => Ok(write_file(&out_dir.join(LABELS_FILE), &lines)?),
    }
}

fn name_of(row: &Map<String, Value>, used: UsedFor) -> Option<LabelUse> {
    let text = |key: &str| row.get(key)?.as_str().map(str::to_owned);
    let revision = row.get("revision")?.as_u64().and_then(|revision| u32::try_from(revision).ok())?;
    Some(LabelUse { task: text("task")?, labeler: text("labeler")?, revision, used })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_label_is_named_with_its_revision_and_what_it_was_used_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("comparisons.jsonl");
        let line = |n: u32| {
            format!(
                r#"{{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2], "task": "t{n}", "labeler": "anna", "revision": {n}}}"#
            )
        };
        let unnamed = r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}"#;
        std::fs::write(&file, format!("{}\n{unnamed}\n{}\n{}\n", line(1), line(2), line(3))).unwrap();
        write(dir.path(), &file, &[true, true, false, true], 0.5).unwrap();
        let written = std::fs::read_to_string(dir.path().join(LABELS_FILE)).unwrap();
        let labels: Vec<LabelUse> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let named = |n: u32, used| LabelUse { task: format!("t{n}"), labeler: "anna".to_owned(), revision: n, used };
        // Of the three that are kept, the second is held out; it has no name.
        assert_eq!(labels, [named(1, UsedFor::Training), named(2, UsedFor::Nothing), named(3, UsedFor::Training)]);
    }

    #[test]
    fn comparisons_without_names_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("comparisons.jsonl");
        std::fs::write(&file, r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}"#).unwrap();
        write(dir.path(), &file, &[true], 0.5).unwrap();
        assert!(!dir.path().join(LABELS_FILE).exists());
    }
}
