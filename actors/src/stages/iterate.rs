//! `iterate`: rounds of comparisons, reward model and PPO, each from the policy of the round before.
//!
//! A round is a recipe of its own, with the tables `collect`, `reward` and `ppo`, in a run directory of its own:
//! what does a recipe does a round, and what continues a recipe continues a round.

use std::path::{Path, PathBuf};

use collimate_protocol::records::Summary;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::collect::config::{CollectConfig, Source};
use super::context::StopFlag;
use super::ppo_config::PpoStageConfig;
use super::recipe::Recipe;
use super::reward::RewardConfig;
use super::run::{self, RunFailure};
use crate::observe::{Console, ConsoleEvent};
use crate::report;
use crate::rundir::{RunDir, Stage, StageDir, summary};
use crate::view::Live;

/// Rounds of comparisons, reward model and PPO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IterateConfig {
    /// Rounds in all. Where a run has done fewer, the same command with more goes on.
    pub n_rounds: usize,
    /// Where the value model of the second and later rounds starts: "reward_model" (that round's) or "carried_on" (the value
    /// model of the round before; ppo.value_warmup_updates lets it get used to the new scores).
    pub value_model: ValueStart,
}

/// Where a later round's value model starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueStart {
    /// From the round's reward model, as the first round's does (Ouyang et al. 2022).
    #[default]
    RewardModel,
    /// From the value model of the round before.
    CarriedOn,
}

impl Default for IterateConfig {
    fn default() -> Self {
        Self { n_rounds: 3, value_model: ValueStart::default() }
    }
}

/// Refuses a recipe that has no rounds, or whose settings make no sense in rounds.
pub fn check(recipe: &Recipe) -> Result<(), RunFailure> {
    Tables::of(recipe).map(drop)
}

/// The tables that a round is made of.
struct Tables<'a> {
    recipe: &'a Recipe,
    iterate: &'a IterateConfig,
    collect: &'a CollectConfig,
    reward: &'a RewardConfig,
    ppo: &'a PpoStageConfig,
}

/// Runs the recipe's rounds in `dir`, those that are not complete there; first the stages that come to the SFT model, if
/// the recipe lists some. Writes summary and report after each round.
///
/// # Errors
/// A setting that makes no sense in rounds, or what a stage of a round fails with. What was finished stays, and the same
/// command continues after it.
pub fn run(
    recipe: &Recipe,
    dir: &RunDir,
    console: &Console,
    live: &Live,
    stop: &StopFlag,
) -> Result<Summary, RunFailure> {
    let tables = Tables::of(recipe)?;
    let sft = tables.sft_model(dir, console, live, stop)?;
    for round in 1..=tables.iterate.n_rounds {
        let of_round = tables.recipe_of(round, &sft, dir);
        let at = |source: RunFailure| RunFailure::Round { round, source: Box::new(source) };
        let round_dir = RunDir::open(&dir.round(round), &of_round).map_err(|error| at(error.into()))?;
        console.event(&ConsoleEvent::RoundStarted { round, n_rounds: tables.iterate.n_rounds, dir: round_dir.root() });
        console.line(&format!("round {round} of {}", tables.iterate.n_rounds));
        live.round_began(&round_dir);
        let done = run::run(&of_round, None, &round_dir, console, live, stop).map_err(at);
        // Of what is done so far, also where the round has failed.
        let shown = summary::write(dir, recipe.seed).and_then(|_| report::write(dir));
        done?;
        if let Err(error) = shown {
            console.warn(&error.to_string());
        }
    }
    Ok(summary::write(dir, recipe.seed)?)
}

impl<'a> Tables<'a> {
    /// Refuses what is missing, and what the rounds set themselves.
    fn of(recipe: &'a Recipe) -> Result<Self, RunFailure> {
        let missing = |table: &str| {
            RunFailure::Recipe(format!("the recipe has no [{table}] table; `collimate config {table}` prints one"))
        };
        let tables = Self {
            recipe,
            iterate: recipe.iterate.as_ref().ok_or_else(|| missing("iterate"))?,
            collect: recipe.collect.as_ref().ok_or_else(|| missing("collect"))?,
            reward: recipe.reward.as_ref().ok_or_else(|| missing("reward"))?,
            ppo: recipe.ppo.as_ref().ok_or_else(|| missing("ppo"))?,
        };
        let Self { collect, reward, ppo, .. } = &tables;
        let set_by_rounds = [
            ("collect.policy", collect.policy.is_some()),
            ("collect.reward_model", collect.reward_model.is_some()),
            ("collect.earlier", !collect.earlier.is_empty()),
            ("reward.comparisons", reward.comparisons.is_some()),
            ("reward.labeler", reward.labeler.is_some()),
            ("ppo.policy", ppo.stage.policy.is_some()),
            ("ppo.reward_model", ppo.stage.reward_model.is_some()),
            ("ppo.value_model", ppo.stage.value_model.is_some()),
            ("ppo.builtin", ppo.stage.builtin.is_some()),
            ("ppo.process", ppo.stage.process.is_some()),
        ];
        if let Some((key, _)) = set_by_rounds.iter().find(|(_, is_set)| *is_set) {
            return Err(RunFailure::Recipe(format!("`{key}` is set, but each round has its own: remove it")));
        }
        if tables.iterate.n_rounds == 0 {
            return Err(RunFailure::Recipe("iterate.n_rounds is 0, it must be at least 1".into()));
        }
        if recipe.sft.is_some() && ppo.stage.sft.is_some() {
            return Err(RunFailure::Recipe(
                "`ppo.sft` is set, but the recipe has an [sft] stage: keep one of them".into(),
            ));
        }
        collect.check().map_err(|source| RunFailure::Stage { stage: Stage::Collect, source })?;
        Ok(tables)
    }

    /// The SFT model: the one named, or what the recipe's own stages come to.
    fn sft_model(&self, dir: &RunDir, console: &Console, live: &Live, stop: &StopFlag) -> Result<PathBuf, RunFailure> {
        if let Some(named) = &self.ppo.stage.sft {
            return Ok(named.clone());
        }
        if self.recipe.sft.is_none() {
            return Err(RunFailure::Recipe("there is no SFT model: give `ppo.sft`, or an [sft] table".into()));
        }
        let before = Recipe { collect: None, reward: None, ppo: None, iterate: None, ..self.recipe.clone() };
        run::run(&before, None, dir, console, live, stop)?;
        Ok(absolute(&dir.stage(Stage::Sft).model()))
    }

    /// The recipe of a round, from 1.
    fn recipe_of(&self, round: usize, sft: &Path, dir: &RunDir) -> Recipe {
        let Self { recipe, iterate, .. } = self;
        let (mut collect, mut reward, mut ppo) = (self.collect.clone(), self.reward.clone(), self.ppo.clone());
        let before = |stage: Stage| StageDir::at(&absolute(&dir.round(round - 1)).join(stage.name()));
        collect.policy = Some(sft.to_owned());
        if collect.source == Source::Page {
            // Labelers keep their links.
            let page = collect.page.get_or_insert_default();
            page.db = labels(recipe, dir);
            if page.label.runs.is_empty() {
                page.label.runs = vec![absolute(dir.root())];
            }
        }
        reward.sft.get_or_insert_with(|| sft.to_owned());
        ppo.stage.sft = Some(sft.to_owned());
        ppo.stage.save_value_model |= iterate.value_model == ValueStart::CarriedOn;
        if round > 1 {
            let trained = before(Stage::Ppo);
            collect.policy = Some(trained.model());
            collect.earlier = vec![before(Stage::Collect).comparisons()];
            if collect.source != Source::Simulated {
                collect.reward_model = Some(before(Stage::Reward).model());
            }
            ppo.stage.policy = Some(if ppo.stage.lora.is_some() { trained.adapter() } else { trained.model() });
            if iterate.value_model == ValueStart::CarriedOn {
                ppo.stage.value_model = Some(trained.value_model());
            }
        }
        Recipe {
            seed: seed_of(recipe.seed, round),
            pretrain: None,
            sft: None,
            collect: Some(collect),
            reward: Some(reward),
            ppo: Some(ppo),
            iterate: None,
            ..(*recipe).clone()
        }
    }
}

/// The database of the labelling project that the rounds share, where people rank on a page.
pub fn labels(recipe: &Recipe, dir: &RunDir) -> Option<PathBuf> {
    let collect = recipe.collect.as_ref().filter(|collect| collect.source == Source::Page)?;
    let named = collect.page.as_ref().and_then(|page| page.db.clone());
    Some(named.unwrap_or_else(|| absolute(&dir.root().join("answers.db"))))
}

/// Rounds pick other prompts and sample other responses. TOML's numbers have 63 bits.
fn seed_of(seed: u64, round: usize) -> u64 {
    seed.wrapping_mul(1000).wrapping_add(round as u64) & (u64::MAX >> 1)
}

/// A round's recipe says where its inputs lie, from wherever it is run again.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const RECIPE: &str = "seed = 5\n[sft]\n[collect]\n[reward]\n[ppo]\n[iterate]\nvalue_model = \"carried_on\"\n";

    fn parsed(text: &str) -> Recipe {
        config::parse(text, Path::new("r.toml"), &[]).unwrap()
    }

    #[test]
    fn a_round_starts_from_the_policy_and_the_comparisons_of_the_one_before_and_is_held_near_the_sft_model() {
        let root = tempfile::tempdir().unwrap();
        let recipe = parsed(RECIPE);
        let dir = RunDir::open(root.path(), &recipe).unwrap();
        let tables = Tables::of(&recipe).unwrap();
        let of = |round| tables.recipe_of(round, Path::new("/m/sft"), &dir);
        let (first, third) = (of(1), of(3));
        assert_eq!((first.seed, third.seed), (5001, 5003));
        assert!(first.sft.is_none() && first.iterate.is_none());
        let [first_stage, third_stage] = [&first, &third].map(|recipe| recipe.ppo.clone().unwrap().stage);
        assert_eq!((first_stage.policy, first_stage.value_model, first_stage.save_value_model), (None, None, true));
        assert_eq!((first_stage.sft, third_stage.sft), (Some("/m/sft".into()), Some("/m/sft".into())));
        let before = root.path().join("round-2");
        assert_eq!(third_stage.policy, Some(before.join("ppo/model")));
        assert_eq!(third_stage.value_model, Some(before.join("ppo/value_model")));
        let [first, third] = [first, third].map(|recipe| recipe.collect.unwrap());
        assert_eq!((&first.policy, first.earlier.len()), (&Some("/m/sft".into()), 0));
        assert_eq!(third.policy, Some(before.join("ppo/model")));
        assert_eq!(third.earlier, [before.join("collect/comparisons.jsonl")]);
        assert_eq!(
            [&first, &third].map(|collect| collect.reward_model.clone()),
            [None, Some(before.join("reward/model"))]
        );
        // People keep their links from round to round.
        assert_eq!(
            [first.page, third.page].map(|page| page.unwrap().db),
            [1, 2].map(|_| Some(root.path().join("answers.db")))
        );
    }

    #[test]
    fn what_is_missing_and_what_rounds_set_themselves_is_named() {
        let refused = |text: &str, message: &str| {
            let error = Tables::of(&parsed(text)).err().unwrap().to_string();
            assert!(error.contains(message), "{error}");
        };
        refused("[iterate]\n", "no [collect] table");
        refused("[collect]\n[reward]\n[ppo]\n", "no [iterate] table");
        refused(&RECIPE.replace("[ppo]", "[ppo]\npolicy = \"x\""), "`ppo.policy` is set, but each round has its own");
        refused(&RECIPE.replace("[ppo]", "[ppo]\nsft = \"x\""), "keep one of them");
        refused(&RECIPE.replace("[iterate]", "[iterate]\nn_rounds = 0"), "iterate.n_rounds is 0");
        refused(&RECIPE.replace("[collect]", "[collect]\nk = 1"), "collect: collect.k is 1");
    }
}
