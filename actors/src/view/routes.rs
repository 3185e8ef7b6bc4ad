//! What the server answers. Everything under `/api` but the login wants the run's token.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use collimate_protocol::records::RolloutRecord;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::history::{Axis, CurveQuery};
use super::server::Shared;
use super::{asking, control, stream};
use crate::config;
use crate::rundir::rollout_index::RolloutPage;
use crate::rundir::{RolloutIndex, RolloutQuery, RunDir, RunDirError, Stage};
use crate::stages::recipe::Recipe;
use crate::stages::run::input_models;
use crate::web::{ApiError, ApiJson, ApiQuery, Asset, Assets, SHARED, Token};

const PAGE: Assets = Assets(&[
    Asset { path: "/", text: include_str!("page/index.html") },
    Asset { path: "/style.css", text: include_str!("page/style.css") },
    Asset { path: "/main.js", text: include_str!("page/main.js") },
    Asset { path: "/api.js", text: include_str!("page/api.js") },
    Asset { path: "/dom.js", text: include_str!("page/dom.js") },
    Asset { path: "/curves.js", text: include_str!("page/curves.js") },
    Asset { path: "/chart.js", text: include_str!("page/chart.js") },
    Asset { path: "/catalogue.js", text: include_str!("page/catalogue.js") },
    Asset { path: "/pipeline.js", text: include_str!("page/pipeline.js") },
    Asset { path: "/rollouts.js", text: include_str!("page/rollouts.js") },
    Asset { path: "/tokens.js", text: include_str!("page/tokens.js") },
    Asset { path: "/compare.js", text: include_str!("page/compare.js") },
    Asset { path: "/controls.js", text: include_str!("page/controls.js") },
    Asset { path: "/icon.svg", text: include_str!("page/icon.svg") },
]);

/// Curves that may be asked for at once.
const MOST_COLUMNS: usize = 200;
/// Buckets of a curve: more than any screen has columns of pixels.
const MOST_BUCKETS: usize = 4000;

/// The page and what it asks for.
pub fn router(shared: Arc<Shared>) -> Router {
    let guarded = Router::new()
        .route("/api/run", get(run))
        .route("/api/curves", get(curves))
        .route("/api/rollouts", get(rollouts))
        .route("/api/rollouts/{id}", get(rollout))
        .route("/api/rollouts/{id}/label", post(asking::ask))
        .route("/api/events", get(events))
        .route("/api/control/{command}", post(control::command))
        .route("/api/settings", post(control::change))
        .route("/api/reward-model", post(control::replace_reward_model))
        .route_layer(middleware::from_fn_with_state(shared.clone(), wants_token));
    PAGE.routes().merge(SHARED.routes()).route("/api/login", post(login)).merge(guarded).with_state(shared)
}

async fn wants_token(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    match shared.session.token(request.headers()) {
        Some(token) if shared.secret.is_of(&token) => next.run(request).await,
        _ => refused().into_response(),
    }
}

fn refused() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "this needs the run's token: open the link that the run has printed")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    token: String,
}

async fn login(State(shared): State<Arc<Shared>>, ApiJson(login): ApiJson<Login>) -> Result<Response, ApiError> {
    let token = Token::parse(&login.token).filter(|token| shared.secret.is_of(token)).ok_or_else(refused)?;
    Ok(([(header::SET_COOKIE, shared.session.set(&token))], Json(json!({ "welcome": true }))).into_response())
}

/// What the page begins with.
async fn run(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let root = shared.watched.root();
    let name = root.file_name().unwrap_or(root.as_os_str()).to_string_lossy().into_owned();
    let settings = settings(&root);
    let is_commandable = shared.watched.control().is_some();
    let hub = &shared.watched.hub;
    Json(hub.read(|known| {
        json!({
            "name": name,
            "root": root.display().to_string(),
            "settings": settings,
            "can_ask_people": shared.labels.is_some(),
            "is_commandable": is_commandable,
            "is_live": known.is_live,
            "stage": known.stage,
            "problem": known.problem,
            "status": known.status,
            "events": known.events,
            "columns": known.history.columns().collect::<Vec<_>>(),
            "last": known.history.last(),
            "numbers": known.history.last_numbers(),
            "branches": known.history.branches(),
            "id": stream::id_of(hub, known.last_id()),
        })
    }))
}

/// The settings that the page shows, as the run's recipe has them; `null` where it can't be read.
fn settings(root: &std::path::Path) -> Value {
    let recipe: Option<Recipe> = RunDir::existing(root).ok().and_then(|dir| config::load(&dir.config(), &[]).ok());
    let reward_model = recipe.as_ref().zip(RunDir::existing(root).ok()).and_then(|(recipe, dir)| {
        // Where something else gives the scores there is none to show.
        input_models(recipe, &dir).ok().and_then(|(_, reward_model)| reward_model)
    });
    let Some(ppo) = recipe.and_then(|recipe| recipe.ppo) else { return Value::Null };
    json!({
        "reward_model": reward_model,
        "kl_coef": ppo.objective.kl_coef,
        "lr": ppo.objective.lr,
        "value_lr": ppo.objective.value_lr,
        "n_updates": ppo.flow.n_updates,
        "batch_size": ppo.flow.batch_size,
        "max_staleness": ppo.flow.max_staleness,
        "mode": ppo.flow.mode,
        "has_gold": ppo.stage.gold.is_some(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Curves {
    /// Separated by commas.
    columns: String,
    #[serde(default)]
    axis: Axis,
    from: Option<f64>,
    to: Option<f64>,
    n_buckets: usize,
    #[serde(default)]
    smoothing: f64,
}

async fn curves(
    State(shared): State<Arc<Shared>>,
    ApiQuery(asked): ApiQuery<Curves>,
) -> Result<Json<Map<String, Value>>, ApiError> {
    let Curves { columns, axis, from, to, n_buckets, smoothing } = asked;
    if !(1..=MOST_BUCKETS).contains(&n_buckets) {
        return Err(ApiError::invalid(format!("`n_buckets` is {n_buckets}, expected 1 to {MOST_BUCKETS}")));
    }
    if !(0.0..1.0).contains(&smoothing) {
        return Err(ApiError::invalid(format!("`smoothing` is {smoothing}, expected a number from 0 to below 1")));
    }
    let columns: Vec<&str> = columns.split(',').collect();
    if columns.len() > MOST_COLUMNS {
        return Err(ApiError::invalid(format!("{} columns, expected at most {MOST_COLUMNS}", columns.len())));
    }
    let query = CurveQuery { axis, from, to, n_buckets, smoothing };
    shared.watched.hub.read(|known| {
        let curve = |name: &str| known.history.curve(name, query).map(|curve| (name.to_owned(), json!(curve)));
        Ok(Json(columns.into_iter().filter_map(curve).collect()))
    })
}

/// Reads the rollouts beside the event loop: that may take a while where they are read for the first time.
pub(super) async fn read<R: Send + 'static>(
    shared: Arc<Shared>,
    read: impl FnOnce(&RolloutIndex) -> Result<R, RunDirError> + Send + 'static,
) -> Result<R, ApiError> {
    let failed = |problem: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, problem);
    let reading = tokio::task::spawn_blocking(move || {
        let log = RunDir::existing(&shared.watched.root())?.stage(Stage::Ppo).rollouts();
        shared.with_rollouts(&log, read)
    });
    let result = reading.await.map_err(|error| failed(error.to_string()))?;
    result.map_err(|error| failed(error.to_string()))
}

async fn rollouts(
    State(shared): State<Arc<Shared>>,
    ApiQuery(query): ApiQuery<RolloutQuery>,
) -> Result<Json<RolloutPage>, ApiError> {
    read(shared, move |index| index.page(&query)).await.map(Json)
}

async fn rollout(State(shared): State<Arc<Shared>>, Path(id): Path<i64>) -> Result<Json<RolloutRecord>, ApiError> {
    let record = read(shared, move |index| index.record(id)).await?;
    record.map(Json).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("there is no rollout {id}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct After {
    after: Option<String>,
}

async fn events(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    ApiQuery(After { after }): ApiQuery<After>,
) -> Result<impl IntoResponse, ApiError> {
    let permit = shared.streams.clone().try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open"))?;
    Ok(stream::events(shared.watched.clone(), &headers, after.as_deref(), permit))
}
