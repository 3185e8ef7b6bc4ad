//! Rankings that the admin settles tasks by.
//!
//! They stand beside what labelers said, which stays as it is: training reads them in its place, and agreement is of the
//! labelers alone. Like an answer, a settled ranking has revisions, and all of them are kept; taking it back is one more.
//! A settled task is handed out to nobody (see [`super::next`]) until that is taken back.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use collimate_protocol::records::{Answer, LabelTask, Provenance, Ranking, TaskKind};

use super::answers::{in_millis, in_words};
use super::tasks::{get, hex, parsed};
use super::{Millis, Result, StoreError, labelers, places};
use crate::label::draft::Draft;

/// What a task is settled by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// Who settled it.
    pub by: String,
    /// When: RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// 1, and one more each time it was changed or taken back.
    pub revision: u32,
    /// The ranking.
    pub ranking: Ranking,
}

/// The last revision of a task's settled ranking.
struct Last {
    revision: u32,
    at: Millis,
    /// None where it was taken back.
    body: Option<String>,
}

fn last(connection: &Connection, task: i64) -> Result<Option<Last>> {
    let mut statement = connection
        .prepare_cached("SELECT revision, at, body FROM settlements WHERE task = ?1 ORDER BY revision DESC LIMIT 1")?;
    let found =
        statement.query_row([task], |row| Ok(Last { revision: row.get(0)?, at: row.get(1)?, body: row.get(2)? }));
    Ok(found.optional()?)
}

/// What this task is settled by, if it is.
pub fn of_task(connection: &Connection, task: i64) -> Result<Option<Settled>> {
    let mut statement = connection.prepare_cached(
        "SELECT l.name, s.at, s.revision, s.body FROM settled s JOIN labelers l ON l.id = s.settled_by
         WHERE s.task = ?1 ORDER BY s.revision DESC LIMIT 1",
    )?;
    let found = statement
        .query_row([task], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?)))
        .optional()?;
    let Some((by, at, revision, body)) = found else { return Ok(None) };
    match parsed(&body)? {
        Answer::Ranking(ranking) => Ok(Some(Settled { by, time: in_words(at), revision, ranking })),
        Answer::Written(_) => Ok(None),
    }
}

/// All tasks that are settled.
pub fn tasks(connection: &Connection) -> Result<BTreeSet<u64>> {
    let mut statement = connection.prepare("SELECT DISTINCT task FROM settled")?;
    let rows = statement.query_map([], |row| row.get::<_, i64>(0))?;
    rows.map(|task| Ok(task? as u64)).collect()
}

/// How often something was settled, changed or taken back: who has read what is settled looks again where it has grown.
pub fn n_revisions(connection: &Connection) -> Result<i64> {
    Ok(connection.query_row("SELECT count(*) FROM settlements", [], |row| row.get(0))?)
}

/// A task that can be settled.
///
/// # Errors
/// [`StoreError::Invalid`] where it has nothing to rank, or is there to try labelers with.
pub fn rankable(connection: &Connection, task: i64) -> Result<LabelTask> {
    let mut statement = connection.prepare_cached("SELECT known IS NOT NULL FROM tasks WHERE id = ?1")?;
    if statement.query_row([task], |row| row.get(0))? {
        let problem = "the ranks of a screening task are known: there is nothing to settle";
        return Err(StoreError::Invalid(problem.to_owned()));
    }
    match get(connection, task)? {
        LabelTask { kind: TaskKind::Write, .. } => {
            Err(StoreError::Invalid("only rankings are settled, and this task is to write a response".to_owned()))
        }
        task => Ok(task),
    }
}

/// Settles a task by what is put down in the task's own order of its responses, or changes what it is settled by. What it is
/// settled by already changes nothing. Returns the revision.
///
/// # Errors
/// [`StoreError::Invalid`] where the task can't be settled, or what is put down is incomplete or makes no sense.
pub fn settle(
    connection: &Connection,
    task: i64,
    by: i64,
    draft: &Draft,
    known_flags: &[String],
    now: Millis,
) -> Result<u32> {
    let LabelTask { kind, responses, .. } = rankable(connection, task)?;
    let in_order: Vec<usize> = (0..responses.len()).collect();
    let answer = draft.finish(kind, &in_order, known_flags).map_err(StoreError::Invalid)?;
    let body = serde_json::to_string(&answer).expect("plain data is JSON");
    let last = last(connection, task)?;
    match last {
        Some(Last { revision, body: Some(before), .. }) if before == body => Ok(revision),
        last => append(connection, task, last, by, now, Some(&body)),
    }
}

/// Takes back what a task is settled by: what labelers said counts again, and those who are still wanted for it may get it.
/// Returns the revision.
///
/// # Errors
/// [`StoreError::Conflict`] where it is not settled.
pub fn take_back(connection: &Connection, task: i64, by: i64, now: Millis) -> Result<u32> {
    match last(connection, task)? {
        Some(last) if last.body.is_some() => {
            // Labelers have been past it while it was settled.
            places::put_first(connection, task)?;
            append(connection, task, Some(last), by, now, None)
        }
        _ => Err(StoreError::Conflict("the task is not settled: there is nothing to take back".to_owned())),
    }
}

/// The revision after the last.
fn append(
    connection: &Connection,
    task: i64,
    last: Option<Last>,
    by: i64,
    now: Millis,
    body: Option<&str>,
) -> Result<u32> {
    let (revision, at) = match last {
        // A later time than any before it, since the same thing said at the same time is one.
        Some(last) => (last.revision + 1, now.max(last.at + 1)),
        None => (1, now),
    };
    insert(connection, task, revision, by, at, body)?;
    Ok(revision)
}

/// Adds a revision, unless the very same is there: who settled which task by what, and when. Tells whether it was added.
fn insert(connection: &Connection, task: i64, revision: u32, by: i64, at: Millis, body: Option<&str>) -> Result<bool> {
    let (content, name): (String, String) = connection
        .prepare_cached("SELECT t.content, l.name FROM tasks t, labelers l WHERE t.id = ?1 AND l.id = ?2")?
        .query_row([task, by], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let said = serde_json::to_vec(&(content, name, at, body)).expect("plain data is JSON");
    let added = connection
        .prepare_cached(
            "INSERT INTO settlements (uid, task, revision, settled_by, at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (uid) DO NOTHING",
        )?
        .execute(params![hex(&said), task, revision, by, at, body])?;
    Ok(added == 1)
}

/// Adds a settled ranking that a file brings, unless it is there. The task is. Tells whether it was added.
pub(super) fn add(connection: &Connection, task: i64, answer: &Answer, provenance: &Provenance) -> Result<bool> {
    rankable(connection, task)?;
    let by = labelers::add(connection, &provenance.labeler)?;
    if let Some(arm) = provenance.arm {
        places::set_arm(connection, task, arm)?;
    }
    let is_free: bool = connection
        .prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM settlements WHERE task = ?1 AND revision = ?2)")?
        .query_row(params![task, provenance.revision], |row| row.get(0))?;
    let revision = match last(connection, task)? {
        Some(last) if !is_free || provenance.revision == 0 => last.revision + 1,
        _ => provenance.revision.max(1),
    };
    let body = serde_json::to_string(answer).expect("plain data is JSON");
    insert(connection, task, revision, by, in_millis(&provenance.time)?, Some(&body))
}
