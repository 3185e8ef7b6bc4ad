//! What may be asked of a run from its page. Each request reaches the run's supervisor as a command; what comes of it is
//! told as an event, and what changes the training is in the journal.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use collimate_protocol::SettingChange;
use serde::Deserialize;
use serde_json::{Value, json};

use super::server::Shared;
use crate::control::RunControl;
use crate::web::{ApiError, ApiJson};

/// Settings that are to change, all with the same batch. At least one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewSettings {
    /// The coefficient of the KL penalty.
    pub kl_coef: Option<f64>,
    /// The policy's highest learning rate.
    pub lr: Option<f64>,
    /// The value model's highest learning rate.
    pub value_lr: Option<f64>,
}

impl NewSettings {
    /// The changes, all of which make sense.
    fn changes(self) -> Result<Vec<SettingChange>, String> {
        let Self { kl_coef, lr, value_lr } = self;
        let changes: Vec<SettingChange> =
            [kl_coef.map(SettingChange::KlCoef), lr.map(SettingChange::Lr), value_lr.map(SettingChange::ValueLr)]
                .into_iter()
                .flatten()
                .collect();
        if changes.is_empty() {
            return Err("nothing is to change; expected `kl_coef`, `lr` or `value_lr`".to_owned());
        }
        match changes.iter().find_map(SettingChange::problem) {
            Some(problem) => Err(problem),
            None => Ok(changes),
        }
    }
}

fn run(shared: &Shared) -> Result<RunControl, ApiError> {
    shared.watched.control().ok_or_else(|| {
        ApiError::new(
            StatusCode::CONFLICT,
            "no PPO runs in this process: a run takes commands at the page that its own `--serve` shows",
        )
    })
}

fn accepted() -> (StatusCode, Json<Value>) {
    (StatusCode::ACCEPTED, Json(json!({ "accepted": true })))
}

/// `POST /api/control/{command}`.
pub async fn command(
    State(shared): State<Arc<Shared>>,
    Path(command): Path<String>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let run = run(&shared)?;
    match command.as_str() {
        "pause" => run.pause(),
        "resume" => run.resume(),
        "checkpoint" => run.checkpoint(),
        _ => return Err(ApiError::new(StatusCode::NOT_FOUND, "there is no such command: pause, resume, checkpoint")),
    }
    Ok(accepted())
}

/// The reward model that is to give the scores.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRewardModel {
    /// Its directory on the machine that the run is on, or its name on the hub.
    pub dir: PathBuf,
}

/// `POST /api/reward-model`.
pub async fn replace_reward_model(
    State(shared): State<Arc<Shared>>,
    ApiJson(NewRewardModel { dir }): ApiJson<NewRewardModel>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if dir.as_os_str().is_empty() {
        return Err(ApiError::invalid("`dir` is empty, expected the directory of a reward model"));
    }
    let run = run(&shared)?;
    // It reads the model.
    let replaced = tokio::task::spawn_blocking(move || run.replace_reward_model(&dir)).await;
    let replaced = replaced.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let model = replaced.map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "accepted": true, "reward_model": model }))))
}

/// `POST /api/settings`.
pub async fn change(
    State(shared): State<Arc<Shared>>,
    ApiJson(settings): ApiJson<NewSettings>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let changes = settings.changes().map_err(ApiError::invalid)?;
    let run = run(&shared)?;
    for change in changes {
        run.change(change).map_err(|error| ApiError::invalid(error.to_string()))?;
    }
    Ok(accepted())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_a_change_and_what_makes_no_sense_changes_none() {
        let all = NewSettings { kl_coef: Some(0.1), lr: Some(0.0), value_lr: Some(1e-5) };
        let changes = [SettingChange::KlCoef(0.1), SettingChange::Lr(0.0), SettingChange::ValueLr(1e-5)];
        assert_eq!(all.changes().unwrap(), changes);
        assert!(NewSettings::default().changes().unwrap_err().contains("nothing is to change"));
        let bad = NewSettings { lr: Some(-1.0), ..all };
        assert_eq!(bad.changes().unwrap_err(), "`lr` is -1, expected a number of at least 0");
    }
}
