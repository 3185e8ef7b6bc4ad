//! The learner: one update for each batch, then its snapshot for all, then its tickets home.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use collimate_protocol::records::{BatchMetrics, FlowMetrics, LedgerState, TrainMetrics, UpdateMetrics};
use collimate_protocol::roles::Trainer;
use collimate_protocol::{
    ExperienceBatch, PolicyVersion, PretrainBatch, Role, RoleError, RoleId, SettingChange, Snapshot, TicketCounts,
    TicketOutcome,
};
use crossbeam_channel::Select;

use super::checkpoint::{Checkpoint, StateFile};
use super::compute::Compute;
use super::config::{FlowConfig, FlowMode};
use super::counters::{FlowMeter, FlowState, RoleCounters};
use super::experience_buffer::ReadyBatch;
use super::hop::{Inlet, Outlet, Taken};
use super::latest::Latest;
use super::office::CarriesTickets;
use super::recorder::{ToRecord, TrainedUpdate};
use super::worker::{Step, Worker, Workload, at_the_end};

/// Where the trainer lies once the learner has ended.
pub(super) type TrainerSlot<T> = Arc<Mutex<Option<T>>>;

/// The pretraining text that one update takes, as it comes in.
pub(super) struct PretrainStock {
    pub inlet: Inlet<PretrainBatch>,
    pub n_per_update: usize,
    pub stock: Vec<PretrainBatch>,
}

impl PretrainStock {
    /// Takes what is there; whether anything was.
    fn fill(&mut self) -> bool {
        let before = self.stock.len();
        while self.stock.len() < self.n_per_update {
            let Taken::Item(batch) = self.inlet.take() else { break };
            self.stock.push(batch);
        }
        self.stock.len() > before
    }

    fn is_full(&self) -> bool {
        self.stock.len() == self.n_per_update
    }
}

/// What one update trains on.
#[derive(Clone)]
pub(super) struct UpdateInput {
    batch: Arc<ExperienceBatch>,
    /// Settings that hold from this update on.
    changes: Arc<[SettingChange]>,
    pretrain: Arc<[PretrainBatch]>,
    maker_state: Arc<[u8]>,
}

impl UpdateInput {
    /// Has a trainer do the update.
    fn train<W>(&self, trainer: &mut impl Trainer<W>) -> Result<TrainMetrics, RoleError> {
        self.changes.iter().try_for_each(|change| trainer.change(change.clone()))?;
        trainer.update(&self.batch, &self.pretrain)
    }
}

/// What a trainer that is made anew does before it goes on: reads this state, and does these updates again.
#[derive(Clone, Default)]
pub(super) struct Past {
    /// `None` for what the factory makes.
    pub state: Option<Arc<StateFile>>,
    pub updates: Vec<UpdateInput>,
}

/// What an update came to.
struct Updated<W> {
    train: TrainMetrics,
    snapshot: Snapshot<W>,
    checksum: u64,
    /// Where there is a checkpoint after it; or why it can't be had.
    state: Option<Result<Arc<StateFile>, RoleError>>,
}

/// The worker around a [`Trainer`].
pub(super) struct Learner<W, T> {
    pub trainer: Compute<T>,
    pub trainer_slot: TrainerSlot<T>,
    pub version: PolicyVersion,
    pub latest: Latest<W>,
    pub batches: Inlet<ReadyBatch>,
    /// The batch that waits for its pretraining text.
    pub batch: Option<ReadyBatch>,
    /// `None` without PPO-ptx.
    pub pretrain: Option<PretrainStock>,
    /// The update in hand.
    pub in_hand: Option<UpdateInput>,
    pub past: Past,
    /// Where states are written.
    pub state_dir: PathBuf,
    /// Whether the trainer has its past still before it.
    pub is_anew: bool,
    /// Of the weights as they are.
    pub checksum: u64,
    /// The experience maker's, after the batch that the last update trained on.
    pub maker_state: Option<Arc<[u8]>>,
    pub trained: Outlet<ToRecord>,
    pub state: Arc<FlowState>,
    pub config: FlowConfig,
    /// Whether the trainer lies in its slot.
    pub has_handed_back: bool,
    pub meter: FlowMeter,
    pub counters: Arc<RoleCounters>,
    /// Whether the state is to be kept before the next update.
    pub checkpoint_is_wanted: bool,
    /// The ledger as it was when nothing was in flight, where the reward model has just been replaced.
    pub replaced: Option<LedgerState>,
    pub is_stopping: bool,
}

impl<W: Send + Sync + 'static, T: Trainer<W> + 'static> Learner<W, T> {
    /// What a trainer made anew has to catch up with.
    fn missed(&self) -> Option<Past> {
        self.is_anew.then(|| self.past.clone())
    }

    fn update(&mut self, input: UpdateInput) -> Result<Updated<W>, RoleError> {
        let (missed, version) = (self.missed(), self.version);
        let batch_version = input.batch.version;
        if batch_version != version {
            return Err(format!("a batch for {batch_version} came at {version}").into());
        }
        let state_dir = self.config.is_checkpoint(version.next()).then(|| self.state_dir.clone());
        let updated = self.trainer.call(move |trainer| {
            catch_up(trainer, missed)?;
            let train = input.train(trainer)?;
            let snapshot = trainer.snapshot()?;
            if snapshot.version != version.next() {
                return Err(format!("the trainer's version is {} after {version}", snapshot.version).into());
            }
            let state = state_dir.map(|dir| save_state(trainer, &dir));
            Ok(Updated { train, snapshot, checksum: trainer.checksum()?, state })
        })?;
        self.is_anew = false;
        Ok(updated)
    }

    /// Makes an update known: its weights, its tickets, its record.
    fn publish(&mut self, input: UpdateInput, updated: Updated<W>, update_s: f64) -> Result<(), RoleError> {
        let Updated { train, snapshot, checksum, state } = updated;
        // Before the tickets come home: a prompt that is issued for them is sampled by these weights or newer ones.
        self.latest.publish(snapshot);
        self.version = self.version.next();
        self.state.version.store(self.version.0, Ordering::Relaxed);
        let batch = &input.batch;
        let outcome = TicketOutcome::Trained(batch.version);
        let is_checkpoint = matches!(state, Some(Ok(_)));
        let version = self.version;
        let (counts, ledger) = self.state.office.take_home_then(batch.tickets(), outcome, |ledger| {
            let is_replaced = ledger.reward_model().is_some_and(|since| since.version == version);
            (ledger.counts(), (is_checkpoint || is_replaced).then(|| ledger.state()))
        })?;

        let batch_metrics = BatchMetrics::of(batch);
        self.counters.count(1, batch_metrics.n_tokens);
        let flow = self.flow_metrics(counts, update_s, batch_metrics.n_tokens);
        let metrics = UpdateMetrics { version: self.version, batch: batch_metrics, train, flow };
        let changes = input.changes.clone();
        let update = TrainedUpdate { metrics, changes, batch: input.batch.clone(), checksum };
        self.trained.push(ToRecord::Update(Box::new(update)));
        (self.checksum, self.maker_state) = (checksum, Some(input.maker_state.clone()));
        match (state, ledger) {
            (Some(Ok(state)), Some(ledger)) => {
                self.past = Past { state: Some(state.clone()), updates: Vec::new() };
                self.checkpoint(ledger, state);
            }
            (state, replaced) => {
                if let Some(Err(error)) = state {
                    self.trained.push(ToRecord::NoCheckpoint { version, error });
                }
                self.past.updates.push(input);
                // What somebody has asked for is not to be lost.
                self.checkpoint_is_wanted |= replaced.is_some();
                self.replaced = replaced;
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self, ledger: LedgerState, trainer: Arc<StateFile>) {
        self.trained.push(ToRecord::Checkpoint(Box::new(Checkpoint {
            version: self.version,
            ledger,
            checksum: self.checksum,
            trainer,
            experience_maker: self.maker_state.as_ref().map(|state| state.to_vec()),
        })));
    }

    fn flow_metrics(&mut self, tickets: TicketCounts, update_s: f64, n_tokens: usize) -> FlowMetrics {
        match self.config.mode {
            FlowMode::Threaded => self.meter.read(tickets, update_s, n_tokens),
            // No clock, and no queues: how full they are at this moment depends on the number of generators.
            FlowMode::Deterministic => FlowMetrics { tickets, ..FlowMetrics::default() },
        }
    }

    /// Stopping or not: what was trained on is recorded, unless the run stops because the recorder is gone.
    fn waits_for_the_recorder(&self) -> bool {
        self.trained.is_blocked() && !(self.is_stopping && self.trained.receiver_is_gone())
    }

    /// Keeps the state as it is between two updates.
    fn checkpoint_now(&mut self) -> Result<(), RoleError> {
        let missed = self.missed();
        // Where nothing was done since the last checkpoint, the state is the one that it has.
        let kept = self.past.state.clone().filter(|_| self.past.updates.is_empty());
        let dir = self.state_dir.clone();
        let state = self.trainer.call(move |trainer| {
            catch_up(trainer, missed)?;
            Ok(kept.map_or_else(|| save_state(trainer, &dir), Ok))
        })?;
        self.is_anew = false;
        self.checkpoint_is_wanted = false;
        let ledger = self.replaced.take().unwrap_or_else(|| self.state.office.state());
        match state {
            Ok(state) => {
                self.past = Past { state: Some(state.clone()), updates: Vec::new() };
                self.checkpoint(ledger, state);
            }
            Err(error) => self.trained.push(ToRecord::NoCheckpoint { version: self.version, error }),
        }
        Ok(())
    }

    /// The end: a last checkpoint, and the trainer to whoever started the run.
    fn hand_back(&mut self) -> Result<Step, RoleError> {
        if self.has_handed_back {
            return Ok(Step::Finished);
        }
        self.checkpoint_now()?;
        let trainer = self.trainer.take_out()?.map(|trainer| *trainer);
        *self.trainer_slot.lock().unwrap_or_else(PoisonError::into_inner) = trainer;
        self.has_handed_back = true;
        Ok(Step::Progressed)
    }
}

fn save_state<W>(trainer: &impl Trainer<W>, dir: &Path) -> Result<Arc<StateFile>, RoleError> {
    Ok(Arc::new(StateFile::write(dir, |path| trainer.save_state(path))?))
}

fn catch_up<W>(trainer: &mut impl Trainer<W>, past: Option<Past>) -> Result<(), RoleError> {
    let Some(Past { state, updates }) = past else { return Ok(()) };
    if let Some(state) = state {
        trainer.restore(state.path())?;
    }
    updates.iter().try_for_each(|input| input.train(trainer).map(drop))
}

impl<W: Send + Sync + 'static, T: Trainer<W> + 'static> Worker for Learner<W, T> {
    fn role(&self) -> RoleId {
        RoleId::only(Role::Learner)
    }

    fn take(&mut self) -> Result<Step, RoleError> {
        let was_blocked = self.trained.is_blocked();
        if !self.trained.flush() && self.waits_for_the_recorder() {
            return Ok(Step::Starved);
        }
        if self.is_stopping {
            if let Some(batch) = self.batch.take() {
                self.state.office.shut_down(&batch)?;
            }
            if let Some(input) = self.in_hand.take() {
                self.state.office.shut_down(&*input.batch)?;
            }
            return match self.batches.shut_down(&self.state.office)? {
                Step::Finished => self.hand_back(),
                step => Ok(step),
            };
        }
        if self.checkpoint_is_wanted {
            self.checkpoint_now()?;
            return Ok(Step::Progressed);
        }
        if self.in_hand.is_some() {
            return Ok(Step::Ready);
        }
        let mut any = self.pretrain.as_mut().is_some_and(PretrainStock::fill);
        if self.batch.is_none()
            && let Taken::Item(batch) = self.batches.take()
        {
            self.batch = Some(batch);
            any = true;
        }
        if self.pretrain.as_ref().is_none_or(PretrainStock::is_full)
            && let Some(ReadyBatch { batch, changes, maker_state }) = self.batch.take()
        {
            let pretrain = self.pretrain.as_mut().map(|pretrain| std::mem::take(&mut pretrain.stock));
            let pretrain = pretrain.unwrap_or_default().into();
            self.in_hand = Some(UpdateInput { batch: Arc::new(batch), changes, pretrain, maker_state });
            return Ok(Step::Ready);
        }
        if self.batch.is_none() && self.batches.has_ended() {
            return match at_the_end(&self.state.office) {
                Step::Finished => self.hand_back(),
                step => Ok(step),
            };
        }
        Ok(if any || was_blocked { Step::Progressed } else { Step::Starved })
    }

    fn work(&mut self) -> Result<(), RoleError> {
        let Some(input) = self.in_hand.clone() else { return Ok(()) };
        let since = Instant::now();
        let updated = self.update(input.clone())?;
        self.in_hand = None;
        self.publish(input, updated, since.elapsed().as_secs_f64())
    }

    fn workload(&self) -> Workload {
        let Some(input) = &self.in_hand else { return Workload::default() };
        let rollouts = input.batch.experiences.iter().map(|experience| &experience.scored.rollout);
        let n_tokens = rollouts.map(|rollout| rollout.prompt.tokens.len() + rollout.response.len()).sum::<usize>();
        let n_ptx = input.pretrain.iter().flat_map(|batch| &batch.sequences).map(Vec::len).sum::<usize>();
        Workload { n_items: input.batch.experiences.len(), n_tokens: n_tokens + n_ptx }
    }

    fn recover(&mut self) {
        self.trainer.discard();
        self.is_anew = true;
    }

    fn checkpoint(&mut self) {
        self.checkpoint_is_wanted = true;
    }

    fn wait<'a>(&'a self, select: &mut Select<'a>) {
        if self.waits_for_the_recorder() {
            self.trained.wait(select);
            return;
        }
        if self.batch.is_none() {
            self.batches.wait(select);
        }
        // Stopping, it takes no more text: text that is there would end the waiting at once.
        if let Some(pretrain) = self.pretrain.as_ref().filter(|pretrain| !pretrain.is_full() && !self.is_stopping) {
            pretrain.inlet.wait(select);
        }
    }

    fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn describe(&self) -> String {
        let pretrain = match &self.pretrain {
            Some(pretrain) => format!("{} of {} batches of text", pretrain.stock.len(), pretrain.n_per_update),
            None => "no text".to_owned(),
        };
        format!(
            "at {}, batch in hand: {}, {pretrain}, blocked: {}",
            self.version,
            self.batch.is_some() || self.in_hand.is_some(),
            self.trained.is_blocked()
        )
    }
}
