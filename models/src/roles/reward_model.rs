//! The reward scorer's model: a trained reward model.

use std::sync::Arc;

use collimate_protocol::RoleError;
use collimate_protocol::roles::{RewardFunction, RewardRequest};

use crate::arch::{ModelConfig, ScalarModel, Weights};
use crate::error::{Error, Result};
use crate::generate::TOKENS_PER_PASS;
use crate::train::score_sequences;

/// Scores a response by the scalar at its last token, over the very tokens that were sampled: nothing is encoded
/// again, and no token is looked for by its id. It must share its tokenizer with the policy
/// ([`Tokenizer::require_same`](crate::tokenizer::Tokenizer::require_same)).
#[derive(Debug)]
pub struct RewardModelScorer {
    model: ScalarModel,
}

impl RewardModelScorer {
    /// Over a copy of these weights.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        Ok(Self { model: ScalarModel::frozen(config, &weights.deep_copy()?)? })
    }
}

impl RewardFunction for RewardModelScorer {
    fn scores(&mut self, requests: &[RewardRequest]) -> std::result::Result<Vec<f32>, RoleError> {
        let sequences: Vec<Vec<u32>> =
            requests.iter().map(|request| [&request.prompt_tokens[..], &request.response_tokens].concat()).collect();
        let scores = score_sequences(&self.model, &sequences, TOKENS_PER_PASS)?;
        match scores.iter().find(|score| !score.is_finite()) {
            None => Ok(scores),
            Some(score) => Err(Error::invalid(format!("the reward model gave {score} as a score")).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use collimate_protocol::FinishReason;

    use super::*;
    use crate::arch::{HeadKind, PackedSequences, SCORE_BIAS};
    use crate::testing::{END, gpt2, llama, tokens, weights};
    use crate::tokenizer::Tokenizer;

    fn request(prompt_tokens: Vec<u32>, response_tokens: Vec<u32>) -> RewardRequest {
        RewardRequest {
            prompt_tokens,
            response_tokens,
            prompt: "not looked at".into(),
            response: "not looked at".into(),
            finish: FinishReason::Length,
        }
    }

    /// The scalar at one row of one sequence.
    fn scalar(config: &Arc<ModelConfig>, sequence: &[u32], row: usize) -> f32 {
        let model = ScalarModel::new(config, &weights(config, HeadKind::Scalar, 1)).unwrap();
        model.scalars_at(&PackedSequences::new(&[sequence]), &[row as u32]).unwrap().to_vec1().unwrap()[0]
    }

    fn scorer(config: &Arc<ModelConfig>) -> RewardModelScorer {
        RewardModelScorer::new(config, &weights(config, HeadKind::Scalar, 1)).unwrap()
    }

    #[test]
    fn the_score_is_read_at_the_true_last_token_whatever_stands_there_or_before() {
        for config in [gpt2(), llama()] {
            for (prompt, response) in [
                (vec![3, END, 5], vec![7, 8, END]),
                (vec![END, END], vec![4, 4]),
                (tokens(12, 1), tokens(7, 2)),
                (vec![3, 4], vec![]),
            ] {
                let sequence = [&prompt[..], &response].concat();
                let expected = scalar(&config, &sequence, sequence.len() - 1);
                let scores = scorer(&config).scores(&[request(tokens(9, 5), tokens(2, 6)), request(prompt, response)]);
                assert!((scores.unwrap()[1] - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn tokens_are_scored_as_sampled_and_never_encoded_again() {
        // "hello" is one token of this vocabulary, yet a policy may sample it as "he" and "llo".
        let texts = ["hello hello hello he llo he llo llo llo"];
        let tokenizer = Tokenizer::train_byte_level_bpe(texts, 280, &[]).unwrap();
        let sampled: Vec<u32> = ["he", "llo"].map(|token| tokenizer.token_id(token).unwrap()).to_vec();
        let text = tokenizer.decode(&sampled).unwrap();
        let encoded = tokenizer.encode(&text).unwrap();
        assert_eq!((text.as_str(), encoded.len()), ("hello", 1));

        let mut config = ModelConfig::clone(&gpt2());
        config.vocab_size = tokenizer.vocab_size();
        let config = Arc::new(config);
        let prompt = tokenizer.encode("he").unwrap();
        let score = |response: &[u32]| {
            let request = RewardRequest { response: "hello".into(), ..request(prompt.clone(), response.to_vec()) };
            scorer(&config).scores(&[request]).unwrap()[0]
        };
        let sequence = [&prompt[..], &sampled].concat();
        assert!((score(&sampled) - scalar(&config, &sequence, sequence.len() - 1)).abs() < 1e-5);
        assert!((score(&sampled) - score(&encoded)).abs() > 1e-3);
    }

    #[test]
    fn a_score_that_is_not_finite_is_an_error() {
        let config = gpt2();
        let mut weights = weights(&config, HeadKind::Scalar, 1);
        weights.insert(SCORE_BIAS, Tensor::new(&[f32::NAN], &Device::Cpu).unwrap());
        let mut scorer = RewardModelScorer::new(&config, &weights).unwrap();
        let message = scorer.scores(&[request(vec![1], vec![2])]).unwrap_err().to_string();
        assert!(message.contains("the reward model gave NaN"), "{message}");
    }

    #[test]
    fn a_sequence_longer_than_the_context_is_refused() {
        let message = scorer(&gpt2()).scores(&[request(tokens(30, 1), tokens(11, 2))]).unwrap_err().to_string();
        assert!(message.contains("41 tokens") && message.contains("40"), "{message}");
    }
}
