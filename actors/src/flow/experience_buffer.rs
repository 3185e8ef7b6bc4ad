//! The experience buffer: drops what is too stale, fills batches, has them made into experience.

use std::collections::BTreeMap;
use std::sync::Arc;

use collimate_protocol::roles::ExperienceMaker;
use collimate_protocol::{
    DropReason, ExperienceBatch, PolicyVersion, Role, RoleError, RoleId, ScoredRollout, SettingChange, TicketId,
    TicketOutcome,
};
use crossbeam_channel::Select;

use super::compute::Compute;
use super::counters::RoleCounters;
use super::hop::{Inlet, Outlet, Taken};
use super::latest::Latest;
use super::office::TicketOffice;
use super::worker::{Step, Worker, Workload, at_the_end};

/// Batches' worth of rollouts in a row that may be dropped as not finite. More is a broken model, not bad luck, and
/// would go on for ever: a dropped rollout is issued again.
const N_NON_FINITE_BATCHES: usize = 4;

/// Decides which rollouts make up which batch. Pure. The n-th batch, from 0, is trained at learner version n, so
/// the staleness that each token will have is known as soon as its rollout arrives.
#[derive(Debug)]
pub(super) struct BatchFiller {
    batch_size: usize,
    max_staleness: u64,
    /// The learner's version when it trains on the batch that fills.
    version: PolicyVersion,
    /// By ticket, so that no order of arrival shows.
    kept: BTreeMap<TicketId, ScoredRollout>,
    n_non_finite_in_a_row: usize,
}

/// What became of a rollout.
#[derive(Debug, PartialEq)]
pub(super) enum Offered {
    Kept,
    Dropped(DropReason),
}

impl BatchFiller {
    /// `version` is the learner's as it starts.
    pub fn new(batch_size: usize, max_staleness: u64, version: PolicyVersion) -> Self {
        Self { batch_size, max_staleness, version, kept: BTreeMap::new(), n_non_finite_in_a_row: 0 }
    }

    /// Keeps a rollout for the batch that fills, or says why not.
    pub fn offer(&mut self, scored: ScoredRollout) -> Result<Offered, RoleError> {
        if !scored.is_finite() {
            self.n_non_finite_in_a_row += 1;
            if self.n_non_finite_in_a_row > N_NON_FINITE_BATCHES * self.batch_size {
                let n = self.n_non_finite_in_a_row;
                return Err(format!("{n} rollouts in a row had a log-probability or score that is not finite").into());
            }
            return Ok(Offered::Dropped(DropReason::NonFinite));
        }
        self.n_non_finite_in_a_row = 0;
        // An empty response has no token that could be stale.
        let staleness = scored.rollout.oldest_version().map_or(0, |oldest| self.version.staleness_of(oldest));
        if staleness > self.max_staleness {
            return Ok(Offered::Dropped(DropReason::TooStale));
        }
        self.kept.insert(scored.rollout.prompt.ticket.id, scored);
        Ok(Offered::Kept)
    }

    /// The batch, once it is full, in order of ticket id, with the version that trains on it.
    pub fn take_full(&mut self) -> Option<(PolicyVersion, Vec<ScoredRollout>)> {
        if self.kept.len() < self.batch_size {
            return None;
        }
        let version = self.version;
        self.version = version.next();
        Some((version, self.take_all()))
    }

    /// What was kept, in order of ticket id.
    pub fn take_all(&mut self) -> Vec<ScoredRollout> {
        std::mem::take(&mut self.kept).into_values().collect()
    }
}

/// A batch, and what the maker had learned once it was made. Experience buffer to learner.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ReadyBatch {
    pub batch: ExperienceBatch,
    /// Settings that hold from this batch on.
    pub changes: Arc<[SettingChange]>,
    pub maker_state: Arc<[u8]>,
}

/// Rollouts that are to become a batch.
#[derive(Clone)]
pub(super) struct FullBatch {
    /// The version that trains on it.
    pub version: PolicyVersion,
    pub rollouts: Vec<ScoredRollout>,
    /// Settings that hold from it on. What is done again after a failure is done with the same.
    pub changes: Arc<[SettingChange]>,
}

/// The worker around a [`BatchFiller`] and an [`ExperienceMaker`].
pub(super) struct ExperienceBuffer<W> {
    pub filler: BatchFiller,
    pub maker: Compute<dyn ExperienceMaker<W>>,
    pub latest: Latest<W>,
    pub office: TicketOffice,
    pub scored: Inlet<ScoredRollout>,
    pub full: Option<FullBatch>,
    /// Settings that are to change with the next batch.
    pub changes: Vec<SettingChange>,
    pub batches: Outlet<ReadyBatch>,
    /// What the maker has learned from the batches so far; `None` before the first.
    pub maker_state: Option<Arc<[u8]>>,
    /// Whether the maker is one that has learned nothing yet.
    pub is_anew: bool,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
}

impl<W: Send + Sync + 'static> ExperienceBuffer<W> {
    /// Takes what is there until the batch is full; whether anything was.
    fn fill(&mut self) -> Result<bool, RoleError> {
        let mut any = false;
        while self.filler.kept.len() < self.filler.batch_size {
            let Taken::Item(scored) = self.scored.take() else { break };
            any = true;
            let ticket = scored.rollout.prompt.ticket;
            if let Offered::Dropped(reason) = self.filler.offer(scored)? {
                self.office.take_home([ticket], TicketOutcome::Dropped(reason))?;
            }
        }
        Ok(any)
    }

    /// Sends home what is in hand and will not be trained on.
    fn shut_down(&mut self) -> Result<(), RoleError> {
        let full = self.full.take().map(|full| full.rollouts).unwrap_or_default();
        for scored in full.into_iter().chain(self.filler.take_all()) {
            self.office.shut_down(&scored)?;
        }
        Ok(())
    }
}

impl<W: Send + Sync + 'static> Worker for ExperienceBuffer<W> {
    fn role(&self) -> RoleId {
        RoleId::only(Role::ExperienceBuffer)
    }

    fn take(&mut self) -> Result<Step, RoleError> {
        if self.is_stopping {
            self.shut_down()?;
            self.batches.shut_down(&self.office)?;
            return self.scored.shut_down(&self.office);
        }
        let was_blocked = self.batches.is_blocked();
        if !self.batches.flush() {
            return Ok(Step::Starved);
        }
        let mut any = false;
        if self.full.is_none() {
            any = self.fill()?;
            self.full = self.filler.take_full().map(|(version, rollouts)| {
                let mut changes = std::mem::take(&mut self.changes);
                // The batch's own tickets keep it from being replaced once more before this is read.
                let reward_model = self.office.reward_model().filter(|since| since.version == version);
                changes.extend(reward_model.map(|since| SettingChange::RewardModel(since.model)));
                FullBatch { version, rollouts, changes: changes.into() }
            });
        }
        if self.full.is_some() {
            return Ok(Step::Ready);
        }
        if self.scored.has_ended() {
            let step = at_the_end(&self.office);
            if step == Step::Finished {
                // What fills no whole batch when a run has drained.
                self.shut_down()?;
            }
            return Ok(step);
        }
        Ok(if any || was_blocked { Step::Progressed } else { Step::Starved })
    }

    fn work(&mut self) -> Result<(), RoleError> {
        let Some(FullBatch { version, rollouts, changes }) = self.full.clone() else { return Ok(()) };
        let (snapshot, batch_size) = (self.latest.newest(), self.filler.batch_size);
        let learned = self.maker_state.clone().filter(|_| self.is_anew);
        let changed = changes.clone();
        let (batch, state) = self.maker.call(move |maker| {
            if let Some(state) = learned {
                maker.restore(&state)?;
            }
            changed.iter().try_for_each(|change| maker.change(change.clone()))?;
            let batch = maker.assemble(version, rollouts, &snapshot)?;
            check(&batch, version, batch_size)?;
            Ok((batch, maker.state()?))
        })?;
        let maker_state: Arc<[u8]> = state.into();
        (self.full, self.is_anew, self.maker_state) = (None, false, Some(maker_state.clone()));
        let n_tokens = batch.experiences.iter().map(|e| e.scored.rollout.response.len()).sum();
        self.counters.count(1, n_tokens);
        self.batches.push(ReadyBatch { batch, changes, maker_state });
        Ok(())
    }

    fn workload(&self) -> Workload {
        let rollouts = self.full.iter().flat_map(|full| &full.rollouts).map(|scored| &scored.rollout);
        let n_tokens = rollouts.map(|rollout| rollout.prompt.tokens.len() + rollout.response.len()).sum();
        Workload { n_items: self.full.as_ref().map_or(0, |full| full.rollouts.len()), n_tokens }
    }

    fn recover(&mut self) {
        self.maker.discard();
        self.is_anew = true;
    }

    fn change(&mut self, change: SettingChange) {
        self.changes.push(change);
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if self.batches.is_blocked() {
            self.batches.wait(select);
        } else {
            self.scored.wait(select);
        }
    }

    fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn describe(&self) -> String {
        format!(
            "{} of {} rollouts for the batch that {} trains on, a full one in hand: {}, blocked: {}",
            self.filler.kept.len(),
            self.filler.batch_size,
            self.filler.version,
            self.full.is_some(),
            self.batches.is_blocked()
        )
    }
}

/// Refuses a batch that is not whole, or not finite: training on it would spoil the weights.
fn check(batch: &ExperienceBatch, version: PolicyVersion, batch_size: usize) -> Result<(), RoleError> {
    if batch.version != version || batch.experiences.len() != batch_size {
        let (found, n) = (batch.version, batch.experiences.len());
        return Err(format!("{batch_size} rollouts for {version} became a batch of {n} for {found}").into());
    }
    for experience in &batch.experiences {
        let ticket = experience.scored.rollout.prompt.ticket.id.0;
        let n = experience.scored.rollout.response.len();
        for (name, numbers) in [
            ("values", &experience.values),
            ("rewards", &experience.rewards),
            ("advantages", &experience.advantages),
            ("returns", &experience.returns),
        ] {
            if numbers.len() != n {
                return Err(format!("ticket {ticket} has {n} response tokens, but {} {name}", numbers.len()).into());
            }
            if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
                return Err(format!("the {name} of ticket {ticket} have {number} among them").into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use collimate_protocol::{FinishReason, Prompt, PromptId, Rollout, Ticket};

    use super::*;

    fn scored(id: u64, versions: &[u64]) -> ScoredRollout {
        let ticket = Ticket { id: TicketId(id), prompt_id: PromptId(0), sample_idx: 0 };
        let n = versions.len();
        let rollout = Rollout {
            prompt: Prompt { ticket, tokens: vec![1] },
            response: vec![2; n],
            logprobs: vec![-1.0; n],
            versions: versions.iter().copied().map(PolicyVersion).collect(),
            prompt_version: PolicyVersion(0),
            entropies: vec![1.0; n],
            finish: FinishReason::Length,
        };
        ScoredRollout { rollout, ref_logprobs: vec![-1.0; n], score: 0.0 }
    }

    fn ids(rollouts: &[ScoredRollout]) -> Vec<u64> {
        rollouts.iter().map(|scored| scored.rollout.prompt.ticket.id.0).collect()
    }

    #[test]
    fn a_batch_is_full_in_order_of_tickets_and_the_next_is_for_the_next_version() {
        let mut filler = BatchFiller::new(2, 1, PolicyVersion(0));
        assert_eq!(filler.offer(scored(4, &[0])).unwrap(), Offered::Kept);
        assert_eq!(filler.take_full(), None);
        assert_eq!(filler.offer(scored(3, &[0])).unwrap(), Offered::Kept);
        let (version, rollouts) = filler.take_full().unwrap();
        assert_eq!((version, ids(&rollouts)), (PolicyVersion(0), vec![3, 4]));
        filler.offer(scored(5, &[0])).unwrap();
        filler.offer(scored(6, &[1])).unwrap();
        assert_eq!(filler.take_full().unwrap().0, PolicyVersion(1));
    }

    #[test]
    fn the_oldest_token_decides_and_the_bound_itself_is_allowed() {
        let mut filler = BatchFiller::new(1, 1, PolicyVersion(0));
        for id in 0..2 {
            filler.offer(scored(id, &[id])).unwrap();
            filler.take_full().unwrap();
        }
        // The next batch is trained at version 2.
        assert_eq!(filler.offer(scored(2, &[0, 2, 2])).unwrap(), Offered::Dropped(DropReason::TooStale));
        assert_eq!(filler.offer(scored(3, &[1, 2, 2])).unwrap(), Offered::Kept);
    }

    #[test]
    fn an_empty_response_is_never_stale() {
        let mut filler = BatchFiller::new(1, 0, PolicyVersion(0));
        filler.offer(scored(0, &[0])).unwrap();
        filler.take_full().unwrap();
        assert_eq!(filler.offer(scored(1, &[])).unwrap(), Offered::Kept);
    }

    #[test]
    fn what_is_not_finite_is_dropped_until_nothing_else_comes() {
        let mut filler = BatchFiller::new(1, 0, PolicyVersion(0));
        let broken = ScoredRollout { score: f32::NAN, ..scored(0, &[0]) };
        for _ in 0..N_NON_FINITE_BATCHES {
            assert_eq!(filler.offer(broken.clone()).unwrap(), Offered::Dropped(DropReason::NonFinite));
        }
        assert!(filler.offer(broken).unwrap_err().to_string().contains("in a row"));
    }
}
