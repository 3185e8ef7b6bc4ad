//! The reference scorer's model: the SFT model, which never changes.

use std::sync::Arc;

use collimate_protocol::roles::ReferencePolicy;
use collimate_protocol::{RoleError, Rollout};

use crate::arch::{LanguageModel, ModelConfig, Weights};
use crate::error::Result;
use crate::generate::response_logprobs;

/// The frozen SFT model.
#[derive(Debug)]
pub struct FrozenReference {
    model: LanguageModel,
    temperature: f32,
}

impl FrozenReference {
    /// Over these weights, which it shares: a file's or a snapshot's, which nobody changes. `temperature` is the sampling
    /// temperature: the KL is between the policies as they are sampled from.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights, temperature: f32) -> Result<Self> {
        Ok(Self { model: LanguageModel::frozen(config, weights)?, temperature })
    }
}

impl ReferencePolicy for FrozenReference {
    fn logprobs(&mut self, rollouts: &[Rollout]) -> std::result::Result<Vec<Vec<f32>>, RoleError> {
        let pairs: Vec<(&[u32], &[u32])> =
            rollouts.iter().map(|rollout| (rollout.prompt.tokens.as_slice(), rollout.response.as_slice())).collect();
        Ok(response_logprobs(&self.model, &pairs, self.temperature)?)
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::{FinishReason, PolicyVersion, Prompt, PromptId, Ticket, TicketId};

    use super::*;
    use crate::arch::HeadKind;
    use crate::testing::{llama, tokens, weights};

    fn rollout(n_prompt: usize, n_response: usize) -> Rollout {
        let ticket = Ticket { id: TicketId(0), prompt_id: PromptId(0), sample_idx: 0 };
        Rollout {
            prompt: Prompt { ticket, tokens: tokens(n_prompt, 1) },
            response: tokens(n_response, 2),
            logprobs: vec![0.0; n_response],
            versions: vec![PolicyVersion(0); n_response],
            prompt_version: PolicyVersion(0),
            entropies: vec![0.0; n_response],
            finish: FinishReason::Length,
        }
    }

    #[test]
    fn every_response_token_has_its_logprob_and_an_empty_response_none() {
        let config = llama();
        let weights = weights(&config, HeadKind::Language, 1);
        let mut reference = FrozenReference::new(&config, &weights, 0.7).unwrap();
        let rollouts = [rollout(5, 4), rollout(3, 0)];
        let model = LanguageModel::new(&config, &weights).unwrap();
        let found = reference.logprobs(&rollouts).unwrap();
        let expected = response_logprobs(&model, &[(&rollouts[0].prompt.tokens, &rollouts[0].response)], 0.7).unwrap();
        assert!(found[0].iter().zip(&expected[0]).all(|(a, b)| (a - b).abs() < 1e-5));
        assert_eq!((found.len(), found[0].len(), found[1].len()), (2, 4, 0));
        assert!(reference.logprobs(&[]).unwrap().is_empty());
    }
}
