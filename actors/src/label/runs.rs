//! What the folders of runs say that labels can be set against.

use std::collections::BTreeMap;
use std::path::Path;

use collimate_protocol::PolicyVersion;
use collimate_protocol::records::{LabelName, LabelUse};
use serde_json::Value;

use crate::rundir::{RunDir, RunDirError, Stage, StageDir, read_jsonl};
use crate::stages::labels_used::LABELS_FILE;
use crate::stages::scored_by::reward_models;

/// A run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunRecord {
    /// Its directory: the whole path.
    pub root: String,
    /// The reward models that it trained, or trained the policy on.
    pub models: Vec<ModelRecord>,
}

/// A reward model in a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelRecord {
    /// Its directory; absent where the run's scores come of something else, or nothing says of what.
    pub dir: Option<String>,
    /// The labels that it learnt from, wherever it was trained.
    pub used: BTreeMap<LabelName, LabelUse>,
    /// For each version whose rollouts it scored their mean score in the update that trained on them.
    pub scores: BTreeMap<u64, f64>,
}

impl RunRecord {
    /// Reads a run directory; that of `collimate iterate` is a run for each of its rounds. What it does not hold yet is
    /// absent.
    ///
    /// # Errors
    /// It is no run directory, or a file in it can't be read.
    pub fn read_all(root: &Path) -> Result<Vec<Self>, RunDirError> {
        let dir = RunDir::existing(root)?;
        let rounds = dir.rounds();
        if rounds.is_empty() { Ok(vec![Self::read(&dir)?]) } else { rounds.iter().map(Self::read).collect() }
    }

    fn read(dir: &RunDir) -> Result<Self, RunDirError> {
        let root = std::path::absolute(dir.root()).map_err(|error| RunDirError::bad(dir.root(), error.to_string()))?;
        let metrics: Vec<Value> = read_if_there(&dir.stage(Stage::Ppo).metrics())?;
        let score_of = |line: &Value| {
            // The update that made version n trained on what began at n - 1.
            let version = line["version"].as_u64()?.checked_sub(1)?;
            Some((version, line["batch"]["score"].as_f64()?))
        };
        let scores: BTreeMap<u64, f64> = metrics.iter().filter_map(score_of).collect();
        let of_ppo = reward_models(&root);
        let mut models = Vec::new();
        let until = of_ppo.iter().skip(1).map(|next| next.since).chain([PolicyVersion(u64::MAX)]);
        for (scored, until) in of_ppo.iter().zip(until) {
            models.push(ModelRecord {
                dir: Some(scored.dir.display().to_string()),
                used: used_by(&scored.dir)?,
                scores: scores.range(scored.since.0..until.0.max(scored.since.0)).map(|(v, s)| (*v, *s)).collect(),
            });
        }
        if of_ppo.is_empty() && !scores.is_empty() {
            models.push(ModelRecord { scores, ..ModelRecord::default() });
        }
        // One that it trained and took no scores from.
        let own = StageDir::at(&root.join(Stage::Reward.name())).model();
        if !of_ppo.iter().any(|scored| scored.dir == own) {
            let used = used_by(&own)?;
            if !used.is_empty() {
                models.push(ModelRecord { dir: Some(own.display().to_string()), used, ..ModelRecord::default() });
            }
        }
        Ok(Self { root: root.display().to_string(), models })
    }
}

/// The labels that a reward model learnt from: its stage keeps them beside it.
fn used_by(model: &Path) -> Result<BTreeMap<LabelName, LabelUse>, RunDirError> {
    let Some(stage) = model.parent() else { return Ok(BTreeMap::new()) };
    let used: Vec<LabelUse> = read_if_there(&stage.join(LABELS_FILE))?;
    let name =
        |used: &LabelUse| LabelName { task: used.task.clone(), labeler: used.labeler.clone(), revision: used.revision };
    Ok(used.into_iter().map(|used| (name(&used), used)).collect())
}

fn read_if_there<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>, RunDirError> {
    if path.exists() { read_jsonl(path) } else { Ok(Vec::new()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use collimate_protocol::messages::RunEvent;
    use collimate_protocol::records::UsedFor;
    use collimate_protocol::{RewardModelId, SettingChange};

    use super::*;
    use crate::rundir::event_log::{EventLog, LoggedEvent};

    const LABEL: &str =
        "{\"task\":\"t\",\"labeler\":\"anna\",\"revision\":2,\"used\":\"training\",\"scores\":[1.0,0.0]}\n";

    fn name() -> LabelName {
        LabelName { task: "t".to_owned(), labeler: "anna".to_owned(), revision: 2 }
    }

    fn scores_of(lines: &[(u64, &str)]) -> String {
        lines.iter().map(|(v, s)| format!("{{\"version\":{v},\"batch\":{{\"score\":{s}}}}}\n")).collect()
    }

    #[test]
    fn a_run_directory_is_read_as_far_as_it_has_come() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunRecord::read_all(dir.path()).is_err(), "no run");
        let run = RunDir::open(dir.path(), &toml::Table::new()).unwrap();
        assert_eq!(RunRecord::read_all(dir.path()).unwrap()[0].models, []);
        let reward = run.begin(Stage::Reward).unwrap();
        fs::create_dir_all(reward.model()).unwrap();
        fs::write(reward.path().join(LABELS_FILE), LABEL).unwrap();
        let ppo = run.begin(Stage::Ppo).unwrap();
        fs::write(ppo.metrics(), scores_of(&[(1, "0.5"), (2, "null")])).unwrap();
        let [record]: [RunRecord; 1] = RunRecord::read_all(dir.path()).unwrap().try_into().unwrap();
        let [model]: [ModelRecord; 1] = record.models.try_into().unwrap();
        assert_eq!(model.scores, BTreeMap::from([(0, 0.5)]), "what began at 0; a score that is no number is none");
        assert_eq!(model.used[&name()].used, UsedFor::Training);
        assert!(model.dir.unwrap().ends_with("reward/model"));
    }

    #[test]
    fn a_reward_model_of_another_run_brings_its_labels_and_gets_the_versions_that_it_scored() {
        let dir = tempfile::tempdir().unwrap();
        let (here, other) = (dir.path().join("here"), dir.path().join("other/reward"));
        fs::create_dir_all(other.join("model")).unwrap();
        fs::write(other.join(LABELS_FILE), LABEL).unwrap();
        let run = RunDir::open(&here, &toml::Table::new()).unwrap();
        fs::create_dir_all(run.begin(Stage::Reward).unwrap().model()).unwrap();
        let ppo = run.begin(Stage::Ppo).unwrap();
        fs::write(ppo.metrics(), scores_of(&[(1, "0.1"), (2, "0.2"), (3, "7.0"), (4, "8.0")])).unwrap();
        let model = RewardModelId { dir: other.join("model"), weights: "0f".into() };
        let event = RunEvent::Changed { version: PolicyVersion(2), changes: vec![SettingChange::RewardModel(model)] };
        EventLog::open(&ppo.events()).add(&LoggedEvent::now(PolicyVersion(2), event));
        let [record]: [RunRecord; 1] = RunRecord::read_all(&here).unwrap().try_into().unwrap();
        let [own, replaced]: [ModelRecord; 2] = record.models.try_into().unwrap();
        assert_eq!(own.scores, BTreeMap::from([(0, 0.1), (1, 0.2)]));
        assert!(own.used.is_empty());
        assert_eq!(replaced.scores, BTreeMap::from([(2, 7.0), (3, 8.0)]));
        assert!(replaced.used.contains_key(&name()));
    }

    #[test]
    fn each_round_of_an_iterated_run_is_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let root = RunDir::open(dir.path(), &toml::Table::new()).unwrap();
        for round in [1, 2] {
            RunDir::open(&root.round(round), &toml::Table::new()).unwrap();
        }
        let roots: Vec<String> =
            RunRecord::read_all(dir.path()).unwrap().into_iter().map(|record| record.root).collect();
        assert!(roots[0].ends_with("round-1") && roots[1].ends_with("round-2") && roots.len() == 2, "{roots:?}");
    }
}
