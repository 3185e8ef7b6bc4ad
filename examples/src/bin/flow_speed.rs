//! PPO of a run directory, some updates of it, four ways in turn: as bare calls in a loop, on the flow on one thread,
//! and on threads with a bound on staleness of 0 and of 1. What the actors cost, and what their overlap brings.
//!
//! `cargo run --release -p collimate-examples --bin flow_speed -- runs/instructgpt [UPDATES] [ROUNDS]`
//!
//! Each ratio is of two runs, one right after the other, and can be no better than the machine is steady: CPU seconds of
//! the same work show how steady it is. What the flow costs is measured within one run, too, and much more exactly: all
//! time on one thread that is not a role's work, and the checksum after each update, which bare calls do without.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use collimate::flow::{FlowConfig, FlowMode, NoSink};
use collimate::rundir::{RunDir, Stage};
use collimate::stages::context::{StageContext, StopFlag, Unobserved};
use collimate::stages::ppo_config::PpoStageConfig;
use collimate::stages::ppo_parts::PpoParts;
use collimate::stages::recipe::Recipe;
use collimate::stages::run::input_models;
use collimate::stages::sampling::sample_all;
use collimate::view::Live;
use collimate::{config, device, process};
use collimate_protocol::roles::{RewardRequest, Trainer};
use collimate_protocol::{Prompt, Role, RoleError, ScoredRollout, Ticket, TicketId};

fn main() -> Result<()> {
    // SAFETY: no other thread runs yet.
    unsafe { process::tune() };
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context("expected a run directory, as in runs/instructgpt")?;
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (n_updates, n_rounds) = (number(10)?, number(3)?);
    let bench = Bench::open(Path::new(&dir), n_updates)?;

    let mut all: [Vec<Measured>; 4] = Default::default();
    for round in 0..n_rounds {
        for (variant, measured) in Variant::ALL.into_iter().zip(&mut all) {
            let of_round = bench.measure(variant)?;
            println!("round {}: {:<22} {of_round}", round + 1, variant.name());
            measured.push(of_round);
        }
        let checksums: Vec<u64> = all[..3].iter().filter_map(|rounds| rounds.last()).map(|m| m.checksum).collect();
        if checksums.iter().any(|checksum| *checksum != checksums[0]) {
            bail!("synchronous runs came to different weights: {checksums:x?}");
        }
    }
    let ratio = |of: usize, to: usize, seconds: fn(&Measured) -> f64| {
        let mut ratios: Vec<f64> = all[of].iter().zip(&all[to]).map(|(a, b)| seconds(b) / seconds(a)).collect();
        ratios.sort_by(f64::total_cmp);
        (ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1])
    };
    println!("median of the rounds' ratios (least to most)");
    for (what, of, to) in [
        ("flow on one thread against bare calls", 1, 0),
        ("threads with k = 0 against bare calls", 2, 0),
        ("threads with k = 1 against k = 0", 3, 2),
    ] {
        for (unit, seconds) in [("second", (|m| m.seconds) as fn(&Measured) -> f64), ("CPU second", |m| m.cpu_s)] {
            let (median, least, most) = ratio(of, to, seconds);
            println!("  updates a {unit}, {what}: {median:.3} ({least:.3} to {most:.3})");
        }
    }
    println!("seconds an update at work, bare and on one thread (least of the rounds)");
    let least = |of: usize, role| all[of].iter().map(|m| m.at_work_s(role)).fold(f64::INFINITY, f64::min);
    for role in Role::ALL {
        println!("  {:<18} {:.4} {:.4}", role.name(), least(0, role), least(1, role));
    }
    let [bare, flow] = [0, 1].map(|of| Role::ALL.into_iter().map(|role| least(of, role)).sum::<f64>());
    println!("  {:<18} {bare:.4} {flow:.4}: {:+.2} %", "all", 100.0 * (flow / bare - 1.0));
    let mut outside: Vec<f64> = all[1].iter().map(|m| 1.0 - m.at_work.values().sum::<f64>() / m.seconds).collect();
    outside.sort_by(f64::total_cmp);
    println!("time of the flow on one thread outside of the roles' work: {:.2} %", 100.0 * outside[outside.len() / 2]);
    println!(
        "the checksum of the weights: {:.2} % of an update of the whole flow",
        100.0 * bench.checksum_share(&all[0])?
    );
    println!("the first three came to the same weights, bit for bit");
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Variant {
    Bare,
    OneThread,
    Threads { max_staleness: u64 },
}

impl Variant {
    const ALL: [Self; 4] =
        [Self::Bare, Self::OneThread, Self::Threads { max_staleness: 0 }, Self::Threads { max_staleness: 1 }];

    fn name(self) -> String {
        match self {
            Self::Bare => "bare calls".to_owned(),
            Self::OneThread => "flow on one thread".to_owned(),
            Self::Threads { max_staleness } => format!("threads, k = {max_staleness}"),
        }
    }
}

struct Measured {
    seconds: f64,
    /// Of the process.
    cpu_s: f64,
    n_updates: u64,
    checksum: u64,
    /// Seconds that each role was at work.
    at_work: BTreeMap<Role, f64>,
    /// Share of the time that each core was in use, by whomever.
    cores: Vec<f64>,
}

impl Measured {
    /// Of an update.
    fn at_work_s(&self, role: Role) -> f64 {
        self.at_work.get(&role).copied().unwrap_or_default() / self.n_updates as f64
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cores: Vec<String> = self.cores.iter().map(|busy| format!("{:.0} %", 100.0 * busy)).collect();
        let rate = self.n_updates as f64 / self.seconds;
        let (seconds, cpu_s) = (self.seconds, self.cpu_s);
        write!(f, "{seconds:.2} s, {rate:.3} updates a second, {cpu_s:.2} CPU s, cores {}", cores.join(" "))
    }
}

struct Bench {
    recipe: Recipe,
    ppo: PpoStageConfig,
    parts: PpoParts,
}

impl Bench {
    fn open(dir: &Path, n_updates: u64) -> Result<Self> {
        let dir = RunDir::existing(dir)?;
        let recipe: Recipe = config::load(&dir.config(), &[])?;
        let mut ppo = recipe.ppo.clone().context("the run's recipe has no [ppo] table")?;
        ppo.flow.n_updates = n_updates;
        // The bare loop keeps none either.
        ppo.flow.checkpoints.every = 0;
        (ppo.flow.max_staleness, ppo.stage.n_generators) = (0, 1);
        let (sft, reward_model) = input_models(&recipe, &dir)?;
        let mut observer = Unobserved;
        let mut context = context(&recipe, &mut observer)?;
        let parts = PpoParts::load(&ppo, &sft, reward_model.as_deref(), recipe.corpus.as_ref(), &mut context)?;
        Ok(Self { recipe, ppo, parts })
    }

    fn measure(&self, variant: Variant) -> Result<Measured> {
        let mut observer = Unobserved;
        let context = context(&self.recipe, &mut observer)?;
        let flow = self.parts.flow(&self.ppo, Box::new(NoSink), None, &context)?;
        let n_updates = self.ppo.flow.n_updates;
        let (before, cpu_before, since) = (core_times(), process::cpu_time().as_secs_f64(), Instant::now());
        let done = match variant {
            Variant::Bare => bare_calls(flow, &self.ppo),
            Variant::OneThread => run_flow(flow, FlowConfig { mode: FlowMode::Deterministic, ..self.ppo.flow.clone() }),
            Variant::Threads { max_staleness } => {
                run_flow(flow, FlowConfig { mode: FlowMode::Threaded, max_staleness, ..self.ppo.flow.clone() })
            }
        };
        let (seconds, cpu_s, after) =
            (since.elapsed().as_secs_f64(), process::cpu_time().as_secs_f64() - cpu_before, core_times());
        let (checksum, at_work) = done.map_err(|error| anyhow::anyhow!("{}: {error}", variant.name()))?;
        let cores = before.iter().zip(&after).map(|(before, after)| before.busy_until(after)).collect();
        Ok(Measured { seconds, cpu_s, n_updates, checksum, at_work, cores })
    }
}

impl Bench {
    /// What a checksum takes, as a share of what an update takes with all that leads to it.
    fn checksum_share(&self, bare: &[Measured]) -> Result<f64> {
        let mut observer = Unobserved;
        let context = context(&self.recipe, &mut observer)?;
        let flow = self.parts.flow(&self.ppo, Box::new(NoSink), None, &context)?;
        let trainer = flow.trainer.make().map_err(|error| anyhow::anyhow!("{error}"))?;
        let since = Instant::now();
        for _ in 0..N_CHECKSUMS {
            std::hint::black_box(trainer.checksum().map_err(|error| anyhow::anyhow!("{error}"))?);
        }
        let seconds = since.elapsed().as_secs_f64() / N_CHECKSUMS as f64;
        let update_s = bare.iter().map(|measured| measured.seconds / measured.n_updates as f64).sum::<f64>();
        Ok(seconds / (update_s / bare.len() as f64))
    }
}

fn context<'a>(recipe: &Recipe, observer: &'a mut Unobserved) -> Result<StageContext<'a>> {
    Ok(StageContext {
        seed: recipe.seed,
        device: device::open(&recipe.device.0)?,
        precision: recipe.precision,
        // Nothing is written.
        out_dir: Stage::Ppo.name().into(),
        stop: StopFlag::default(),
        live: Live::default(),
        observer,
        started: Instant::now(),
    })
}

const N_CHECKSUMS: usize = 20;

type Flow = collimate::stages::ppo_parts::StageFlow;

/// The checksum at the end, and how long each role was at work.
type Done = Result<(u64, BTreeMap<Role, f64>), RoleError>;

fn run_flow(flow: Flow, config: FlowConfig) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (outcome, status) = runtime.block_on(async {
        let handle = flow.start(&config).await?;
        let status = handle.status();
        handle.wait().await.map(|outcome| (outcome, status))
    })?;
    let status = status.borrow();
    let mut at_work = BTreeMap::new();
    for role in &status.roles {
        *at_work.entry(role.role.role).or_default() += role.work.seconds;
    }
    Ok((outcome.trainer.checksum()?, at_work))
}

/// PPO as one would write it down: no actor, no channel, no ledger.
fn bare_calls(flow: Flow, config: &PpoStageConfig) -> Done {
    let Flow { mut prompts, samplers, references, rewards, detokenizer, experience_maker, pretrain, trainer, .. } =
        flow;
    let (mut sampler, mut reference) = (samplers[0].factory.make()?, references[0].make()?);
    let (mut reward, mut maker) = (rewards[0].make()?, experience_maker.make()?);
    let (mut text, mut trainer) = (pretrain.map(|text| text.make()).transpose()?, trainer.make()?);
    let (mut next_ticket, mut snapshot) = (0, trainer.snapshot()?);
    let mut watch = Stopwatch::default();
    for _ in 0..config.flow.n_updates {
        let mut batch = Vec::new();
        for _ in 0..config.flow.batch_size {
            let (prompt_id, sample_idx, tokens) = prompts.next_prompt();
            let ticket = Ticket { id: TicketId(next_ticket), prompt_id, sample_idx };
            next_ticket += 1;
            batch.push(Prompt { ticket, tokens });
        }
        let rollouts = watch.time(Role::Generator, || sample_all(&mut *sampler, &snapshot, batch, |_| ()))?;
        let mut scored = Vec::new();
        for rollouts in rollouts.chunks(config.flow.scorer_batch) {
            let ref_logprobs = watch.time(Role::ReferenceScorer, || reference.logprobs(rollouts))?;
            let scores = watch.time(Role::RewardScorer, || {
                let requests = rollouts.iter().map(|rollout| RewardRequest::of(rollout, &*detokenizer));
                reward.scores(&requests.collect::<Result<Vec<_>, _>>()?)
            })?;
            let all = rollouts.iter().cloned().zip(ref_logprobs).zip(scores);
            scored.extend(all.map(|((rollout, ref_logprobs), score)| ScoredRollout { rollout, ref_logprobs, score }));
        }
        let version = snapshot.version;
        let batch = watch.time(Role::ExperienceBuffer, || maker.assemble(version, scored, &snapshot))?;
        let n_pretrain = trainer.pretrain_batches_per_update() as u64;
        let numbers = version.0 * n_pretrain..(version.0 + 1) * n_pretrain;
        let pretrain = text.iter_mut().flat_map(|text| numbers.clone().map(|idx| text.batch(idx)));
        let pretrain = watch.time(Role::PretrainMixer, || pretrain.collect::<Result<Vec<_>, _>>())?;
        snapshot = watch.time(Role::Learner, || {
            trainer.update(&batch, &pretrain)?;
            trainer.snapshot()
        })?;
    }
    Ok((trainer.checksum()?, watch.at_work))
}

/// How long each role's calls take.
#[derive(Default)]
struct Stopwatch {
    at_work: BTreeMap<Role, f64>,
}

impl Stopwatch {
    fn time<R>(&mut self, role: Role, calls: impl FnOnce() -> R) -> R {
        let since = Instant::now();
        let result = calls();
        *self.at_work.entry(role).or_default() += since.elapsed().as_secs_f64();
        result
    }
}

/// A core's time so far, in ticks.
struct CoreTime {
    all: u64,
    idle: u64,
}

impl CoreTime {
    fn busy_until(&self, later: &Self) -> f64 {
        let (all, idle) = (later.all - self.all, later.idle - self.idle);
        if all == 0 { 0.0 } else { 1.0 - idle as f64 / all as f64 }
    }
}

/// Of each core, from /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal. Empty where there is none.
fn core_times() -> Vec<CoreTime> {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let core = |line: &str| {
        let (name, ticks) = line.split_once(' ')?;
        name.strip_prefix("cpu")?.parse::<usize>().ok()?;
        let ticks: Vec<u64> = ticks.split_whitespace().take(8).filter_map(|tick| tick.parse().ok()).collect();
        Some(CoreTime { all: ticks.iter().sum(), idle: ticks.get(3)? + ticks.get(4)? })
    };
    text.lines().filter_map(core).collect()
}
