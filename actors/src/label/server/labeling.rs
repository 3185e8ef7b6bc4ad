//! What labelers ask for.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use collimate_protocol::records::TaskKind;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Site;
use super::shown::{Shown, Turn, turns};
use super::who::{AsLabeler, blocking, who};
use crate::label::draft::Draft;
use crate::label::store::next::{Assignment, Next};
use crate::label::store::{self, Millis, now, stats, work};
use crate::web::{ApiError, ApiJson};

type Answer<T> = Result<Json<T>, ApiError>;

/// A task as a labeler may see it: nothing tells where the responses came from, nor which task it is.
#[derive(Serialize)]
pub struct Task {
    handle: String,
    kind: TaskKind,
    turns: Vec<Turn>,
    responses: Vec<Shown>,
    draft: Draft,
    revision: u32,
}

impl Task {
    fn of(assignment: Assignment) -> Self {
        let Assignment { handle, task, shown, draft, revision } = assignment;
        let responses = shown.iter().map(|idx| Shown::markdown(&task.responses[*idx])).collect();
        Self { handle, kind: task.kind, turns: turns(&task.prompt), responses, draft, revision }
    }
}

/// Who asks, what the form looks like, and how far they are.
pub async fn me(State(site): State<Site>, headers: HeaderMap) -> Answer<Value> {
    let labeler = who(&site, &headers).await?;
    let (store, id) = (site.0.store.clone(), labeler.id);
    let progress = blocking(move || Ok(store.read(|connection| stats::progress(connection, id, now()))?)).await?;
    Ok(Json(json!({
        "name": labeler.name, "is_admin": labeler.is_admin, "progress": progress, "form": site.0.form,
    })))
}

/// Which task the page goes on with, if it had one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextRequest {
    #[serde(default)]
    handle: Option<String>,
}

/// The next task, or why there is none.
pub async fn next(
    State(site): State<Site>,
    AsLabeler(labeler): AsLabeler,
    ApiJson(NextRequest { handle }): ApiJson<NextRequest>,
) -> Answer<Value> {
    let next = change(&site, move |connection, site, now| {
        store::next::next(connection, labeler.id, handle.as_deref(), &site.0.rules, now)
    });
    Ok(Json(match next.await? {
        Next::Task(assignment) => json!({ "state": "task", "task": Task::of(*assignment) }),
        Next::Wait => json!({ "state": "wait" }),
        Next::Done => json!({ "state": "done" }),
        Next::Screened => json!({ "state": "screened" }),
    }))
}

/// A task and what is put down.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftRequest {
    handle: String,
    draft: Draft,
}

/// Keeps a draft.
pub async fn draft(
    State(site): State<Site>,
    AsLabeler(labeler): AsLabeler,
    ApiJson(DraftRequest { handle, draft }): ApiJson<DraftRequest>,
) -> Answer<Value> {
    change(&site, move |connection, site, now| {
        work::save_draft(connection, labeler.id, &handle, &draft, &site.0.flags, &site.0.rules, now)
    })
    .await?;
    Ok(Json(json!({})))
}

/// An answer. The key is the request's own: sent again with it, it is not done again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerRequest {
    handle: String,
    key: String,
    draft: Draft,
}

/// Stores an answer. The reply comes when the disk has it.
pub async fn answer(
    State(site): State<Site>,
    AsLabeler(labeler): AsLabeler,
    ApiJson(AnswerRequest { handle, key, draft }): ApiJson<AnswerRequest>,
) -> Answer<Value> {
    let stored = change(&site, move |connection, site, now| {
        let (flags, rules) = (&site.0.flags, &site.0.rules);
        let revision = work::submit(connection, labeler.id, &handle, &key, &draft, flags, rules, now)?;
        Ok((revision, stats::progress(connection, labeler.id, now)?))
    });
    let (revision, progress) = stored.await?;
    Ok(Json(json!({ "revision": revision, "progress": progress })))
}

/// Gives a task back.
pub async fn skip(
    State(site): State<Site>,
    AsLabeler(labeler): AsLabeler,
    ApiJson(DraftRequest { handle, draft }): ApiJson<DraftRequest>,
) -> Answer<Value> {
    change(&site, move |connection, site, now| work::skip(connection, labeler.id, &handle, &draft, &site.0.flags, now))
        .await?;
    Ok(Json(json!({})))
}

/// Where the page stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    #[serde(default)]
    current: Option<String>,
}

/// Back to what was answered or skipped last.
pub async fn undo(
    State(site): State<Site>,
    AsLabeler(labeler): AsLabeler,
    ApiJson(UndoRequest { current }): ApiJson<UndoRequest>,
) -> Answer<Task> {
    let assignment = change(&site, move |connection, site, now| {
        work::undo(connection, labeler.id, current.as_deref(), &site.0.rules, now)
    });
    Ok(Json(Task::of(assignment.await?)))
}

/// Which one to go on with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    handle: String,
}

/// One of the labeler's own again.
pub async fn resume(
    State(site): State<Site>,
    AsLabeler(labeler): AsLabeler,
    ApiJson(ResumeRequest { handle }): ApiJson<ResumeRequest>,
) -> Answer<Task> {
    let assignment =
        change(&site, move |connection, site, now| work::resume(connection, labeler.id, &handle, &site.0.rules, now));
    Ok(Json(Task::of(assignment.await?)))
}

/// What is put down and not handed in.
pub async fn unfinished(State(site): State<Site>, AsLabeler(labeler): AsLabeler) -> Answer<Value> {
    let store = site.0.store.clone();
    let list = blocking(move || Ok(store.read(|connection| work::unfinished(connection, labeler.id))?)).await?;
    let list = list.into_iter().map(|work::Unfinished { handle, begins, is_skipped }| {
        json!({ "handle": handle, "begins": begins, "is_skipped": is_skipped })
    });
    Ok(Json(list.collect()))
}

/// Changes the store now.
async fn change<T: Send + 'static>(
    site: &Site,
    change: impl FnOnce(&Connection, &Site, Millis) -> store::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let own = site.clone();
    Ok(site.0.store.write(move |connection| change(connection, &own, now())).await?)
}
