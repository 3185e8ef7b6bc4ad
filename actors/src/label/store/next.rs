//! Which task a labeler gets next.
//!
//! Tasks are handed out when they are asked for: those with a place in its order, then the others in the order of their
//! numbers. Each labeler has been through them up to one of them (`last_place`, `last_task`), and does not look at those
//! before it again: a task behind that point which opens again is put on the list of returns, and that list each labeler
//! goes through once too (`last_return`). So handing out takes as long with a million tasks as with ten.
//!
//! A task that the admin has settled is handed out no more, however many were wanted for it: what it is about is known. Who
//! is at it then goes on, and who goes back to it may: what they say of it is kept as ever.

use rand::Rng;
use rand::seq::SliceRandom;
use rusqlite::{Connection, OptionalExtension, params};

use collimate_models::feedback::ranking_agreement;
use collimate_protocol::records::{Answer, LabelTask, TaskKind};

use super::tasks::{get, parsed};
use super::{Millis, Result, StoreError};
use crate::label::draft::Draft;

/// How tasks are handed out.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// How long a task that nobody touches is kept for who took it: milliseconds.
    pub lease: Millis,
    /// The least mean agreement with the screening tasks' known ranks.
    pub screening_threshold: f64,
    /// The share of tasks that a labeler sees a second time.
    pub repeat_share: f64,
    /// How many other tasks lie between the two times, at least.
    pub repeat_after: usize,
}

impl Rules {
    /// For what is not handed out but comes from a file.
    pub(super) fn immediate() -> Self {
        Self { lease: 0, screening_threshold: 0.0, repeat_share: 0.0, repeat_after: 0 }
    }
}

/// A task in one labeler's hands.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// What the page knows it by. It tells nothing of the task.
    pub handle: String,
    /// The task.
    pub task: LabelTask,
    /// The order in which the responses are shown: `shown[place]` is the index of a response.
    pub shown: Vec<usize>,
    /// What is put down so far.
    pub draft: Draft,
    /// The revision of the answer that is to be changed; 0 before the first.
    pub revision: u32,
}

/// What a labeler gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// This.
    Task(Box<Assignment>),
    /// Nothing now: others are at what is left, and may leave it.
    Wait,
    /// Nothing: all is done that this labeler can do.
    Done,
    /// Nothing: too few of the screening tasks were answered as is known.
    Screened,
}

/// Hands a task out. `wanted` is one that this page had before and goes on with, if that is still possible.
pub fn next(connection: &Connection, labeler: i64, wanted: Option<&str>, rules: &Rules, now: Millis) -> Result<Next> {
    expire(connection, now)?;
    if let Some(handle) = wanted
        && let Some(assignment) = go_on(connection, labeler, handle, rules, now)?
    {
        return Ok(Next::Task(Box::new(assignment)));
    }
    match screening(connection, labeler, rules)? {
        Screening::Passed => {}
        Screening::Task(task) => return taken(connection, task, labeler, 0, rules, now),
        Screening::Waiting => return Ok(Next::Wait),
        Screening::Failed => return Ok(Next::Screened),
    }
    if let Some(task) = unfinished(connection, labeler)? {
        return taken(connection, task, labeler, 0, rules, now);
    }
    if let Some((task, shown)) = repeat(connection, labeler, rules)? {
        // The other way round: what was shown first is shown last.
        let reversed: Vec<usize> = shown.into_iter().rev().collect();
        insert(connection, task, labeler, 1, &reversed, rules, now)?;
        return taken(connection, task, labeler, 1, rules, now);
    }
    for find in [returned, placed, unseen] {
        if let Some(task) = find(connection, labeler)? {
            return taken(connection, task, labeler, 0, rules, now);
        }
    }
    let is_busy: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM assignments a WHERE a.state = 'taken' AND a.labeler <> ?1
                        AND NOT EXISTS (SELECT 1 FROM settled WHERE task = a.task))",
        [labeler],
        |row| row.get(0),
    )?;
    Ok(if is_busy { Next::Wait } else { Next::Done })
}

/// Takes back what was taken and left.
fn expire(connection: &Connection, now: Millis) -> Result<()> {
    let mut statement =
        connection.prepare_cached("SELECT id FROM assignments WHERE state = 'taken' AND expires_at < ?1 LIMIT 1000")?;
    let expired: Vec<i64> = statement.query_map([now], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    expired.into_iter().try_for_each(|assignment| release(connection, assignment, "left"))
}

/// Gives a task back, so that others can have it.
pub(super) fn release(connection: &Connection, assignment: i64, state: &str) -> Result<()> {
    let (task, pass): (i64, i64) = connection
        .prepare_cached("UPDATE assignments SET state = ?2 WHERE id = ?1 RETURNING task, pass")?
        .query_row(params![assignment, state], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if pass == 0 {
        connection.prepare_cached("UPDATE tasks SET n_taken = n_taken - 1 WHERE id = ?1")?.execute([task])?;
        connection.prepare_cached("INSERT INTO returns (task) VALUES (?1)")?.execute([task])?;
    }
    Ok(())
}

/// Takes an assignment up again that was left or skipped, if the task has room; and one that is taken for longer.
/// Tells whether it is the labeler's now.
pub(super) fn take_up(connection: &Connection, assignment: i64, rules: &Rules, now: Millis) -> Result<bool> {
    let (task, pass, state): (i64, i64, String) = connection
        .prepare_cached("SELECT task, pass, state FROM assignments WHERE id = ?1")?
        .query_row([assignment], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let expires_at = now + rules.lease;
    if state == "answered" {
        return Ok(true);
    }
    if state == "taken" {
        connection
            .prepare_cached("UPDATE assignments SET expires_at = ?2 WHERE id = ?1")?
            .execute(params![assignment, expires_at])?;
        return Ok(true);
    }
    if pass == 0 && !has_room(connection, task)? {
        return Ok(false);
    }
    connection
        .prepare_cached("UPDATE assignments SET state = 'taken', taken_at = ?2, expires_at = ?3 WHERE id = ?1")?
        .execute(params![assignment, now, expires_at])?;
    Ok(true)
}

/// Counts one more who is at the task, unless there are enough.
fn has_room(connection: &Connection, task: i64) -> Result<bool> {
    let mut statement = connection.prepare_cached(
        "UPDATE tasks SET n_taken = n_taken + 1 WHERE id = ?1 AND (known IS NOT NULL OR n_taken < wanted)",
    )?;
    Ok(statement.execute([task])? == 1)
}

/// What this page had before, unless it is answered, skipped, or somebody else's meanwhile; or settled, and left without
/// anything put down.
fn go_on(
    connection: &Connection,
    labeler: i64,
    handle: &str,
    rules: &Rules,
    now: Millis,
) -> Result<Option<Assignment>> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM assignments a WHERE handle = ?1 AND labeler = ?2
           AND (state = 'taken' OR state = 'left'
                AND (draft IS NOT NULL OR NOT EXISTS (SELECT 1 FROM settled WHERE task = a.task)))",
    )?;
    let found: Option<i64> = statement.query_row(params![handle, labeler], |row| row.get(0)).optional()?;
    match found {
        Some(id) if take_up(connection, id, rules, now)? => Ok(Some(assignment(connection, id)?)),
        _ => Ok(None),
    }
}

enum Screening {
    /// Or there is none.
    Passed,
    Task(i64),
    /// What is left is open in another tab.
    Waiting,
    Failed,
}

/// The screening task that is next, or how the screening went.
fn screening(connection: &Connection, labeler: i64, rules: &Rules) -> Result<Screening> {
    let has_passed: Option<bool> = connection
        .prepare_cached("SELECT has_passed FROM labelers WHERE id = ?1")?
        .query_row([labeler], |row| row.get(0))?;
    match has_passed {
        Some(true) => return Ok(Screening::Passed),
        Some(false) => return Ok(Screening::Failed),
        None => {}
    }
    let is_any: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM tasks WHERE known IS NOT NULL)")?
        .query_row([], |row| row.get(0))?;
    if !is_any {
        return Ok(Screening::Passed);
    }
    // Skipped ones come again at the end.
    let mut statement = connection.prepare_cached(
        "SELECT t.id, a.state FROM tasks t LEFT JOIN assignments a ON a.task = t.id AND a.labeler = ?1 AND a.pass = 0
         WHERE t.known IS NOT NULL AND a.state IS NOT 'answered'
         ORDER BY a.state IS 'taken', a.state IS 'skipped', t.id LIMIT 1",
    )?;
    let open: Option<(i64, Option<String>)> =
        statement.query_row([labeler], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match open {
        Some((_, Some(state))) if state == "taken" => return Ok(Screening::Waiting),
        Some((task, _)) => return Ok(Screening::Task(task)),
        None => {}
    }
    let Some(mean) = screening_agreement(connection, labeler)? else { return Ok(Screening::Passed) };
    let has_passed = mean >= rules.screening_threshold;
    connection.execute("UPDATE labelers SET has_passed = ?2 WHERE id = ?1", params![labeler, has_passed])?;
    Ok(if has_passed { Screening::Passed } else { Screening::Failed })
}

/// Mean agreement of a labeler's answers to screening tasks with the known ranks; `None` without any.
pub(super) fn screening_agreement(connection: &Connection, labeler: i64) -> Result<Option<f64>> {
    let mut statement = connection.prepare_cached(
        "SELECT t.known, n.body FROM tasks t INDEXED BY tasks_screening
         CROSS JOIN assignments a ON a.task = t.id AND a.pass = 0
         JOIN answers n ON n.assignment = a.id
         WHERE t.known IS NOT NULL AND a.labeler = ?1
           AND n.revision = (SELECT max(revision) FROM answers WHERE assignment = a.id)",
    )?;
    let rows = statement.query_map([labeler], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut agreements = Vec::new();
    for row in rows {
        let (known, body) = row?;
        if let Answer::Ranking(ranking) = parsed(&body)? {
            agreements.extend(ranking_agreement(&parsed::<Vec<u32>>(&known)?, &ranking.ranks));
        }
    }
    Ok((!agreements.is_empty()).then(|| agreements.iter().sum::<f64>() / agreements.len() as f64))
}

/// One that the labeler left with something put down, and that still has room.
fn unfinished(connection: &Connection, labeler: i64) -> Result<Option<i64>> {
    let mut statement = connection.prepare_cached(
        "SELECT t.id FROM assignments a INDEXED BY assignments_drafts JOIN tasks t ON t.id = a.task
         WHERE a.labeler = ?1 AND a.draft IS NOT NULL AND a.state = 'left' AND a.pass = 0
           AND t.known IS NULL AND t.n_taken < t.wanted AND NOT EXISTS (SELECT 1 FROM settled WHERE task = t.id)
         ORDER BY a.taken_at LIMIT 1",
    )?;
    Ok(statement.query_row([labeler], |row| row.get(0)).optional()?)
}

/// Now and then, a ranking that the labeler made some time ago, with the order in which it was shown.
fn repeat(connection: &Connection, labeler: i64, rules: &Rules) -> Result<Option<(i64, Vec<usize>)>> {
    /// Of so many earlier tasks one is chosen.
    const N_CANDIDATES: usize = 100;
    if !rand::rng().random_bool(rules.repeat_share.clamp(0.0, 1.0)) {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached(
        "SELECT a.task, a.shown FROM (
             SELECT * FROM assignments INDEXED BY assignments_of WHERE labeler = ?1 AND state = 'answered'
             ORDER BY finished_at DESC LIMIT ?2 OFFSET ?3) a
         JOIN tasks t ON t.id = a.task
         WHERE a.pass = 0 AND t.known IS NULL AND a.shown <> '[]'
           AND NOT EXISTS (SELECT 1 FROM assignments b WHERE b.task = a.task AND b.labeler = ?1 AND b.pass = 1)",
    )?;
    let candidates = statement
        .query_map(params![labeler, N_CANDIDATES as i64, rules.repeat_after as i64], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if candidates.is_empty() {
        return Ok(None);
    }
    let (task, shown) = &candidates[rand::rng().random_range(0..candidates.len())];
    Ok(Some((*task, parsed(shown)?)))
}

/// The next of the tasks that came back.
fn returned(connection: &Connection, labeler: i64) -> Result<Option<i64>> {
    let mut statement = connection.prepare_cached(
        "SELECT r.id, r.task FROM returns r JOIN tasks t ON t.id = r.task
         WHERE r.id > (SELECT last_return FROM labelers WHERE id = ?1) AND t.known IS NULL AND t.n_taken < t.wanted
           AND NOT EXISTS (SELECT 1 FROM settled WHERE task = t.id)
           AND NOT EXISTS (SELECT 1 FROM assignments a
                           WHERE a.task = r.task AND a.labeler = ?1 AND a.pass = 0 AND a.state <> 'left')
         ORDER BY r.id LIMIT 1",
    )?;
    let found: Option<(i64, i64)> = statement.query_row([labeler], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let seen = match found {
        Some((id, _)) => id,
        None => connection.query_row("SELECT coalesce(max(id), 0) FROM returns", [], |row| row.get(0))?,
    };
    connection.prepare_cached("UPDATE labelers SET last_return = ?2 WHERE id = ?1")?.execute([labeler, seen])?;
    Ok(found.map(|(_, task)| task))
}

/// The next of the tasks with a place.
fn placed(connection: &Connection, labeler: i64) -> Result<Option<i64>> {
    let mut statement = connection.prepare_cached(
        "SELECT t.place, t.id FROM tasks t INDEXED BY tasks_placed
         WHERE t.known IS NULL AND t.n_taken < t.wanted AND t.place IS NOT NULL
           AND t.place > (SELECT last_place FROM labelers WHERE id = ?1)
           AND NOT EXISTS (SELECT 1 FROM settled WHERE task = t.id)
           AND NOT EXISTS (SELECT 1 FROM assignments a
                           WHERE a.task = t.id AND a.labeler = ?1 AND a.pass = 0 AND a.state <> 'left')
         ORDER BY t.place LIMIT 1",
    )?;
    let found: Option<(i64, i64)> = statement.query_row([labeler], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    // Through all of them, until places are given anew.
    let seen = found.map_or(i64::MAX, |(place, _)| place);
    let mut statement =
        connection.prepare_cached("UPDATE labelers SET last_place = ?2 WHERE id = ?1 AND last_place <> ?2")?;
    statement.execute([labeler, seen])?;
    Ok(found.map(|(_, task)| task))
}

/// The next of the tasks without a place that the labeler has not been to.
fn unseen(connection: &Connection, labeler: i64) -> Result<Option<i64>> {
    let mut statement = connection.prepare_cached(
        "SELECT t.id FROM tasks t INDEXED BY tasks_open
         WHERE t.known IS NULL AND t.n_taken < t.wanted AND t.place IS NULL
           AND t.id > (SELECT last_task FROM labelers WHERE id = ?1)
           AND NOT EXISTS (SELECT 1 FROM settled WHERE task = t.id)
           AND NOT EXISTS (SELECT 1 FROM assignments a
                           WHERE a.task = t.id AND a.labeler = ?1 AND a.pass = 0 AND a.state <> 'left')
         ORDER BY t.id LIMIT 1",
    )?;
    let found: Option<i64> = statement.query_row([labeler], |row| row.get(0)).optional()?;
    let seen = match found {
        Some(task) => task,
        None => connection.query_row("SELECT coalesce(max(id), 0) FROM tasks", [], |row| row.get(0))?,
    };
    connection.prepare_cached("UPDATE labelers SET last_task = ?2 WHERE id = ?1")?.execute([labeler, seen])?;
    Ok(found)
}

/// Gives the task to the labeler: in an order of its own the first time, in the same one after that.
fn taken(connection: &Connection, task: i64, labeler: i64, pass: i64, rules: &Rules, now: Millis) -> Result<Next> {
    let id = match find(connection, task, labeler, pass)? {
        Some(id) => id,
        None => {
            let LabelTask { kind, responses, .. } = get(connection, task)?;
            let mut shown: Vec<usize> = (0..responses.len()).collect();
            if kind != TaskKind::Write {
                shown.shuffle(&mut rand::rng());
            }
            insert(connection, task, labeler, pass, &shown, rules, now)?
        }
    };
    if !take_up(connection, id, rules, now)? {
        return Err(StoreError::Conflict("the task was taken in this very moment".to_owned()));
    }
    Ok(Next::Task(Box::new(assignment(connection, id)?)))
}

/// A labeler's assignment of this task: the first, or (`pass` 1) the hidden repeat.
pub(super) fn find(connection: &Connection, task: i64, labeler: i64, pass: i64) -> Result<Option<i64>> {
    let mut statement =
        connection.prepare_cached("SELECT id FROM assignments WHERE task = ?1 AND labeler = ?2 AND pass = ?3")?;
    Ok(statement.query_row([task, labeler, pass], |row| row.get(0)).optional()?)
}

/// A new assignment, which is not taken yet.
pub(super) fn insert(
    connection: &Connection,
    task: i64,
    labeler: i64,
    pass: i64,
    shown: &[usize],
    rules: &Rules,
    now: Millis,
) -> Result<i64> {
    let handle = format!("{:032x}", rand::rng().random::<u128>());
    let shown = serde_json::to_string(shown).expect("numbers");
    connection
        .prepare_cached(
            "INSERT INTO assignments (handle, task, labeler, pass, state, shown, taken_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, 'left', ?5, ?6, ?7)",
        )?
        .execute(params![handle, task, labeler, pass, shown, now, now + rules.lease])?;
    Ok(connection.last_insert_rowid())
}

/// What the page is to show. An answer that is to be changed is its draft, unless there is a newer one.
pub(super) fn assignment(connection: &Connection, id: i64) -> Result<Assignment> {
    let mut statement =
        connection.prepare_cached("SELECT handle, task, shown, draft FROM assignments WHERE id = ?1")?;
    let (handle, task, shown, draft): (String, i64, String, Option<String>) =
        statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let shown: Vec<usize> = parsed(&shown)?;
    let mut statement = connection
        .prepare_cached("SELECT revision, body FROM answers WHERE assignment = ?1 ORDER BY revision DESC LIMIT 1")?;
    let answer: Option<(u32, String)> = statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (revision, answered) = match answer {
        Some((revision, body)) => (revision, Some(Draft::of(&parsed::<Answer>(&body)?, &shown))),
        None => (0, None),
    };
    let draft = draft.map(|draft| parsed(&draft)).transpose()?.or(answered).unwrap_or_default();
    Ok(Assignment { handle, task: get(connection, task)?, shown, draft, revision })
}
