//! PPO-ptx on the flow against PPO-ptx as a plain loop, with real models small enough to train in milliseconds.

use std::sync::{Arc, Mutex};

use collimate::flow::{FlowConfig, FlowMode, FlowOutcome, RunSink, TrainedUpdate};
use collimate_models::arch::Weights;
use collimate_models::roles::PpoLearner;
use collimate_protocol::records::UpdateMetrics;
use collimate_protocol::roles::{
    ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardRequest, Sampler, Trainer,
};
use collimate_protocol::{Prompt, RoleError, ScoredRollout, Snapshot, Ticket, TicketId};
use collimate_tests::fakes::FakeDetokenizer;
use collimate_tests::tiny::{BATCH_SIZE, Models, N_UPDATES, prompts, text};

/// Rollout by rollout, batch by batch: PPO as one would write it down.
fn plain_loop(models: &Models) -> PpoLearner {
    let (mut sampler, mut reference, mut scorer) = (models.sampler(BATCH_SIZE), models.reference(), models.scorer());
    let (mut experience_maker, mut learner) = (models.experience_maker(), models.learner());
    let (mut prompts, mut text) = (prompts(), text());
    let mut next_ticket = 0;
    for _ in 0..N_UPDATES {
        let snapshot = learner.snapshot().unwrap();
        sampler.load(&snapshot).unwrap();
        for _ in 0..BATCH_SIZE {
            let (prompt_id, sample_idx, tokens) = prompts.next_prompt();
            let ticket = Ticket { id: TicketId(next_ticket), prompt_id, sample_idx };
            next_ticket += 1;
            sampler.admit(Prompt { ticket, tokens }).unwrap();
        }
        let mut rollouts = Vec::new();
        while sampler.n_running() > 0 {
            rollouts.extend(sampler.step().unwrap());
        }
        rollouts.sort_by_key(|rollout| rollout.prompt.ticket.id);
        let scored = rollouts.into_iter().map(|rollout| {
            let request = RewardRequest::of(&rollout, &FakeDetokenizer).unwrap();
            let score = scorer.scores(&[request]).unwrap()[0];
            let ref_logprobs = reference.logprobs(std::slice::from_ref(&rollout)).unwrap().remove(0);
            ScoredRollout { rollout, ref_logprobs, score }
        });
        let batch = experience_maker.assemble(learner.version(), scored.collect(), &snapshot).unwrap();
        let n_pretrain = learner.pretrain_batches_per_update() as u64;
        let numbers = learner.version().0 * n_pretrain..(learner.version().0 + 1) * n_pretrain;
        let pretrain: Vec<_> = numbers.map(|idx| text.batch(idx).unwrap()).collect();
        learner.update(&batch, &pretrain).unwrap();
    }
    learner
}

/// Every number of policy, value model and averaged policy.
fn bits(learner: &PpoLearner) -> Vec<u32> {
    let Snapshot { policy, value, .. } = learner.snapshot().unwrap();
    let averaged = learner.ema_weights().unwrap().unwrap();
    let mut bits = Vec::new();
    for (_, tensor) in policy.iter().chain(value.iter()).chain(averaged.iter()) {
        bits.extend(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits));
    }
    bits
}

fn flow_config(mode: FlowMode, max_staleness: u64) -> FlowConfig {
    FlowConfig { n_updates: N_UPDATES, batch_size: BATCH_SIZE, max_staleness, mode, ..FlowConfig::default() }
}

/// Keeps every update's metrics.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<UpdateMetrics>>>);

impl RunSink for Kept {
    fn updated(&mut self, update: &TrainedUpdate) -> Result<(), RoleError> {
        self.0.lock().unwrap().push(update.metrics.clone());
        Ok(())
    }
}

async fn run(
    models: &Models,
    n_generators: usize,
    config: &FlowConfig,
) -> (Vec<UpdateMetrics>, FlowOutcome<Weights, PpoLearner>) {
    let kept = Kept::default();
    let handle = models.flow(n_generators, Box::new(kept.clone())).start(config).await.unwrap();
    let outcome = handle.wait().await.unwrap();
    let metrics = std::mem::take(&mut *kept.0.lock().unwrap());
    (metrics, outcome)
}

#[tokio::test]
async fn staleness_0_gives_the_weights_of_a_plain_loop_bit_for_bit() {
    for models in Models::each() {
        let expected = bits(&plain_loop(&models));
        for mode in [FlowMode::Deterministic, FlowMode::Threaded] {
            for n_generators in 1..=3 {
                let (_, outcome) = run(&models, n_generators, &flow_config(mode, 0)).await;
                assert!(bits(&outcome.trainer) == expected, "{mode:?}, {n_generators} generators");
            }
        }
    }
}

#[tokio::test]
async fn training_moves_every_model_and_records_what_it_did() {
    let models = &Models::each()[1];
    let before = bits(&models.learner());
    let (metrics, outcome) = run(models, 1, &flow_config(FlowMode::Deterministic, 0)).await;
    let after = bits(&outcome.trainer);
    let n_moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!(n_moved * 10 > after.len() * 9, "{n_moved} of {} numbers have moved", after.len());
    assert_eq!(metrics.len() as u64, N_UPDATES);
    for update in &metrics {
        assert_eq!((update.batch.n_rollouts, update.batch.staleness.max, update.train.n_steps), (BATCH_SIZE, 0.0, 4));
        assert!(update.train.ptx_loss > 0.0 && update.train.n_ptx_tokens == 4 * 4 * 8, "{:?}", update.train);
    }
}

#[tokio::test]
async fn two_deterministic_runs_with_staleness_are_equal_in_weights_and_metrics() {
    for models in Models::each() {
        for n_generators in [1, 2] {
            let config = flow_config(FlowMode::Deterministic, 1);
            let (first, second) =
                (run(&models, n_generators, &config).await, run(&models, n_generators, &config).await);
            assert_eq!(first.0, second.0);
            assert!(bits(&first.1.trainer) == bits(&second.1.trainer), "{n_generators} generators");
        }
    }
}
