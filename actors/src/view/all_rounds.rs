//! The rounds of `collimate iterate` as one run: the main line of each goes on where that of the round before ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::history::{History, Place};
use super::hub::Known;
use super::rounds::begun;
use super::routes::{Curves, beside};
use super::server::Shared;
use crate::web::{ApiError, ApiQuery};

/// What is read of each round that has begun, in order, and how many of them come before the one that is followed.
fn read_each<R>(shared: &Shared, read: impl Fn(&Known) -> R) -> Result<(Vec<R>, usize), ApiError> {
    let (rounds, followed) = (begun(shared.watched.home()), shared.watched.root());
    if rounds.is_empty() {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "there are no rounds"));
    }
    let n_before = rounds.iter().position(|dir| dir.root() == followed).unwrap_or(rounds.len());
    let of_round = |root| {
        if root == followed { shared.watched.hub.read(&read) } else { shared.past(root).read(&read) }
    };
    Ok((rounds.iter().map(|dir| of_round(dir.root())).collect(), n_before))
}

/// What the page's curves begin with: `before` is what the rounds before the one that is followed come to, which its
/// messages count from; labels are not counted, but as they are recorded.
pub(super) async fn run(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    let read = |known: &Known| {
        let columns: Vec<String> = known.history.columns().map(str::to_owned).collect();
        (columns, known.history.main_line(&[]))
    };
    let (rounds, n_before) = beside(move || Ok(read_each(&shared, read))).await??;
    let (columns, mut lines): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
    let columns: BTreeSet<String> = columns.into_iter().flatten().collect();
    let later = lines.split_off(n_before);
    let before = History::joined(lines);
    let [updates, tokens, seconds, _] = before.last().unwrap_or([Some(0.0); 4]);
    let last: Option<Place> = History::joined([before].into_iter().chain(later)).last();
    Ok(Json(json!({ "columns": columns, "last": last, "before": [updates, tokens, seconds] })))
}

/// The curves of all rounds.
pub(super) async fn curves(
    State(shared): State<Arc<Shared>>,
    ApiQuery(curves): ApiQuery<Curves>,
) -> Result<Json<Map<String, Value>>, ApiError> {
    let (columns, query) = curves.checked()?;
    let answer = beside(move || {
        let lines = read_each(&shared, |known| known.history.main_line(&columns));
        let all = lines.map(|(lines, _)| History::joined(lines));
        Ok(all.map(|all| {
            columns.iter().filter_map(|name| Some((name.clone(), json!(all.curve(name, query)?)))).collect()
        }))
    });
    answer.await?.map(Json)
}
