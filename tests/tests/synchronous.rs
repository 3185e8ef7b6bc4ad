//! PPO-ptx on the flow against PPO-ptx as a plain loop, with real models small enough to train in milliseconds.

use std::path::Path;
use std::sync::{Arc, Mutex};

use collimate::flow::{
    Factory, FlowConfig, FlowMode, FlowOutcome, PpoFlow, PromptSupply, RunSink, SamplerFactory, TrainedUpdate,
};
use collimate_models::arch::{HeadKind, ModelConfig, Weights};
use collimate_models::data::windows::PretrainWindows;
use collimate_models::generate::SamplingParams;
use collimate_models::roles::{
    FrozenReference, PolicySampler, PpoExperienceMaker, PpoLearner, PpoStart, RewardModelScorer,
};
use collimate_models::train::PpoConfig;
use collimate_models::{Device, rng};
use collimate_protocol::records::UpdateMetrics;
use collimate_protocol::roles::{
    ExperienceMaker, PretrainSource, ReferencePolicy, RewardFunction, RewardRequest, Sampler, Trainer,
};
use collimate_protocol::{Prompt, RoleError, ScoredRollout, Snapshot, Ticket, TicketId};
use collimate_tests::fakes::{FakeDetokenizer, hash};
use serde_json::{Value, json};

const VOCAB_SIZE: u32 = 24;
const N_UPDATES: u64 = 3;
const BATCH_SIZE: usize = 6;
const SEED: u64 = 9;

/// All models of a run, of one shape.
struct Models {
    config: Arc<ModelConfig>,
    sft: Weights,
    reward: Weights,
}

impl Models {
    fn new(config: Value) -> Self {
        let config = Arc::new(ModelConfig::from_hf(Path::new("config.json"), config).unwrap());
        let weights = |head, purpose| {
            Weights::initialise(&config, head, &mut rng::for_purpose(SEED, purpose), &Device::Cpu).unwrap()
        };
        let (sft, reward) = (weights(HeadKind::Language, "sft"), weights(HeadKind::Scalar, "reward"));
        Self { config, sft, reward }
    }

    /// Each architecture once.
    fn each() -> [Self; 2] {
        let gpt2 = json!({
            "model_type": "gpt2", "vocab_size": VOCAB_SIZE, "n_embd": 16, "n_head": 2, "n_layer": 2,
            "n_positions": 32, "eos_token_id": 0, "initializer_range": 0.2,
        });
        let llama = json!({
            "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24,
            "max_position_embeddings": 32, "eos_token_id": 0, "initializer_range": 0.2,
        });
        [Self::new(gpt2), Self::new(llama)]
    }

    fn sampler(&self, n_slots: usize) -> PolicySampler {
        let params = SamplingParams { max_new_tokens: 10, ..SamplingParams::default() };
        PolicySampler::new(self.config.clone(), n_slots, params, SEED).unwrap()
    }

    fn reference(&self) -> FrozenReference {
        FrozenReference::new(&self.config, &self.sft, 1.0).unwrap()
    }

    fn scorer(&self) -> RewardModelScorer {
        RewardModelScorer::new(&self.config, &self.reward).unwrap()
    }

    fn experience_maker(&self) -> PpoExperienceMaker {
        PpoExperienceMaker::new(&objective(), &self.config, &Device::Cpu).unwrap()
    }

    fn learner(&self) -> PpoLearner {
        PpoLearner::new(PpoStart {
            config: &objective(),
            seed: SEED,
            batch_size: BATCH_SIZE,
            n_updates: N_UPDATES,
            policy_config: &self.config,
            policy: &self.sft,
            value_config: &self.config,
            value: &self.reward,
            device: &Device::Cpu,
        })
        .unwrap()
    }

    fn flow(&self, n_generators: usize, sink: Box<dyn RunSink>) -> PpoFlow<Weights, PpoLearner> {
        // Fewer slots than a batch has rollouts, so that batches of rows change from step to step.
        let sampler =
            |idx| SamplerFactory { factory: Factory::once(Box::new(self.sampler(2 + idx))), n_slots: 2 + idx };
        PpoFlow {
            prompts: prompts(),
            samplers: (0..n_generators).map(sampler).collect(),
            references: vec![Factory::once(Box::new(self.reference()))],
            rewards: vec![Factory::once(Box::new(self.scorer()))],
            detokenizer: Arc::new(FakeDetokenizer),
            experience_maker: Factory::once(Box::new(self.experience_maker())),
            pretrain: Some(Factory::once(Box::new(text()))),
            trainer: Factory::once(Box::new(self.learner())),
            resume: None,
            sink,
        }
    }
}

fn objective() -> PpoConfig {
    PpoConfig {
        kl_coef: 0.05,
        ptx_coef: 0.5,
        ptx_examples_per_episode: 1.0,
        n_epochs: 2,
        minibatch_size: 4,
        microbatch_tokens: 40,
        lr: 1e-2,
        value_lr: 1e-2,
        warmup_updates: 1,
        ema_decay: 0.9,
        ..PpoConfig::default()
    }
}

fn prompts() -> PromptSupply {
    let prompt = |idx: u64| (0..1 + idx % 4).map(|place| token(&[1, idx, place])).collect();
    PromptSupply::new((0..8).map(prompt).collect(), SEED).unwrap()
}

fn text() -> PretrainWindows {
    let stream: Vec<u32> = (0..200).map(|place| token(&[2, place])).collect();
    PretrainWindows::new(stream, 9, 4, SEED).unwrap()
}

/// A token that does not end a response.
fn token(of: &[u64]) -> u32 {
    1 + (hash(of) % u64::from(VOCAB_SIZE - 1)) as u32
}

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
