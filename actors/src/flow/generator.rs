//! A generator: samples responses with the newest policy, as many at once as its sampler has slots.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use collimate_protocol::roles::Sampler;
use collimate_protocol::{PolicyVersion, Prompt, RoleError, RoleId, Rollout, Snapshot, TicketId};
use crossbeam_channel::Select;

use super::compute::Compute;
use super::config::WeightUpdates;
use super::counters::RoleCounters;
use super::hop::{Inlet, Outlet, Taken};
use super::latest::Latest;
use super::office::TicketOffice;
use super::worker::{Step, Worker, Workload, at_the_end};

/// What the next step does before it samples.
struct Beginning<W> {
    /// Weights to load.
    snapshot: Option<Snapshot<W>>,
    /// Prompts whose responses begin.
    prompts: Vec<Prompt>,
}

// By hand: a derive would ask for a default of `W`.
impl<W> Default for Beginning<W> {
    fn default() -> Self {
        Self { snapshot: None, prompts: Vec::new() }
    }
}

/// The worker around a [`Sampler`].
pub(super) struct Generator<W> {
    role: RoleId,
    sampler: Compute<dyn Sampler<W>>,
    n_slots: usize,
    latest: Latest<W>,
    weight_updates: WeightUpdates,
    office: TicketOffice,
    prompts: Inlet<Prompt>,
    /// The prompts of the responses in progress.
    running: BTreeMap<TicketId, Prompt>,
    beginning: Beginning<W>,
    /// Prompts in hand that can't begin yet: one that came just when newer weights did, and those of a sampler that
    /// failed.
    held: VecDeque<Prompt>,
    /// What the sampler has loaded.
    loaded: Option<PolicyVersion>,
    rollouts: Outlet<Rollout>,
    counters: Arc<RoleCounters>,
    is_stopping: bool,
}

/// What a generator is made of.
pub(super) struct GeneratorParts<W> {
    pub role: RoleId,
    pub sampler: Compute<dyn Sampler<W>>,
    pub n_slots: usize,
    pub latest: Latest<W>,
    pub weight_updates: WeightUpdates,
    pub office: TicketOffice,
    pub prompts: Inlet<Prompt>,
    pub rollouts: Outlet<Rollout>,
    pub counters: Arc<RoleCounters>,
}

impl<W: Send + Sync + 'static> Generator<W> {
    pub fn new(parts: GeneratorParts<W>) -> Self {
        let GeneratorParts { role, sampler, n_slots, latest, weight_updates, office, prompts, rollouts, counters } =
            parts;
        Self {
            role,
            sampler,
            n_slots,
            latest,
            weight_updates,
            office,
            prompts,
            running: BTreeMap::new(),
            beginning: Beginning::default(),
            held: VecDeque::new(),
            loaded: None,
            rollouts,
            counters,
            is_stopping: false,
        }
    }

    fn n_in_progress(&self) -> usize {
        self.running.len() + self.beginning.prompts.len()
    }

    /// Takes a prompt for each free slot, then the newest weights. In this order: a snapshot is published before the
    /// tickets of its update come home, so the newest is at least the version that a prompt in hand was issued under.
    fn begin(&mut self) {
        while self.n_in_progress() < self.n_slots {
            let prompt = match self.held.pop_front() {
                Some(prompt) => prompt,
                None => match self.prompts.take() {
                    Taken::Item(prompt) => prompt,
                    Taken::Nothing | Taken::Ended => break,
                },
            };
            if !self.may_begin() {
                self.held.push_front(prompt);
                break;
            }
            self.beginning.prompts.push(prompt);
        }
        let may_load = self.weight_updates == WeightUpdates::InFlight || self.running.is_empty();
        if may_load && self.n_in_progress() > 0 && self.loaded != Some(self.latest.version()) {
            self.beginning.snapshot = Some(self.latest.newest());
        }
    }

    /// Whether a prompt in hand may begin now, under the newest weights.
    fn may_begin(&self) -> bool {
        match self.weight_updates {
            WeightUpdates::InFlight => true,
            WeightUpdates::BetweenRollouts => self.running.is_empty() || self.loaded == Some(self.latest.version()),
        }
    }

    /// Whether the weights can go: nothing is in hand, and no ticket is issued before others came home, which an update does
    /// after it has published the next weights. While it is computed these would only take up memory.
    fn may_rest(&self) -> bool {
        self.loaded.is_some() && self.held.is_empty() && !self.office.may_issue()
    }

    fn shut_down(&mut self) -> Result<Step, RoleError> {
        let beginning = std::mem::take(&mut self.beginning).prompts;
        let running = std::mem::take(&mut self.running).into_values();
        for prompt in running.chain(beginning).chain(self.held.drain(..)) {
            self.office.shut_down(&prompt)?;
        }
        self.rollouts.shut_down(&self.office)?;
        self.prompts.shut_down(&self.office)
    }
}

impl<W: Send + Sync + 'static> Worker for Generator<W> {
    fn role(&self) -> RoleId {
        self.role
    }

    fn take(&mut self) -> Result<Step, RoleError> {
        if self.is_stopping {
            return self.shut_down();
        }
        let was_blocked = self.rollouts.is_blocked();
        if !self.rollouts.flush() {
            return Ok(Step::Starved);
        }
        self.begin();
        if self.n_in_progress() > 0 {
            return Ok(Step::Ready);
        }
        if self.may_rest() {
            self.loaded = None;
            self.sampler.call(|sampler| {
                sampler.rest();
                Ok(())
            })?;
            return Ok(Step::Progressed);
        }
        if self.prompts.has_ended() && self.held.is_empty() {
            return Ok(at_the_end(&self.office));
        }
        Ok(if was_blocked { Step::Progressed } else { Step::Starved })
    }

    fn work(&mut self) -> Result<(), RoleError> {
        let (snapshot, prompts) = (self.beginning.snapshot.clone(), self.beginning.prompts.clone());
        let ended = self.sampler.call(move |sampler| {
            if let Some(snapshot) = snapshot {
                sampler.load(&snapshot)?;
            }
            prompts.into_iter().try_for_each(|prompt| sampler.admit(prompt))?;
            sampler.step()
        })?;
        let Beginning { snapshot, prompts } = std::mem::take(&mut self.beginning);
        self.loaded = snapshot.map(|snapshot| snapshot.version).or(self.loaded);
        self.running.extend(prompts.into_iter().map(|prompt| (prompt.ticket.id, prompt)));
        self.counters.count(ended.len(), self.running.len());
        ended.iter().try_for_each(|rollout| check(rollout, &self.running))?;
        for rollout in ended {
            self.running.remove(&rollout.prompt.ticket.id);
            self.rollouts.push(rollout);
        }
        Ok(())
    }

    fn workload(&self) -> Workload {
        // A sequence that begins reads its prompt, but for the last token, which goes through with the others' newest.
        let begun = self.beginning.prompts.iter().map(|prompt| prompt.tokens.len() - 1).sum::<usize>();
        Workload { n_items: self.n_in_progress(), n_tokens: self.n_in_progress() + begun }
    }

    fn recover(&mut self) {
        self.sampler.discard();
        self.loaded = None;
        let beginning = std::mem::take(&mut self.beginning).prompts;
        let lost = std::mem::take(&mut self.running).into_values().chain(beginning);
        let lost: BTreeMap<TicketId, Prompt> = lost.map(|prompt| (prompt.ticket.id, prompt)).collect();
        self.office.issued_again(lost.len());
        self.held.extend(lost.into_values());
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
            "{} responses in progress in {} slots, {} prompts held, blocked: {}, weights loaded: {:?}",
            self.n_in_progress(),
            self.n_slots,
            self.held.len(),
            self.rollouts.is_blocked(),
            self.loaded
        )
    }
}

/// Refuses a rollout whose parts do not fit one another, or that nobody asked for.
fn check(rollout: &Rollout, running: &BTreeMap<TicketId, Prompt>) -> Result<(), RoleError> {
    let id = rollout.prompt.ticket.id;
    if running.get(&id) != Some(&rollout.prompt) {
        return Err(format!("the sampler returned a response to ticket {}, which it was not given", id.0).into());
    }
    let n = rollout.response.len();
    let lengths = [rollout.logprobs.len(), rollout.versions.len(), rollout.entropies.len()];
    if lengths == [n; 3] {
        return Ok(());
    }
    Err(format!(
        "the sampler returned {n} response tokens for ticket {}, but {lengths:?} logprobs, versions and entropies",
        id.0
    )
    .into())
}
