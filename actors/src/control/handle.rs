//! What whoever started a run holds: watch it, pause it, stop it, wait for its outcome.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use collimate_protocol::messages::{RunCommand, RunEvent, RunStatus};
use collimate_protocol::roles::{RewardModels, Trainer};
use collimate_protocol::{RewardModelId, SettingChange};
use ractor::{Actor, ActorRef};
use tokio::sync::{broadcast, oneshot, watch};

use super::roll::Roll;
use super::supervisor::{Supervisor, SupervisorArguments, SupervisorMessage, status_of};
use crate::flow::latest::Latest;
use crate::flow::wiring::Remains;
use crate::flow::{FlowConfig, FlowOutcome, Graph, PpoFlow, RunError};

/// What is said where there is no reward model to replace.
const NOT_REPLACEABLE: &str = "the scores of this run come from no reward model, so there is none to replace";

/// Events that a slow listener may be behind before it misses some.
const N_EVENTS_KEPT: usize = 1024;

impl<W: Send + Sync + 'static, T: Trainer<W> + 'static> PpoFlow<W, T> {
    /// Wires the flow and starts it. Needs a tokio runtime, in which only messages are passed: what computes has
    /// threads of its own.
    ///
    /// # Errors
    /// A setting or a part makes no sense, or there are no threads. Nothing has run.
    pub async fn start(self, config: &FlowConfig) -> Result<RunHandle<W, T>, RunError> {
        self.wire(config)?.start().await
    }
}

impl<W: Send + Sync + 'static, T: Send + 'static> Graph<W, T> {
    /// Starts the flow: see [`PpoFlow::start`].
    ///
    /// # Errors
    /// There are no threads. Nothing has run.
    pub async fn start(self) -> Result<RunHandle<W, T>, RunError> {
        let Graph { config, workers, state, reward_models, remains } = self;
        let roll = Roll::new(workers.iter().map(|worker| worker.role()));
        let workers = workers.into_iter().zip(state.counters.clone()).collect();
        let (events, first_listener) = broadcast::channel(N_EVENTS_KEPT);
        let (status, watched) = watch::channel(status_of(&state, &roll));
        let (ended, has_ended) = oneshot::channel();
        let listeners = events.downgrade();
        let arguments = SupervisorArguments { config, workers, state, events, status, ended };
        let (supervisor, _) =
            Actor::spawn(None, Supervisor, arguments).await.map_err(|error| RunError::Actors(error.to_string()))?;
        let first_listener = Arc::new(Mutex::new(Some(first_listener)));
        let control = RunControl { supervisor, listeners, first_listener, status: watched, reward_models };
        Ok(RunHandle { control, has_ended, remains })
    }
}

/// Watches and commands a run. Clones are for the same run.
#[derive(Clone)]
pub struct RunControl {
    supervisor: ActorRef<SupervisorMessage>,
    /// Weak, so that listeners see the end of the run as the end of its events.
    listeners: broadcast::WeakSender<RunEvent>,
    /// Listens since before the start.
    first_listener: Arc<Mutex<Option<broadcast::Receiver<RunEvent>>>>,
    status: watch::Receiver<RunStatus>,
    reward_models: Option<Arc<dyn RewardModels>>,
}

impl RunControl {
    /// What happens in the run. The first call, over all clones, hears everything since the start, later ones what
    /// comes from now on. A listener that is over 1024 events behind misses the oldest. Ends with the run.
    pub fn events(&self) -> broadcast::Receiver<RunEvent> {
        let first = self.first_listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let another = || match self.listeners.upgrade() {
            Some(events) => events.subscribe(),
            // The run has ended: a receiver that has nothing to say.
            None => broadcast::channel(1).1,
        };
        first.unwrap_or_else(another)
    }

    /// The run as it is now; changes when something happens, and twice a second.
    pub fn status(&self) -> watch::Receiver<RunStatus> {
        self.status.clone()
    }

    /// Every role takes no more work until [`resume`](Self::resume); nothing is lost.
    pub fn pause(&self) {
        self.command(RunCommand::Pause);
    }

    /// Takes back a pause.
    pub fn resume(&self) {
        self.command(RunCommand::Resume);
    }

    /// Keeps the whole state before the next update begins; what is in flight then is issued again where a run goes on
    /// from there. An event tells when it is kept; a pause puts it off.
    pub fn checkpoint(&self) {
        self.command(RunCommand::Checkpoint);
    }

    /// Changes a setting from the next batch on. An event tells with which update it began to hold.
    ///
    /// # Errors
    /// It makes no sense: the key, the value, and what is expected. Nothing has changed.
    pub fn change(&self, change: SettingChange) -> Result<(), RunError> {
        match self.problem_of(&change) {
            Some(problem) => Err(RunError::Config(problem)),
            None => {
                self.command(RunCommand::Change(change));
                Ok(())
            }
        }
    }

    /// Puts the reward model of a directory in the place of the one that gives the scores. The batches that have tickets in
    /// flight are trained on first; from then on every score is the new one's, and the value model is warmed up anew. The
    /// whole state is kept in between. Events tell when that will be, and when it was. Reads the reward model, so it takes
    /// its time.
    ///
    /// # Errors
    /// The directory holds no reward model that can give scores in this run, or the scores come from something else.
    /// Nothing has changed.
    pub fn replace_reward_model(&self, dir: &Path) -> Result<RewardModelId, RunError> {
        let models = self.reward_models.as_ref().ok_or_else(|| RunError::Config(NOT_REPLACEABLE.to_owned()))?;
        let model = models.identify(dir).map_err(|error| RunError::Config(error.to_string()))?;
        self.change(SettingChange::RewardModel(model.clone()))?;
        Ok(model)
    }

    fn problem_of(&self, change: &SettingChange) -> Option<String> {
        match change {
            SettingChange::RewardModel(_) if self.reward_models.is_none() => Some(NOT_REPLACEABLE.to_owned()),
            change => change.problem(),
        }
    }

    /// The update in progress finishes and is published, what else is in flight is dropped, then the run ends in
    /// good order. A flow whose `on_stop` is to drain first trains on what is in flight; a second call cuts that short.
    pub fn stop(&self) {
        self.command(RunCommand::Stop);
    }

    fn command(&self, command: RunCommand) {
        // A run that has ended can't be commanded, and needs not be.
        let _ = self.supervisor.cast(SupervisorMessage::Command(command));
    }
}

impl fmt::Debug for RunControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunControl").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

/// A run that has been started. To drop it ends nothing: the run goes on unwatched.
pub struct RunHandle<W, T> {
    control: RunControl,
    has_ended: oneshot::Receiver<Result<(), RunError>>,
    remains: Remains<W, T>,
}

impl<W, T> RunHandle<W, T> {
    /// For others who watch or command the run, while this waits for its outcome.
    pub fn control(&self) -> RunControl {
        self.control.clone()
    }

    /// The newest weights, as the run goes on.
    pub fn latest(&self) -> Latest<W> {
        self.remains.latest()
    }

    /// See [`RunControl::events`].
    pub fn events(&self) -> broadcast::Receiver<RunEvent> {
        self.control.events()
    }

    /// See [`RunControl::status`].
    pub fn status(&self) -> watch::Receiver<RunStatus> {
        self.control.status()
    }

    /// See [`RunControl::pause`].
    pub fn pause(&self) {
        self.control.pause();
    }

    /// See [`RunControl::resume`].
    pub fn resume(&self) {
        self.control.resume();
    }

    /// See [`RunControl::stop`].
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Waits until every role has ended.
    ///
    /// # Errors
    /// The failure that could not be mended, or the first of those that were too many, with its role's name.
    pub async fn wait(self) -> Result<FlowOutcome<W, T>, RunError> {
        let gone = |_| RunError::Actors("the supervisor is gone before the run's end".to_owned());
        self.has_ended.await.map_err(gone)??;
        self.remains.outcome()
    }
}

impl<W, T> fmt::Debug for RunHandle<W, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunHandle").field("control", &self.control).finish_non_exhaustive()
    }
}
