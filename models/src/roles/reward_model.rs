//! The reward scorer's model: a trained reward model.

use std::collections::HashMap;
use std::sync::Arc;

use collimate_protocol::records::PromptText;
use collimate_protocol::roles::{RewardFunction, RewardRequest};
use collimate_protocol::{FinishReason, RoleError};

use crate::arch::{ModelConfig, ScalarModel, Weights};
use crate::data::framing::{prompt_tokens, response_tokens};
use crate::error::{Error, Result};
use crate::generate::TOKENS_PER_PASS;
use crate::tokenizer::Tokenizer;
use crate::train::score_sequences;

/// Scores a response by the scalar at its last token, over the very tokens that were sampled: nothing is encoded
/// again, and no token is looked for by its id. It must share its tokenizer with the policy
/// ([`Tokenizer::require_same`](crate::tokenizer::Tokenizer::require_same)).
#[derive(Debug)]
pub struct RewardModelScorer {
    model: ScalarModel,
}

impl RewardModelScorer {
    /// Over these weights, which it shares: a file's or a snapshot's, which nobody changes.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights) -> Result<Self> {
        Ok(Self { model: ScalarModel::frozen(config, weights)? })
    }
}

/// Scores a response by its text, in the reward model's own tokens and framed by its own chat template: for a reward model
/// with another tokenizer than the policy's. A response that the policy has not ended gets no end token here either.
#[derive(Debug)]
pub struct RetokenizingScorer {
    model: ScalarModel,
    tokens: Arc<OwnTokens>,
}

/// A reward model's own tokenizer, and what the prompts say that it will be asked about.
#[derive(Debug)]
pub struct OwnTokens {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Prompts by the policy's tokens: dialogues, which can be framed by another template. Of any other prompt the text is
    /// taken as it is.
    pub prompts: HashMap<Vec<u32>, PromptText>,
}

impl OwnTokens {
    /// What the reward model reads.
    fn sequence(&self, request: &RewardRequest) -> Result<Vec<u32>> {
        let as_text = || PromptText::Text(request.prompt.clone());
        let prompt = self.prompts.get(&request.prompt_tokens).cloned().unwrap_or_else(as_text);
        let mut sequence = prompt_tokens(&self.tokenizer, &prompt)?;
        let mut response = response_tokens(&self.tokenizer, &prompt, &request.response)?;
        if request.finish == FinishReason::Length {
            response.pop();
        }
        sequence.extend(response);
        Ok(sequence)
    }
}

impl RetokenizingScorer {
    /// Over these weights, as [`RewardModelScorer::new`].
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights, tokens: Arc<OwnTokens>) -> Result<Self> {
        Ok(Self { model: ScalarModel::frozen(config, weights)?, tokens })
    }
}

impl RewardFunction for RetokenizingScorer {
    fn scores(&mut self, requests: &[RewardRequest]) -> std::result::Result<Vec<f32>, RoleError> {
        let sequences = requests.iter().map(|request| self.tokens.sequence(request)).collect::<Result<Vec<_>>>()?;
        finite(score_sequences(&self.model, &sequences, TOKENS_PER_PASS)?)
    }
}

fn finite(scores: Vec<f32>) -> std::result::Result<Vec<f32>, RoleError> {
    match scores.iter().find(|score| !score.is_finite()) {
        None => Ok(scores),
        Some(score) => Err(Error::invalid(format!("the reward model gave {score} as a score")).into()),
    }
}

impl RewardFunction for RewardModelScorer {
    fn scores(&mut self, requests: &[RewardRequest]) -> std::result::Result<Vec<f32>, RoleError> {
        let sequences: Vec<Vec<u32>> =
            requests.iter().map(|request| [&request.prompt_tokens[..], &request.response_tokens].concat()).collect();
        finite(score_sequences(&self.model, &sequences, TOKENS_PER_PASS)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{HeadKind, PackedSequences, SCORE_BIAS};
    use crate::testing::{END, gpt2, llama, tokens, weights};
    use crate::tokenizer::Tokenizer;
    use candle_core::{Device, Tensor};

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
    fn another_tokenizer_reads_the_text_framed_by_its_own_template() {
        const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}\
            <|endoftext|>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let tokenizer = Tokenizer::train_byte_level_bpe(["a"], 257, &[]).unwrap().with_chat_template(TEMPLATE).unwrap();
        let mut config = ModelConfig::clone(&gpt2());
        (config.vocab_size, config.context_len) = (tokenizer.vocab_size(), 100);
        let config = Arc::new(config);
        let hi = collimate_protocol::records::Message {
            role: collimate_protocol::records::Role::User,
            content: "hi".into(),
        };
        let dialogue = PromptText::Messages(vec![hi]);
        let tokens = OwnTokens { tokenizer: tokenizer.clone(), prompts: HashMap::from([(vec![7, 7], dialogue)]) };
        let weights = weights(&config, HeadKind::Scalar, 1);
        let mut scorer = RetokenizingScorer::new(&config, &weights, Arc::new(tokens)).unwrap();
        // The policy's own tokens are others, and their texts what the policy's tokenizer makes of them.
        let asked = |prompt_tokens: Vec<u32>, finish| RewardRequest {
            prompt: "policy's words".into(),
            response: "yes".into(),
            finish,
            ..request(prompt_tokens, vec![9])
        };
        let scores = scorer.scores(&[
            asked(vec![7, 7], FinishReason::End),
            asked(vec![7, 7], FinishReason::Length),
            asked(vec![8], FinishReason::End),
        ]);
        let expected =
            ["<user>hi<assistant>yes<|endoftext|>", "<user>hi<assistant>yes", "policy's wordsyes<|endoftext|>"];
        for (score, text) in scores.unwrap().iter().zip(expected) {
            let sequence = tokenizer.encode(text).unwrap();
            let expected = scalar(&config, &sequence, sequence.len() - 1);
            assert!((score - expected).abs() < 1e-5, "{text}: {score}, expected {expected}");
        }
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
