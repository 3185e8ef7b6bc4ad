//! What is asked.

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use collimate_models::data::comparisons::{MAX_RANKED, MIN_RANKED};
use collimate_protocol::records::{LabelTask, PromptText, TaskKind};

use super::{Result, StoreError};

/// What a task is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be answered by so many labelers.
    Work {
        /// How many.
        wanted: u32,
    },
    /// To try labelers with: these ranks are right.
    Screening {
        /// For each response.
        known: Vec<u32>,
    },
}

/// A hash of what is asked, in 32 hexadecimal digits: the same task has the same one in every database. Where responses
/// came from is no part of it.
pub fn content_id(task: &LabelTask) -> String {
    let content = serde_json::to_vec(&(task.kind, &task.prompt, &task.responses)).expect("plain data is JSON");
    hex(&content)
}

/// 128 bits of SHA-256.
pub(super) fn hex(content: &[u8]) -> String {
    Sha256::digest(content)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds a task unless it is there. Returns its number, and whether it is new.
pub fn add(connection: &Connection, task: &LabelTask, purpose: &Purpose) -> Result<(i64, bool)> {
    check(task)?;
    let content = content_id(task);
    if let Some(id) = find(connection, &content)? {
        return Ok((id, false));
    }
    let (known, wanted) = match purpose {
        Purpose::Work { wanted } => (None, *wanted),
        Purpose::Screening { known } if known.len() == task.responses.len() && !known.is_empty() => {
            (Some(serde_json::to_string(known).expect("numbers")), 0)
        }
        Purpose::Screening { .. } => {
            return Err(StoreError::Invalid("a screening task needs responses with their ranks".to_owned()));
        }
    };
    let body = serde_json::to_string(task).expect("plain data is JSON");
    connection
        .prepare_cached("INSERT INTO tasks (content, body, known, wanted) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![content, body, known, wanted])?;
    Ok((connection.last_insert_rowid(), true))
}

fn check(task: &LabelTask) -> Result<()> {
    let n = task.responses.len();
    let expected = match task.kind {
        TaskKind::Rank if !(MIN_RANKED..=MAX_RANKED).contains(&n) => format!("{MIN_RANKED} to {MAX_RANKED}"),
        TaskKind::Compare if n != 2 => "2".to_owned(),
        TaskKind::Write if n != 0 => "none".to_owned(),
        _ => return Ok(()),
    };
    Err(StoreError::Invalid(format!("has {n} responses, expected {expected} (`{}`)", task.kind.name())))
}

/// The number of the task with this content.
pub fn find(connection: &Connection, content: &str) -> Result<Option<i64>> {
    let mut statement = connection.prepare_cached("SELECT id FROM tasks WHERE content = ?1")?;
    Ok(statement.query_row([content], |row| row.get(0)).optional()?)
}

/// A task's content.
pub fn get(connection: &Connection, task: i64) -> Result<LabelTask> {
    let mut statement = connection.prepare_cached("SELECT body FROM tasks WHERE id = ?1")?;
    parsed(&statement.query_row([task], |row| row.get::<_, String>(0))?)
}

/// Reads what this module wrote.
pub(in crate::label) fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Invalid(format!("a row of the database is not what was written: {error}")))
}

/// Lets each task be answered by so many labelers from now on. Those who have been past tasks that open again by it start
/// over.
pub fn set_overlap(connection: &Connection, wanted: u32) -> Result<()> {
    let changed = connection.execute("UPDATE tasks SET wanted = ?1 WHERE known IS NULL AND wanted <> ?1", [wanted])?;
    if changed > 0 {
        connection.execute("UPDATE labelers SET last_task = 0, last_place = 0", [])?;
    }
    Ok(())
}

/// How many labelers are wanted for a task here: as many as for the one that most are wanted for; 1 where there is none.
pub fn most_wanted(connection: &Connection) -> Result<u32> {
    Ok(connection.query_row("SELECT coalesce(max(wanted), 1) FROM tasks WHERE known IS NULL", [], |row| row.get(0))?)
}

/// What was asked last: what people know a task by.
pub fn last_turn(prompt: &PromptText) -> &str {
    match prompt {
        PromptText::Text(text) => text,
        PromptText::Messages(messages) => messages.last().map_or("", |message| &message.content),
    }
}
