//! What a plan assumes, and what it tries.

use collimate_protocol::Role;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::flow::{Capacities, CheckpointConfig, FlowConfig, FlowMode, RestartConfig, RunError, WeightUpdates};

/// What a plan tries, and what it assumes of machine, models and data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlanConfig {
    /// Bounds on staleness that are tried.
    pub max_staleness: Vec<u64>,
    /// Numbers of generators that are tried, each with each bound.
    pub n_generators: Vec<usize>,
    /// Updates of each simulated run.
    pub n_updates: u64,
    /// Rollouts in one batch.
    pub batch_size: usize,
    /// Responses that a generator samples at once.
    pub n_slots: usize,
    /// Reference scorers.
    pub n_reference_scorers: usize,
    /// Reward scorers.
    pub n_reward_scorers: usize,
    /// Most rollouts that a scorer takes at once.
    pub scorer_batch: usize,
    /// Rollouts that a scorer waits for as long as more are on their way.
    pub scorer_waits_for: usize,
    /// When generators take new weights: "in_flight" or "between_rollouts".
    pub weight_updates: WeightUpdates,
    /// Updates from one checkpoint to the next; 0 for none. For each the flow runs dry.
    pub checkpoints_every: u64,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Tokens of a response: the length of each is drawn from this list. A long one here and there is a straggler.
    pub response_tokens: Vec<usize>,
    /// Tokens of pretraining text for each rollout of a batch (PPO-ptx); 0 without.
    pub ptx_tokens: f64,
    /// Seconds until a role that has failed goes on.
    pub restart_s: f64,
    /// Of all that is drawn.
    pub seed: u64,
    /// Cores of each device. A device on which nothing runs side by side has 1.
    pub devices: Vec<f64>,
    /// How many items fit between two roles.
    pub capacities: Capacities,
    /// How long each role's work takes.
    pub costs: RoleCosts,
}

/// How long the work of each role takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoleCosts {
    /// A decode step: one token of each response in progress, and the prompts of those that begin.
    pub generator: RoleCost,
    /// A pass over the rollouts that wait.
    pub reference_scorer: RoleCost,
    /// A pass over the rollouts that wait.
    pub reward_scorer: RoleCost,
    /// The values of a batch.
    pub experience_buffer: RoleCost,
    /// The text of an update.
    pub pretrain_mixer: RoleCost,
    /// An update: all epochs of a batch.
    pub learner: RoleCost,
    /// The record of an update.
    pub recorder: RoleCost,
}

/// How long a role's pieces of work take: call_s + token_s for each token, on its cores, undisturbed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoleCost {
    /// Where it computes, as places in `devices`, from 0. With several actors of a role the first takes the first, and
    /// so on, over again where there are more actors.
    pub devices: Vec<usize>,
    /// Seconds of each piece of work as such.
    pub call_s: f64,
    /// Seconds of each token that goes through a model.
    pub token_s: f64,
    /// Cores that it uses when it has a device for itself.
    pub cores: f64,
    /// How far durations scatter: the standard deviation of their logarithm; the mean stays.
    pub spread: f64,
    /// Share of the pieces of work that fail and are done again.
    pub failure_share: f64,
}

impl Default for RoleCost {
    fn default() -> Self {
        Self { devices: vec![0], call_s: 0.0, token_s: 0.0, cores: 1.0, spread: 0.0, failure_share: 0.0 }
    }
}

impl Default for RoleCosts {
    fn default() -> Self {
        let cost = |device_idx, call_s, token_s| RoleCost {
            devices: vec![device_idx],
            call_s,
            token_s,
            ..RoleCost::default()
        };
        Self {
            // A model of a billion weights in 16 bits on devices of 2 TB/s and 200 TFLOP/s in use: a decode step reads
            // all weights, a pass over a token is 2 GFLOP, and the training of policy and value model six passes.
            generator: cost(0, 2e-3, 1e-5),
            reference_scorer: cost(1, 2e-3, 1e-5),
            reward_scorer: cost(1, 2e-3, 1e-5),
            experience_buffer: cost(1, 2e-3, 1e-5),
            pretrain_mixer: RoleCost::default(),
            learner: cost(1, 10e-3, 6e-5),
            recorder: RoleCost::default(),
        }
    }
}

impl RoleCosts {
    /// Of one role; the prompt source's work takes no time worth a number.
    pub fn of(&self, role: Role) -> Option<&RoleCost> {
        Some(match role {
            Role::PromptSource => return None,
            Role::Generator => &self.generator,
            Role::ReferenceScorer => &self.reference_scorer,
            Role::RewardScorer => &self.reward_scorer,
            Role::ExperienceBuffer => &self.experience_buffer,
            Role::PretrainMixer => &self.pretrain_mixer,
            Role::Learner => &self.learner,
            Role::Recorder => &self.recorder,
        })
    }

    /// Of one role, to be changed.
    pub fn of_mut(&mut self, role: Role) -> Option<&mut RoleCost> {
        Some(match role {
            Role::PromptSource => return None,
            Role::Generator => &mut self.generator,
            Role::ReferenceScorer => &mut self.reference_scorer,
            Role::RewardScorer => &mut self.reward_scorer,
            Role::ExperienceBuffer => &mut self.experience_buffer,
            Role::PretrainMixer => &mut self.pretrain_mixer,
            Role::Learner => &mut self.learner,
            Role::Recorder => &mut self.recorder,
        })
    }
}

impl Default for PlanConfig {
    fn default() -> Self {
        let flow = FlowConfig::default();
        Self {
            max_staleness: vec![0, 1, 2, 4],
            n_generators: vec![1, 2, 4],
            n_updates: 50,
            batch_size: flow.batch_size,
            n_slots: 64,
            n_reference_scorers: 1,
            n_reward_scorers: 1,
            scorer_batch: flow.scorer_batch,
            scorer_waits_for: flow.scorer_waits_for,
            weight_updates: flow.weight_updates,
            checkpoints_every: flow.checkpoints.every,
            prompt_tokens: 256,
            response_tokens: vec![64, 96, 128, 160, 192, 224, 256, 512],
            ptx_tokens: 0.0,
            restart_s: flow.restarts.backoff_s,
            seed: 0,
            devices: vec![1.0, 1.0],
            capacities: flow.capacities,
            costs: RoleCosts::default(),
        }
    }
}

impl PlanConfig {
    /// The flow's settings with this bound.
    pub fn flow(&self, max_staleness: u64) -> FlowConfig {
        FlowConfig {
            n_updates: self.n_updates,
            batch_size: self.batch_size,
            max_staleness,
            mode: FlowMode::Deterministic,
            weight_updates: self.weight_updates,
            scorer_batch: self.scorer_batch,
            scorer_waits_for: self.scorer_waits_for,
            capacities: self.capacities.clone(),
            checkpoints: CheckpointConfig { every: self.checkpoints_every, ..CheckpointConfig::default() },
            // Each failure by itself: a plan is not about when to give up.
            restarts: RestartConfig {
                most_failures: usize::MAX,
                window_s: 0.0,
                backoff_s: self.restart_s,
                ..RestartConfig::default()
            },
            ..FlowConfig::default()
        }
    }

    /// Tokens of pretraining text in an update.
    pub fn ptx_tokens_per_update(&self) -> usize {
        (self.ptx_tokens * self.batch_size as f64).round() as usize
    }

    /// # Errors
    /// A setting makes no sense; the message names its key.
    pub fn validate(&self) -> Result<(), RunError> {
        let bad = |problem: String| Err(RunError::Config(problem));
        let lists = [
            ("max_staleness", self.max_staleness.is_empty()),
            ("n_generators", self.n_generators.is_empty()),
            ("response_tokens", self.response_tokens.is_empty()),
            ("devices", self.devices.is_empty()),
        ];
        if let Some((key, _)) = lists.iter().find(|(_, is_empty)| *is_empty) {
            return bad(format!("{key} is empty, it must hold at least one number"));
        }
        let counts = [
            ("n_generators", self.n_generators.iter().copied().min().unwrap_or_default()),
            ("n_slots", self.n_slots),
            ("n_reference_scorers", self.n_reference_scorers),
            ("n_reward_scorers", self.n_reward_scorers),
            ("prompt_tokens", self.prompt_tokens),
            ("response_tokens", self.response_tokens.iter().copied().min().unwrap_or_default()),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return bad(format!("{key} is 0, it must be at least 1"));
        }
        if let Some(cores) = self.devices.iter().find(|cores| !(**cores > 0.0 && cores.is_finite())) {
            return bad(format!("devices has {cores} cores, expected a number above 0"));
        }
        if !(self.ptx_tokens >= 0.0 && self.ptx_tokens < 1e9) {
            return bad(format!("ptx_tokens is {}, expected a number, 0 or more", self.ptx_tokens));
        }
        if !(self.restart_s >= 0.0 && self.restart_s < 1e9) {
            return bad(format!("restart_s is {}, expected seconds, 0 or more", self.restart_s));
        }
        for (role, cost) in Role::ALL.into_iter().filter_map(|role| Some((role, self.costs.of(role)?))) {
            let key = |key: &str| format!("costs.{}.{key}", role.name());
            if cost.devices.is_empty() {
                return bad(format!("{} is empty, it must hold at least one number", key("devices")));
            }
            if let Some(idx) = cost.devices.iter().find(|idx| **idx >= self.devices.len()) {
                return bad(format!("{} has {idx}, but there are {} devices", key("devices"), self.devices.len()));
            }
            for (name, number) in [("call_s", cost.call_s), ("token_s", cost.token_s), ("spread", cost.spread)] {
                if !(number >= 0.0 && number.is_finite()) {
                    return bad(format!("{} is {number}, expected a number, 0 or more", key(name)));
                }
            }
            if !(cost.cores > 0.0 && cost.cores.is_finite()) {
                return bad(format!("{} is {}, expected a number above 0", key("cores"), cost.cores));
            }
            if !(0.0..1.0).contains(&cost.failure_share) {
                return bad(format!("{} is {}, expected 0 to 1", key("failure_share"), cost.failure_share));
            }
        }
        for max_staleness in &self.max_staleness {
            self.flow(*max_staleness).validate()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense() {
        PlanConfig::default().validate().unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_key() {
        let problem = |change: fn(&mut PlanConfig)| {
            let mut config = PlanConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(problem(|c| c.devices.clear()), "devices is empty, it must hold at least one number");
        assert_eq!(problem(|c| c.n_generators = vec![1, 0]), "n_generators is 0, it must be at least 1");
        assert_eq!(
            problem(|c| c.costs.learner.devices = vec![2]),
            "costs.learner.devices has 2, but there are 2 devices"
        );
        assert_eq!(
            problem(|c| c.costs.generator.token_s = -1.0),
            "costs.generator.token_s is -1, expected a number, 0 or more"
        );
        assert!(problem(|c| c.costs.generator.failure_share = 1.0).contains("costs.generator.failure_share"));
        assert!(problem(|c| c.batch_size = 0).contains("batch_size"));
    }
}
