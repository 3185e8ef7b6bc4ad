//! How it is going: counts, and what the statistics are made of.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::Serialize;

use collimate_models::feedback::Vote;
use collimate_protocol::records::{Answer, Arm};

use super::next::screening_agreement;
use super::places::arm_of;
use super::tasks::parsed;
use super::{Millis, Result};

const HOUR: Millis = 3_600_000;

/// How far one labeler is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Tasks answered.
    pub n_answered: i64,
    /// Of those, in the last hour.
    pub n_last_hour: i64,
}

/// Of this labeler.
pub fn progress(connection: &Connection, labeler: i64, now: Millis) -> Result<Progress> {
    let mut statement = connection.prepare_cached(
        "SELECT count(*), coalesce(sum(finished_at > ?2), 0) FROM assignments INDEXED BY assignments_of
         WHERE labeler = ?1 AND state = 'answered'",
    )?;
    Ok(statement.query_row(params![labeler, now - HOUR], |row| {
        Ok(Progress { n_answered: row.get(0)?, n_last_hour: row.get(1)? })
    })?)
}

/// Tasks by what is still to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TaskCounts {
    /// Tasks, without those of the screening.
    pub n_tasks: i64,
    /// Tasks that somebody may still take: settled ones are none.
    pub n_open: i64,
    /// Tasks that somebody is at now.
    pub n_taken: i64,
    /// Screening tasks.
    pub n_screening: i64,
    /// Answers that are wanted in all: for a settled task no more than those that are there or under way.
    pub n_wanted: i64,
    /// Answers to tasks, without the screening's and without repeats.
    pub n_answers: i64,
}

/// Of the whole project.
pub fn tasks(connection: &Connection) -> Result<TaskCounts> {
    let count = |query: &str| -> Result<i64> { Ok(connection.query_row(query, [], |row| row.get(0))?) };
    // Those with room, and how much.
    let (n_settled, n_unwanted): (i64, i64) = connection.query_row(
        "SELECT count(*), coalesce(sum(wanted - n_taken), 0) FROM tasks
         WHERE known IS NULL AND n_taken < wanted AND id IN (SELECT task FROM settled)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let n_with_room = count(
        "SELECT (SELECT count(*) FROM tasks INDEXED BY tasks_open
                 WHERE known IS NULL AND n_taken < wanted AND place IS NULL)
              + (SELECT count(*) FROM tasks INDEXED BY tasks_placed
                 WHERE known IS NULL AND n_taken < wanted AND place IS NOT NULL)",
    )?;
    let n_wanted = count("SELECT coalesce(sum(wanted), 0) FROM tasks WHERE known IS NULL")?;
    Ok(TaskCounts {
        n_tasks: count("SELECT count(*) FROM tasks WHERE known IS NULL")?,
        n_open: n_with_room - n_settled,
        n_taken: count("SELECT count(DISTINCT task) FROM assignments WHERE state = 'taken'")?,
        n_screening: count("SELECT count(*) FROM tasks WHERE known IS NOT NULL")?,
        n_wanted: n_wanted - n_unwanted,
        n_answers: count(
            "SELECT count(*) FROM assignments a JOIN tasks t ON t.id = a.task
             WHERE a.state = 'answered' AND a.pass = 0 AND t.known IS NULL",
        )?,
    })
}

/// How one labeler works.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelerCounts {
    /// The number.
    #[serde(skip)]
    pub id: i64,
    /// The name.
    pub name: String,
    /// Tasks answered, hidden repeats and the screening among them.
    pub n_answered: i64,
    /// In the last hour.
    pub n_last_hour: i64,
    /// Tasks skipped.
    pub n_skipped: i64,
    /// Half of the answers took longer than this: seconds.
    pub median_seconds: Option<f64>,
    /// Whether the screening was passed; absent while it is under way or where there is none.
    pub has_passed: Option<bool>,
    /// Mean agreement with the screening's known ranks.
    pub screening_agreement: Option<f64>,
}

/// Of every labeler, by name.
pub fn labelers(connection: &Connection, now: Millis) -> Result<Vec<LabelerCounts>> {
    let mut statement = connection.prepare(
        "SELECT l.id, l.name, l.has_passed,
                (SELECT count(*) FROM assignments a WHERE a.labeler = l.id AND a.state = 'answered'),
                (SELECT count(*) FROM assignments a
                 WHERE a.labeler = l.id AND a.state = 'answered' AND a.finished_at > ?1),
                (SELECT count(*) FROM assignments a WHERE a.labeler = l.id AND a.state = 'skipped')
         FROM labelers l WHERE NOT l.is_admin ORDER BY l.name",
    )?;
    let mut seconds = BTreeMap::<i64, Vec<f64>>::new();
    let mut times = connection.prepare(
        "SELECT a.labeler, n.seconds FROM answers n JOIN assignments a ON a.id = n.assignment ORDER BY n.seconds",
    )?;
    for row in times.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (labeler, time) = row?;
        seconds.entry(labeler).or_default().push(time);
    }
    let (mut rows, mut labelers) = (statement.query([now - HOUR])?, Vec::new());
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        labelers.push(LabelerCounts {
            id,
            name: row.get(1)?,
            has_passed: row.get(2)?,
            n_answered: row.get(3)?,
            n_last_hour: row.get(4)?,
            n_skipped: row.get(5)?,
            median_seconds: seconds.get(&id).map(|sorted| sorted[sorted.len() / 2]),
            screening_agreement: screening_agreement(connection, id)?,
        });
    }
    Ok(labelers)
}

/// A ranking as the statistics take it.
#[derive(Clone, Debug, PartialEq)]
pub struct StatedRanking {
    /// Who ranked what how.
    pub vote: Vote,
    /// The order in which it was shown.
    pub shown: Vec<usize>,
    /// Whether it is a hidden repeat.
    pub is_repeat: bool,
    /// How it came about that the task was asked, if that was said.
    pub arm: Option<Arm>,
}

/// The newest revision of every ranking, without the screening's.
pub fn rankings(connection: &Connection) -> Result<Vec<StatedRanking>> {
    let mut statement = connection.prepare(
        "SELECT a.task, a.labeler, n.body, a.shown, a.pass, t.arm
         FROM answers n JOIN assignments a ON a.id = n.assignment JOIN tasks t ON t.id = a.task
         WHERE t.known IS NULL AND n.revision = (SELECT max(revision) FROM answers WHERE assignment = a.id)
         ORDER BY n.id",
    )?;
    let rows = statement.query_map([], |row| {
        let (body, shown): (String, String) = (row.get(2)?, row.get(3)?);
        Ok((row.get(0)?, row.get(1)?, body, shown, row.get::<_, i64>(4)?, row.get(5)?))
    })?;
    let mut rankings = Vec::new();
    for row in rows {
        let (task, labeler, body, shown, pass, arm): (i64, i64, _, _, _, _) = row?;
        if let Answer::Ranking(ranking) = parsed(&body)? {
            let vote = Vote { task: task as u64, labeler: labeler as u64, ranks: ranking.ranks };
            rankings.push(StatedRanking { vote, shown: parsed(&shown)?, is_repeat: pass > 0, arm: arm_of(arm)? });
        }
    }
    Ok(rankings)
}

/// What these rankings say, without hidden repeats.
pub fn first_votes(rankings: &[StatedRanking]) -> Vec<Vote> {
    rankings.iter().filter(|ranking| !ranking.is_repeat).map(|ranking| ranking.vote.clone()).collect()
}
