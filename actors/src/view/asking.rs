//! From rollouts to people: what the policy answered to a prompt becomes a task of a `collimate label` project.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use collimate_models::data::comparisons::{MAX_RANKED, MIN_RANKED};
use collimate_protocol::PolicyVersion;
use collimate_protocol::records::{Arm, LabelTask, Origin, PromptText, RolloutRecord, TaskKind};
use collimate_protocol::roles::RewardRequest;
use serde::Deserialize;
use serde_json::{Value, json};

use super::rounds::Asked;
use super::routes::{RolloutId, read};
use super::server::Shared;
use crate::label::store::tasks::{Purpose, add, content_id, most_wanted};
use crate::label::store::{Store, places};
use crate::rundir::{RolloutQuery, RunDir};
use crate::stages::answer_more::AnswerMore;
use crate::stages::labeler::tokens_of;
use crate::stages::recipe::Recipe;
use crate::stages::scored_by::reward_models;
use crate::web::{ApiError, ApiJson};

/// Rollouts of a prompt that are looked at for different responses.
const MOST_READ: u32 = 64;
/// Responses that a policy is asked for: with the rollout's own they make a ranking of 4, as InstructGPT's begin with.
const N_ASKED: u32 = 3;

/// What a task remembers of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunNames {
    /// Its directory.
    pub run: String,
    /// Its seed.
    pub seed: Option<u64>,
    /// The reward model that scored.
    pub reward_model: Option<String>,
}

impl RunNames {
    /// For rollouts of this version.
    fn of(root: &std::path::Path, version: PolicyVersion) -> Self {
        let recipe = RunDir::existing(root).ok().and_then(|dir| Recipe::of_run(&dir));
        let before = reward_models(root).into_iter().take_while(|scored| scored.since <= version);
        Self {
            run: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()).display().to_string(),
            seed: recipe.map(|recipe| recipe.seed),
            reward_model: before.last().map(|scored| scored.dir.display().to_string()),
        }
    }
}

/// Makes a ranking task of a prompt's rollouts, the chosen one first: of its version alone where there is more than one,
/// else of all versions. Responses that are the same stand once. `None` where there is nothing to compare.
pub fn task_of(rollouts: &[RolloutRecord], names: &RunNames) -> Option<LabelTask> {
    let chosen = rollouts.first()?;
    let distinct = |is_of: &dyn Fn(&RolloutRecord) -> bool| {
        let mut group: Vec<&RolloutRecord> = Vec::new();
        for rollout in rollouts.iter().filter(|rollout| is_of(rollout)) {
            let is_new = group.iter().all(|other| other.response_tokens != rollout.response_tokens);
            if is_new && group.len() < MAX_RANKED {
                group.push(rollout);
            }
        }
        group
    };
    let mut group = distinct(&|rollout| rollout.version == chosen.version);
    if group.len() < MIN_RANKED {
        group = distinct(&|_| true);
    }
    if group.len() < MIN_RANKED {
        return None;
    }
    let versions = group.iter().map(|rollout| rollout.version.0).collect();
    let scores = group.iter().map(|rollout| rollout.score).collect();
    let responses: Vec<RewardRequest> = group.into_iter().map(response_of).collect();
    Some(ranking(names, &responses, versions, Some(scores)))
}

/// A rollout's response, as a reward model reads it.
fn response_of(rollout: &RolloutRecord) -> RewardRequest {
    RewardRequest {
        prompt_tokens: rollout.prompt_tokens.clone(),
        response_tokens: rollout.response_tokens.clone(),
        prompt: rollout.prompt.clone(),
        response: rollout.response.clone(),
        finish: rollout.finish,
    }
}

/// The task to rank responses to one prompt, of which there are some. Each has the version that gave it.
fn ranking(names: &RunNames, responses: &[RewardRequest], versions: Vec<u64>, scores: Option<Vec<f32>>) -> LabelTask {
    let is_one_version = versions.iter().all(|version| *version == versions[0]);
    let tokens = tokens_of(responses);
    LabelTask {
        kind: if responses.len() == 2 { TaskKind::Compare } else { TaskKind::Rank },
        prompt: PromptText::Text(responses[0].prompt.clone()),
        responses: responses.iter().map(|response| response.response.clone()).collect(),
        // Records of before hold none of the prompt.
        tokens: (!tokens.prompt.is_empty()).then_some(tokens),
        origin: Origin {
            run: Some(names.run.clone()),
            model: None,
            policy_version: versions.iter().max().copied(),
            seed: names.seed,
            reward_model: names.reward_model.clone(),
            scores,
            versions: (!is_one_version).then_some(versions),
        },
    }
}

/// Makes a ranking task of a rollout and of what the policy answers to its prompt now.
///
/// # Errors
/// There is no policy to ask, or it can't be asked, or it always says the same.
fn task_of_more(
    root: &std::path::Path,
    policy: Option<AnswerMore>,
    rollout: &RolloutRecord,
) -> Result<LabelTask, String> {
    let trained = || {
        let run = RunDir::existing(root).map_err(|error| error.to_string())?;
        AnswerMore::of_trained(&run).map_err(|error| error.to_string())
    };
    let policy = match policy {
        Some(policy) => Some(policy),
        None => trained()?,
    };
    let Some(policy) = policy else {
        return Err(
            "this prompt has one response in rollouts.jsonl, and a ranking needs two: the policy can be asked for more by \
             the page of the process that trains it (`--serve`), or once PPO has ended"
                .to_owned(),
        );
    };
    if rollout.prompt_tokens.is_empty() {
        return Err(
            "the tokens of this prompt were not recorded, so that the policy can't be asked for more".to_owned()
        );
    }
    let (version, answers) = policy.answers(rollout, N_ASKED).map_err(|error| error.to_string())?;
    let mut group = vec![response_of(rollout)];
    for answer in answers {
        if group.iter().all(|other| other.response != answer.response) {
            group.push(answer);
        }
    }
    if group.len() < MIN_RANKED {
        return Err(format!(
            "the policy at version {version} gives this response again and again: there is nothing to rank"
        ));
    }
    let newest = rollout.version.0.max(version);
    let names = RunNames::of(root, PolicyVersion(newest));
    // Scores of a function, or of a model that reads tokens of its own, are left out.
    let scores = names.reward_model.as_ref().and_then(|dir| policy.scores(dir.as_ref(), &group).ok());
    let versions = std::iter::once(rollout.version.0).chain(group.iter().skip(1).map(|_| version)).collect();
    Ok(ranking(&names, &group, versions, scores))
}

/// Puts the task before all others of the project, unless it is there. Tells whether it is new.
async fn keep(store: &Store, task: LabelTask) -> Result<bool, ApiError> {
    let stored = store.write(move |connection| {
        let purpose = Purpose::Work { wanted: most_wanted(connection)? };
        let (id, is_new) = add(connection, &task, &purpose)?;
        if is_new {
            places::set_arm(connection, id, Arm::Picked)?;
            places::put_first(connection, id)?;
        }
        Ok(is_new)
    });
    Ok(stored.await?)
}

/// Nothing to say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// `POST /api/rollouts/{id}/label`.
pub async fn ask(
    State(shared): State<Arc<Shared>>,
    asked: Asked,
    Path(RolloutId { id }): Path<RolloutId>,
    ApiJson(Nothing {}): ApiJson<Nothing>,
) -> Result<Json<Value>, ApiError> {
    let Some(store) = shared.labels.clone() else {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "there is no project to ask people in: name its database by --labels FILE when the page is started",
        ));
    };
    let group = read(shared.clone(), &asked, move |index| {
        let Some(chosen) = index.record(id)? else { return Ok(Vec::new()) };
        let query =
            RolloutQuery { prompt_id: Some(chosen.prompt_id.0), limit: Some(MOST_READ), ..RolloutQuery::default() };
        let others = index.page(&query)?.rows.into_iter().filter(|row| row.id != id);
        let mut group = vec![chosen];
        for row in others {
            group.extend(index.record(row.id)?);
        }
        Ok(group)
    });
    let group = group.await?;
    if group.is_empty() {
        return Err(ApiError::new(StatusCode::NOT_FOUND, format!("there is no rollout {id}")));
    }
    let names = RunNames::of(&asked.root, group[0].version);
    let task = match task_of(&group, &names) {
        Some(task) => task,
        None => {
            // Where PPO runs in this process, its policy is asked; else the one that the run has come to.
            let policy = shared.watched.policy().filter(|_| asked.is_followed());
            let sampled = tokio::task::spawn_blocking(move || task_of_more(&asked.root, policy, &group[0])).await;
            let sampled =
                sampled.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
            sampled.map_err(|problem| ApiError::new(StatusCode::CONFLICT, problem))?
        }
    };
    let (n_responses, content) = (task.responses.len(), content_id(&task));
    let is_new = keep(&store, task).await?;
    Ok(Json(json!({ "task": content, "n_responses": n_responses, "is_new": is_new })))
}

#[cfg(test)]
mod tests {
    use collimate_protocol::{FinishReason, PromptId};

    use super::*;

    fn rollout(version: u64, response: &str) -> RolloutRecord {
        RolloutRecord {
            version: PolicyVersion(version),
            prompt_id: PromptId(3),
            sample_idx: 0,
            prompt: "It was".to_owned(),
            prompt_tokens: vec![1, 2],
            response: response.to_owned(),
            response_tokens: response.bytes().map(u32::from).collect(),
            logprobs: vec![],
            versions: vec![],
            finish: FinishReason::End,
            score: version as f32 + response.len() as f32,
            gold: None,
            kl: 0.0,
            kl_penalty: 0.0,
            reward: 0.0,
            tokens: None,
        }
    }

    fn names() -> RunNames {
        RunNames { run: "/runs/a".to_owned(), seed: Some(7), reward_model: Some("/runs/a/reward/model".to_owned()) }
    }

    #[test]
    fn a_version_s_responses_to_a_prompt_are_a_ranking_that_remembers_where_they_came_from() {
        let group = [rollout(5, "b"), rollout(5, "cc"), rollout(5, "b"), rollout(5, "ddd"), rollout(4, "e")];
        let task = task_of(&group, &names()).unwrap();
        assert_eq!(
            (task.kind, task.responses.as_slice()),
            (TaskKind::Rank, &["b", "cc", "ddd"].map(str::to_owned)[..])
        );
        let tokens = task.tokens.unwrap();
        assert_eq!((tokens.prompt, tokens.responses[1].len()), (vec![1, 2], 2));
        let origin = task.origin;
        assert_eq!((origin.policy_version, origin.versions, origin.seed), (Some(5), None, Some(7)));
        assert_eq!(origin.scores, Some(vec![6.0, 7.0, 8.0]));
        assert_eq!((origin.run.as_deref(), origin.reward_model), (Some("/runs/a"), names().reward_model));
    }

    #[test]
    fn a_prompt_that_a_version_has_answered_once_is_compared_over_versions() {
        let task = task_of(&[rollout(5, "b"), rollout(9, "cc"), rollout(7, "b")], &names()).unwrap();
        assert_eq!((task.kind, task.responses.len()), (TaskKind::Compare, 2));
        assert_eq!((task.origin.policy_version, task.origin.versions), (Some(9), Some(vec![5, 9])));
    }

    #[test]
    fn at_most_nine_are_ranked_and_one_alone_can_t_be() {
        let many: Vec<RolloutRecord> = (1..=12).map(|n| rollout(5, &"x".repeat(n))).collect();
        assert_eq!(task_of(&many, &names()).unwrap().responses.len(), 9);
        for few in [&[][..], &[rollout(5, "b")], &[rollout(5, "b"), rollout(6, "b")]] {
            assert!(task_of(few, &names()).is_none());
        }
        let old = RolloutRecord { prompt_tokens: vec![], ..rollout(5, "c") };
        assert_eq!(
            task_of(&[old, rollout(5, "b")], &names()).unwrap().tokens,
            None,
            "records from before they were kept"
        );
    }
}
