//! What a reward model makes of what labelers are asked.

use std::sync::Arc;

use collimate_protocol::records::LabelTask;

use crate::arch::{ModelConfig, ScalarModel, Weights};
use crate::data::comparisons::response_sequences;
use crate::error::Result;
use crate::feedback::acquisition::Candidate;
use crate::generate::TOKENS_PER_PASS;
use crate::tokenizer::Tokenizer;
use crate::train::sequence_features;

/// Reads tasks with a reward model. Tokens that were sampled are taken as they are, so they must be of its tokenizer.
#[derive(Debug)]
pub struct TaskReader {
    model: ScalarModel,
    tokenizer: Tokenizer,
    context_len: usize,
}

impl TaskReader {
    /// Over these weights, which it shares.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights, tokenizer: Tokenizer) -> Result<Self> {
        Ok(Self { model: ScalarModel::frozen(config, weights)?, tokenizer, context_len: config.context_len })
    }

    /// The responses' features and scores, for each task; `None` for one that is longer than the model's context.
    ///
    /// # Errors
    /// A prompt without tokens, or tokens that the tokenizer does not have.
    pub fn read(&self, tasks: &[LabelTask]) -> Result<Vec<Option<Candidate>>> {
        let sequences = tasks.iter().map(|LabelTask { prompt, responses, tokens, .. }| {
            response_sequences(&self.tokenizer, prompt, responses, tokens.as_ref())
        });
        let sequences: Vec<Vec<Vec<u32>>> = sequences.collect::<Result<_>>()?;
        let fits = |responses: &[Vec<u32>]| responses.iter().all(|sequence| sequence.len() <= self.context_len);
        let read: Vec<&[u32]> =
            sequences.iter().filter(|responses| fits(responses)).flatten().map(Vec::as_slice).collect();
        let mut features = sequence_features(&self.model, &read, TOKENS_PER_PASS)?.into_iter();
        let candidate = |responses: &Vec<Vec<u32>>| {
            fits(responses).then(|| {
                let (features, scores) =
                    features.by_ref().take(responses.len()).map(|one| (one.hidden, one.score)).unzip();
                Candidate { features, scores }
            })
        };
        Ok(sequences.iter().map(candidate).collect())
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::records::{ComparisonTokens, Origin, TaskKind};

    use super::*;
    use crate::arch::HeadKind;
    use crate::testing::{gpt2, weights};
    use crate::train::score_sequences;

    #[test]
    fn each_task_s_responses_are_read_at_their_last_tokens_and_long_tasks_are_left_out() {
        let config = gpt2();
        let weights = weights(&config, HeadKind::Scalar, 1);
        let task = |prompt: Vec<u32>, responses: Vec<Vec<u32>>| LabelTask {
            kind: TaskKind::Rank,
            prompt: "a".into(),
            responses: vec!["b".to_owned(); responses.len()],
            tokens: Some(ComparisonTokens { prompt, responses }),
            origin: Origin::default(),
        };
        let long = vec![1; config.context_len];
        let tasks = [
            task(vec![1, 2], vec![vec![3], vec![4, 5]]),
            task(vec![1], vec![long, vec![2]]),
            task(vec![6], vec![vec![7, 8], vec![9], vec![]]),
        ];
        let tokenizer = Tokenizer::train_byte_level_bpe(["a"], 257, &[]).unwrap();
        let read = TaskReader::new(&config, &weights, tokenizer).unwrap().read(&tasks).unwrap();
        let model = ScalarModel::frozen(&config, &weights).unwrap();
        let sequences = [vec![1, 2, 3], vec![1, 2, 4, 5], vec![6, 7, 8], vec![6, 9], vec![6]];
        let scores = score_sequences(&model, &sequences, 1000).unwrap();
        assert_eq!(read[0].as_ref().unwrap().scores, scores[..2]);
        assert_eq!(read[1], None);
        let third = read[2].as_ref().unwrap();
        assert_eq!((third.scores.as_slice(), third.features.len()), (&scores[2..], 3));
        assert!(third.features.iter().all(|features| features.len() == config.hidden_dim));
    }
}
