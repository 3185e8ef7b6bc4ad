//! What is known of a run now, and numbered messages for whoever looks. Pure, but for the notice that something is new.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use collimate_protocol::messages::RunStatus;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::history::{History, Place};
use crate::rundir::Stage;
use crate::rundir::event_log::LoggedEvent;

/// Messages that are kept: whoever was away for fewer hears all that was missed, others read everything anew.
const N_KEPT: usize = 1024;
/// Events that are kept for whoever comes later.
const N_EVENTS: usize = 1000;

/// What whoever looks is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Message {
    /// An update is done: its numbers, and its place on each axis.
    Updated {
        /// On each axis.
        at: Place,
        /// By name.
        numbers: serde_json::Map<String, Value>,
    },
    /// Something else has happened.
    Event(LoggedEvent),
    /// A stage has begun.
    Stage {
        /// Which.
        stage: Stage,
    },
    /// The run can be commanded from now on, or no longer.
    Commandable {
        /// Whether it can.
        is_commandable: bool,
    },
    /// All that is known is to be read anew.
    Reset,
}

/// What is known of a run.
#[derive(Debug, Default)]
pub struct Known {
    /// Its updates.
    pub history: History,
    /// How it is, or was last.
    pub status: Option<RunStatus>,
    /// Raised with each status.
    pub status_serial: u64,
    /// Whether a process has the run open.
    pub is_live: bool,
    /// What happened besides updates, oldest first.
    pub events: VecDeque<LoggedEvent>,
    /// The stage that runs, where that is known.
    pub stage: Option<Stage>,
    /// What of the directory can't be read.
    pub problem: Option<String>,
    messages: VecDeque<Message>,
    /// Of the newest message; 0 before the first.
    last_id: u64,
}

impl Known {
    /// The number of the newest message.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// The messages after a number, with theirs; `None` where some of them are gone, or the number is of no message.
    pub fn since(&self, id: u64) -> Option<Vec<(u64, Message)>> {
        let n = usize::try_from(self.last_id.checked_sub(id)?).ok().filter(|n| *n <= self.messages.len())?;
        let numbers = id + 1..;
        Some(numbers.zip(self.messages.iter().skip(self.messages.len() - n).cloned()).collect())
    }

    /// Adds an event.
    pub fn add_event(&mut self, event: LoggedEvent) {
        self.events.push_back(event);
        while self.events.len() > N_EVENTS {
            self.events.pop_front();
        }
    }

    /// Tells everybody.
    pub fn tell(&mut self, message: Message) {
        self.messages.push_back(message);
        while self.messages.len() > N_KEPT {
            self.messages.pop_front();
        }
        self.last_id += 1;
    }
}

/// Where those who know of a run and those who look at it meet.
#[derive(Debug)]
pub struct Hub {
    known: Mutex<Known>,
    changed: watch::Sender<()>,
    /// Names this hub: another one, after a restart of the server, counts its messages anew.
    epoch: u32,
}

impl Default for Hub {
    fn default() -> Self {
        Self { known: Mutex::default(), changed: watch::channel(()).0, epoch: rand::random() }
    }
}

impl Hub {
    /// Its name.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Looks at what is known.
    pub fn read<R>(&self, read: impl FnOnce(&Known) -> R) -> R {
        read(&self.known())
    }

    /// Changes what is known, and wakes whoever waits for that.
    pub fn write<R>(&self, write: impl FnOnce(&mut Known) -> R) -> R {
        let result = write(&mut self.known());
        self.changed.send_replace(());
        result
    }

    /// Changes whenever something is new.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // What is known is shown, and nothing rests on it: half of a change is no reason to fail.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_away_for_a_while_hears_what_was_missed_and_for_long_reads_anew() {
        let mut known = Known::default();
        assert_eq!(known.since(0), Some(Vec::new()));
        for stage in Stage::ALL {
            known.tell(Message::Stage { stage });
        }
        assert_eq!(known.last_id(), 5);
        let missed = known.since(3).unwrap();
        assert_eq!(missed, [(4, Message::Stage { stage: Stage::Reward }), (5, Message::Stage { stage: Stage::Ppo })]);
        assert_eq!(known.since(5), Some(Vec::new()));
        assert_eq!(known.since(6), None, "no message of this hub");
        (0..N_KEPT).for_each(|_| known.tell(Message::Reset));
        assert_eq!(known.since(4), None);
        assert_eq!(known.since(5).unwrap().len(), N_KEPT);
    }
}
