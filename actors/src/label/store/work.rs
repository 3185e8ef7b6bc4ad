//! What a labeler does with a task: puts something down, answers, skips, goes back.

use rusqlite::{Connection, OptionalExtension, params};

use collimate_protocol::records::Answer;

use super::next::{Assignment, Rules, assignment, release, take_up};
use super::tasks::{get, hex, parsed};
use super::{Millis, Result, StoreError};
use crate::label::draft::Draft;

/// The longest key of a request.
const LONGEST_KEY: usize = 64;
/// Longer than this is not at work but away: seconds.
const LONGEST_SECONDS: f64 = 24.0 * 3600.0;

/// What is known of an assignment before something is done with it.
struct Found {
    id: i64,
    task: i64,
    state: String,
    shown: Vec<usize>,
    taken_at: Millis,
    is_over: bool,
}

fn find(connection: &Connection, labeler: i64, handle: &str) -> Result<Found> {
    let mut statement = connection.prepare_cached(
        "SELECT a.id, a.task, a.state, a.shown, a.taken_at,
                t.known IS NOT NULL AND l.has_passed IS NOT NULL
         FROM assignments a JOIN tasks t ON t.id = a.task JOIN labelers l ON l.id = a.labeler
         WHERE a.handle = ?1 AND a.labeler = ?2",
    )?;
    let found = statement.query_row(params![handle, labeler], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?, row.get(4)?, row.get(5)?))
    });
    let (id, task, state, shown, taken_at, is_over) =
        found.optional()?.ok_or_else(|| StoreError::NotFound("you have no such task".to_owned()))?;
    Ok(Found { id, task, state, shown: parsed(&shown)?, taken_at, is_over })
}

/// Keeps what is put down so far, and the task for who is at it.
pub fn save_draft(
    connection: &Connection,
    labeler: i64,
    handle: &str,
    draft: &Draft,
    known_flags: &[String],
    rules: &Rules,
    now: Millis,
) -> Result<()> {
    let found = find(connection, labeler, handle)?;
    draft.check(found.shown.len(), known_flags).map_err(StoreError::Invalid)?;
    // The draft is kept even where the task is gone: it may come back.
    keep_draft(connection, found.id, draft)?;
    if found.state != "skipped" {
        take_up(connection, found.id, rules, now)?;
    }
    Ok(())
}

fn keep_draft(connection: &Connection, assignment: i64, draft: &Draft) -> Result<()> {
    let text = (!draft.is_empty()).then(|| serde_json::to_string(draft).expect("plain data is JSON"));
    connection.prepare_cached("UPDATE assignments SET draft = ?2 WHERE id = ?1")?.execute(params![assignment, text])?;
    Ok(())
}

/// Stores an answer, or a new revision of it. `key` names the request: the same one again changes nothing and gets the
/// same reply. Returns the revision.
#[expect(clippy::too_many_arguments, reason = "what a request says, where it stands, and when")]
pub fn submit(
    connection: &Connection,
    labeler: i64,
    handle: &str,
    key: &str,
    draft: &Draft,
    known_flags: &[String],
    rules: &Rules,
    now: Millis,
) -> Result<u32> {
    if key.is_empty() || key.len() > LONGEST_KEY {
        return Err(StoreError::Invalid(format!("`key` has {} bytes, expected 1 to {LONGEST_KEY}", key.len())));
    }
    let mut statement = connection.prepare_cached("SELECT labeler, revision FROM requests WHERE key = ?1")?;
    let before: Option<(i64, u32)> = statement.query_row([key], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match before {
        Some((whose, revision)) if whose == labeler => return Ok(revision),
        Some(_) => return Err(StoreError::Conflict("the request's key is another labeler's".to_owned())),
        None => {}
    }
    let found = find(connection, labeler, handle)?;
    if found.is_over {
        return Err(StoreError::Conflict("the screening is over: its answers can't be changed any more".to_owned()));
    }
    let kind = get(connection, found.task)?.kind;
    let answer = draft.finish(kind, &found.shown, known_flags).map_err(StoreError::Invalid)?;
    if !take_up(connection, found.id, rules, now)? {
        keep_draft(connection, found.id, draft)?;
        return Err(StoreError::Conflict("you were away for so long that somebody else has done this task".to_owned()));
    }
    let seconds = ((now - found.taken_at) as f64 / 1000.0).clamp(0.0, LONGEST_SECONDS);
    let revision = store(connection, found.id, &answer, now, seconds)?;
    connection
        .prepare_cached("INSERT INTO requests (key, labeler, revision) VALUES (?1, ?2, ?3)")?
        .execute(params![key, labeler, revision])?;
    Ok(revision)
}

/// The next revision of an assignment's answer.
fn store(connection: &Connection, assignment: i64, answer: &Answer, at: Millis, seconds: f64) -> Result<u32> {
    let revision = next_revision(connection, assignment)?;
    // The very same answer twice in a millisecond is one.
    let is_new = insert(connection, assignment, revision, answer, at, seconds)?;
    connection
        .prepare_cached("UPDATE assignments SET state = 'answered', draft = NULL, finished_at = ?2 WHERE id = ?1")?
        .execute(params![assignment, at])?;
    Ok(if is_new { revision } else { revision - 1 })
}

/// The number after the last one that an assignment's answer has.
pub(super) fn next_revision(connection: &Connection, assignment: i64) -> Result<u32> {
    let mut statement =
        connection.prepare_cached("SELECT coalesce(max(revision), 0) + 1 FROM answers WHERE assignment = ?1")?;
    Ok(statement.query_row([assignment], |row| row.get(0))?)
}

/// Adds a revision, unless the very same is there: who said what about which task, and when. Tells whether it was added.
pub(super) fn insert(
    connection: &Connection,
    assignment: i64,
    revision: u32,
    answer: &Answer,
    at: Millis,
    seconds: f64,
) -> Result<bool> {
    let body = serde_json::to_string(answer).expect("plain data is JSON");
    let (content, labeler, pass): (String, String, i64) = connection
        .prepare_cached(
            "SELECT t.content, l.name, a.pass FROM assignments a JOIN tasks t ON t.id = a.task
             JOIN labelers l ON l.id = a.labeler WHERE a.id = ?1",
        )?
        .query_row([assignment], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let said = serde_json::to_vec(&(content, labeler, pass, at, &body)).expect("plain data is JSON");
    let added = connection
        .prepare_cached(
            "INSERT INTO answers (uid, assignment, revision, at, seconds, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (uid) DO NOTHING",
        )?
        .execute(params![hex(&said), assignment, revision, at, seconds, body])?;
    Ok(added == 1)
}

/// Gives the task back for others. What is put down stays this labeler's, and comes back by [`undo`] or [`resume`].
pub fn skip(
    connection: &Connection,
    labeler: i64,
    handle: &str,
    draft: &Draft,
    known_flags: &[String],
    now: Millis,
) -> Result<()> {
    let found = find(connection, labeler, handle)?;
    draft.check(found.shown.len(), known_flags).map_err(StoreError::Invalid)?;
    match found.state.as_str() {
        // An answer that was to be changed stands as it was.
        "answered" => return keep_draft(connection, found.id, &Draft::default()),
        "taken" => release(connection, found.id, "skipped")?,
        _ => {
            connection.prepare_cached("UPDATE assignments SET state = 'skipped' WHERE id = ?1")?.execute([found.id])?;
        }
    }
    keep_draft(connection, found.id, draft)?;
    connection
        .prepare_cached("UPDATE assignments SET finished_at = ?2 WHERE id = ?1")?
        .execute(params![found.id, now])?;
    Ok(())
}

/// Goes back to what the labeler answered or skipped last; from `current`, to the one before that.
pub fn undo(
    connection: &Connection,
    labeler: i64,
    current: Option<&str>,
    rules: &Rules,
    now: Millis,
) -> Result<Assignment> {
    let before: Option<Millis> = match current {
        Some(handle) => connection
            .prepare_cached("SELECT finished_at FROM assignments WHERE handle = ?1 AND labeler = ?2")?
            .query_row(params![handle, labeler], |row| row.get(0))
            .optional()?
            .flatten(),
        None => None,
    };
    let mut statement = connection.prepare_cached(
        "SELECT a.finished_at, a.id FROM assignments a INDEXED BY assignments_of JOIN tasks t ON t.id = a.task
         JOIN labelers l ON l.id = a.labeler
         WHERE a.labeler = ?1 AND a.state = ?2 AND a.finished_at < ?3 AND NOT (t.known IS NOT NULL AND l.has_passed IS NOT NULL)
         ORDER BY a.finished_at DESC LIMIT 1",
    )?;
    let mut last = |state: &str| -> Result<Option<(Millis, i64)>> {
        let before = before.unwrap_or(Millis::MAX);
        let found = statement.query_row(params![labeler, state, before], |row| Ok((row.get(0)?, row.get(1)?)));
        Ok(found.optional()?)
    };
    let Some((_, id)) = last("answered")?.max(last("skipped")?) else {
        return Err(StoreError::NotFound("there is nothing to go back to".to_owned()));
    };
    if !take_up(connection, id, rules, now)? {
        return Err(StoreError::Conflict("somebody else has done that task meanwhile".to_owned()));
    }
    assignment(connection, id)
}

/// Takes up one of the labeler's own again, in whatever state it is.
pub fn resume(connection: &Connection, labeler: i64, handle: &str, rules: &Rules, now: Millis) -> Result<Assignment> {
    let found = find(connection, labeler, handle)?;
    if found.is_over {
        return Err(StoreError::Conflict("the screening is over: its answers can't be changed any more".to_owned()));
    }
    if !take_up(connection, found.id, rules, now)? {
        return Err(StoreError::Conflict("somebody else has done that task meanwhile".to_owned()));
    }
    assignment(connection, found.id)
}

/// Something put down and not handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// What the page knows it by.
    pub handle: String,
    /// How the prompt begins.
    pub begins: String,
    /// Whether it was skipped.
    pub is_skipped: bool,
}

/// Whatever the labeler has put down and not handed in, the newest first.
pub fn unfinished(connection: &Connection, labeler: i64) -> Result<Vec<Unfinished>> {
    const N_LISTED: usize = 50;
    const N_CHARS: usize = 80;
    let mut statement = connection.prepare_cached(
        "SELECT handle, task, state FROM assignments INDEXED BY assignments_drafts
         WHERE labeler = ?1 AND draft IS NOT NULL ORDER BY taken_at DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![labeler, N_LISTED as i64], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
    })?;
    rows.map(|row| {
        let (handle, task, state) = row?;
        let begins = super::tasks::last_turn(&get(connection, task)?.prompt).chars().take(N_CHARS).collect();
        Ok(Unfinished { handle, begins, is_skipped: state == "skipped" })
    })
    .collect()
}
