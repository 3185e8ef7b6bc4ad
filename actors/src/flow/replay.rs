//! Runs a journal again, on one thread and without actors, and compares: tokens and log-probabilities of each rollout,
//! scores, the KL coefficient, and the weights after each update.
//!
//! It rests on what the kernels promise: a row's numbers depend on nothing but the row, so a rollout that was sampled
//! beside others comes out the same alone, if new weights come at the same tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use collimate_protocol::records::{JournaledRollout, JournaledUpdate};
use collimate_protocol::roles::{
    Detokenizer, ExperienceMaker, PretrainSource, ReferencePolicy, RewardRequest, Sampler, Trainer,
};
use collimate_protocol::{
    PolicyVersion, PretrainBatch, Prompt, RewardModelId, RoleError, Rollout, ScoredRollout, SettingChange, Snapshot,
    TicketId,
};

use super::config::FlowConfig;
use super::error::RunError;
use super::prompt_source::PromptSupply;
use super::reward_scorer::RewardInUse;
use super::wiring::PpoFlow;

/// Why a replay ends early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Something came out otherwise: the first thing that did.
    #[error("the update of {version} differs: {what}")]
    Differs {
        /// The version that trained on the batch.
        version: PolicyVersion,
        /// What, as it was and as it is now.
        what: String,
    },
    /// A role failed.
    #[error("the update of {version} could not be done again: {error}")]
    Failed {
        /// The version that trained on the batch.
        version: PolicyVersion,
        /// With what.
        error: RoleError,
    },
}

/// The parts of a flow, in the hands of one thread.
pub struct Replay<W, T> {
    supply: PromptSupply,
    sampler: Box<dyn Sampler<W>>,
    n_slots: usize,
    reference: Box<dyn ReferencePolicy>,
    /// `None` to believe the journal's scores.
    reward: Option<RewardInUse>,
    /// The reward model, where it is not what the run began with.
    reward_model: Option<RewardModelId>,
    detokenizer: Arc<dyn Detokenizer>,
    maker: Box<dyn ExperienceMaker<W>>,
    pretrain: Option<Box<dyn PretrainSource>>,
    trainer: Box<T>,
    max_staleness: u64,
    /// Those that an update may still refer to.
    snapshots: BTreeMap<PolicyVersion, Snapshot<W>>,
}

impl<W: Send + Sync + 'static, T: Trainer<W> + 'static> Replay<W, T> {
    /// Takes a flow's parts, at the checkpoint that the flow would go on from, or at its start.
    ///
    /// # Errors
    /// A part can't be made, or refuses the checkpoint.
    pub fn new(flow: PpoFlow<W, T>, config: &FlowConfig) -> Result<Self, RunError> {
        Self::try_new(flow, config).map_err(|error| RunError::Config(error.to_string()))
    }

    fn try_new(flow: PpoFlow<W, T>, config: &FlowConfig) -> Result<Self, RoleError> {
        let sampler = flow.samplers.first().ok_or("there is no generator")?;
        let mut trainer = flow.trainer.make()?;
        let mut maker = flow.experience_maker.make()?;
        if let Some(checkpoint) = &flow.resume {
            trainer.restore(checkpoint.trainer.path())?;
            checkpoint.experience_maker.as_ref().map_or(Ok(()), |state| maker.restore(state))?;
        }
        let first = trainer.snapshot()?;
        Ok(Self {
            supply: flow.prompts,
            sampler: sampler.factory.make()?,
            n_slots: sampler.n_slots,
            reference: flow.references.first().ok_or("there is no reference scorer")?.make()?,
            reward: Some(RewardInUse::new(
                flow.rewards.first().ok_or("there is no reward scorer")?.clone(),
                flow.reward_models,
            )),
            reward_model: flow.resume.and_then(|checkpoint| checkpoint.ledger.reward_model).map(|since| since.model),
            detokenizer: flow.detokenizer,
            maker,
            pretrain: flow.pretrain.map(|factory| factory.make()).transpose()?,
            trainer,
            max_staleness: config.max_staleness,
            snapshots: BTreeMap::from([(first.version, first)]),
        })
    }

    /// Believes the journal's scores instead of working them out: where they come from outside.
    pub fn believing_scores(mut self) -> Self {
        self.reward = None;
        self
    }

    /// Updates done.
    pub fn version(&self) -> PolicyVersion {
        self.snapshots.last_key_value().map(|(version, _)| *version).unwrap_or_default()
    }

    /// Does the next update again.
    ///
    /// # Errors
    /// The first thing that comes out otherwise.
    pub fn update(&mut self, recorded: &JournaledUpdate) -> Result<(), ReplayError> {
        let version = recorded.version;
        let differs = |what: String| ReplayError::Differs { version, what };
        if version != self.version() {
            return Err(differs(format!("the replay is at {}", self.version())));
        }
        self.compare(recorded)
            .map_err(|error| ReplayError::Failed { version, error })?
            .map_or(Ok(()), |what| Err(differs(what)))
    }

    /// What differs, if anything does.
    fn compare(&mut self, recorded: &JournaledUpdate) -> Result<Option<String>, RoleError> {
        for change in &recorded.changes {
            if let SettingChange::RewardModel(model) = change {
                self.reward_model = Some(model.clone());
            }
        }
        let rollouts = self.sample(&recorded.rollouts)?;
        let ref_logprobs = self.reference.logprobs(&rollouts)?;
        let scores = self.scores(&rollouts, &recorded.rollouts)?;
        let scored: Vec<ScoredRollout> = rollouts
            .into_iter()
            .zip(ref_logprobs)
            .zip(scores)
            .map(|((rollout, ref_logprobs), score)| ScoredRollout { rollout, ref_logprobs, score })
            .collect();
        for (expected, scored) in recorded.rollouts.iter().zip(&scored) {
            if let Some(what) = difference(expected, scored) {
                return Ok(Some(what));
            }
        }
        let values = self.snapshot(recorded.values_version)?;
        for change in &recorded.changes {
            self.maker.change(change.clone())?;
            self.trainer.change(change.clone())?;
        }
        let batch = self.maker.assemble(recorded.version, scored, &values)?;
        if batch.kl_coef.to_bits() != recorded.kl_coef.to_bits() {
            return Ok(Some(format!("the KL coefficient was {}, and is now {}", recorded.kl_coef, batch.kl_coef)));
        }
        let pretrain = self.pretrain(recorded.version)?;
        self.trainer.update(&batch, &pretrain)?;
        let checksum = self.trainer.checksum()?;
        if checksum != recorded.checksum {
            let expected = recorded.checksum;
            return Ok(Some(format!(
                "the weights after it had checksum {expected:016x}, and now have {checksum:016x}"
            )));
        }
        let snapshot = self.trainer.snapshot()?;
        let oldest = snapshot.version.0.saturating_sub(self.max_staleness);
        self.snapshots.insert(snapshot.version, snapshot);
        self.snapshots.retain(|version, _| version.0 >= oldest);
        Ok(None)
    }

    /// Samples the rollouts again, those together that got new weights at the same tokens; in the order given.
    fn sample(&mut self, recorded: &[JournaledRollout]) -> Result<Vec<Rollout>, RoleError> {
        let mut groups: BTreeMap<_, Vec<&JournaledRollout>> = BTreeMap::new();
        for rollout in recorded {
            // All but the length of the last run, which is where each ends by itself.
            let mut pattern: Vec<(PolicyVersion, u32)> =
                rollout.versions.iter().map(|run| (run.version, run.n_tokens)).collect();
            if let Some(last) = pattern.last_mut() {
                last.1 = 0;
            }
            // An empty response is never stale, however long ago its prompt was read, and no weights decided on it.
            let prompt_version = if pattern.is_empty() { self.version() } else { rollout.prompt_version };
            groups.entry((prompt_version, pattern)).or_default().push(rollout);
        }
        let mut sampled: BTreeMap<TicketId, Rollout> = BTreeMap::new();
        for ((prompt_version, pattern), members) in groups {
            for together in members.chunks(self.n_slots) {
                let rollouts = self.sample_together(prompt_version, &pattern, together)?;
                sampled.extend(rollouts.into_iter().map(|rollout| (rollout.prompt.ticket.id, rollout)));
            }
        }
        let take = |recorded: &JournaledRollout| -> Result<Rollout, RoleError> {
            let id = recorded.ticket.id;
            Ok(sampled.remove(&id).ok_or_else(|| format!("ticket {} was not sampled", id.0))?)
        };
        recorded.iter().map(take).collect()
    }

    fn sample_together(
        &mut self,
        prompt_version: PolicyVersion,
        pattern: &[(PolicyVersion, u32)],
        members: &[&JournaledRollout],
    ) -> Result<Vec<Rollout>, RoleError> {
        let mut loaded = prompt_version;
        self.sampler.load(&self.snapshot(prompt_version)?)?;
        for member in members {
            let prompt_id = member.ticket.prompt_id;
            let tokens = self.supply.tokens_of(prompt_id);
            let tokens = tokens.ok_or_else(|| format!("there is no prompt {}", prompt_id.0))?.to_vec();
            self.sampler.admit(Prompt { ticket: member.ticket, tokens })?;
        }
        let mut ended = Vec::new();
        for &(version, n_tokens) in pattern {
            if version != loaded {
                self.sampler.load(&self.snapshot(version)?)?;
                loaded = version;
            }
            for _ in 0..n_tokens {
                ended.extend(self.sampler.step()?);
            }
        }
        while self.sampler.n_running() > 0 {
            ended.extend(self.sampler.step()?);
        }
        Ok(ended)
    }

    fn scores(&mut self, rollouts: &[Rollout], recorded: &[JournaledRollout]) -> Result<Vec<f32>, RoleError> {
        let Some(reward) = &mut self.reward else {
            return Ok(recorded.iter().map(|rollout| rollout.score).collect());
        };
        let request = |rollout: &Rollout| RewardRequest::of(rollout, &*self.detokenizer);
        let requests = rollouts.iter().map(request).collect::<Result<Vec<_>, _>>()?;
        reward.scores(self.reward_model.as_ref(), &requests)
    }

    fn pretrain(&mut self, version: PolicyVersion) -> Result<Vec<PretrainBatch>, RoleError> {
        let n = self.trainer.pretrain_batches_per_update() as u64;
        let Some(source) = self.pretrain.as_mut().filter(|_| n > 0) else { return Ok(Vec::new()) };
        (version.0 * n..(version.0 + 1) * n).map(|idx| source.batch(idx)).collect()
    }

    fn snapshot(&self, version: PolicyVersion) -> Result<Snapshot<W>, RoleError> {
        let missing = || format!("it refers to the weights of {version}, from before this replay began or long gone");
        Ok(self.snapshots.get(&version).ok_or_else(missing)?.clone())
    }
}

/// What differs between a rollout as it was recorded and as it came out now.
fn difference(expected: &JournaledRollout, scored: &ScoredRollout) -> Option<String> {
    let found = JournaledRollout::of(scored);
    let ticket = expected.ticket;
    let of = format!("ticket {} (prompt {}, sample {})", ticket.id.0, ticket.prompt_id.0, ticket.sample_idx);
    if found.versions != expected.versions {
        return Some(format!("{of} was sampled by {:?}, and now by {:?}", expected.versions, found.versions));
    }
    if found.finish != expected.finish || found.digest != expected.digest {
        return Some(format!("the tokens or log-probabilities of {of} are others"));
    }
    if found.score.to_bits() != expected.score.to_bits() {
        return Some(format!("the score of {of} was {}, and is now {}", expected.score, found.score));
    }
    None
}
