//! The flow's settings: how much, how stale, how many threads.

use std::fmt;
use std::time::Duration;

use collimate_protocol::{PolicyVersion, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::RunError;

/// How the roles share threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowMode {
    /// Each role on a thread of its own.
    #[default]
    Threaded,
    /// All roles in turn on one thread: two runs are equal bit for bit.
    Deterministic,
}

/// When a generator takes new weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightUpdates {
    /// Before the next token: a response in progress goes on under the new weights.
    #[default]
    InFlight,
    /// Once the responses in progress have ended; until then no new one starts.
    BetweenRollouts,
}

/// Settings of the flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlowConfig {
    /// How many updates: each trains on one batch.
    pub n_updates: u64,
    /// Rollouts in one batch.
    pub batch_size: usize,
    /// How many updates may lie between the sampling of a token and the update that trains on it. 0 is exactly
    /// synchronous PPO; with more, sampling overlaps with training.
    pub max_staleness: u64,
    /// "threaded" (each role on its own thread) or "deterministic" (one thread, equal bit for bit).
    pub mode: FlowMode,
    /// When generators take new weights: "in_flight" (before the next token) or "between_rollouts".
    pub weight_updates: WeightUpdates,
    /// Most rollouts that a scorer takes at once.
    pub scorer_batch: usize,
    /// Rollouts that a scorer waits for before it begins, as long as more are on their way for the same batch. Few at
    /// once cost nearly as much as many; but where scoring is slow beside sampling (a process, a large reward model),
    /// with 1 it is soonest done.
    pub scorer_waits_for: usize,
    /// How many items fit between two roles.
    pub capacities: Capacities,
    /// Threads that a role computes with when threaded; 0 shares those of the process. Roles that share get about the
    /// same done together, but an update takes most of the cores for itself, and sampling waits.
    pub threads: RoleThreads,
    /// What happens when a role fails.
    pub restarts: RestartConfig,
    /// How often the whole state is kept.
    pub checkpoints: CheckpointConfig,
    /// What a stop does with what is in flight: "checkpoint" (it is sampled again when the run goes on) or "drain"
    /// (what fills whole batches is trained on first).
    pub on_stop: OnStop,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            n_updates: 100,
            batch_size: 64,
            // PPO loses quality fast when off-policy (arXiv 2410.18252).
            max_staleness: 1,
            mode: FlowMode::default(),
            weight_updates: WeightUpdates::default(),
            scorer_batch: 16,
            scorer_waits_for: 8,
            capacities: Capacities::default(),
            threads: RoleThreads::default(),
            restarts: RestartConfig::default(),
            checkpoints: CheckpointConfig::default(),
            on_stop: OnStop::default(),
        }
    }
}

/// How often a run's whole state is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Updates from one checkpoint to the next; 0 for none but at a stop and at the end. At a checkpoint nothing is in
    /// flight: sampling for the update after it begins once it is done, whatever max_staleness is.
    pub every: u64,
    /// Checkpoints that are kept.
    pub n_kept: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 10, n_kept: 3 }
    }
}

/// What a stop does with what is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnStop {
    /// Its tickets are written to the checkpoint, and issued again when the run goes on.
    #[default]
    Checkpoint,
    /// What fills whole batches is trained on first; then as above.
    Drain,
}

/// When a role that has failed, by an error, a panic or a stall, is started again. What it had in hand is done again
/// from the same seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartConfig {
    /// Failures within window_s, of all roles together, that are mended; the next one ends the run. 0 mends none.
    pub most_failures: usize,
    /// How long a failure counts (seconds).
    pub window_s: f64,
    /// How long a role waits before it starts again (seconds); twice as long for each further failure within window_s.
    pub backoff_s: f64,
    /// How long a role may compute on one piece of work before it counts as stalled (seconds); 0 lets it take for
    /// ever. When deterministic, nobody watches: all roles are on one thread.
    pub stall_s: f64,
}

impl Default for RestartConfig {
    fn default() -> Self {
        // An hour for an update: on a CPU, that of a model of a billion weights may well take minutes.
        Self { most_failures: 5, window_s: 600.0, backoff_s: 0.5, stall_s: 3600.0 }
    }
}

impl RestartConfig {
    /// How long a role may compute on one piece of work; `None` for ever.
    pub fn patience(&self) -> Option<Duration> {
        (self.stall_s > 0.0).then(|| Duration::from_secs_f64(self.stall_s))
    }

    fn validate(&self) -> Result<(), RunError> {
        for (key, seconds) in [("window_s", self.window_s), ("backoff_s", self.backoff_s), ("stall_s", self.stall_s)] {
            if Duration::try_from_secs_f64(seconds).is_err() {
                return Err(RunError::Config(format!("restarts.{key} is {seconds}, expected seconds, 0 or more")));
            }
        }
        Ok(())
    }
}

/// How many items fit in each role's inbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Capacities {
    /// Prompts that wait for a generator's slot.
    pub prompts: usize,
    /// Rollouts that wait for the reference scorer.
    pub rollouts: usize,
    /// Rollouts that wait for the reward scorer.
    pub referenced: usize,
    /// Rollouts that wait for the experience buffer.
    pub scored: usize,
    /// Batches that wait for the learner.
    pub batches: usize,
    /// Batches of pretraining text that wait for the learner.
    pub pretrain_batches: usize,
    /// Updates that wait to be recorded.
    pub updates: usize,
}

impl Default for Capacities {
    fn default() -> Self {
        Self { prompts: 64, rollouts: 64, referenced: 64, scored: 64, batches: 1, pretrain_batches: 8, updates: 4 }
    }
}

/// Threads of each role that computes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoleThreads {
    /// Of each generator.
    pub generator: usize,
    /// Of the reference scorer.
    pub reference_scorer: usize,
    /// Of the reward scorer.
    pub reward_scorer: usize,
    /// Of the experience buffer.
    pub experience_buffer: usize,
    /// Of the learner.
    pub learner: usize,
}

impl RoleThreads {
    /// How many threads a role computes with; 0 shares those of the process.
    pub fn of(&self, role: Role) -> usize {
        match role {
            Role::Generator => self.generator,
            Role::ReferenceScorer => self.reference_scorer,
            Role::RewardScorer => self.reward_scorer,
            Role::ExperienceBuffer => self.experience_buffer,
            Role::Learner => self.learner,
            // They move data and compute nothing.
            Role::PromptSource | Role::PretrainMixer | Role::Recorder => 0,
        }
    }
}

impl FlowConfig {
    /// # Errors
    /// A setting makes no sense; the message names its key.
    pub fn validate(&self) -> Result<(), RunError> {
        let capacities = &self.capacities;
        for (key, value) in [
            ("n_updates", self.n_updates),
            ("batch_size", self.batch_size as u64),
            ("scorer_batch", self.scorer_batch as u64),
            ("scorer_waits_for", self.scorer_waits_for as u64),
            ("capacities.prompts", capacities.prompts as u64),
            ("capacities.rollouts", capacities.rollouts as u64),
            ("capacities.referenced", capacities.referenced as u64),
            ("capacities.scored", capacities.scored as u64),
            ("capacities.batches", capacities.batches as u64),
            ("capacities.pretrain_batches", capacities.pretrain_batches as u64),
            ("capacities.updates", capacities.updates as u64),
            ("checkpoints.n_kept", self.checkpoints.n_kept as u64),
        ] {
            if value == 0 {
                return Err(RunError::Config(format!("{key} is 0, it must be at least 1")));
            }
        }
        if self.scorer_waits_for > self.scorer_batch {
            return Err(RunError::Config(format!(
                "scorer_waits_for is {}, more than the {} that scorer_batch lets a scorer take",
                self.scorer_waits_for, self.scorer_batch
            )));
        }
        self.restarts.validate()?;
        let too_many =
            |keys: &str| RunError::Config(format!("{keys} are too large: their product does not fit 64 bits"));
        self.n_updates.checked_mul(self.batch_size as u64).ok_or_else(|| too_many("n_updates and batch_size"))?;
        self.max_staleness
            .checked_add(1)
            .and_then(|batches| batches.checked_mul(self.batch_size as u64))
            .ok_or_else(|| too_many("max_staleness and batch_size"))?;
        Ok(())
    }

    /// Rollouts that the whole run trains on.
    pub fn n_rollouts(&self) -> u64 {
        self.n_updates * self.batch_size as u64
    }

    /// Most tickets in flight: `(max_staleness + 1) * batch_size` (AReaL's rule, arXiv 2505.24298).
    pub fn n_tickets(&self) -> u64 {
        (self.max_staleness + 1) * self.batch_size as u64
    }

    /// Rollouts that are trained on from one checkpoint to the next; `None` without checkpoints.
    pub fn barrier(&self) -> Option<u64> {
        let n_rollouts = self.checkpoints.every.checked_mul(self.batch_size as u64);
        n_rollouts.filter(|n_rollouts| *n_rollouts > 0)
    }

    /// Whether there is a checkpoint at this version.
    pub fn is_checkpoint(&self, version: PolicyVersion) -> bool {
        self.checkpoints.every > 0 && version.0.is_multiple_of(self.checkpoints.every)
    }

    /// What these settings promise about staleness, before anything runs.
    pub fn staleness_bound(&self) -> StalenessBound {
        StalenessBound { n_tickets: self.n_tickets(), max_staleness: self.max_staleness }
    }
}

/// What a flow's settings promise about staleness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StalenessBound {
    /// Most prompts and rollouts in flight.
    pub n_tickets: u64,
    /// Most updates between the sampling of any token and the update that trains on it: what is older is dropped.
    pub max_staleness: u64,
}

impl fmt::Display for StalenessBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_tickets, max_staleness } = self;
        write!(
            f,
            "staleness: at most {n_tickets} prompts and rollouts in flight; a response with a token sampled more than \
             {max_staleness} updates before it would be trained on is dropped"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_of_zero_is_refused_by_its_key() {
        let config =
            FlowConfig { capacities: Capacities { scored: 0, ..Capacities::default() }, ..FlowConfig::default() };
        assert_eq!(config.validate().unwrap_err().to_string(), "capacities.scored is 0, it must be at least 1");
    }

    #[test]
    fn settings_whose_product_overflows_are_refused() {
        let config = FlowConfig { max_staleness: u64::MAX, ..FlowConfig::default() };
        assert!(config.validate().unwrap_err().to_string().contains("max_staleness and batch_size"));
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(toml::from_str::<FlowConfig>("batch_sise = 3").is_err());
    }
}
