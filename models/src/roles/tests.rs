//! Scenarios for experience maker and learner, on models small enough to train in milliseconds.

mod experience;
mod learner;
mod ptx;
mod ratio;
mod skipped;
mod state;

use std::sync::Arc;

use collimate_protocol::{
    Experience, ExperienceBatch, FinishReason, PolicyVersion, PretrainBatch, Prompt, PromptId, Rollout, ScoredRollout,
    Snapshot, Ticket, TicketId,
};

use super::{PpoLearner, PpoStart};
use crate::Device;
use crate::arch::{HeadKind, LanguageModel, ModelConfig, Weights};
use crate::error::Result;
use crate::testing;
use crate::train::{NextTokens, PpoConfig};

/// Plain PPO with a learning rate at which a step shows.
fn config() -> PpoConfig {
    PpoConfig {
        ptx_coef: 0.0,
        lr: 1e-2,
        value_lr: 1e-2,
        warmup_updates: 0,
        minibatch_size: 4,
        microbatch_tokens: 1000,
        ..PpoConfig::default()
    }
}

/// A policy and a value model of one shape, and the seed of the learners made from them.
struct Models {
    seed: u64,
    config: Arc<ModelConfig>,
    policy: Weights,
    value: Weights,
}

impl Models {
    fn new(config: Arc<ModelConfig>) -> Result<Self> {
        let policy = testing::weights(&config, HeadKind::Language, 1);
        let value = testing::weights(&config, HeadKind::Scalar, 2);
        Ok(Self { seed: 5, config, policy, value })
    }

    fn snapshot(&self) -> Result<Snapshot<Weights>> {
        let (policy, value) = (Arc::new(self.policy.deep_copy()?), Arc::new(self.value.deep_copy()?));
        Ok(Snapshot { version: PolicyVersion(0), policy, value })
    }

    fn learner(&self, config: &PpoConfig, batch_size: usize) -> Result<PpoLearner> {
        PpoLearner::new(PpoStart {
            config,
            seed: self.seed,
            batch_size,
            n_updates: 10,
            policy_config: &self.config,
            policy: &self.policy,
            value_config: &self.config,
            value: &self.value,
            device: &Device::Cpu,
        })
    }

    /// Rollouts with prompts of 2, 3, 4, 2, … tokens and responses of these lengths, whose logprobs this policy gave
    /// at this temperature, `rolled_out_together` sequences at a time.
    fn rollouts(&self, lengths: &[usize], temperature: f32, rolled_out_together: usize) -> Result<Vec<ScoredRollout>> {
        let model = LanguageModel::frozen(&self.config, &self.policy)?;
        let mut rollouts: Vec<ScoredRollout> =
            lengths.iter().enumerate().map(|(idx, &n)| rollout(idx as u64, 2 + idx % 3, n)).collect();
        for together in rollouts.chunks_mut(rolled_out_together) {
            let sequences: Vec<_> =
                together.iter().map(|s| (s.rollout.sequence(), s.rollout.prompt.tokens.len())).collect();
            let next = NextTokens::new(sequences.iter().map(|(tokens, n_prompt)| (tokens.as_slice(), *n_prompt)));
            if next.targets.is_empty() {
                continue;
            }
            let logprobs = model.logprobs_at(&next.packed, &next.rows, &next.targets, temperature)?.logprobs;
            for (scored, logprobs) in together.iter_mut().zip(next.split(&logprobs.to_vec1::<f32>()?)) {
                scored.ref_logprobs = logprobs.iter().map(|logprob| logprob - 0.1).collect();
                scored.rollout.logprobs = logprobs;
            }
        }
        Ok(rollouts)
    }
}

fn rollout(id: u64, n_prompt: usize, n_response: usize) -> ScoredRollout {
    let tokens = testing::tokens(n_prompt + n_response, id);
    let (prompt, response) = tokens.split_at(n_prompt);
    let ticket = Ticket { id: TicketId(id), prompt_id: PromptId(id), sample_idx: 0 };
    let rollout = Rollout {
        prompt: Prompt { ticket, tokens: prompt.to_vec() },
        response: response.to_vec(),
        logprobs: vec![-1.0; n_response],
        versions: vec![PolicyVersion(0); n_response],
        prompt_version: PolicyVersion(0),
        entropies: vec![1.0; n_response],
        finish: FinishReason::End,
    };
    ScoredRollout { rollout, ref_logprobs: vec![-1.0; n_response], score: 1.0 - 0.3 * id as f32 }
}

/// A batch for version 0 whose rollout i has the advantage `advantage(i)` at every token.
fn batch(rollouts: Vec<ScoredRollout>, advantage: impl Fn(usize) -> f32) -> ExperienceBatch {
    let experience = |(idx, scored): (usize, ScoredRollout)| {
        let n = scored.rollout.response.len();
        let values = vec![0.1; n];
        let advantages = vec![advantage(idx); n];
        let returns = vec![0.5 + idx as f32; n];
        Experience { scored, rewards: vec![0.0; n], values, advantages, returns }
    };
    let experiences = rollouts.into_iter().enumerate().map(experience).collect();
    ExperienceBatch { version: PolicyVersion(0), experiences, kl_coef: 0.02, values_version: PolicyVersion(0) }
}

/// Pretraining text for one optimiser step.
fn text() -> PretrainBatch {
    PretrainBatch { sequences: (30..34).map(|seed| testing::tokens(6 + seed as usize % 3, seed)).collect() }
}

fn bits(weights: &Weights) -> Result<Vec<u32>> {
    let mut bits = Vec::new();
    for (_, tensor) in weights.iter() {
        bits.extend(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits));
    }
    Ok(bits)
}

/// Largest difference between any two numbers of two sets of weights.
fn largest_gap(a: &Weights, b: &Weights) -> Result<f32> {
    let numbers = |weights: &Weights| Ok::<_, crate::Error>(bits(weights)?.into_iter().map(f32::from_bits));
    Ok(numbers(a)?.zip(numbers(b)?).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
}
