//! Runs scenarios to their end.

use std::time::Duration;

use collimate::flow::replay::{Replay, ReplayError};
use collimate::flow::{FlowConfig, FlowOutcome, PpoFlow, RunError};
use collimate_protocol::PolicyVersion;
use collimate_protocol::messages::RoleReport;
use collimate_protocol::records::JournaledUpdate;
use collimate_protocol::roles::Trainer;

use crate::fakes::{FakeTrainer, FakeWeights, SharedLog};
use crate::scenario::Scenario;

/// What a flow of fakes comes to.
pub type Outcome = FlowOutcome<FakeWeights, FakeTrainer>;

/// Longer than any of these runs takes on a machine that is not stuck.
const NEVER: Duration = Duration::from_secs(60);

/// Waits for something of a run that must come soon.
pub async fn within<T>(awaited: impl Future<Output = T>, what: &str) -> T {
    tokio::time::timeout(NEVER, awaited).await.unwrap_or_else(|_| panic!("the run hangs: {what}"))
}

/// Runs a scenario on this thread, without actors.
pub fn run_here(scenario: &Scenario) -> (SharedLog, Vec<RoleReport>, Outcome) {
    let log = SharedLog::default();
    let (reports, outcome) = scenario.graph(&log).run_here();
    (log, reports, outcome.expect("nothing fails in it"))
}

/// Runs a scenario on actors, in its mode.
pub async fn run_on_actors(scenario: &Scenario) -> (SharedLog, Outcome) {
    let log = SharedLog::default();
    let run = async { scenario.graph(&log).start().await?.wait().await };
    let outcome: Result<_, RunError> = within(run, "no fault, no command").await;
    (log, outcome.expect("nothing fails in it"))
}

/// Does these updates of a flow's journal again, on this thread; the version that they come to.
pub fn replayed<W: Send + Sync + 'static, T: Trainer<W> + 'static>(
    flow: PpoFlow<W, T>,
    config: &FlowConfig,
    updates: &[JournaledUpdate],
) -> Result<PolicyVersion, ReplayError> {
    let mut replay = Replay::new(flow, config).unwrap();
    updates.iter().try_for_each(|update| replay.update(update))?;
    Ok(replay.version())
}
