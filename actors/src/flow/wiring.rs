//! Builds the graph, last to first: a role knows only what comes after it.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use collimate_protocol::roles::{
    Detokenizer, ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardModels, Sampler, Trainer,
};
use collimate_protocol::{PolicyVersion, RewardModelId, Role, RoleId, Snapshot, TicketCounts};

use super::alarms::Alarms;
use super::approach::Approach;
use super::checkpoint::Checkpoint;
use super::compute::{Compute, Factory, Place};
use super::config::{FlowConfig, FlowMode};
use super::counters::{FlowMeter, FlowState, NO_CHECKPOINT, RoleCounters};
use super::error::RunError;
use super::experience_buffer::{BatchFiller, ExperienceBuffer};
use super::generator::{Generator, GeneratorParts};
use super::hop::hop;
use super::latest::Latest;
use super::learner::{Learner, Past, PretrainStock, TrainerSlot};
use super::office::TicketOffice;
use super::pretrain_mixer::PretrainMixer;
use super::prompt_source::{PromptSource, PromptSupply};
use super::recorder::{Recorder, RunSink};
use super::reference_scorer::ReferenceScore;
use super::reward_scorer::{RewardInUse, RewardScore};
use super::scorer::Scorer;
use super::worker::Worker;

/// What plays the roles of PPO: models, fakes, or your own. `W` is whatever the models call their weights.
pub struct PpoFlow<W, T> {
    /// What is sampled from.
    pub prompts: PromptSupply,
    /// One for each generator.
    pub samplers: Vec<SamplerFactory<W>>,
    /// The frozen SFT model: one for each reference scorer.
    pub references: Vec<Factory<dyn ReferencePolicy>>,
    /// What gives the scores: one for each reward scorer.
    pub rewards: Vec<Factory<dyn RewardFunction>>,
    /// What may be put in its place while the run goes on; `None` where nothing may.
    pub reward_models: Option<Arc<dyn RewardModels>>,
    /// For the text that the reward function sees.
    pub detokenizer: Arc<dyn Detokenizer>,
    /// Makes advantages and returns.
    pub experience_maker: Factory<dyn ExperienceMaker<W>>,
    /// Pretraining text. Needed if the trainer takes any (PPO-ptx), unused if not.
    pub pretrain: Option<Factory<dyn PretrainSource>>,
    /// Policy and value model in training, as they start; handed back in the outcome.
    pub trainer: Factory<T>,
    /// What the run goes on from; `None` to start anew. It must be of a flow with the same parts and settings.
    pub resume: Option<Checkpoint>,
    /// Where the trainer's state is written at each checkpoint, for one that has failed to go on from: as much as
    /// its weights and moments. `None` for the system's folder of temporary files.
    pub state_dir: Option<PathBuf>,
    /// What writes updates down.
    pub sink: Box<dyn RunSink>,
}

/// What samples responses.
#[derive(Debug)]
pub struct SamplerFactory<W> {
    /// Makes it.
    pub factory: Factory<dyn Sampler<W>>,
    /// How many responses it samples at once.
    pub n_slots: usize,
}

/// What a run came to.
#[derive(Debug)]
pub struct FlowOutcome<W, T> {
    /// Updates done.
    pub version: PolicyVersion,
    /// The ledger at the end: nothing is in flight.
    pub tickets: TicketCounts,
    /// Whether the run was told to stop before all updates were done.
    pub stopped: bool,
    /// Updates that could not be recorded.
    pub n_sink_failures: u64,
    /// The reward model that gave the scores at the end, where it took the place of the one that the flow began with.
    pub reward_model: Option<RewardModelId>,
    /// Seconds from wiring to end.
    pub elapsed_s: f64,
    /// The last published weights.
    pub snapshot: Snapshot<W>,
    /// The trainer as the last update left it.
    pub trainer: T,
}

/// The workers of a flow, joined and not yet running.
pub struct Graph<W, T> {
    pub(crate) config: FlowConfig,
    /// In the order of the flow.
    pub(crate) workers: Vec<Box<dyn Worker>>,
    pub(crate) state: Arc<FlowState>,
    pub(crate) reward_models: Option<Arc<dyn RewardModels>>,
    pub(crate) remains: Remains<W, T>,
}

impl<W, T> std::fmt::Debug for Graph<W, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let roles: Vec<RoleId> = self.workers.iter().map(|worker| worker.role()).collect();
        f.debug_struct("Graph").field("workers", &roles).finish_non_exhaustive()
    }
}

impl<W: Send + Sync + 'static, T: Trainer<W> + 'static> PpoFlow<W, T> {
    /// Joins the roles.
    ///
    /// # Errors
    /// A setting or a part makes no sense. Nothing has run.
    pub fn wire(self, config: &FlowConfig) -> Result<Graph<W, T>, RunError> {
        config.validate()?;
        let Self {
            prompts,
            samplers,
            references,
            rewards,
            reward_models,
            detokenizer,
            experience_maker,
            pretrain,
            trainer,
            resume,
            state_dir,
            sink,
        } = self;
        for (name, n) in [
            ("generator", samplers.len()),
            ("slot in a generator", samplers.iter().map(|sampler| sampler.n_slots).min().unwrap_or_default()),
            ("reference scorer", references.len()),
            ("reward scorer", rewards.len()),
        ] {
            if n == 0 {
                return Err(RunError::Config(format!("there is no {name}")));
            }
        }
        let place = |role: Role| match config.mode {
            FlowMode::Deterministic => Place::Here,
            FlowMode::Threaded => {
                Place::Thread { n_threads: config.threads.of(role), patience: config.restarts.patience() }
            }
        };
        let learner_id = RoleId::only(Role::Learner);
        let mut trainer = Compute::new(learner_id, trainer, place(Role::Learner));
        let state = resume.as_ref().map(|checkpoint| checkpoint.trainer.clone());
        let past = Past { state: state.clone(), updates: Vec::new() };
        let (n_pretrain, first, checksum) = trainer
            .call(move |trainer| {
                state.map_or(Ok(()), |state| trainer.restore(state.path()))?;
                Ok((trainer.pretrain_batches_per_update(), trainer.snapshot()?, trainer.checksum()?))
            })
            .map_err(|error| RunError::Config(format!("the trainer: {error}")))?;
        if let Some(checkpoint) = &resume
            && (checkpoint.version, checkpoint.checksum) != (first.version, checksum)
        {
            return Err(RunError::Config(format!(
                "the checkpoint is of {} and weights {:016x}, but the trainer came to {} and {checksum:016x} from it",
                checkpoint.version, checkpoint.checksum, first.version
            )));
        }
        let maker_state: Option<Arc<[u8]>> =
            resume.as_ref().and_then(|checkpoint| checkpoint.experience_maker.as_deref()).map(Arc::from);
        let ledger = resume.map(|checkpoint| checkpoint.ledger);
        let pretrain = match pretrain {
            Some(source) if n_pretrain > 0 => Some(source),
            None if n_pretrain > 0 => {
                return Err(RunError::Config(format!(
                    "the trainer takes {n_pretrain} batches of pretraining text an update, but there is no text"
                )));
            }
            _ => None,
        };
        let version = first.version;
        let latest = Latest::new(first);
        let trainer_slot: TrainerSlot<T> = Arc::new(Mutex::new(None));
        let (office, came_home) = TicketOffice::open(config, ledger.as_ref());

        let capacities = &config.capacities;
        let (prompts_out, prompts_in) = hop(capacities.prompts);
        let (rollouts_out, rollouts_in) = hop(capacities.rollouts);
        let (referenced_out, referenced_in) = hop(capacities.referenced);
        let (scored_out, scored_in) = hop(capacities.scored);
        let (batches_out, batches_in) = hop(capacities.batches);
        let (pretrain_out, pretrain_in) = hop(capacities.pretrain_batches);
        let (trained_out, trained_in) = hop(capacities.updates);

        let started = Instant::now();
        let counted = |role, idx| Arc::new(RoleCounters::new(RoleId { role, idx }, started));
        let source_counters = counted(Role::PromptSource, 0);
        let several = |role, n: usize| -> Vec<_> { (0..n).map(|idx| counted(role, idx)).collect() };
        let generator_counters = several(Role::Generator, samplers.len());
        let reference_counters = several(Role::ReferenceScorer, references.len());
        let reward_counters = several(Role::RewardScorer, rewards.len());
        let buffer_counters = counted(Role::ExperienceBuffer, 0);
        let mixer_counters = pretrain.is_some().then(|| counted(Role::PretrainMixer, 0));
        let learner_counters = counted(Role::Learner, 0);
        let recorder_counters = counted(Role::Recorder, 0);

        let mut gauges = vec![
            (Role::Generator, prompts_in.gauge()),
            (Role::ReferenceScorer, rollouts_in.gauge()),
            (Role::RewardScorer, referenced_in.gauge()),
            (Role::ExperienceBuffer, scored_in.gauge()),
            (Role::Learner, batches_in.gauge()),
            (Role::Recorder, trained_in.gauge()),
        ];
        if pretrain.is_some() {
            gauges.push((Role::PretrainMixer, pretrain_in.gauge()));
        }
        let mut counters = vec![source_counters.clone()];
        counters.extend([&generator_counters, &reference_counters, &reward_counters].into_iter().flatten().cloned());
        counters.push(buffer_counters.clone());
        counters.extend(mixer_counters.clone());
        counters.extend([learner_counters.clone(), recorder_counters.clone()]);
        let state = Arc::new(FlowState {
            n_updates: config.n_updates,
            office: office.clone(),
            counters,
            gauges,
            started,
            version: AtomicU64::new(version.0),
            n_sink_failures: AtomicU64::new(0),
            checkpoint_version: AtomicU64::new(ledger.as_ref().map_or(NO_CHECKPOINT, |_| version.0)),
        });

        let recorder = Recorder {
            sink,
            trained: trained_in,
            in_hand: None,
            state: state.clone(),
            alarms: Alarms::default(),
            events: Vec::new(),
            counters: recorder_counters,
            is_stopping: false,
        };
        let learner = Learner {
            trainer,
            trainer_slot: trainer_slot.clone(),
            version,
            latest: latest.clone(),
            batches: batches_in,
            batch: None,
            pretrain: pretrain.is_some().then(|| PretrainStock {
                inlet: pretrain_in,
                n_per_update: n_pretrain,
                stock: Vec::new(),
            }),
            in_hand: None,
            past,
            state_dir: state_dir.unwrap_or_else(std::env::temp_dir),
            is_anew: false,
            checksum,
            maker_state: maker_state.clone(),
            trained: trained_out,
            state: state.clone(),
            config: config.clone(),
            has_handed_back: false,
            checkpoint_is_wanted: false,
            replaced: None,
            meter: FlowMeter::new(state.clone()),
            counters: learner_counters,
            is_stopping: false,
        };
        let mixer = pretrain.zip(mixer_counters).map(|(source, counters)| PretrainMixer {
            source: Compute::new(RoleId::only(Role::PretrainMixer), source, place(Role::PretrainMixer)),
            next_idx: version.0 * n_pretrain as u64,
            n_batches: config.n_updates * n_pretrain as u64,
            office: office.clone(),
            batches: pretrain_out,
            counters,
            is_stopping: false,
        });
        let buffer = ExperienceBuffer {
            filler: BatchFiller::new(config.batch_size, config.max_staleness, version),
            maker: Compute::new(RoleId::only(Role::ExperienceBuffer), experience_maker, place(Role::ExperienceBuffer)),
            latest: latest.clone(),
            office: office.clone(),
            scored: scored_in,
            full: None,
            changes: Vec::new(),
            maker_state,
            is_anew: true,
            batches: batches_out,
            counters: buffer_counters,
            is_stopping: false,
        };
        let n_past = ledger.as_ref().map_or(0, |ledger| ledger.counts.issued - ledger.open.len() as u64);
        let approaches = |n_scorers| Approach::of(n_scorers, &office, n_past, config.batch_size as u64);
        let rewards = rewards.into_iter().zip(approaches(reward_counters.len()));
        let reward_scorers = rewards.zip(reward_counters).enumerate().map(|(idx, ((reward, approach), counters))| {
            let role = RoleId { role: Role::RewardScorer, idx };
            let others = reward_models.clone();
            let reward = Factory::new(move || Ok(Box::new(RewardInUse::new(reward.clone(), others.clone()))));
            Scorer {
                role,
                score: RewardScore { detokenizer: detokenizer.clone(), office: office.clone() },
                engine: Compute::new(role, reward, place(role.role)),
                scorer_batch: config.scorer_batch,
                scorer_waits_for: config.scorer_waits_for,
                approach,
                office: office.clone(),
                unscored: referenced_in.clone(),
                in_hand: Vec::new(),
                first_number: 0,
                scored: scored_out.another(),
                counters,
                is_stopping: false,
            }
        });
        let references = references.into_iter().zip(approaches(reference_counters.len()));
        let reference_scorers =
            references.zip(reference_counters).enumerate().map(|(idx, ((reference, approach), counters))| {
                let role = RoleId { role: Role::ReferenceScorer, idx };
                Scorer {
                    role,
                    score: ReferenceScore,
                    engine: Compute::new(role, reference, place(role.role)),
                    scorer_batch: config.scorer_batch,
                    scorer_waits_for: config.scorer_waits_for,
                    approach,
                    office: office.clone(),
                    unscored: rollouts_in.clone(),
                    in_hand: Vec::new(),
                    first_number: 0,
                    scored: referenced_out.another(),
                    counters,
                    is_stopping: false,
                }
            });
        let generators = samplers.into_iter().zip(generator_counters).enumerate().map(|(idx, (sampler, counters))| {
            let role = RoleId { role: Role::Generator, idx };
            Generator::new(GeneratorParts {
                role,
                sampler: Compute::new(role, sampler.factory, place(role.role)),
                n_slots: sampler.n_slots,
                latest: latest.clone(),
                weight_updates: config.weight_updates,
                office: office.clone(),
                prompts: prompts_in.clone(),
                rollouts: rollouts_out.another(),
                counters,
            })
        });
        let mut supply = prompts;
        let mut to_issue_again = Vec::new();
        if let Some(ledger) = ledger {
            supply.skip_to(ledger.counts.issued);
            to_issue_again = ledger.open;
            to_issue_again.reverse();
        }
        let source = PromptSource {
            supply,
            office: office.clone(),
            to_issue_again,
            came_home,
            prompts: prompts_out,
            counters: source_counters,
            is_stopping: false,
        };

        let mut workers: Vec<Box<dyn Worker>> = vec![Box::new(source)];
        workers.extend(generators.map(|generator| Box::new(generator) as Box<dyn Worker>));
        workers.extend(reference_scorers.map(|scorer| Box::new(scorer) as Box<dyn Worker>));
        workers.extend(reward_scorers.map(|scorer| Box::new(scorer) as Box<dyn Worker>));
        workers.push(Box::new(buffer));
        workers.extend(mixer.map(|mixer| Box::new(mixer) as Box<dyn Worker>));
        workers.extend([Box::new(learner) as Box<dyn Worker>, Box::new(recorder)]);
        let remains = Remains { state: state.clone(), latest, trainer_slot };
        Ok(Graph { config: config.clone(), workers, state, reward_models, remains })
    }
}

impl<W, T> Graph<W, T> {
    /// What can be watched while it runs.
    pub fn state(&self) -> Arc<FlowState> {
        self.state.clone()
    }

    /// Puts each worker into another: a simulation that delays it, a test that watches it.
    pub fn map_workers(mut self, wrap: impl FnMut(Box<dyn Worker>) -> Box<dyn Worker>) -> Self {
        self.workers = self.workers.into_iter().map(wrap).collect();
        self
    }

    /// The settings that it was wired by.
    pub fn config(&self) -> &FlowConfig {
        &self.config
    }
}

/// What a run leaves behind, wherever its workers have run.
pub(crate) struct Remains<W, T> {
    state: Arc<FlowState>,
    latest: Latest<W>,
    trainer_slot: TrainerSlot<T>,
}

impl<W, T> Remains<W, T> {
    /// The newest weights, as the run goes on.
    pub fn latest(&self) -> Latest<W> {
        self.latest.clone()
    }

    /// The outcome of a run whose workers have all ended in good order.
    pub fn outcome(self) -> Result<FlowOutcome<W, T>, RunError> {
        let trainer = self.trainer_slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let trainer = trainer.ok_or_else(|| RunError::Actors("the learner ended without its trainer".to_owned()))?;
        Ok(FlowOutcome {
            version: self.state.version(),
            tickets: self.state.office.counts(),
            stopped: self.state.office.is_cut_short(),
            n_sink_failures: self.state.n_sink_failures.load(std::sync::atomic::Ordering::Relaxed),
            reward_model: self.state.office.reward_model().map(|since| since.model),
            elapsed_s: self.state.started.elapsed().as_secs_f64(),
            snapshot: self.latest.newest(),
            trainer,
        })
    }
}
