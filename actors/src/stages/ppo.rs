//! `ppo`: SFT model and reward model to aligned policy, on the flow.

use std::path::Path;
use std::sync::Arc;

use collimate_models::arch::{HeadKind, Weights, save_model};
use collimate_models::roles::PpoLearner;
use collimate_protocol::messages::{RunEvent, RunStatus};
use collimate_protocol::records::{EvaluatedPolicy, PpoSummary};
use collimate_protocol::roles::{Detokenizer, RewardFunction};
use collimate_protocol::{PolicyVersion, SettingChange};
use tokio::sync::broadcast::error::RecvError;

use super::answer_more::AnswerMore;
use super::context::{StageContext, StageError, StageObserver};
use super::evaluate::{Judge, JudgedResponse, side_by_side};
use super::outputs::save_trained;
use super::ppo_config::PpoStageConfig;
use super::ppo_keeper::{Earlier, Keeper, earlier};
use super::ppo_parts::{PpoParts, StageFlow};
use super::ppo_reward::{in_force, unknown_shift};
use super::recipe::CorpusConfig;
use crate::flow::latest::Latest;
use crate::flow::{FlowConfig, FlowOutcome, RunError, RunSink};
use crate::observe::gauges;
use crate::process;
use crate::rundir::event_log::{EventLog, LoggedEvent};
use crate::rundir::{JsonlWriter, RunDirError, StageDir, StatusFile, reward_summary};

/// Samples of both policies that the summary keeps.
const N_SAMPLES: usize = 24;

/// For whoever makes the sink: what it needs to write text, and to judge a batch.
pub struct SinkParts {
    /// For the text of rollouts.
    pub detokenizer: Arc<dyn Detokenizer>,
    /// The gold scorer, where the run has one.
    pub gold: Option<Box<dyn RewardFunction>>,
    /// Labels that the reward model has learnt from which gives the scores now; `None` where nothing tells.
    pub n_labels: Option<u64>,
    /// Updates that an earlier attempt has done, and that were recorded: what comes next is the one after.
    pub version: PolicyVersion,
}

/// Trains the policy from the SFT model in `sft`. `make_sink` makes what writes updates down. Where an earlier attempt
/// left a checkpoint in the stage's folder, it goes on from there.
///
/// Blocks until the run has ended. The flow itself can be had from [`PpoParts`], to be started in a runtime of one's
/// own.
pub fn run(
    config: &PpoStageConfig,
    sft: &Path,
    reward_model: Option<&Path>,
    corpus: Option<&CorpusConfig>,
    context: &mut StageContext<'_>,
    make_sink: impl FnOnce(SinkParts) -> Result<Box<dyn RunSink>, StageError>,
) -> Result<PpoSummary, StageError> {
    let parts = PpoParts::load(config, sft, reward_model, corpus, context)?;
    let make_gold = || config.stage.gold.as_ref().map(|gold| gold.build()).transpose();
    let mut reference = parts.reference(config)?;
    let mut reward = parts.reward(config)?;
    // The judge's, where another one gives the scores in the end.
    let mut last_reward;
    let mut gold = make_gold()?;
    let mut judge = Judge {
        prompts: &parts.heldout_prompts,
        text: &parts.heldout_text,
        reference: &mut reference,
        reward: reward.as_mut(),
        gold: gold.as_mut().map(|gold| gold.as_mut() as &mut dyn RewardFunction),
        n_slots: config.stage.n_slots,
        params: config.sampling(),
        tokenizer: &parts.tokenizer,
        seed: context.seed,
        microbatch_tokens: config.objective.microbatch_tokens,
    };
    context.observer.phase("judge the SFT policy", parts.heldout_prompts.len() as u64);
    let (mut before, mut before_samples) =
        judge.judge(&parts.sft.config, &parts.sft.weights, &context.stop, context.observer)?;

    process::release_freed_memory();

    let dir = StageDir::at(&context.out_dir);
    keep_evaluation(&dir, EvaluatedPolicy::Before, &before_samples, context);
    let Earlier { checkpoint, changes, notes } = earlier(&dir)?;
    notes.iter().for_each(|note| context.observer.note(note));
    let version = checkpoint.as_ref().map(|checkpoint| checkpoint.version).unwrap_or_default();
    let replaced = checkpoint.as_ref().and_then(|checkpoint| checkpoint.ledger.reward_model.as_ref());
    let n_labels = in_force(config, reward_model, replaced).and_then(reward_summary::n_labels);
    let sink = make_sink(SinkParts { detokenizer: parts.tokenizer.clone(), gold: make_gold()?, n_labels, version })?;
    let sink = Keeper::open(&dir, sink, checkpoint.as_ref(), config.flow.checkpoints.n_kept)?;
    let seed = context.seed;
    let flow = parts.flow(config, Box::new(sink), checkpoint, context)?;
    context.observer.note(&config.flow.staleness_bound().to_string());
    let answer_more = |latest| AnswerMore {
        config: parts.sft.config.clone(),
        tokenizer: parts.tokenizer.clone(),
        params: config.sampling(),
        seed,
        latest,
    };
    let outcome = run_flow(flow, &config.flow, &changes, &dir, answer_more, context)?;
    // The roles' threads are gone, and what they have freed would not serve the thread that goes on.
    process::release_freed_memory();
    let weights = match outcome.trainer.ema_weights()? {
        Some(averaged) => averaged,
        None => (*outcome.snapshot.policy).clone(),
    };
    save_trained(context, &parts.files, HeadKind::Language, &weights, config.stage.lora.as_ref())?;
    if config.stage.save_value_model {
        save_model(&dir.value_model(), parts.value_config(), HeadKind::Scalar, &outcome.snapshot.value)?;
        parts.files.tokenizer.save(&dir.value_model())?;
    }
    if outcome.stopped {
        context.observer.note(&format!(
            "stopped at {} of {} updates; the policy as it is lies in {}, and the same command goes on from here",
            outcome.version.0,
            config.flow.n_updates,
            context.model_dir().display()
        ));
        return Err(StageError::Stopped);
    }

    if let (Some(model), Some(others)) = (&outcome.reward_model, parts.reward_models(config)) {
        match others.load(model) {
            Ok(reward) => {
                last_reward = reward;
                judge.reward = last_reward.as_mut();
                judge.score_again(&mut before, &mut before_samples)?;
                keep_evaluation(&dir, EvaluatedPolicy::Before, &before_samples, context);
                context.observer.note(&format!("both policies are judged by {model}, which gave the last scores"));
            }
            // The policy is trained and saved; it is no less so where nobody can say what that model makes of it.
            Err(error) => context.observer.warn(&format!(
                "both policies are judged by the reward model that PPO began with, since {model} can't be read: {error}"
            )),
        }
    }
    context.observer.phase("judge the new policy", parts.heldout_prompts.len() as u64);
    let (after, after_samples) = judge.judge(&parts.sft.config, &weights, &context.stop, context.observer)?;
    keep_evaluation(&dir, EvaluatedPolicy::After, &after_samples, context);
    Ok(PpoSummary {
        before,
        after,
        tickets: outcome.tickets,
        n_updates: outcome.version.0,
        ptx_coef: config.objective.ptx_coef,
        samples: side_by_side(&before_samples, &after_samples, N_SAMPLES),
        elapsed_s: context.elapsed_s(),
    })
}

/// Writes down what a policy answered. The run does not end for that: the numbers are in its summary.
fn keep_evaluation(dir: &StageDir, policy: EvaluatedPolicy, judged: &[JudgedResponse], context: &mut StageContext<'_>) {
    let records: Vec<_> = judged.iter().map(|judged| judged.record(policy)).collect();
    let write = || -> Result<(), RunDirError> {
        let mut file = match policy {
            // An earlier attempt may have done so before.
            EvaluatedPolicy::Before => JsonlWriter::create(&dir.evaluation())?,
            EvaluatedPolicy::After => JsonlWriter::append(&dir.evaluation())?,
        };
        file.write_all(&records)
    };
    if let Err(error) = write() {
        context.observer.warn(&format!("the evaluation's responses are not kept: {error}"));
    }
}

/// Runs the flow to its end in a runtime of its own, in which messages pass and nothing is computed. `changes` are made
/// at its start. Whoever watches it can ask its policy more.
fn run_flow(
    flow: StageFlow,
    config: &FlowConfig,
    changes: &[SettingChange],
    dir: &StageDir,
    answer_more: impl FnOnce(Latest<Weights>) -> AnswerMore,
    context: &mut StageContext<'_>,
) -> Result<FlowOutcome<Weights, PpoLearner>, StageError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| RunError::Actors(format!("no thread for them: {error}")))?;
    runtime.block_on(async {
        let handle = flow.start(config).await?;
        let (control, mut events, mut status) = (handle.control(), handle.events(), handle.status());
        let mut stop = context.stop.clone();
        let mut is_stopping = false;
        let mut status_file = StatusFile::new(&dir.status());
        let live = context.live.clone();
        live.began(handle.control(), answer_more(handle.latest()));
        let mut log = EventLog::open(&dir.events());
        let mut show = |status: &RunStatus| {
            gauges::show_status(status);
            live.show_status(status);
            status_file.show(status);
        };
        for change in changes {
            control.change(change.clone())?;
        }
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => {
                        tell(&event, context.observer);
                        if let RunEvent::Replacing { reward_model, .. } = &event
                            && let Some(warning) = unknown_shift(&reward_model.dir)
                        {
                            context.observer.warn(&warning);
                            live.warn(status.borrow().version, warning);
                        }
                        let event = LoggedEvent::now(status.borrow().version, event);
                        log.add(&event);
                        live.happened(event);
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                },
                changed = status.changed() => match changed {
                    Ok(()) => show(&status.borrow_and_update()),
                    Err(_) => break,
                },
                () = stop.stopped(), if !is_stopping => {
                    is_stopping = true;
                    control.stop();
                }
            }
        }
        // The events may end before the last status was looked at.
        show(&status.borrow_and_update());
        live.ended();
        Ok(handle.wait().await?)
    })
}

/// What a person at the terminal is to know of an event.
fn tell(event: &RunEvent, observer: &mut dyn StageObserver) {
    match event {
        RunEvent::Warning { role, message } => observer.warn(&format!("{role}: {message}")),
        RunEvent::Restarted { role, error } => observer.warn(&format!("{role} failed and was started again: {error}")),
        RunEvent::Changed { version, changes } => {
            let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
            observer.note(&format!("changed from the update of {version} on: {}", changes.join(", ")));
        }
        RunEvent::Replacing { version, reward_model } => {
            observer.note(&format!(
                "{reward_model} gives the scores from the update of {version} on; until then the flow runs dry"
            ));
        }
        RunEvent::Paused => observer.note("paused"),
        RunEvent::Resumed => observer.note("goes on after a pause"),
        RunEvent::Updated(_)
        | RunEvent::Checkpointed { .. }
        | RunEvent::Stopping
        | RunEvent::Ended { .. }
        | RunEvent::Failed { .. } => {}
    }
}
