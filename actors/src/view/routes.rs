//! What the server answers. Everything under `/api` but the login wants the run's token.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use collimate_protocol::records::RolloutRecord;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::evaluation::{self, EvaluationPage, EvaluationQuery, Pair};
use super::history::{Axis, CurveQuery};
use super::hub::Known;
use super::rounds::{Asked, Round};
use super::server::Shared;
use super::{all_rounds, asking, control, stream, token_texts};
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
    Asset { path: "/list.js", text: include_str!("page/list.js") },
    Asset { path: "/rollouts.js", text: include_str!("page/rollouts.js") },
    Asset { path: "/evaluation.js", text: include_str!("page/evaluation.js") },
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
    let guarded = of_run(of_run(Router::new(), "/api"), "/api/rounds/{round}")
        .route("/api/rounds/all/run", get(all_rounds::run))
        .route("/api/rounds/all/curves", get(all_rounds::curves))
        .route("/api/events", get(events))
        .route("/api/control/{command}", post(control::command))
        .route("/api/settings", post(control::change))
        .route("/api/reward-model", post(control::replace_reward_model))
        .route_layer(middleware::from_fn_with_state(shared.clone(), wants_token));
    PAGE.routes().merge(SHARED.routes()).route("/api/login", post(login)).merge(guarded).with_state(shared)
}

/// What is asked of one run: of the one that is followed, or of a round.
fn of_run(router: Router<Arc<Shared>>, prefix: &str) -> Router<Arc<Shared>> {
    let at = |path: &str| format!("{prefix}{path}");
    router
        .route(&at("/run"), get(run))
        .route(&at("/curves"), get(curves))
        .route(&at("/rollouts"), get(rollouts))
        .route(&at("/rollouts/{id}"), get(rollout))
        .route(&at("/rollouts/{id}/label"), post(asking::ask))
        .route(&at("/evaluation"), get(evaluated))
        .route(&at("/evaluation/{id}"), get(evaluated_prompt))
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

/// Reads what is known of a run; beside the event loop where its files have to be read for that.
async fn known<R: Send + 'static>(
    shared: Arc<Shared>,
    asked: &Asked,
    read: impl FnOnce(&Known) -> R + Send + 'static,
) -> Result<R, ApiError> {
    if asked.is_followed() {
        return Ok(shared.watched.hub.read(read));
    }
    let root = asked.root.clone();
    beside(move || Ok(shared.past(&root).read(read))).await
}

/// What the page begins with. `name` is of the directory that was named, `rounds` are those in it, `round` is the one
/// that this is about, `followed` the one of which messages tell.
async fn run(State(shared): State<Arc<Shared>>, asked: Asked) -> Result<Json<Value>, ApiError> {
    let home = shared.watched.home();
    let name = home.file_name().unwrap_or(home.as_os_str()).to_string_lossy().into_owned();
    let (rounds, settings) = (Round::all(home), settings(&asked.root));
    let (root, is_followed) = (asked.root.display().to_string(), asked.is_followed());
    let Asked { round, followed, .. } = asked;
    let is_commandable = is_followed && shared.watched.control().is_some();
    let can_ask_people = shared.labels.is_some();
    let told = shared.clone();
    let read = move |known: &Known| {
        let hub = &told.watched.hub;
        // Messages are of the run that is followed, whichever is asked for.
        let last_id = if is_followed { known.last_id() } else { hub.read(Known::last_id) };
        json!({
            "name": name,
            "root": root,
            "rounds": rounds,
            "round": round,
            "followed": followed,
            "settings": settings,
            "can_ask_people": can_ask_people,
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
            "id": stream::id_of(hub, last_id),
        })
    };
    known(shared, &asked, read).await.map(Json)
}

/// The settings that the page shows, as the run's recipe has them; `null` where it can't be read.
fn settings(root: &std::path::Path) -> Value {
    let run = RunDir::existing(root).ok().and_then(|dir| Some((Recipe::of_run(&dir)?, dir)));
    let Some((recipe, dir)) = run else { return Value::Null };
    // Where something else gives the scores there is none to show.
    let reward_model = input_models(&recipe, &dir).ok().and_then(|(_, reward_model)| reward_model);
    let Some(ppo) = recipe.ppo else { return Value::Null };
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

/// Which curves are asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Curves {
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

impl Curves {
    /// The columns and what is asked of each, if the numbers make sense.
    pub fn checked(self) -> Result<(Vec<String>, CurveQuery), ApiError> {
        let Self { columns, axis, from, to, n_buckets, smoothing } = self;
        if !(1..=MOST_BUCKETS).contains(&n_buckets) {
            return Err(ApiError::invalid(format!("`n_buckets` is {n_buckets}, expected 1 to {MOST_BUCKETS}")));
        }
        if !(0.0..1.0).contains(&smoothing) {
            return Err(ApiError::invalid(format!("`smoothing` is {smoothing}, expected a number from 0 to below 1")));
        }
        let columns: Vec<String> = columns.split(',').map(str::to_owned).collect();
        if columns.len() > MOST_COLUMNS {
            return Err(ApiError::invalid(format!("{} columns, expected at most {MOST_COLUMNS}", columns.len())));
        }
        Ok((columns, CurveQuery { axis, from, to, n_buckets, smoothing }))
    }
}

async fn curves(
    State(shared): State<Arc<Shared>>,
    asked: Asked,
    ApiQuery(curves): ApiQuery<Curves>,
) -> Result<Json<Map<String, Value>>, ApiError> {
    let (columns, query) = curves.checked()?;
    let read = move |known: &Known| {
        let curve = |name: String| {
            let curve = known.history.curve(&name, query)?;
            Some((name, json!(curve)))
        };
        columns.into_iter().filter_map(curve).collect()
    };
    known(shared, &asked, read).await.map(Json)
}

/// Does what reads files beside the event loop.
pub(super) async fn beside<R: Send + 'static>(
    read: impl FnOnce() -> Result<R, RunDirError> + Send + 'static,
) -> Result<R, ApiError> {
    let failed = |problem: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, problem);
    let result = tokio::task::spawn_blocking(read).await.map_err(|error| failed(error.to_string()))?;
    result.map_err(|error| failed(error.to_string()))
}

/// Reads the rollouts: that may take a while where it is for the first time.
pub(super) async fn read<R: Send + 'static>(
    shared: Arc<Shared>,
    asked: &Asked,
    read: impl FnOnce(&RolloutIndex) -> Result<R, RunDirError> + Send + 'static,
) -> Result<R, ApiError> {
    let root = asked.root.clone();
    beside(move || {
        let log = RunDir::existing(&root)?.stage(Stage::Ppo).rollouts();
        shared.with_rollouts(&log, read)
    })
    .await
}

async fn rollouts(
    State(shared): State<Arc<Shared>>,
    asked: Asked,
    ApiQuery(query): ApiQuery<RolloutQuery>,
) -> Result<Json<RolloutPage>, ApiError> {
    read(shared, &asked, move |index| index.page(&query)).await.map(Json)
}

/// A rollout in a path.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct RolloutId {
    /// The number of its line.
    pub id: i64,
}

#[derive(Serialize)]
struct ShownRollout {
    #[serde(flatten)]
    record: RolloutRecord,
    /// The text of each token, where that was not recorded and can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    texts: Option<Vec<String>>,
}

async fn rollout(
    State(shared): State<Arc<Shared>>,
    asked: Asked,
    Path(RolloutId { id }): Path<RolloutId>,
) -> Result<Json<ShownRollout>, ApiError> {
    let record = read(shared.clone(), &asked, move |index| index.record(id)).await?;
    let none = || ApiError::new(StatusCode::NOT_FOUND, format!("there is no rollout {id}"));
    let record = record.ok_or_else(none)?;
    let shown = beside(move || {
        let texts = match record.tokens.is_some() || record.logprobs.is_empty() {
            true => None,
            false => shared.with_tokenizer(&asked.root, |tokenizer| token_texts::texts_of(&record, tokenizer)),
        };
        Ok(ShownRollout { record, texts })
    });
    shown.await.map(Json)
}

async fn evaluated(asked: Asked, ApiQuery(query): ApiQuery<EvaluationQuery>) -> Result<Json<EvaluationPage>, ApiError> {
    beside(move || Ok(evaluation::page(&evaluation::read(&asked.root)?, &query))).await.map(Json)
}

/// A held-out prompt in a path.
#[derive(Deserialize)]
struct PromptPlace {
    /// From 1.
    id: usize,
}

async fn evaluated_prompt(asked: Asked, Path(PromptPlace { id }): Path<PromptPlace>) -> Result<Json<Pair>, ApiError> {
    let pair = beside(move || Ok(evaluation::read(&asked.root)?.into_iter().find(|pair| pair.id == id))).await?;
    let none = || ApiError::new(StatusCode::NOT_FOUND, format!("there is no held-out prompt {id}"));
    pair.map(Json).ok_or_else(none)
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
