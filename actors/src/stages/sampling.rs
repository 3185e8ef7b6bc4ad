//! Sampling outside the flow: one response for each prompt, for labelers and for evaluation.

use std::sync::Arc;

use collimate_models::arch::{ModelConfig, Weights};
use collimate_models::generate::SamplingParams;
use collimate_models::roles::PolicySampler;
use collimate_protocol::roles::Sampler;
use collimate_protocol::{PolicyVersion, Prompt, PromptId, RoleError, Rollout, Snapshot, Ticket, TicketId};

use super::context::StageError;

/// A sampler of `n_slots` sequences at once for weights that do not change, with the snapshot to load into it.
pub fn policy_sampler(
    config: &Arc<ModelConfig>,
    weights: &Weights,
    n_slots: usize,
    params: SamplingParams,
    seed: u64,
) -> Result<(PolicySampler, Snapshot<Weights>), StageError> {
    let sampler = PolicySampler::new(config.clone(), n_slots, params, seed)?;
    let policy = Arc::new(weights.clone());
    // Nothing outside the flow reads the value weights.
    let snapshot = Snapshot { version: PolicyVersion(0), value: policy.clone(), policy };
    Ok((sampler, snapshot))
}

/// Prompts with tickets numbered in order, `n_samples` for each, so that each (prompt, sample) has its own seed.
pub fn ticketed(prompts: &[Vec<u32>], n_samples: u32) -> Vec<Prompt> {
    let mut ticketed = Vec::with_capacity(prompts.len() * n_samples as usize);
    for (prompt_idx, tokens) in prompts.iter().enumerate() {
        for sample_idx in 0..n_samples {
            let id = TicketId(ticketed.len() as u64);
            let ticket = Ticket { id, prompt_id: PromptId(prompt_idx as u64), sample_idx };
            ticketed.push(Prompt { ticket, tokens: tokens.clone() });
        }
    }
    ticketed
}

/// Samples a response to every prompt, as many at a time as the sampler has slots. In order of ticket id.
/// `progress` is told how many responses have ended.
pub fn sample_all<W>(
    sampler: &mut dyn Sampler<W>,
    snapshot: &Snapshot<W>,
    prompts: Vec<Prompt>,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Rollout>, RoleError> {
    sampler.load(snapshot)?;
    let n_prompts = prompts.len();
    let mut waiting = prompts.into_iter();
    let mut rollouts = Vec::with_capacity(n_prompts);
    while rollouts.len() < n_prompts {
        let n_free = sampler.n_free_slots();
        for prompt in waiting.by_ref().take(n_free) {
            sampler.admit(prompt)?;
        }
        let finished = sampler.step()?;
        if !finished.is_empty() {
            rollouts.extend(finished);
            progress(rollouts.len());
        }
    }
    rollouts.sort_by_key(|rollout| rollout.prompt.ticket.id);
    Ok(rollouts)
}
