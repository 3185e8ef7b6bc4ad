//! `replay`: a run of PPO done again from its journal, on one thread, and compared with what it was.

use std::time::Instant;

use collimate_protocol::{PolicyVersion, SettingChange};
use serde::Serialize;

use super::context::{StageContext, StageError, StageObserver, StopFlag};
use super::ppo_parts::PpoParts;
use super::ppo_reward::NO_REWARD;
use super::recipe::Recipe;
use super::run::input_models;
use crate::device;
use crate::flow::NoSink;
use crate::flow::replay::Replay;
use crate::rundir::{Checkpoints, Journal, RunDir, Stage};
use crate::view::Live;

/// From where to where.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplayRange {
    /// The version of the checkpoint to start at; `None` for the beginning.
    pub from: Option<PolicyVersion>,
    /// The version to come to; `None` for the journal's end.
    pub until: Option<PolicyVersion>,
}

/// What was done again and came out the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replayed {
    /// The version that it started at.
    pub from: PolicyVersion,
    /// The version that it came to.
    pub until: PolicyVersion,
    /// Rollouts sampled again.
    pub n_rollouts: usize,
    /// Bytes of an update that was being written when the run ended.
    pub n_torn: u64,
    /// Seconds.
    pub elapsed_s: f64,
}

/// Replays the PPO stage of a run directory.
///
/// # Errors
/// The first thing that comes out otherwise, or what is missing.
pub fn run(
    recipe: &Recipe,
    dir: &RunDir,
    range: ReplayRange,
    observer: &mut dyn StageObserver,
    stop: &StopFlag,
) -> Result<Replayed, StageError> {
    let started = Instant::now();
    let Some(config) = &recipe.ppo else {
        return Err(StageError::Setting("the run's recipe has no [ppo] table".into()));
    };
    let folder = dir.stage(Stage::Ppo);
    let journal = Journal::read(&folder.journal())?;
    let checkpoints = Checkpoints::at(&folder.checkpoints());
    let checkpoint = range.from.map(|version| checkpoints.load(version)).transpose()?;
    let (sft, reward_model) = input_models(recipe, dir)?;
    let mut context = StageContext {
        seed: recipe.seed,
        device: device::open(&recipe.device.0)?,
        precision: recipe.precision,
        out_dir: folder.path().to_owned(),
        stop: stop.clone(),
        live: Live::default(),
        observer,
        started,
    };
    let parts = PpoParts::load(config, &sft, reward_model.as_deref(), recipe.corpus.as_ref(), &mut context)?;
    let flow = parts.flow(config, Box::new(NoSink), checkpoint, &context)?;
    let mut replay = Replay::new(flow, &config.flow)?;
    if config.stage.process.is_some() {
        context.observer.note("scores are taken from the journal: they came from a process");
        replay = replay.believing_scores();
    }

    let from = replay.version();
    let is_wanted = |version: PolicyVersion| version >= from && range.until.is_none_or(|until| version < until);
    let updates: Vec<_> = journal.updates.iter().filter(|update| is_wanted(update.version)).collect();
    let mut replayed = Replayed { from, until: from, n_rollouts: 0, n_torn: journal.n_torn, elapsed_s: 0.0 };
    let named = updates.iter().flat_map(|update| &update.changes).filter_map(|change| match change {
        SettingChange::RewardModel(model) => Some(model),
        _ => None,
    });
    // That another one lies there now is better known before an hour's replay than after it.
    for model in named.filter(|_| config.stage.process.is_none()) {
        let models = parts.reward_models(config).ok_or_else(|| StageError::Setting(NO_REWARD.into()))?;
        models.load(model).map_err(StageError::Role)?;
    }
    context.observer.phase("replay", updates.len() as u64);
    for (idx, update) in updates.iter().enumerate() {
        if stop.is_stopped() {
            return Err(StageError::Stopped);
        }
        replay.update(update)?;
        replayed.n_rollouts += update.rollouts.len();
        replayed.until = replay.version();
        context.observer.step(idx as u64 + 1, &[]);
    }
    if let Some(until) = range.until.filter(|until| *until > replayed.until) {
        return Err(StageError::Setting(format!("the journal ends at {}, before {until}", replayed.until)));
    }
    replayed.elapsed_s = started.elapsed().as_secs_f64();
    Ok(replayed)
}
