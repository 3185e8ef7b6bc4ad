//! The learner: one update for each batch, then its snapshot for all, then its tickets home.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use collimate_protocol::records::{BatchMetrics, FlowMetrics, UpdateMetrics};
use collimate_protocol::roles::Trainer;
use collimate_protocol::{
    ExperienceBatch, PolicyVersion, PretrainBatch, Role, RoleError, RoleId, TicketCounts, TicketOutcome,
};
use crossbeam_channel::Select;

use super::config::FlowMode;
use super::counters::{FlowMeter, FlowState, RoleCounters};
use super::hop::{Inlet, Outlet, Taken};
use super::latest::Latest;
use super::ledger::CarriesTickets;
use super::recorder::TrainedBatch;
use super::worker::{Step, Worker, at_the_end};

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

/// The worker around a [`Trainer`].
pub(super) struct Learner<W, T> {
    /// `None` once it lies in the slot.
    pub trainer: Option<T>,
    pub trainer_slot: TrainerSlot<T>,
    pub version: PolicyVersion,
    pub latest: Latest<W>,
    pub batches: Inlet<ExperienceBatch>,
    /// The batch that waits for its pretraining text.
    pub batch: Option<ExperienceBatch>,
    /// `None` without PPO-ptx.
    pub pretrain: Option<PretrainStock>,
    pub trained: Outlet<TrainedBatch>,
    pub state: Arc<FlowState>,
    pub mode: FlowMode,
    pub meter: FlowMeter,
    pub counters: Arc<RoleCounters>,
    pub is_stopping: bool,
}

impl<W, T: Trainer<W>> Learner<W, T> {
    fn update(&mut self, batch: ExperienceBatch) -> Result<(), RoleError> {
        let Some(trainer) = &mut self.trainer else { return Err("the trainer has been handed back".into()) };
        if batch.version != self.version {
            return Err(format!("a batch for {} came at {}", batch.version, self.version).into());
        }
        let since = Instant::now();
        let pretrain = self.pretrain.as_mut().map(|pretrain| std::mem::take(&mut pretrain.stock)).unwrap_or_default();
        let train = trainer.update(&batch, &pretrain)?;
        let snapshot = trainer.snapshot()?;
        if snapshot.version != self.version.next() {
            return Err(format!("the trainer's version is {} after {}", snapshot.version, self.version).into());
        }
        let update_s = since.elapsed().as_secs_f64();

        // Before the tickets come home: a prompt that is issued for them is sampled by these weights or newer ones.
        self.latest.publish(snapshot);
        self.version = self.version.next();
        self.state.version.store(self.version.0, Ordering::Relaxed);
        let tickets = self.state.office.take_home(batch.tickets(), TicketOutcome::Trained(batch.version))?;

        let batch_metrics = BatchMetrics::of(&batch);
        self.counters.count(1, batch_metrics.n_tokens);
        let flow = self.flow_metrics(tickets, update_s, batch_metrics.n_tokens);
        let metrics = UpdateMetrics { version: self.version, batch: batch_metrics, train, flow };
        self.trained.push(TrainedBatch { metrics, experiences: batch.experiences });
        Ok(())
    }

    fn flow_metrics(&mut self, tickets: TicketCounts, update_s: f64, n_tokens: usize) -> FlowMetrics {
        match self.mode {
            FlowMode::Threaded => self.meter.read(tickets, update_s, n_tokens),
            // No clock, and no queues: how full they are at this moment depends on the number of generators.
            FlowMode::Deterministic => FlowMetrics { tickets, ..FlowMetrics::default() },
        }
    }

    /// Stopping or not: what was trained on is recorded, unless the run stops because the recorder is gone.
    fn waits_for_the_recorder(&self) -> bool {
        self.trained.is_blocked() && !(self.is_stopping && self.trained.receiver_is_gone())
    }

    fn hand_back(&mut self) {
        *self.trainer_slot.lock().unwrap_or_else(PoisonError::into_inner) = self.trainer.take();
    }
}

impl<W: Send + Sync, T: Trainer<W>> Worker for Learner<W, T> {
    fn role(&self) -> RoleId {
        RoleId::only(Role::Learner)
    }

    fn step(&mut self) -> Result<Step, RoleError> {
        let was_blocked = self.trained.is_blocked();
        if !self.trained.flush() && self.waits_for_the_recorder() {
            return Ok(Step::Starved);
        }
        if self.is_stopping {
            if let Some(batch) = self.batch.take() {
                self.state.office.shut_down(&batch)?;
            }
            let step = self.batches.shut_down(&self.state.office)?;
            if step == Step::Finished {
                self.hand_back();
            }
            return Ok(step);
        }
        let mut any = self.pretrain.as_mut().is_some_and(PretrainStock::fill);
        if self.batch.is_none()
            && let Taken::Item(batch) = self.batches.take()
        {
            self.batch = Some(batch);
            any = true;
        }
        if self.pretrain.as_ref().is_none_or(PretrainStock::is_full)
            && let Some(batch) = self.batch.take()
        {
            self.update(batch)?;
            return Ok(Step::Progressed);
        }
        if self.batch.is_none() && self.batches.has_ended() {
            let step = at_the_end(&self.state.office);
            if step == Step::Finished {
                self.hand_back();
            }
            return Ok(step);
        }
        Ok(if any || was_blocked { Step::Progressed } else { Step::Starved })
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
            self.batch.is_some(),
            self.trained.is_blocked()
        )
    }
}
