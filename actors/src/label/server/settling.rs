//! What the admin asks for where labelers differ.

use axum::Json;
use axum::extract::{Path, State};
use collimate_protocol::records::{Answer, TaskKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Site;
use super::shown::{Shown, Turn, turns};
use super::who::{AsAdmin, blocking};
use crate::label::disagreements::{self, FullDisagreement, FullOpinion, Listed, N_LISTED, number_of};
use crate::label::draft::Draft;
use crate::label::store::settled::{self, Settled};
use crate::label::store::{StoreError, now};
use crate::web::{ApiError, ApiJson, ApiQuery};

/// Which part of the list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    #[serde(default)]
    from: usize,
}

/// A part of the list of disagreements, and how many a part holds.
pub async fn list(
    State(site): State<Site>,
    _: AsAdmin,
    ApiQuery(ListRequest { from }): ApiQuery<ListRequest>,
) -> Result<Json<Value>, ApiError> {
    let store = site.0.store.clone();
    let listed = blocking(move || Ok(store.read(|connection| disagreements::list(connection, from))?)).await?;
    let Listed { n_disagreements, n_settled, from, disagreements } = listed;
    Ok(Json(json!({
        "n_disagreements": n_disagreements, "n_settled": n_settled, "from": from, "n_listed": N_LISTED,
        "disagreements": disagreements,
    })))
}

/// A task with all that was said of it, responses in the task's own order.
#[derive(Serialize)]
pub struct ToSettle {
    task: String,
    kind: TaskKind,
    turns: Vec<Turn>,
    responses: Vec<Shown>,
    opinions: Vec<FullOpinion>,
    merged: Vec<u32>,
    agreement: Option<f64>,
    settled: Option<Settled>,
    /// What it is settled by, to be changed; empty where it is not settled.
    draft: Draft,
}

impl ToSettle {
    fn of(content: String, disagreement: FullDisagreement) -> Self {
        let FullDisagreement { task, opinions, merged, agreement, settled } = disagreement;
        let in_order: Vec<usize> = (0..task.responses.len()).collect();
        let draft = settled.as_ref().map(|settled| Draft::of(&Answer::Ranking(settled.ranking.clone()), &in_order));
        Self {
            task: content,
            kind: task.kind,
            turns: turns(&task.prompt),
            responses: task.responses.iter().map(|response| Shown::markdown(response)).collect(),
            opinions,
            merged,
            agreement,
            settled,
            draft: draft.unwrap_or_default(),
        }
    }
}

/// One of them.
pub async fn one(State(site): State<Site>, _: AsAdmin, Path(task): Path<String>) -> Result<Json<ToSettle>, ApiError> {
    let one = blocking(move || {
        let found = site.0.store.read(|connection| disagreements::of_task(connection, &task))?;
        Ok(ToSettle::of(task, found))
    });
    Ok(Json(one.await?))
}

/// A task, and what is put down in its own order of the responses.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettleRequest {
    task: String,
    draft: Draft,
}

/// Settles a task, or changes what it is settled by. The reply comes when the disk has it.
pub async fn settle(
    State(site): State<Site>,
    AsAdmin(admin): AsAdmin,
    ApiJson(SettleRequest { task, draft }): ApiJson<SettleRequest>,
) -> Result<Json<Value>, ApiError> {
    let own = site.clone();
    let settled = site.0.store.write(move |connection| {
        let number = number_of(connection, &task)?;
        settled::settle(connection, number, admin.id, &draft, &own.0.flags, now())?;
        settled::of_task(connection, number)
    });
    Ok(Json(json!({ "settled": settled.await? })))
}

/// Which task.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeBackRequest {
    task: String,
}

/// Takes back what a task is settled by.
pub async fn take_back(
    State(site): State<Site>,
    AsAdmin(admin): AsAdmin,
    ApiJson(TakeBackRequest { task }): ApiJson<TakeBackRequest>,
) -> Result<Json<Value>, ApiError> {
    let taken_back = site.0.store.write(move |connection| -> Result<u32, StoreError> {
        settled::take_back(connection, number_of(connection, &task)?, admin.id, now())
    });
    Ok(Json(json!({ "settled": null, "revision": taken_back.await? })))
}
