//! What a run in this process tells those who look at it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use collimate_protocol::messages::{RunEvent, RunStatus};
use collimate_protocol::{PolicyVersion, Role, RoleId};
use serde_json::Value;

use super::directory;
use super::history::Place;
use super::hub::{Hub, Message};
use crate::control::RunControl;
use crate::observe::numbers;
use crate::observe::ppo_recorder::UpdateRecord;
use crate::rundir::event_log::LoggedEvent;
use crate::rundir::{RunDir, Stage, StageDir};
use crate::stages::answer_more::AnswerMore;

/// A way to the hub, where somebody may look; nothing where nobody does. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Live(Option<Arc<Watched>>);

/// A run that is looked at.
#[derive(Debug)]
pub struct Watched {
    /// The directory that was named.
    home: PathBuf,
    /// That of the run that is followed: another one for each round of `collimate iterate`.
    root: Mutex<PathBuf>,
    /// What is known of it.
    pub hub: Hub,
    /// While PPO runs in this process.
    flow: Mutex<Option<WatchedFlow>>,
}

/// PPO that runs in this process.
#[derive(Clone, Debug)]
struct WatchedFlow {
    /// What it can be commanded by.
    control: RunControl,
    /// Its policy.
    policy: AnswerMore,
}

impl Watched {
    /// The run in this directory, of which nothing is known yet.
    pub fn of(root: &Path) -> Self {
        Self { home: root.to_owned(), root: Mutex::new(root.to_owned()), hub: Hub::default(), flow: Mutex::default() }
    }

    /// The directory that was named: the run's, or that of its rounds.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Another run is followed from now on, of which nothing is known yet.
    pub(super) fn follow(&self, root: &Path) {
        root.clone_into(&mut self.root.lock().unwrap_or_else(PoisonError::into_inner));
        self.hub.write(|known| (known.status, known.stage) = (None, None));
    }

    /// The directory of the run that is followed.
    pub fn root(&self) -> PathBuf {
        self.root.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the run can be commanded by, now.
    pub fn control(&self) -> Option<RunControl> {
        self.flow().map(|flow| flow.control)
    }

    /// The policy that is being trained, now.
    pub fn policy(&self) -> Option<AnswerMore> {
        self.flow().map(|flow| flow.policy)
    }

    fn flow(&self) -> Option<WatchedFlow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_flow(&self, flow: Option<WatchedFlow>) {
        let is_commandable = flow.is_some();
        *self.flow.lock().unwrap_or_else(PoisonError::into_inner) = flow;
        self.hub.write(|known| known.tell(Message::Commandable { is_commandable }));
    }
}

/// The message about an update.
pub(super) fn updated(at: Place, record: &Value) -> Message {
    let numbers = numbers::of(record).into_iter().map(|(name, number)| (name, number.into())).collect();
    Message::Updated { at, numbers }
}

impl Live {
    /// Tells these.
    pub fn to(watched: Arc<Watched>) -> Self {
        Self(Some(watched))
    }

    fn tell(&self, tell: impl FnOnce(&Watched)) {
        if let Some(watched) = &self.0 {
            tell(watched);
        }
    }

    /// The next round begins, which is a run in a directory of its own.
    pub fn round_began(&self, round: &RunDir) {
        self.tell(|watched| {
            watched.follow(round.root());
            directory::load(&round.stage(Stage::Ppo), &watched.hub);
        });
    }

    /// A stage begins.
    pub fn stage_began(&self, stage: Stage) {
        self.tell(|watched| {
            watched.hub.write(|known| {
                (known.stage, known.is_live) = (Some(stage), true);
                known.tell(Message::Stage { stage });
            });
        });
    }

    /// PPO begins, or goes on with what is in its folder.
    pub fn load(&self, dir: &StageDir) {
        self.tell(|watched| directory::load(dir, &watched.hub));
    }

    /// The flow has begun, takes commands, and its policy can be asked.
    pub fn began(&self, control: RunControl, policy: AnswerMore) {
        self.tell(|watched| watched.set_flow(Some(WatchedFlow { control, policy })));
    }

    /// The flow has ended.
    pub fn ended(&self) {
        self.tell(|watched| watched.set_flow(None));
    }

    /// An update is recorded, with its rollouts.
    pub fn updated(&self, record: &UpdateRecord) {
        let Some(watched) = &self.0 else { return };
        // A number that is not finite is `null`: a gap.
        let Ok(record) = serde_json::to_value(record) else { return };
        watched.hub.write(|known| {
            known.history.push(&record);
            let at = known.history.last().unwrap_or_default();
            known.tell(updated(at, &record));
        });
    }

    /// How the run is now.
    pub fn show_status(&self, status: &RunStatus) {
        self.tell(|watched| {
            watched.hub.write(|known| {
                known.status = Some(status.clone());
                known.status_serial += 1;
            });
        });
    }

    /// Something has happened. An update is told of by [`updated`](Self::updated).
    pub fn happened(&self, event: LoggedEvent) {
        if matches!(event.event, RunEvent::Updated(_)) {
            return;
        }
        self.tell(|watched| {
            watched.hub.write(|known| {
                known.add_event(event.clone());
                known.tell(Message::Event(event));
            });
        });
    }

    /// Something is wrong that training does not depend on.
    pub fn warn(&self, updates: PolicyVersion, message: String) {
        let event = RunEvent::Warning { role: RoleId::only(Role::Recorder), message };
        self.happened(LoggedEvent::now(updates, event));
    }
}
