//! A recipe's stages, one after another, in a run directory. A stage that is complete there is not run again.

use std::path::{Path, PathBuf};
use std::time::Instant;

use collimate_models::kernels;
use collimate_protocol::records::Summary;
use indicatif::HumanBytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::{StageContext, StageError, StopFlag};
use super::recipe::Recipe;
use super::reward::RewardConfig;
use super::{collect, ppo, pretrain, reward, sft};
use crate::observe::ppo_recorder::PpoRecorderParts;
use crate::observe::{Console, ConsoleEvent, PpoRecorder, StageRecorder};
use crate::rundir::{Recorded, RunDir, RunDirError, Stage, StageDir, StageMarker, summary};
use crate::view::Live;
use crate::{device, process, report};

/// How a run fails. What was finished before stays, and the same command continues after it.
#[derive(Debug, thiserror::Error)]
pub enum RunFailure {
    /// A stage.
    #[error("{}: {source}", stage.name())]
    Stage {
        /// Which.
        stage: Stage,
        /// With what.
        source: StageError,
    },
    /// A round of `collimate iterate`.
    #[error("round {round}: {source}")]
    Round {
        /// Which, from 1.
        round: usize,
        /// With what.
        source: Box<RunFailure>,
    },
    /// The run directory itself.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// There is nothing to run.
    #[error("{0}")]
    Recipe(String),
}

impl RunFailure {
    /// Whether the run did not fail but was told to stop.
    pub fn is_stopped(&self) -> bool {
        match self {
            Self::Stage { source, .. } => matches!(source, StageError::Stopped),
            Self::Round { source, .. } => source.is_stopped(),
            Self::RunDir(_) | Self::Recipe(_) => false,
        }
    }
}

/// Runs the recipe's stages, or `only` one of them, and writes summary and report.
pub fn run(
    recipe: &Recipe,
    only: Option<Stage>,
    dir: &RunDir,
    console: &Console,
    live: &Live,
    stop: &StopFlag,
) -> Result<Summary, RunFailure> {
    if recipe.iterate.is_some() {
        return Err(RunFailure::Recipe(
            "the recipe has an [iterate] table, so its stages are done in rounds: run it by `collimate iterate`".into(),
        ));
    }
    let stages: Vec<Stage> = Stage::ALL.into_iter().filter(|stage| lists(recipe, *stage)).collect();
    if stages.is_empty() {
        return Err(RunFailure::Recipe(
            "the recipe lists no stage; give it a [pretrain], [sft], [collect], [reward] or [ppo] table".into(),
        ));
    }
    if let Some(only) = only.filter(|only| !stages.contains(only)) {
        return Err(RunFailure::Recipe(format!("the recipe has no [{}] table", only.name())));
    }
    let runner = Runner { recipe, dir, console, live, stop };
    for stage in stages.into_iter().filter(|stage| only.is_none_or(|only| only == *stage)) {
        let done = runner.stage(stage);
        // What there is so far is worth a page also when the stage failed. A page can be made again by
        // `collimate report`, so without one the run goes on.
        let shown = summary::write(dir, recipe.seed).and_then(|_| report::write(dir));
        done?;
        if let Err(error) = shown {
            console.warn(&error.to_string());
        }
    }
    Ok(summary::write(dir, recipe.seed)?)
}

fn lists(recipe: &Recipe, stage: Stage) -> bool {
    match stage {
        Stage::Pretrain => recipe.pretrain.is_some(),
        Stage::Sft => recipe.sft.is_some(),
        Stage::Collect => recipe.collect.is_some(),
        Stage::Reward => recipe.reward.is_some(),
        Stage::Ppo => recipe.ppo.is_some(),
    }
}

struct Runner<'a> {
    recipe: &'a Recipe,
    dir: &'a RunDir,
    console: &'a Console,
    live: &'a Live,
    stop: &'a StopFlag,
}

impl Runner<'_> {
    fn stage(&self, stage: Stage) -> Result<(), RunFailure> {
        let at = |source| RunFailure::Stage { stage, source };
        let recipe = self.recipe;
        let corpus = recipe.corpus.as_ref();
        match stage {
            Stage::Pretrain => {
                let Some(config) = &recipe.pretrain else { return Ok(()) };
                self.complete(stage, config, |context, _| pretrain::run(config, corpus, context))
            }
            Stage::Sft => {
                let Some(config) = &recipe.sft else { return Ok(()) };
                let base = input(recipe, self.dir, config.base.as_deref(), "sft.base", Stage::Pretrain).map_err(at)?;
                self.complete(stage, config, |context, _| sft::run(config, &base, corpus, context))
            }
            Stage::Collect => {
                let Some(config) = &recipe.collect else { return Ok(()) };
                let policy = input(recipe, self.dir, config.policy.as_deref(), "collect.policy", Stage::Sft);
                let policy = policy.map_err(at)?;
                self.complete(stage, config, |context, _| collect::run(config, &policy, corpus, context))
            }
            Stage::Reward => {
                let Some(config) = &recipe.reward else { return Ok(()) };
                let sft = input(recipe, self.dir, config.sft.as_deref(), "reward.sft", Stage::Sft).map_err(at)?;
                let config = &self.with_collected(config).map_err(at)?;
                self.complete(stage, config, |context, _| reward::run(config, &sft, corpus, context))
            }
            Stage::Ppo => {
                let Some(config) = &recipe.ppo else { return Ok(()) };
                let (sft, reward_model) = input_models(recipe, self.dir).map_err(at)?;
                self.complete(stage, config, |context, folder| {
                    ppo::run(config, &sft, reward_model.as_deref(), corpus, context, |parts| {
                        let parts = PpoRecorderParts {
                            n_updates: config.flow.n_updates,
                            recorded: Recorded {
                                n_rollouts: config.stage.n_rollouts_recorded,
                                n_in_detail: config.stage.n_rollouts_in_detail,
                            },
                            detokenizer: parts.detokenizer,
                            gold: parts.gold,
                            n_labels: parts.n_labels,
                            version: parts.version,
                            live: self.live.clone(),
                        };
                        Ok(Box::new(PpoRecorder::open(folder, self.console, parts)?))
                    })
                })
            }
        }
    }

    /// The reward stage's settings, with the comparisons of the collect stage where the recipe has one.
    fn with_collected(&self, config: &RewardConfig) -> Result<RewardConfig, StageError> {
        let collected = self.dir.stage(Stage::Collect);
        match lists(self.recipe, Stage::Collect) {
            false => Ok(config.clone()),
            true if config.comparisons.is_some() || config.labeler.is_some() => Err(StageError::Setting(
                "[reward] has comparisons of its own, and the recipe has a [collect] table: keep one of them".into(),
            )),
            true if !collected.marker().exists() => Err(incomplete(&collected, Stage::Collect)),
            true => Ok(RewardConfig { comparisons: Some(collected.comparisons()), ..config.clone() }),
        }
    }

    /// Does a stage, unless it is complete already.
    fn complete<C: Serialize, S: Serialize + DeserializeOwned>(
        &self,
        stage: Stage,
        config: &C,
        work: impl FnOnce(&mut StageContext<'_>, &StageDir) -> Result<S, StageError>,
    ) -> Result<(), RunFailure> {
        if self.dir.finished::<S>(stage)?.is_some() {
            self.console.event(&ConsoleEvent::StageSkipped { stage });
            self.console.line(&format!("{} is complete already", stage.name()));
            return Ok(());
        }
        let at = |source: StageError| RunFailure::Stage { stage, source };
        let device = device::open(&self.recipe.device.0).map_err(|error| at(error.into()))?;
        self.console.event(&ConsoleEvent::StageStarted { stage });
        self.live.stage_began(stage);
        let folder = self.dir.begin(stage)?;
        // PPO's updates have a recorder of their own.
        let mut recorder = match stage {
            Stage::Ppo => StageRecorder::without_files(stage, self.console),
            _ => StageRecorder::create(stage, &folder, self.console)?,
        };
        let mut context = StageContext {
            seed: self.recipe.seed,
            device,
            precision: self.recipe.precision,
            out_dir: folder.path().to_owned(),
            stop: self.stop.clone(),
            live: self.live.clone(),
            observer: &mut recorder,
            started: Instant::now(),
        };
        let composed = kernels::composed_on(&context.device, context.precision.on(&context.device));
        if !composed.is_empty() {
            let device = device::name_of(&context.device);
            context.observer.note(&format!("on {device} without a fused kernel of their own: {}", composed.join(", ")));
        }
        process::release_freed_memory();
        process::forget_peak();
        let done = work(&mut context, &folder);
        if done.is_ok()
            && let Some(peak) = process::peak_memory()
        {
            context.observer.note(&format!("most memory in use: {}", HumanBytes(peak)));
        }
        recorder.finish();
        let summary = done.map_err(at)?;
        let marker = StageMarker { config: json_of(config, &folder)?, summary: json_of(&summary, &folder)? };
        marker.write(&folder.marker())?;
        self.console.event(&ConsoleEvent::StageFinished { stage, summary: &marker.summary });
        Ok(())
    }
}

/// The models that PPO starts from: the SFT model, and the reward model where there is one.
pub fn input_models(recipe: &Recipe, dir: &RunDir) -> Result<(PathBuf, Option<PathBuf>), StageError> {
    let Some(config) = &recipe.ppo else {
        return Err(StageError::Setting("the recipe has no [ppo] table".into()));
    };
    let sft = input(recipe, dir, config.stage.sft.as_deref(), "ppo.sft", Stage::Sft)?;
    let reward_model = match (&config.stage.reward_model, &recipe.reward) {
        (None, None) => None,
        (Some(named), _) => Some(named.clone()),
        (None, Some(_)) => {
            let model = input(recipe, dir, None, "ppo.reward_model", Stage::Reward)?;
            let adapter = dir.stage(Stage::Reward).adapter();
            Some(if config.stage.lora.is_some() && adapter.exists() { adapter } else { model })
        }
    };
    Ok((sft, reward_model))
}

/// The model that a stage starts from: the one named, or what the stage before has written.
fn input(recipe: &Recipe, dir: &RunDir, named: Option<&Path>, key: &str, before: Stage) -> Result<PathBuf, StageError> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let name = before.name();
    if !lists(recipe, before) {
        return Err(StageError::Setting(format!(
            "`{key}` is missing, and the recipe has no [{name}] stage that would make it"
        )));
    }
    let folder = dir.stage(before);
    if !folder.marker().exists() {
        return Err(incomplete(&folder, before));
    }
    Ok(folder.model())
}

fn incomplete(folder: &StageDir, stage: Stage) -> StageError {
    StageError::Setting(format!(
        "{} is not complete: run `collimate {}` with this recipe first, or `collimate run`",
        folder.path().display(),
        stage.name()
    ))
}

fn json_of<T: Serialize>(value: &T, folder: &StageDir) -> Result<serde_json::Value, RunDirError> {
    serde_json::to_value(value).map_err(|error| RunDirError::bad(&folder.marker(), error.to_string()))
}
