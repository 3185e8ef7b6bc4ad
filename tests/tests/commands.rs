//! A run is told to stop or to pause at any time, or is left alone by whoever started it.

use std::time::Duration;

use collimate::control::{RunControl, RunHandle};
use collimate::flow::{FlowMode, RunSink, TrainedUpdate};
use collimate_protocol::messages::{RoleState, RunEvent, RunStatus};
use collimate_protocol::{DropReason, RoleError};
use collimate_tests::fakes::{FakeTrainer, FakeWeights, SharedLog};
use collimate_tests::laws::{check_any, check_complete};
use collimate_tests::run::{Outcome, within};
use collimate_tests::scenario::Scenario;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::broadcast;

const MODES: [FlowMode; 2] = [FlowMode::Threaded, FlowMode::Deterministic];

/// More updates than any run here comes to.
fn long(mode: FlowMode) -> Scenario {
    let mut scenario = Scenario::narrow(mode);
    scenario.config.n_updates = 1_000_000;
    scenario
}

/// Threads of its own, so that a command reaches the roles in any order.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Needs a permit for each update, until whoever gives them hangs up: the flow can't run ahead of the test.
struct ByPermit(Receiver<()>);

impl RunSink for ByPermit {
    fn updated(&mut self, _: &TrainedUpdate) -> Result<(), RoleError> {
        let _ = self.0.recv();
        Ok(())
    }
}

struct Permitted {
    scenario: Scenario,
    log: SharedLog,
    permits: Sender<()>,
    handle: RunHandle<FakeWeights, FakeTrainer>,
    events: broadcast::Receiver<RunEvent>,
}

impl Permitted {
    async fn start(scenario: Scenario) -> Self {
        let (permits, permitted) = unbounded();
        let log = SharedLog::default();
        let parts = scenario.parts_with_sink(&log, Box::new(ByPermit(permitted)));
        let handle = parts.start(&scenario.config).await.unwrap();
        let events = handle.events();
        Self { scenario, log, permits, handle, events }
    }

    /// Lets some updates be recorded, and waits for that.
    async fn let_pass(&mut self, n_updates: u64) {
        for _ in 0..n_updates {
            self.permits.send(()).unwrap();
            let mut event = within(self.events.recv(), "no update").await.unwrap();
            while matches!(event, RunEvent::Paused | RunEvent::Resumed) {
                event = within(self.events.recv(), "no update").await.unwrap();
            }
            assert!(matches!(event, RunEvent::Updated(_)), "{event:?}");
        }
    }

    /// Lets the run go on to its end; what was heard until then.
    async fn let_end(mut self) -> (Outcome, Vec<RunEvent>) {
        drop(self.permits);
        let outcome = within(self.handle.wait(), "no end").await.unwrap();
        check_any(&self.scenario, &outcome, &self.log.read());
        let mut heard = Vec::new();
        while let Ok(event) = self.events.recv().await {
            heard.push(event);
        }
        (outcome, heard)
    }
}

#[test]
fn a_stop_after_any_number_of_updates_ends_in_good_order() {
    for n_updates in [0, 0, 0, 1, 2, 3, 5, 8, 13] {
        for mode in MODES {
            runtime().block_on(async {
                let mut run = Permitted::start(long(mode)).await;
                run.let_pass(n_updates).await;
                run.handle.stop();
                // A second order changes nothing.
                run.handle.stop();
                assert_eq!(run.events.recv().await.unwrap(), RunEvent::Stopping);
                let (outcome, mut heard) = run.let_end().await;

                assert!(outcome.stopped);
                let tickets = &outcome.tickets;
                let dropped = |reason| tickets.dropped_by_reason.get(&reason).copied().unwrap_or(0);
                let (stale, shut_down) = (dropped(DropReason::TooStale), dropped(DropReason::Shutdown));
                assert_eq!(tickets.issued, tickets.trained + stale + shut_down, "{tickets:?}");
                assert_eq!(heard.pop(), Some(RunEvent::Ended { version: outcome.version, stopped: true }));
                assert!(heard.iter().all(|event| matches!(event, RunEvent::Updated(_))), "{heard:?}");
                assert_eq!(n_updates + heard.len() as u64, outcome.version.0, "an update was not recorded");
            });
        }
    }
}

#[test]
fn a_pause_holds_every_role_and_loses_nothing() {
    for mode in MODES {
        runtime().block_on(async {
            let mut run = Permitted::start(Scenario::narrow(mode)).await;
            let mut status = run.handle.status();
            for _ in 0..3 {
                run.let_pass(1).await;
                run.handle.pause();
                let all_pause = |status: &RunStatus| {
                    let holds = |state| matches!(state, RoleState::Paused | RoleState::Finished);
                    status.roles.iter().all(|role| holds(role.state))
                };
                assert!(within(status.wait_for(all_pause), "no pause").await.unwrap().tickets.is_conserved());
                run.handle.resume();
            }
            let (scenario, log) = (run.scenario.clone(), run.log.clone());
            let (outcome, _) = run.let_end().await;
            check_complete(&scenario, &outcome, &log.read());
        });
    }
}

#[test]
fn a_paused_run_can_be_stopped() {
    for mode in MODES {
        runtime().block_on(async {
            let mut run = Permitted::start(long(mode)).await;
            run.let_pass(1).await;
            run.handle.pause();
            run.handle.stop();
            // Comes too late to mean anything.
            run.handle.pause();
            assert_eq!(run.events.recv().await.unwrap(), RunEvent::Paused);
            assert_eq!(run.events.recv().await.unwrap(), RunEvent::Stopping);
            assert!(run.let_end().await.0.stopped);
        });
    }
}

/// Says when it is dropped, by hanging up.
struct HangsUp(Sender<u64>);

impl RunSink for HangsUp {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        // Nobody may listen any more.
        let _ = self.0.try_send(update.metrics.version.0);
        Ok(())
    }
}

/// A long run whose sink is heard of by the receiver.
async fn start_unwatched(mode: FlowMode) -> (Receiver<u64>, RunControl) {
    let (sender, receiver) = bounded(1);
    let scenario = long(mode);
    let parts = scenario.parts_with_sink(&SharedLog::default(), Box::new(HangsUp(sender)));
    let handle = parts.start(&scenario.config).await.unwrap();
    (receiver, handle.control())
}

/// Waits until the recorder, which goes last, has gone with the sink.
fn wait_for_the_end(receiver: &Receiver<u64>) {
    loop {
        match receiver.recv_timeout(Duration::from_secs(60)) {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => panic!("the run hangs"),
        }
    }
}

#[test]
fn a_run_whose_handle_is_dropped_goes_on_and_can_still_be_stopped() {
    for mode in MODES {
        let runtime = runtime();
        let (receiver, control) = runtime.block_on(start_unwatched(mode));
        receiver.recv().unwrap();
        receiver.recv().unwrap();
        control.stop();
        wait_for_the_end(&receiver);
    }
}

#[test]
fn a_run_whose_runtime_is_gone_ends_by_itself() {
    for mode in MODES {
        for is_paused in [false, true] {
            let runtime = runtime();
            let (receiver, control) = runtime.block_on(start_unwatched(mode));
            receiver.recv().unwrap();
            if is_paused {
                control.pause();
            }
            drop(runtime);
            wait_for_the_end(&receiver);
        }
    }
}
