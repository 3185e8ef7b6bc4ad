//! Models that outgrow the caches, whose gradients are gathered: the unembedding's is added along with the loss, that of an
//! embedding that nothing else reads is summed by row.

use std::sync::Arc;

use candle_core::backprop::GradStore;

use super::*;
use crate::arch::{ModelConfig, PackedSequences, Parameters};
use crate::objective::ranking_loss;

/// The same model with many more words, of which tests use few.
fn with_many_words(model: &ModelConfig) -> Arc<ModelConfig> {
    Arc::new(ModelConfig { vocab_size: 280_000, ..model.clone() })
}

/// The largest difference between a trainer's gradients and those that candle's backward pass gives.
fn gap(gradients: &GradAccumulator, expected: &GradStore, parameters: &Parameters) -> Result<f32> {
    let mut largest = 0_f32;
    for (name, var) in parameters.iter() {
        let (found, expected) = (gradients.get(name).unwrap(), expected.get(var).unwrap());
        largest = largest.max((found - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?);
    }
    Ok(largest)
}

#[test]
fn the_gradient_of_a_language_model_is_that_of_its_loss_whether_tied_or_not() -> Result<()> {
    for model in [testing::gpt2(), testing::with_tied(&testing::llama(), false)] {
        let model = with_many_words(&model);
        let weights = testing::weights(&model, HeadKind::Language, 1);
        let parameters = Parameters::from_weights(&weights)?;
        let own = LanguageModel::new(&model, &parameters.weights())?;
        let mut logprobs = Vec::new();
        for example in demonstrations() {
            let next = NextTokens::within([example.parts()]);
            logprobs.push(own.logprobs_at(&next.packed, &next.rows, &next.targets, 1.0)?.logprobs);
        }
        let expected = Tensor::cat(&logprobs, 0)?.neg()?.mean_all()?.backward()?;
        // In several passes, and step after step.
        let mut trainer = LmTrainer::new(&model, &weights, &OptimConfig { lr: 0.0, ..config(15) }, 10)?;
        for _ in 0..2 {
            trainer.step(&demonstrations())?;
            assert!(gap(trainer.gradients(), &expected, &parameters)? < 1e-6);
        }
    }
    Ok(())
}

#[test]
fn the_gradient_of_a_reward_model_is_that_of_its_loss_and_words_that_nobody_wrote_have_none() -> Result<()> {
    let model = with_many_words(&testing::gpt2());
    let weights = testing::weights(&model, HeadKind::Scalar, 1);
    let parameters = Parameters::from_weights(&weights)?;
    let own = ScalarModel::new(&model, &parameters.weights())?;
    let mut losses = Vec::new();
    for RankedResponses { sequences, ranks } in comparisons() {
        let score =
            |sequence: &Vec<u32>| own.scalars_at(&PackedSequences::new(&[sequence]), &[sequence.len() as u32 - 1]);
        let scores = sequences.iter().map(score).collect::<Result<Vec<_>>>()?;
        losses.push(ranking_loss(&Tensor::cat(&scores, 0)?, &ranks)?);
    }
    let expected = Tensor::stack(&losses, 0)?.mean_all()?.backward()?;
    let mut trainer = RewardTrainer::new(&model, &weights, &OptimConfig { lr: 0.0, ..config(40) }, 10)?;
    for _ in 0..2 {
        trainer.step(&comparisons())?;
        assert!(gap(trainer.gradients(), &expected, &parameters)? < 1e-6);
    }
    let by_word = trainer.gradients().get(&model.embedding_name()).unwrap().sqr()?.sum(1)?.to_vec1::<f32>()?;
    let read: Vec<u32> = comparisons().into_iter().flat_map(|ranked| ranked.sequences).flatten().collect();
    assert!(by_word.iter().enumerate().all(|(word, size)| (*size > 0.0) == read.contains(&(word as u32))));
    Ok(())
}
