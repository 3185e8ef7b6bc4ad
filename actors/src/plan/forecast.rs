//! One combination of settings, simulated.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use collimate_models::rng::{self, SeededRng};
use collimate_protocol::messages::RoleReport;
use collimate_protocol::{ExperienceBatch, Role, RoleId};
use rand::Rng;
use rand_distr::LogNormal;
use serde::Serialize;

use super::config::{PlanConfig, RoleCost};
use super::fakes;
use crate::flow::RunError;
use crate::flow::simulation::Load;
use crate::flow::worker::Workload;

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The bound on staleness.
    pub max_staleness: u64,
    /// Generators.
    pub n_generators: usize,
}

/// What a simulated run came to. Seconds are virtual.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// What was tried.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Seconds from start to end.
    pub elapsed_s: f64,
    /// Updates an hour, from start to end.
    pub updates_per_h: f64,
    /// Response tokens trained on, a second.
    pub tokens_per_s: f64,
    /// Share of the time that each role was at work; the mean over the actors of a role.
    pub busy: BTreeMap<&'static str, f64>,
    /// Seconds at work in an update of each role, all its actors together.
    pub busy_s_per_update: BTreeMap<&'static str, f64>,
    /// Share of its cores that was in use, for each device.
    pub device_busy: Vec<f64>,
    /// Share of the trained tokens with each staleness, from 0.
    pub staleness: Vec<f64>,
    /// Mean staleness of a trained token.
    pub mean_staleness: f64,
    /// Share of the sampled responses that were dropped as too stale.
    pub dropped_share: f64,
    /// Restarts after failures.
    pub n_restarts: u64,
}

/// What the sink of a simulated run has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Trained tokens of each staleness.
    n_tokens: Vec<u64>,
}

impl Seen {
    pub fn add(&mut self, batch: &ExperienceBatch) {
        for version in batch.experiences.iter().flat_map(|experience| &experience.scored.rollout.versions) {
            let staleness = batch.version.staleness_of(*version) as usize;
            if self.n_tokens.len() <= staleness {
                self.n_tokens.resize(staleness + 1, 0);
            }
            self.n_tokens[staleness] += 1;
        }
    }
}

/// Simulates one combination.
///
/// # Errors
/// The assumptions make no sense, or the run fails under them: too many failures in too short a time.
pub fn forecast(config: &PlanConfig, candidate: Candidate) -> Result<Forecast, RunError> {
    config.validate()?;
    let Candidate { max_staleness, n_generators } = candidate;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let graph = fakes::flow(config, n_generators, seen.clone())?.wire(&config.flow(max_staleness))?;
    let mut durations = Durations::new(config);
    let simulated = graph.simulate(&config.devices, |role, workload| durations.load(role, workload));
    let tickets = simulated.outcome?.tickets;

    let elapsed_s = simulated.elapsed_s.max(f64::MIN_POSITIVE);
    let mut at_work: BTreeMap<Role, (f64, usize)> = BTreeMap::new();
    for (role, busy_s) in simulated.busy_s.iter().filter(|(role, _)| config.costs.of(role.role).is_some()) {
        let (sum, n) = at_work.entry(role.role).or_default();
        (*sum, *n) = (*sum + busy_s, *n + 1);
    }
    let by_role = |of: fn((f64, usize)) -> f64, divisor: f64| -> BTreeMap<&'static str, f64> {
        at_work.iter().map(|(role, at_work)| (role.name(), of(*at_work) / divisor)).collect()
    };
    let n_tokens = std::mem::take(&mut seen.lock().unwrap_or_else(PoisonError::into_inner).n_tokens);
    let n_trained = n_tokens.iter().sum::<u64>() as f64;
    let staleness: Vec<f64> = n_tokens.iter().map(|n| *n as f64 / n_trained.max(1.0)).collect();
    Ok(Forecast {
        candidate,
        elapsed_s,
        updates_per_h: 3600.0 * config.n_updates as f64 / elapsed_s,
        tokens_per_s: n_trained / elapsed_s,
        busy: by_role(|(sum, n)| sum / n as f64, elapsed_s),
        busy_s_per_update: by_role(|(sum, _)| sum, config.n_updates as f64),
        device_busy: simulated
            .core_s
            .iter()
            .zip(&config.devices)
            .map(|(core_s, cores)| core_s / cores / elapsed_s)
            .collect(),
        mean_staleness: staleness.iter().enumerate().map(|(staleness, share)| staleness as f64 * share).sum(),
        staleness,
        dropped_share: tickets.dropped as f64 / tickets.issued.max(1) as f64,
        n_restarts: simulated.reports.iter().filter(|report| matches!(report, RoleReport::Restarted(_))).count() as u64,
    })
}

/// How long each piece of work takes.
struct Durations<'a> {
    config: &'a PlanConfig,
    rng: SeededRng,
}

impl<'a> Durations<'a> {
    fn new(config: &'a PlanConfig) -> Self {
        Self { config, rng: rng::for_purpose(config.seed, "durations") }
    }

    fn load(&mut self, role: RoleId, workload: Workload) -> Load {
        let Some(cost) = self.config.costs.of(role.role) else {
            return Load { device_idx: 0, core_s: 0.0, most_cores: 1.0 };
        };
        let device_idx = cost.devices[role.idx % cost.devices.len()];
        let most_cores = cost.cores.min(self.config.devices[device_idx]);
        Load { device_idx, core_s: most_cores * self.seconds(cost, workload), most_cores }
    }

    fn seconds(&mut self, cost: &RoleCost, workload: Workload) -> f64 {
        let seconds = cost.call_s + cost.token_s * workload.n_tokens as f64;
        if cost.spread == 0.0 {
            return seconds;
        }
        // Its mean is 1: that of the logarithm lies half a variance below 0.
        let factor = LogNormal::new(-0.5 * cost.spread * cost.spread, cost.spread);
        factor.map_or(seconds, |factor| seconds * self.rng.sample(factor))
    }
}
