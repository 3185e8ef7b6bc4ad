//! What a run tells of machine, models and data: assumptions that need not be made.

use std::collections::BTreeMap;
use std::thread::available_parallelism;

use collimate_protocol::Role;
use collimate_protocol::messages::RunStatus;
use collimate_protocol::records::WorkSums;

use super::config::PlanConfig;
use super::forecast::{Candidate, Forecast, forecast};
use crate::config;
use crate::flow::RunError;
use crate::rundir::{Journal, RunDir, Stage, status};
use crate::stages::ppo_config::PpoStageConfig;
use crate::stages::recipe::{DeviceName, Recipe};

/// Lengths that stand for all responses of a run.
const N_LENGTHS: usize = 64;

/// Rounds of calibration; some five bring it within the tolerance.
const N_ROUNDS: usize = 30;

/// How near each role's simulated time at work comes to the measured one.
const TOLERANCE: f64 = 0.002;

/// What was measured, as a plan's assumptions.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The assumptions; what is tried is what the defaults try.
    pub config: PlanConfig,
    /// The run's own settings.
    pub own: Candidate,
    /// Updates that were measured.
    pub n_updates: u64,
    /// Seconds that they took.
    pub elapsed_s: f64,
    /// Updates an hour, as measured.
    pub updates_per_h: f64,
    /// The run's own settings, simulated: how far the simulation can be believed.
    pub simulated: Forecast,
}

/// Reads what a run of PPO has left behind.
///
/// # Errors
/// The directory is none of a run with PPO, nothing was trained on in it, or a file is damaged.
pub fn read(dir: &RunDir) -> anyhow::Result<Measured> {
    let recipe: Recipe = config::load(&dir.config(), &[])?;
    let folder = dir.stage(Stage::Ppo);
    let Some(ppo) = &recipe.ppo else { anyhow::bail!("{}: there is no [ppo] table", dir.config().display()) };
    let status = status::read(&folder.status())?;
    let journal = Journal::read(&folder.journal())?;
    let lengths = journal.updates.iter().flat_map(|update| &update.rollouts).map(|rollout| rollout.n_tokens());
    let cores = available_parallelism().map_or(1.0, |n| n.get() as f64);
    measured(ppo, &recipe.device, &status, lengths.collect(), cores)
        .map_err(|error| anyhow::anyhow!("{}: {error}", folder.path().display()))
}

/// The same from what was read; `cores` are those of the CPU.
pub fn measured(
    ppo: &PpoStageConfig,
    device: &DeviceName,
    status: &RunStatus,
    mut lengths: Vec<usize>,
    cores: f64,
) -> Result<Measured, RunError> {
    let mut work: BTreeMap<Role, WorkSums> = BTreeMap::new();
    for role in &status.roles {
        let sums = work.entry(role.role.role).or_default();
        *sums = sums.and(role.work);
    }
    let of = |role: Role| work.get(&role).copied().unwrap_or_default();
    let n_updates = of(Role::Learner).n;
    lengths.retain(|length| *length > 0);
    if n_updates == 0 || lengths.is_empty() {
        return Err(RunError::Config("there was no update yet, so nothing is measured".to_owned()));
    }
    lengths.sort_unstable();
    let mean_length = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    let (setup, flow) = (&ppo.stage, &ppo.flow);
    let prompt_tokens = {
        let scorers = status.roles.iter().filter(|role| role.role.role == Role::ReferenceScorer);
        let (n_items, n_tokens) = scorers.fold((0, 0), |(n, sum), role| (n + role.n_items, sum + role.n_tokens));
        (n_tokens as f64 / n_items.max(1) as f64 - mean_length).round().max(1.0)
    };
    let update_tokens = of(Role::Learner).tokens / n_updates as f64;
    let ptx_tokens = update_tokens / flow.batch_size as f64 - (prompt_tokens + mean_length);

    let mut devices = Devices { names: Vec::new(), cores: Vec::new(), cpu: cores };
    let defaults = PlanConfig::default();
    let mut config = PlanConfig {
        n_updates,
        batch_size: flow.batch_size,
        n_slots: setup.n_slots,
        n_reference_scorers: setup.n_reference_scorers,
        n_reward_scorers: setup.n_reward_scorers,
        scorer_batch: flow.scorer_batch,
        scorer_waits_for: flow.scorer_waits_for,
        weight_updates: flow.weight_updates,
        checkpoints_every: flow.checkpoints.every,
        prompt_tokens: prompt_tokens as usize,
        response_tokens: quantiles(&lengths),
        ptx_tokens: if ppo.objective.ptx_coef == 0.0 { 0.0 } else { ptx_tokens.max(0.0) },
        capacities: flow.capacities.clone(),
        ..defaults
    };
    let on = &setup.devices;
    for (role, names) in [
        (Role::Generator, on.generators.clone()),
        (Role::ReferenceScorer, vec![on.reference.clone().unwrap_or(device.clone())]),
        (Role::RewardScorer, vec![on.reward_model.clone().unwrap_or(device.clone())]),
        (Role::ExperienceBuffer, vec![on.values.clone().unwrap_or(device.clone())]),
        (Role::PretrainMixer, vec![DeviceName::default()]),
        (Role::Learner, vec![on.learner.clone().unwrap_or(device.clone())]),
        (Role::Recorder, vec![DeviceName::default()]),
    ] {
        let Some(cost) = config.costs.of_mut(role) else { continue };
        let line = of(role).line();
        (cost.call_s, cost.token_s) = (line.call_s, line.token_s);
        cost.devices = names.iter().map(|name| devices.idx_of(name)).collect();
        let most = cost.devices.iter().map(|idx| devices.cores[*idx]).fold(f64::INFINITY, f64::min);
        // At least half a core, however little was measured in a short time.
        cost.cores = of(role).cores().clamp(0.5_f64.min(most), most);
    }
    config.devices = devices.cores;

    let own = Candidate { max_staleness: flow.max_staleness, n_generators: setup.n_generators };
    let simulated = calibrate(&mut config, own, |role| of(role).seconds / n_updates as f64)?;
    let updates_per_h = 3600.0 * n_updates as f64 / status.elapsed_s.max(f64::MIN_POSITIVE);
    Ok(Measured { config, own, n_updates, elapsed_s: status.elapsed_s, updates_per_h, simulated })
}

/// Changes the costs until each role is at work as long as it was: what was measured is how long work took beside that
/// of the other roles, and what is wanted is how long it takes undisturbed.
fn calibrate(config: &mut PlanConfig, own: Candidate, at_work_s: impl Fn(Role) -> f64) -> Result<Forecast, RunError> {
    let mut simulated = forecast(config, own)?;
    for _ in 0..N_ROUNDS {
        let mut worst: f64 = 0.0;
        for role in Role::ALL {
            let wanted = at_work_s(role);
            let found = simulated.busy_s_per_update.get(role.name()).copied().unwrap_or_default();
            let Some(cost) = config.costs.of_mut(role).filter(|_| wanted > 0.0 && found > 0.0) else { continue };
            let ratio = wanted / found;
            (cost.call_s, cost.token_s) = (cost.call_s * ratio, cost.token_s * ratio);
            worst = worst.max((ratio - 1.0).abs());
        }
        if worst < TOLERANCE {
            break;
        }
        simulated = forecast(config, own)?;
    }
    Ok(simulated)
}

/// Of sorted lengths, so many that stand for all.
fn quantiles(lengths: &[usize]) -> Vec<usize> {
    if lengths.len() <= N_LENGTHS {
        return lengths.to_vec();
    }
    (0..N_LENGTHS).map(|idx| lengths[(2 * idx + 1) * lengths.len() / (2 * N_LENGTHS)]).collect()
}

/// The devices by name, as they come up.
struct Devices {
    names: Vec<DeviceName>,
    cores: Vec<f64>,
    cpu: f64,
}

impl Devices {
    fn idx_of(&mut self, name: &DeviceName) -> usize {
        if let Some(idx) = self.names.iter().position(|known| known == name) {
            return idx;
        }
        self.names.push(name.clone());
        // Work on an accelerator does not run side by side.
        self.cores.push(if *name == DeviceName::default() { self.cpu } else { 1.0 });
        self.names.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::messages::{RoleState, RoleStatus};
    use collimate_protocol::{PolicyVersion, RoleId, TicketCounts};

    use super::*;

    fn role(role: Role, pieces: &[(usize, f64)], n_items: u64, n_tokens: u64) -> RoleStatus {
        let mut work = WorkSums::default();
        pieces.iter().for_each(|(tokens, seconds)| work.add(*tokens, *seconds, 1.5 * seconds));
        RoleStatus {
            role: RoleId::only(role),
            state: RoleState::Finished,
            n_restarts: 0,
            n_items,
            n_tokens,
            busy_s: work.seconds,
            queue_depth: 0,
            work,
        }
    }

    fn status(roles: Vec<RoleStatus>) -> RunStatus {
        RunStatus {
            version: PolicyVersion(10),
            n_updates: 10,
            elapsed_s: 30.0,
            tickets: TicketCounts::default(),
            n_issued_again: 0,
            checkpoint: None,
            has_ended: true,
            roles,
        }
    }

    /// Synchronous, batches of 4: ten decode steps of 0.1 s + 0.01 s a token, then an update of 100 tokens in 1 s.
    fn synchronous() -> Result<Measured, RunError> {
        let mut ppo = PpoStageConfig::default();
        (ppo.flow.batch_size, ppo.flow.max_staleness, ppo.stage.n_slots) = (4, 0, 4);
        ppo.flow.checkpoints.every = 0;
        let steps: Vec<_> = (0..10).flat_map(|_| [(24, 0.34)].into_iter().chain([(4, 0.14); 9])).collect();
        let roles = vec![
            role(Role::Generator, &steps, 40, 400),
            role(Role::ReferenceScorer, &[], 40, 40 * 16),
            role(Role::Learner, &[(100, 1.0); 10], 10, 400),
        ];
        measured(&ppo, &DeviceName::default(), &status(roles), vec![10; 40], 2.0)
    }

    #[test]
    fn a_runs_sizes_and_times_become_assumptions() {
        let measured = synchronous().unwrap();
        let config = &measured.config;
        assert_eq!((config.prompt_tokens, config.ptx_tokens), (6, 100.0 / 4.0 - 16.0));
        assert_eq!((&config.devices, &config.response_tokens), (&vec![2.0], &vec![10; 40]));
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.01, "{found} {expected}");
        close(config.costs.generator.call_s, 0.1);
        close(config.costs.generator.token_s, 0.01);
        close(config.costs.generator.cores, 1.5);
        close(config.costs.learner.token_s, 0.01);
        close(measured.updates_per_h, 1200.0);
        // 0.34 s + nine times 0.14 s + 1 s.
        close(measured.simulated.updates_per_h, 3600.0 / 2.6);
    }

    #[test]
    fn a_run_without_an_update_tells_nothing() {
        let ppo = PpoStageConfig::default();
        let error = measured(&ppo, &DeviceName::default(), &status(Vec::new()), vec![3], 2.0).unwrap_err();
        assert!(error.to_string().contains("no update yet"), "{error}");
    }

    #[test]
    fn quantiles_keep_the_range_and_the_middle() {
        let lengths: Vec<usize> = (0..1000).collect();
        let kept = quantiles(&lengths);
        assert_eq!((kept.len(), kept[0], kept[32]), (64, 7, 507));
    }
}
