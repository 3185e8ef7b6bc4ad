//! What the roles count while they work, and what status and metrics make of it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use collimate_protocol::messages::{RoleState, RoleStatus};
use collimate_protocol::records::{FlowMetrics, QueueDepth, WorkSums};
use collimate_protocol::{PolicyVersion, Role, RoleId, TicketCounts};

use super::hop::Gauge;
use super::office::TicketOffice;
use super::worker::Workload;
use crate::process::cpu_time;

/// One role's counts. Relaxed atomics: each number is right on its own, and nothing is ordered by them.
#[derive(Debug)]
pub struct RoleCounters {
    role: RoleId,
    started: Instant,
    n_items: AtomicU64,
    n_tokens: AtomicU64,
    busy_ns: AtomicU64,
    /// When the step in progress began, in nanoseconds since `started`; 0 between steps.
    step_since_ns: AtomicU64,
    work: Mutex<WorkSums>,
}

impl RoleCounters {
    /// All zero.
    pub fn new(role: RoleId, started: Instant) -> Self {
        let zero = || AtomicU64::new(0);
        let work = Mutex::default();
        Self { role, started, n_items: zero(), n_tokens: zero(), busy_ns: zero(), step_since_ns: zero(), work }
    }

    /// Counts work done.
    pub fn count(&self, n_items: usize, n_tokens: usize) {
        self.n_items.fetch_add(n_items as u64, Ordering::Relaxed);
        self.n_tokens.fetch_add(n_tokens as u64, Ordering::Relaxed);
    }

    /// Counts the time that `step` takes as busy, from its beginning on: an update may take minutes.
    pub fn timed<R>(&self, step: impl FnOnce() -> R) -> R {
        self.measured(step).0
    }

    fn measured<R>(&self, step: impl FnOnce() -> R) -> (R, Duration) {
        let since = self.now_ns().max(1);
        self.step_since_ns.store(since, Ordering::Relaxed);
        let result = step();
        self.step_since_ns.store(0, Ordering::Relaxed);
        let taken = self.now_ns().saturating_sub(since);
        self.busy_ns.fetch_add(taken, Ordering::Relaxed);
        (result, Duration::from_nanos(taken))
    }

    /// The same for a piece of work, which is also counted as such.
    pub fn timed_work<R>(&self, workload: Workload, work: impl FnOnce() -> R) -> R {
        let cpu_since = cpu_time();
        let (result, taken) = self.measured(work);
        let cpu = cpu_time().saturating_sub(cpu_since);
        let mut sums = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        sums.add(workload.n_tokens, taken.as_secs_f64(), cpu.as_secs_f64());
        result
    }

    /// How long its pieces of work took so far.
    pub fn work(&self) -> WorkSums {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds spent in steps so far, the one in progress included.
    pub fn busy_s(&self) -> f64 {
        let since = self.step_since_ns.load(Ordering::Relaxed);
        let in_progress = if since == 0 { 0 } else { self.now_ns().saturating_sub(since) };
        Duration::from_nanos(self.busy_ns.load(Ordering::Relaxed) + in_progress).as_secs_f64()
    }

    /// How long the step in progress lasts already; zero between steps.
    pub fn step_lasts(&self) -> Duration {
        match self.step_since_ns.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_nanos(self.now_ns().saturating_sub(since)),
        }
    }

    /// Tokens processed so far.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens.load(Ordering::Relaxed)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What is known of a running flow from outside of its roles.
#[derive(Debug)]
pub struct FlowState {
    /// Updates to do in all.
    pub n_updates: u64,
    /// The ledger.
    pub office: TicketOffice,
    /// One for each worker, in the order of the flow.
    pub counters: Vec<Arc<RoleCounters>>,
    /// One for each hop: the role whose inbox it is. The mixer has none, so its name stands for the text that waits
    /// for the learner.
    pub gauges: Vec<(Role, Gauge)>,
    /// When the flow was wired.
    pub started: Instant,
    /// Updates done and published.
    pub version: AtomicU64,
    /// Updates that could not be recorded.
    pub n_sink_failures: AtomicU64,
    /// The version of the newest checkpoint; [`NO_CHECKPOINT`] before the first.
    pub checkpoint_version: AtomicU64,
}

/// Stands for no version.
pub const NO_CHECKPOINT: u64 = u64::MAX;

impl FlowState {
    /// Updates done and published.
    pub fn version(&self) -> PolicyVersion {
        PolicyVersion(self.version.load(Ordering::Relaxed))
    }

    /// The version of the newest checkpoint.
    pub fn checkpoint_version(&self) -> Option<PolicyVersion> {
        let version = self.checkpoint_version.load(Ordering::Relaxed);
        (version != NO_CHECKPOINT).then_some(PolicyVersion(version))
    }

    /// Updates that could not be recorded, now with one more.
    pub fn count_sink_failure(&self) -> u64 {
        self.n_sink_failures.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Each inbox.
    pub fn queues(&self) -> BTreeMap<String, QueueDepth> {
        self.gauges.iter().map(|(role, gauge)| (role.name().to_owned(), gauge.depth())).collect()
    }

    /// How long the step that a role is in lasts already.
    pub fn step_lasts(&self, role: RoleId) -> Duration {
        let counters = self.counters.iter().find(|counters| counters.role == role);
        counters.map_or(Duration::ZERO, |counters| counters.step_lasts())
    }

    /// A line of status for each role, given its state and how often it was started again.
    pub fn roles(&self, state_of: impl Fn(RoleId) -> (RoleState, u64)) -> Vec<RoleStatus> {
        let status = |counters: &Arc<RoleCounters>| RoleStatus {
            role: counters.role,
            state: state_of(counters.role).0,
            n_restarts: state_of(counters.role).1,
            n_items: counters.n_items.load(Ordering::Relaxed),
            n_tokens: counters.n_tokens(),
            busy_s: counters.busy_s(),
            queue_depth: self
                .gauges
                .iter()
                .find(|(role, _)| *role == counters.role.role)
                .map_or(0, |(_, gauge)| gauge.depth().len),
            work: counters.work(),
        };
        self.counters.iter().map(status).collect()
    }

    /// Queues and tickets in words: for the report of a flow that is stuck.
    pub fn describe(&self) -> String {
        let mut text = format!("at {}", self.version());
        for (role, queue) in self.queues() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\nqueue {role}: {} of {}", queue.len, queue.capacity);
        }
        let _ = write!(text, "\n{}", self.office.describe());
        text
    }
}

/// Reads the flow once an update: rates since the last one.
#[derive(Debug)]
pub struct FlowMeter {
    state: Arc<FlowState>,
    last: Reading,
}

#[derive(Debug, Default)]
struct Reading {
    elapsed_s: f64,
    busy_s: BTreeMap<Role, f64>,
    n_tokens: BTreeMap<Role, u64>,
}

impl FlowMeter {
    /// Starts at the flow's start.
    pub fn new(state: Arc<FlowState>) -> Self {
        Self { state, last: Reading::default() }
    }

    /// The flow around an update that took `update_s` and trained on `n_tokens` response tokens.
    pub fn read(&mut self, tickets: TicketCounts, update_s: f64, n_tokens: usize) -> FlowMetrics {
        let now = self.reading();
        let interval_s = (now.elapsed_s - self.last.elapsed_s).max(f64::MIN_POSITIVE);
        let n_actors = |role: &Role| self.state.counters.iter().filter(|c| c.role.role == *role).count().max(1);
        let busy = now.busy_s.iter().map(|(role, busy_s)| {
            let since_last = busy_s - self.last.busy_s.get(role).copied().unwrap_or_default();
            (role.name().to_owned(), (since_last / interval_s / n_actors(role) as f64).clamp(0.0, 1.0))
        });
        let rates = now.n_tokens.iter().map(|(role, n)| {
            let since_last = n - self.last.n_tokens.get(role).copied().unwrap_or_default();
            (role.name().to_owned(), since_last as f64 / interval_s)
        });
        let metrics = FlowMetrics {
            elapsed_s: now.elapsed_s,
            update_s,
            tokens_per_s: n_tokens as f64 / interval_s,
            tickets,
            queues: self.state.queues(),
            busy: busy.collect(),
            role_tokens_per_s: rates.collect(),
        };
        self.last = now;
        metrics
    }

    fn reading(&self) -> Reading {
        let mut reading = Reading { elapsed_s: self.state.started.elapsed().as_secs_f64(), ..Reading::default() };
        for counters in &self.state.counters {
            *reading.busy_s.entry(counters.role.role).or_default() += counters.busy_s();
            *reading.n_tokens.entry(counters.role.role).or_default() += counters.n_tokens();
        }
        reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_in_progress_already_counts_as_busy() {
        let counters = RoleCounters::new(RoleId::only(Role::Learner), Instant::now());
        assert_eq!(counters.busy_s(), 0.0);
        let within = counters.timed(|| {
            // Some work: an Instant may be coarser than nothing at all.
            std::hint::black_box((0..200_000).fold(0u64, |sum, x| sum ^ std::hint::black_box(x)));
            counters.busy_s()
        });
        assert!(within > 0.0);
        assert!(counters.busy_s() >= within);
    }
}
