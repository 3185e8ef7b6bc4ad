//! Whole training steps, from token ids to new weights, give PyTorch's numbers: there the models are transformers',
//! the sequences go through one at a time, and the optimiser is torch's (`tests/scripts/objectives.py`). Here they are
//! packed, and cut into several microbatches.

use std::collections::BTreeMap;

use collimate_models::Device;
use collimate_models::arch::{HeadKind, Weights, load_model};
use collimate_models::roles::{PpoLearner, PpoStart};
use collimate_models::train::{LmExample, LmTrainer, OptimConfig, PpoConfig, RankedResponses, RewardTrainer};
use collimate_protocol::roles::Trainer;
use collimate_protocol::{
    Experience, ExperienceBatch, FinishReason, PolicyVersion, PretrainBatch, Prompt, PromptId, RoleError, Rollout,
    ScoredRollout, Ticket, TicketId,
};
use collimate_tests::fixture::{self, assert_close};
use serde::Deserialize;

type Result<T> = std::result::Result<T, RoleError>;

/// Of losses and gradient norms: a pass through two layers in f32, summed in other orders (about 2e-6 on one machine).
const LOSSES: f64 = 1e-5;
/// Of weights after up to six steps: Adam divides small gradients by their own size, and so enlarges their error
/// (about 5e-6 on one machine). One step moves a weight by 1e-3 to 2e-2.
const WEIGHTS: f64 = 5e-5;

/// Cuts every batch of the fixture at least once.
const MICROBATCH_TOKENS: usize = 16;

/// Of each tensor: its sum, the sum of its squares, and its first three numbers.
type Digest = BTreeMap<String, Vec<f64>>;

fn assert_weights(weights: &Weights, expected: &Digest, what: &str) -> Result<()> {
    let names: Vec<&str> = weights.iter().map(|(name, _)| name).collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{what}");
    for ((name, tensor), expected) in weights.iter().zip(expected.values()) {
        let numbers: Vec<f64> = tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
        let mut found = vec![numbers.iter().sum::<f64>(), numbers.iter().map(|x| x * x).sum()];
        found.extend(numbers.iter().take(3));
        assert_close(found, expected.iter().copied(), WEIGHTS, &format!("{what}, `{name}`"));
    }
    Ok(())
}

/// Some steps of one trainer.
#[derive(Deserialize)]
struct Steps<B> {
    batches: Vec<B>,
    losses: Vec<f64>,
    /// Global norms before clipping.
    norms: Vec<f64>,
    weights: Digest,
}

fn optim() -> OptimConfig {
    OptimConfig { microbatch_tokens: MICROBATCH_TOKENS, ..fixture::objectives("optim") }
}

#[test]
fn language_model_training_takes_pytorchs_steps() -> Result<()> {
    #[derive(Deserialize)]
    struct Example {
        tokens: Vec<u32>,
        n_prompt: usize,
    }
    for (name, steps) in fixture::objectives::<BTreeMap<String, Steps<Vec<Example>>>>("language") {
        let (config, weights) = load_model(&fixture::path("hf").join(&name), HeadKind::Language, &Device::Cpu)?;
        let mut trainer = LmTrainer::new(&config, &weights, &optim(), steps.batches.len() as u64)?;
        for (batch, (loss, norm)) in steps.batches.into_iter().zip(steps.losses.into_iter().zip(steps.norms)) {
            let example = |Example { tokens, n_prompt }| LmExample::response(tokens, n_prompt);
            let found = trainer.step(&batch.into_iter().map(example).collect::<Vec<_>>())?;
            assert_close([found.loss, found.grad_norm], [loss, norm], LOSSES, &format!("{name}: loss, norm"));
        }
        assert_weights(&trainer.weights()?, &steps.weights, &name)?;
    }
    Ok(())
}

#[test]
fn reward_model_training_takes_pytorchs_steps() -> Result<()> {
    #[derive(Deserialize)]
    struct Comparison {
        sequences: Vec<Vec<u32>>,
        ranks: Vec<u32>,
    }
    for (name, steps) in fixture::objectives::<BTreeMap<String, Steps<Vec<Comparison>>>>("reward") {
        let dir = fixture::path("hf").join(format!("{name}_score"));
        let (config, weights) = load_model(&dir, HeadKind::Scalar, &Device::Cpu)?;
        let mut trainer = RewardTrainer::new(&config, &weights, &optim(), steps.batches.len() as u64)?;
        for (batch, (loss, norm)) in steps.batches.into_iter().zip(steps.losses.into_iter().zip(steps.norms)) {
            let ranked = |Comparison { sequences, ranks }| RankedResponses { sequences, ranks };
            let found = trainer.step(&batch.into_iter().map(ranked).collect::<Vec<_>>())?;
            assert_close([found.loss, found.grad_norm], [loss, norm], LOSSES, &format!("{name}: loss, norm"));
        }
        assert_weights(&trainer.weights()?, &steps.weights, &name)?;
    }
    Ok(())
}

/// `ppo_updates` of one architecture.
#[derive(Deserialize)]
struct PpoUpdates {
    settings: PpoConfig,
    updates: Vec<PpoUpdate>,
}

#[derive(Deserialize)]
struct PpoUpdate {
    rollouts: Vec<FixtureRollout>,
    /// For each epoch, which is one optimiser step, its sequences.
    texts: Vec<Vec<Vec<u32>>>,
    means: Means,
    policy: Digest,
    value: Digest,
    /// Of the policy's averaged weights.
    average: Digest,
}

#[derive(Deserialize)]
struct FixtureRollout {
    tokens: Vec<u32>,
    n_prompt: usize,
    /// Sampled by the version before.
    stale: bool,
    logprobs: Vec<f32>,
    values: Vec<f32>,
    advantages: Vec<f32>,
    returns: Vec<f32>,
}

/// Metrics, over the optimiser steps of an update.
#[derive(Deserialize)]
struct Means {
    policy_loss: f64,
    value_loss: f64,
    ptx_loss: f64,
    policy_norm: f64,
    value_norm: f64,
    clipped: f64,
    kl: f64,
}

fn batch(version: u64, rollouts: Vec<FixtureRollout>) -> ExperienceBatch {
    let experience = |(idx, rollout): (u64, FixtureRollout)| {
        let (prompt, response) = rollout.tokens.split_at(rollout.n_prompt);
        let n = response.len();
        let ticket = Ticket { id: TicketId(idx), prompt_id: PromptId(idx), sample_idx: 0 };
        let scored = ScoredRollout {
            rollout: Rollout {
                prompt: Prompt { ticket, tokens: prompt.to_vec() },
                response: response.to_vec(),
                logprobs: rollout.logprobs,
                versions: vec![PolicyVersion(version - u64::from(rollout.stale)); n],
                prompt_version: PolicyVersion(0),
                entropies: vec![0.0; n],
                finish: FinishReason::Length,
            },
            ref_logprobs: vec![0.0; n],
            score: 0.0,
        };
        let FixtureRollout { values, advantages, returns, .. } = rollout;
        Experience { scored, rewards: vec![0.0; n], values, advantages, returns }
    };
    let experiences = (0..).zip(rollouts).map(experience).collect();
    ExperienceBatch {
        version: PolicyVersion(version),
        experiences,
        kl_coef: 0.0,
        values_version: PolicyVersion(version),
    }
}

#[test]
fn ppo_ptx_takes_pytorchs_steps_on_fresh_and_stale_rollouts() -> Result<()> {
    for (name, PpoUpdates { settings, updates }) in fixture::objectives::<BTreeMap<String, PpoUpdates>>("ppo_updates") {
        let dir = fixture::path("hf");
        let (policy_config, policy) = load_model(&dir.join(&name), HeadKind::Language, &Device::Cpu)?;
        let (value_config, value) = load_model(&dir.join(format!("{name}_score")), HeadKind::Scalar, &Device::Cpu)?;
        let mut learner = PpoLearner::new(PpoStart {
            config: &PpoConfig { microbatch_tokens: MICROBATCH_TOKENS, ..settings },
            seed: 0,
            batch_size: updates[0].rollouts.len(),
            n_updates: updates.len() as u64,
            policy_config: &policy_config,
            policy: &policy,
            value_config: &value_config,
            value: &value,
            device: &Device::Cpu,
        })?;
        for (version, update) in (0..).zip(updates) {
            let texts: Vec<_> = update.texts.into_iter().map(|sequences| PretrainBatch { sequences }).collect();
            let found = learner.update(&batch(version, update.rollouts), &texts)?;
            let (expected, what) = (update.means, format!("{name}, update {version}"));
            assert_close([found.policy_loss], [expected.policy_loss], LOSSES, &format!("{what}: policy loss"));
            assert_close([found.value_loss], [expected.value_loss], LOSSES, &format!("{what}: value loss"));
            assert_close([found.ptx_loss], [expected.ptx_loss], LOSSES, &format!("{what}: loss of the text"));
            let norms = [found.policy_grad_norm, found.value_grad_norm];
            assert_close(norms, [expected.policy_norm, expected.value_norm], LOSSES, &format!("{what}: norms"));
            assert_close([found.clip_fraction], [expected.clipped], LOSSES, &format!("{what}: clip fraction"));
            assert_close([found.approx_kl], [expected.kl], LOSSES, &format!("{what}: approximate KL"));

            let snapshot = learner.snapshot()?;
            assert_weights(&snapshot.policy, &update.policy, &format!("{what}, policy"))?;
            assert_weights(&snapshot.value, &update.value, &format!("{what}, value model"))?;
            let average = learner.ema_weights()?.ok_or("the policy's weights are not averaged")?;
            assert_weights(&average, &update.average, &format!("{what}, average"))?;
        }
    }
    Ok(())
}
