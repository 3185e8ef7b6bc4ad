//! Workers around workers. They stand where the real ones do, so that the flow itself is what is tested.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use collimate::flow::counters::FlowState;
use collimate::flow::{FlowConfig, Step, Worker, Workload};
use collimate_protocol::messages::RunEvent;
use collimate_protocol::{RoleError, RoleId};
use crossbeam_channel::Select;

use crate::fakes::hash;

/// A worker as a graph holds it.
pub type BoxedWorker = Box<dyn Worker>;

/// What a wrapper does before and after each step of what it wraps.
trait Around: Send {
    /// `None` to let the step begin.
    fn before(&mut self, worker: &mut dyn Worker) -> Option<Result<Step, RoleError>>;

    /// Sees what the step came to.
    fn after(&mut self, _step: &Result<Step, RoleError>) {}

    /// Sees the command to stop.
    fn stopping(&mut self) {}

    /// Whether nothing but a command lets the worker go on.
    fn is_asleep(&self) -> bool {
        false
    }
}

struct Wrapped<A> {
    worker: BoxedWorker,
    around: A,
}

impl<A: Around> Worker for Wrapped<A> {
    fn role(&self) -> RoleId {
        self.worker.role()
    }

    fn take(&mut self) -> Result<Step, RoleError> {
        if let Some(step) = self.around.before(&mut *self.worker) {
            return step;
        }
        let step = self.worker.take();
        if !matches!(step, Ok(Step::Ready)) {
            self.around.after(&step);
        }
        step
    }

    fn work(&mut self) -> Result<(), RoleError> {
        let worked = self.worker.work().map(|()| Step::Progressed);
        self.around.after(&worked);
        worked.map(drop)
    }

    fn workload(&self) -> Workload {
        self.worker.workload()
    }

    fn recover(&mut self) {
        self.worker.recover();
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if !self.around.is_asleep() {
            self.worker.wait(select);
        }
    }

    fn stop(&mut self) {
        self.around.stopping();
        self.worker.stop();
    }

    fn take_events(&mut self) -> Vec<RunEvent> {
        self.worker.take_events()
    }

    fn describe(&self) -> String {
        self.worker.describe()
    }
}

struct Delay {
    seed: u64,
    longest: u64,
    n_steps: u64,
    left: u64,
}

impl Around for Delay {
    fn before(&mut self, _: &mut dyn Worker) -> Option<Result<Step, RoleError>> {
        // A worker that computes is not starved.
        let is_busy = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_busy.then_some(Ok(Step::Progressed))
    }

    fn after(&mut self, step: &Result<Step, RoleError>) {
        self.n_steps += 1;
        if matches!(step, Ok(Step::Progressed)) {
            self.left = hash(&[self.seed, self.n_steps]) % (self.longest + 1);
        }
    }
}

/// Each step takes 0 to `longest` turns more than one: a fake duration, without a clock.
pub fn delayed(worker: BoxedWorker, seed: u64, longest: u64) -> BoxedWorker {
    Box::new(Wrapped { worker, around: Delay { seed, longest, n_steps: 0, left: 0 } })
}

struct Watch {
    state: Arc<FlowState>,
    most_in_flight: u64,
    n_wanted: u64,
    n_steps: Arc<AtomicU64>,
    most_steps: u64,
}

impl Around for Watch {
    fn before(&mut self, _: &mut dyn Worker) -> Option<Result<Step, RoleError>> {
        None
    }

    fn after(&mut self, _: &Result<Step, RoleError>) {
        let counts = self.state.office.counts();
        assert!(counts.is_conserved(), "{counts:?}");
        assert!(counts.in_flight <= self.most_in_flight, "{counts:?}");
        assert!(counts.trained + counts.in_flight <= self.n_wanted, "{counts:?}");
        let n_steps = self.n_steps.fetch_add(1, Ordering::Relaxed);
        assert!(n_steps < self.most_steps, "the run goes on for ever: {}", self.state.describe());
    }
}

/// Checks the ledger's law after each step, and that all workers together end within `most_steps`.
pub fn watched(state: Arc<FlowState>, config: &FlowConfig, most_steps: u64) -> impl FnMut(BoxedWorker) -> BoxedWorker {
    let (most_in_flight, n_wanted) = (config.n_tickets(), config.n_rollouts());
    let n_steps = Arc::new(AtomicU64::new(0));
    move |worker| {
        let (state, n_steps) = (state.clone(), n_steps.clone());
        Box::new(Wrapped { worker, around: Watch { state, most_in_flight, n_wanted, n_steps, most_steps } })
    }
}

struct StopAt {
    n_steps: Arc<AtomicU64>,
    at: u64,
    is_told: bool,
}

impl Around for StopAt {
    fn before(&mut self, worker: &mut dyn Worker) -> Option<Result<Step, RoleError>> {
        if self.n_steps.fetch_add(1, Ordering::Relaxed) >= self.at && !self.is_told {
            self.is_told = true;
            worker.stop();
            // The order has come to one more of them: something has happened.
            return Some(Ok(Step::Progressed));
        }
        None
    }
}

/// Tells each worker to stop at its first turn after `at` turns of all together.
pub fn stopped_at(at: u64) -> impl FnMut(BoxedWorker) -> BoxedWorker {
    let n_steps = Arc::new(AtomicU64::new(0));
    move |worker| Box::new(Wrapped { worker, around: StopAt { n_steps: n_steps.clone(), at, is_told: false } })
}

/// How a worker is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It panics.
    Panic,
    /// It returns an error.
    Error,
    /// It does nothing more until it is told to stop.
    Stall,
    /// Its step never ends, where no command reaches it.
    Hang,
}

struct FailAt {
    fault: Fault,
    /// Progress made before it fails.
    n_left: u64,
    /// How often it fails.
    n_times: u64,
    has_failed: Arc<AtomicBool>,
    is_stopping: bool,
}

impl Around for FailAt {
    fn before(&mut self, _: &mut dyn Worker) -> Option<Result<Step, RoleError>> {
        if self.n_left > 0 || self.n_times == 0 || self.is_stopping {
            return None;
        }
        self.n_times -= 1;
        self.has_failed.store(true, Ordering::Relaxed);
        match self.fault {
            // Unwinds as a panic does, without the noise that one makes on a terminal.
            Fault::Panic => resume_unwind(Box::new("injected panic")),
            Fault::Error => Some(Err("injected error".into())),
            Fault::Stall => Some(Ok(Step::Starved)),
            Fault::Hang => loop {
                std::thread::park();
            },
        }
    }

    fn after(&mut self, step: &Result<Step, RoleError>) {
        if matches!(step, Ok(Step::Progressed)) {
            self.n_left = self.n_left.saturating_sub(1);
        }
    }

    fn stopping(&mut self) {
        self.is_stopping = true;
    }

    fn is_asleep(&self) -> bool {
        self.n_left == 0 && self.n_times > 0 && self.fault == Fault::Stall && !self.is_stopping
    }
}

/// Makes `role` fail once it has made progress `after` times, and `n_times` in a row, unless it is told to stop before;
/// the flag says whether that happened.
pub fn failing(
    role: RoleId,
    fault: Fault,
    after: u64,
    n_times: u64,
) -> (Arc<AtomicBool>, impl FnMut(BoxedWorker) -> BoxedWorker) {
    let has_failed = Arc::new(AtomicBool::new(false));
    let shared = has_failed.clone();
    let wrap = move |worker: BoxedWorker| -> BoxedWorker {
        if worker.role() != role {
            return worker;
        }
        Box::new(Wrapped {
            worker,
            around: FailAt { fault, n_left: after, n_times, has_failed: shared.clone(), is_stopping: false },
        })
    };
    (has_failed, wrap)
}
