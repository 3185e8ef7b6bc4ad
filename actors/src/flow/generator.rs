//! A generator: samples responses with the newest policy, as many at once as its sampler has slots.

use std::sync::Arc;

use collimate_protocol::roles::Sampler;
use collimate_protocol::{PolicyVersion, Prompt, RoleError, RoleId, Rollout};
use crossbeam_channel::Select;

use super::config::WeightUpdates;
use super::counters::RoleCounters;
use super::hop::{Inlet, Outlet, Taken};
use super::latest::Latest;
use super::ledger::TicketOffice;
use super::worker::{Step, Worker, at_the_end};

/// A sampler that follows the newest snapshot.
struct Follower<W> {
    sampler: Box<dyn Sampler<W>>,
    latest: Latest<W>,
    weight_updates: WeightUpdates,
    loaded: Option<PolicyVersion>,
}

impl<W> Follower<W> {
    /// Whether a prompt may start now, under the newest weights.
    fn is_ready_for_a_prompt(&mut self) -> Result<bool, RoleError> {
        self.follow()?;
        let is_newest = self.loaded == Some(self.latest.version()) || self.weight_updates == WeightUpdates::InFlight;
        Ok(is_newest && self.sampler.n_free_slots() > 0)
    }

    /// Loads the newest snapshot, if it is not yet loaded and may be now.
    fn follow(&mut self) -> Result<(), RoleError> {
        let may_load = match self.weight_updates {
            WeightUpdates::InFlight => true,
            WeightUpdates::BetweenRollouts => self.sampler.n_running() == 0,
        };
        if may_load && self.loaded != Some(self.latest.version()) {
            let snapshot = self.latest.newest();
            self.sampler.load(&snapshot)?;
            self.loaded = Some(snapshot.version);
        }
        Ok(())
    }
}

/// The worker around a [`Sampler`].
pub(super) struct Generator<W> {
    role: RoleId,
    follower: Follower<W>,
    office: TicketOffice,
    prompts: Inlet<Prompt>,
    /// A prompt that came just when newer weights did, which it must start under.
    held: Option<Prompt>,
    rollouts: Outlet<Rollout>,
    counters: Arc<RoleCounters>,
    is_stopping: bool,
}

/// What a generator is made of.
pub(super) struct GeneratorParts<W> {
    pub role: RoleId,
    pub sampler: Box<dyn Sampler<W>>,
    pub latest: Latest<W>,
    pub weight_updates: WeightUpdates,
    pub office: TicketOffice,
    pub prompts: Inlet<Prompt>,
    pub rollouts: Outlet<Rollout>,
    pub counters: Arc<RoleCounters>,
}

impl<W> Generator<W> {
    pub fn new(parts: GeneratorParts<W>) -> Self {
        let GeneratorParts { role, sampler, latest, weight_updates, office, prompts, rollouts, counters } = parts;
        let follower = Follower { sampler, latest, weight_updates, loaded: None };
        Self { role, follower, office, prompts, held: None, rollouts, counters, is_stopping: false }
    }

    /// Starts a response for each free slot that a prompt is there for; whether any prompt moved.
    fn admit(&mut self) -> Result<bool, RoleError> {
        let mut any = false;
        while self.follower.is_ready_for_a_prompt()? {
            if self.held.is_none() {
                let Taken::Item(prompt) = self.prompts.take() else { break };
                self.held = Some(prompt);
                any = true;
            }
            // A snapshot is published before the tickets of its update come home: looked at again with the prompt in
            // hand, the slot shows at least the version that this prompt was issued under.
            if !self.follower.is_ready_for_a_prompt()? {
                break;
            }
            if let Some(prompt) = self.held.take() {
                self.follower.sampler.admit(prompt)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn shut_down(&mut self) -> Result<Step, RoleError> {
        for prompt in self.follower.sampler.abort().into_iter().chain(self.held.take()) {
            self.office.shut_down(&prompt)?;
        }
        self.rollouts.shut_down(&self.office)?;
        self.prompts.shut_down(&self.office)
    }
}

impl<W: Send + Sync> Worker for Generator<W> {
    fn role(&self) -> RoleId {
        self.role
    }

    fn step(&mut self) -> Result<Step, RoleError> {
        if self.is_stopping {
            return self.shut_down();
        }
        let was_blocked = self.rollouts.is_blocked();
        if !self.rollouts.flush() {
            return Ok(Step::Starved);
        }
        let admitted = self.admit()?;
        let n_running = self.follower.sampler.n_running();
        if n_running > 0 {
            let ended = self.follower.sampler.step()?;
            self.counters.count(ended.len(), n_running);
            for rollout in ended {
                check(&rollout)?;
                self.rollouts.push(rollout);
            }
            return Ok(Step::Progressed);
        }
        if self.prompts.has_ended() && self.held.is_none() {
            return Ok(at_the_end(&self.office));
        }
        Ok(if admitted || was_blocked { Step::Progressed } else { Step::Starved })
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        // With a response in progress it is never starved by anything but room behind it.
        if self.rollouts.is_blocked() {
            self.rollouts.wait(select);
        } else {
            self.prompts.wait(select);
        }
    }

    fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn describe(&self) -> String {
        format!(
            "{} responses in progress, {} free slots, prompt held: {}, blocked: {}, weights loaded: {:?}",
            self.follower.sampler.n_running(),
            self.follower.sampler.n_free_slots(),
            self.held.is_some(),
            self.rollouts.is_blocked(),
            self.follower.loaded
        )
    }
}

/// Refuses a rollout whose parts do not fit one another.
fn check(rollout: &Rollout) -> Result<(), RoleError> {
    let n = rollout.response.len();
    let lengths = [rollout.logprobs.len(), rollout.versions.len(), rollout.entropies.len()];
    if lengths == [n; 3] {
        return Ok(());
    }
    let id = rollout.prompt.ticket.id.0;
    Err(format!(
        "the sampler returned {n} response tokens for ticket {id}, but {lengths:?} logprobs, versions and entropies"
    )
    .into())
}
