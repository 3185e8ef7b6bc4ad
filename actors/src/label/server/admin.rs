//! What the admin asks for.

use axum::Json;
use axum::extract::State;
use collimate_protocol::records::LabelTask;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use super::who::{AsAdmin, blocking};
use crate::label::overview::{self, Overview};
use crate::label::store::now;
use crate::label::store::tasks::{Purpose, add};
use crate::web::{ApiError, ApiJson};

/// How the project stands.
pub async fn overview(State(site): State<Site>, _: AsAdmin) -> Result<Json<Overview>, ApiError> {
    let store = site.0.store.clone();
    let overview = blocking(move || Ok(store.read(|connection| overview::overview(connection, now()))?));
    Ok(Json(overview.await?))
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
