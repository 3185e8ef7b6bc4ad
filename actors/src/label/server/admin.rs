//! What the admin asks for.

use std::path::PathBuf;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use collimate_protocol::records::LabelTask;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use super::who::{AsAdmin, blocking};
use crate::label::effects::{self, Effects, TaskEffect};
use crate::label::overview::{self, Overview};
use crate::label::runs::RunRecord;
use crate::label::store::now;
use crate::label::store::tasks::{Purpose, add};
use crate::web::{ApiError, ApiJson};

/// How the project stands.
pub async fn overview(State(site): State<Site>, _: AsAdmin) -> Result<Json<Overview>, ApiError> {
    let store = site.0.store.clone();
    let overview = blocking(move || Ok(store.read(|connection| overview::overview(connection, now()))?));
    Ok(Json(overview.await?))
}

/// What the folders of the runs say now.
fn records(runs: &[PathBuf]) -> Result<Vec<RunRecord>, ApiError> {
    let read = |run: &PathBuf| {
        RunRecord::read_all(run).map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    };
    Ok(runs.iter().map(read).collect::<Result<Vec<_>, _>>()?.concat())
}

/// People against reward models, and the newest labels.
pub async fn effects(State(site): State<Site>, _: AsAdmin) -> Result<Json<Effects>, ApiError> {
    let effects = blocking(move || {
        let runs = records(&site.0.runs)?;
        Ok(site.0.store.read(|connection| effects::effects(connection, &runs))?)
    });
    Ok(Json(effects.await?))
}

/// What became of the labels of one task.
pub async fn effects_of_task(
    State(site): State<Site>,
    _: AsAdmin,
    Path(task): Path<String>,
) -> Result<Json<TaskEffect>, ApiError> {
    let effect = blocking(move || {
        let runs = records(&site.0.runs)?;
        Ok(site.0.store.read(|connection| effects::of_task(connection, &task, &runs))?)
    });
    effect.await?.map(Json).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such task"))
}

/// Tasks to add.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddTasks {
    tasks: Vec<LabelTask>,
}

/// Adds tasks: all of them, or none where one makes no sense. Tells how many are new.
pub async fn add_tasks(
    State(site): State<Site>,
    _: AsAdmin,
    ApiJson(AddTasks { tasks }): ApiJson<AddTasks>,
) -> Result<Json<Value>, ApiError> {
    let purpose = Purpose::Work { wanted: site.0.overlap };
    let n_new = site.0.store.write(move |connection| {
        let mut n_new = 0;
        for task in &tasks {
            n_new += usize::from(add(connection, task, &purpose)?.1);
        }
        Ok(n_new)
    });
    Ok(Json(json!({ "n_new": n_new.await? })))
}
