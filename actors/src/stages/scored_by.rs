//! Which reward model scored what a run's policy wrote: the one that PPO began with, or one that took its place.

use std::path::{Path, PathBuf};

use collimate_protocol::messages::RunEvent;
use collimate_protocol::{PolicyVersion, SettingChange};

use super::recipe::Recipe;
use crate::rundir::event_log::LoggedEvent;
use crate::rundir::{RunDir, Stage, StageDir, read_jsonl};

/// A reward model, and the first version of the policy whose rollouts it scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoredBy {
    /// From which version on.
    pub since: PolicyVersion,
    /// Its directory.
    pub dir: PathBuf,
}

/// The reward models of the run in `root`, by the versions that they scored. What the run does not say, or no longer
/// says, is left out: where scores came of something else than a reward model, there is none.
pub fn reward_models(root: &Path) -> Vec<ScoredBy> {
    let first = first_model(root).map(|dir| ScoredBy { since: PolicyVersion(0), dir });
    let events: Vec<LoggedEvent> =
        read_jsonl(&StageDir::at(&root.join(Stage::Ppo.name())).events()).unwrap_or_default();
    let replaced = events.into_iter().flat_map(|logged| match logged.event {
        RunEvent::Changed { version: since, changes } => {
            let models = changes.into_iter().filter_map(move |change| match change {
                SettingChange::RewardModel(model) => Some(ScoredBy { since, dir: model.dir }),
                _ => None,
            });
            models.collect()
        }
        _ => Vec::new(),
    });
    first.into_iter().chain(replaced).collect()
}

/// The one that PPO began with.
fn first_model(root: &Path) -> Option<PathBuf> {
    let recipe = RunDir::existing(root).ok().and_then(|dir| Recipe::of_run(&dir));
    let own = StageDir::at(&std::path::absolute(root).ok()?.join(Stage::Reward.name()));
    match recipe.and_then(|recipe| recipe.ppo).map(|ppo| ppo.stage) {
        Some(stage) if stage.builtin.is_some() || stage.process.is_some() => None,
        Some(stage) if stage.reward_model.is_some() => stage.reward_model,
        // Its model may have been removed since.
        _ => own.path().exists().then(|| own.model()),
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::RewardModelId;

    use super::*;
    use crate::rundir::event_log::EventLog;

    #[test]
    fn a_run_s_own_reward_model_scores_until_another_takes_its_place() {
        let root = tempfile::tempdir().unwrap();
        assert!(reward_models(root.path()).is_empty());
        let own = root.path().join("reward/model");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::create_dir_all(root.path().join("ppo")).unwrap();
        let first = ScoredBy { since: PolicyVersion(0), dir: own };
        assert_eq!(reward_models(root.path()), std::slice::from_ref(&first));
        let model = RewardModelId { dir: "/models/better".into(), weights: "0f".into() };
        let changes = vec![SettingChange::Lr(1e-4), SettingChange::RewardModel(model)];
        let event = RunEvent::Changed { version: PolicyVersion(5), changes };
        EventLog::open(&root.path().join("ppo/events.jsonl")).add(&LoggedEvent::now(PolicyVersion(5), event));
        let second = ScoredBy { since: PolicyVersion(5), dir: "/models/better".into() };
        assert_eq!(reward_models(root.path()), [first, second]);
    }

    #[test]
    fn a_named_reward_model_scores_in_place_of_the_run_s_own_and_a_function_in_place_of_either() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("reward/model")).unwrap();
        let with = |text: &str| {
            std::fs::write(root.path().join("config.toml"), text).unwrap();
            reward_models(root.path()).into_iter().map(|scored| scored.dir).collect::<Vec<_>>()
        };
        assert_eq!(with("[ppo]\nreward_model = \"/models/other\"\n"), [Path::new("/models/other")]);
        assert!(with("[ppo.builtin]\nkind = \"length\"\ntarget_tokens = 3\n").is_empty());
    }
}
