//! In which order tasks come.
//!
//! Tasks come in the order of their numbers, unless they were given places: those with a place come first. A task's arm is
//! said once and stays: what is measured on tasks that were drawn at random holds only if no model had a say in which those
//! are.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use collimate_protocol::records::Arm;

use super::tasks::parsed;
use super::{Result, StoreError};

/// What a reward model made of a task's responses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Its directory.
    pub model: String,
    /// For each response its score.
    pub scores: Vec<f32>,
}

/// A task to be ranked that somebody may still take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTask {
    /// The number.
    pub id: i64,
    /// Its arm, if one was said.
    pub arm: Option<Arm>,
}

/// Reads an arm.
pub(super) fn arm_of(name: Option<String>) -> Result<Option<Arm>> {
    name.map(|name| parsed(&format!("\"{name}\""))).transpose()
}

/// All of them, in the order of their numbers; tasks to write something for are none, and neither are settled ones.
pub fn open_tasks(connection: &Connection) -> Result<Vec<OpenTask>> {
    let mut statement = connection.prepare(
        "SELECT id, arm FROM tasks
         WHERE known IS NULL AND n_taken < wanted AND json_extract(body, '$.kind') <> 'write'
           AND NOT EXISTS (SELECT 1 FROM settled WHERE task = tasks.id)
         ORDER BY id",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.map(|row| {
        let (id, arm) = row?;
        Ok(OpenTask { id, arm: arm_of(arm)? })
    })
    .collect()
}

/// A task's arm. One that has one keeps it.
pub fn set_arm(connection: &Connection, task: i64, arm: Arm) -> Result<()> {
    connection
        .prepare_cached("UPDATE tasks SET arm = coalesce(arm, ?2) WHERE id = ?1")?
        .execute(params![task, arm.name()])?;
    Ok(())
}

/// Where a task comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Which task.
    pub task: i64,
    /// Its arm, if it has none yet.
    pub arm: Arm,
    /// What a reward model made of it, if one did now.
    pub told: Option<Told>,
}

/// Gives these tasks places in this order, and takes all others' away. Every labeler goes through the places anew.
pub fn set(connection: &Connection, order: &[Placed]) -> Result<()> {
    connection.execute("UPDATE tasks SET place = NULL WHERE place IS NOT NULL", [])?;
    let mut statement = connection.prepare_cached(
        "UPDATE tasks SET place = ?2, arm = coalesce(arm, ?3), told = coalesce(?4, told) WHERE id = ?1",
    )?;
    for (idx, Placed { task, arm, told }) in order.iter().enumerate() {
        let told = told.as_ref().map(|told| serde_json::to_string(told).expect("plain data is JSON"));
        if statement.execute(params![task, idx as i64 + 1, arm.name(), told])? != 1 {
            return Err(StoreError::NotFound(format!("there is no task {task}")));
        }
    }
    // Tasks without a place that some labelers have been past may be among those that had one.
    connection.execute("UPDATE labelers SET last_place = 0, last_task = 0", [])?;
    Ok(())
}

/// Puts a task before all others, for every labeler who has not been at it.
pub fn put_first(connection: &Connection, task: i64) -> Result<()> {
    connection.execute("INSERT INTO returns (task) VALUES (?1)", [task])?;
    Ok(())
}
