mod adapters;
mod checkpointing;
mod gathered;

use candle_core::Tensor;

use super::*;
use crate::arch::{HeadKind, LanguageModel, SCORE_BIAS, ScalarModel, Weights};
use crate::error::Result;
use crate::optim::{GradAccumulator, LrSchedule};
use crate::testing::{self, CONTEXT_LEN};

fn config(microbatch_tokens: usize) -> OptimConfig {
    OptimConfig {
        lr: 1e-2,
        lr_schedule: LrSchedule::Constant,
        warmup_steps: 0,
        microbatch_tokens,
        ..OptimConfig::default()
    }
}

fn demonstrations() -> Vec<LmExample> {
    let example = |(n, n_prompt, seed)| LmExample::response(testing::tokens(n, seed), n_prompt);
    [(3, 1, 1), (9, 4, 2), (5, 5, 3), (7, 2, 4), (12, 6, 5)].map(example).to_vec()
}

fn comparisons() -> Vec<RankedResponses> {
    let ranked = |ranks: &[u32], seed: u64| RankedResponses {
        sequences: (0..ranks.len()).map(|i| testing::tokens(4 + i, seed + i as u64)).collect(),
        ranks: ranks.to_vec(),
    };
    vec![ranked(&[1, 2], 1), ranked(&[2, 1, 3, 2], 5), ranked(&[3, 2, 1], 20)]
}

/// Largest difference between any two gradients.
fn largest_gap(a: &GradAccumulator, b: &GradAccumulator, names: &Weights) -> Result<f32> {
    let mut largest = 0f32;
    for (name, _) in names.iter() {
        let gap = (a.get(name).unwrap() - b.get(name).unwrap())?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        largest = largest.max(gap);
    }
    Ok(largest)
}

#[test]
fn loss_and_gradient_of_a_language_model_do_not_depend_on_the_cut() -> Result<()> {
    let model = testing::gpt2();
    let weights = testing::weights(&model, HeadKind::Language, 1);
    let mut whole = LmTrainer::new(&model, &weights, &config(1000), 10)?;
    let reference = whole.step(&demonstrations())?;
    assert_eq!(reference.n_tokens, 2 + 5 + 5 + 6);
    for microbatch_tokens in [1, 10, 17] {
        let mut cut = LmTrainer::new(&model, &weights, &config(microbatch_tokens), 10)?;
        let metrics = cut.step(&demonstrations())?;
        assert!((metrics.loss - reference.loss).abs() < 1e-6);
        assert!(largest_gap(cut.gradients(), whole.gradients(), &weights)? < 1e-6);
    }
    Ok(())
}

#[test]
fn loss_and_gradient_of_a_reward_model_do_not_depend_on_the_cut() -> Result<()> {
    let model = testing::llama();
    let weights = testing::weights(&model, HeadKind::Scalar, 1);
    let mut whole = RewardTrainer::new(&model, &weights, &config(1000), 10)?;
    let reference = whole.step(&comparisons())?;
    for microbatch_tokens in [1, 40] {
        let mut cut = RewardTrainer::new(&model, &weights, &config(microbatch_tokens), 10)?;
        let metrics = cut.step(&comparisons())?;
        assert!((metrics.loss - reference.loss).abs() < 1e-6);
        assert!(largest_gap(cut.gradients(), whole.gradients(), &weights)? < 1e-6);
    }
    Ok(())
}

#[test]
fn every_parameter_of_every_kind_of_model_gets_a_gradient() -> Result<()> {
    for model in testing::each_kind() {
        let weights = testing::weights(&model, HeadKind::Language, 1);
        let mut policy = LmTrainer::new(&model, &weights, &config(1000), 10)?;
        policy.step(&demonstrations())?;
        let reward_weights = testing::weights(&model, HeadKind::Scalar, 1);
        let mut reward = RewardTrainer::new(&model, &reward_weights, &config(1000), 10)?;
        reward.step(&comparisons())?;
        for (weights, gradients) in [(&weights, policy.gradients()), (&reward_weights, reward.gradients())] {
            for (name, _) in weights.iter() {
                let gradient = gradients.get(name).unwrap_or_else(|| panic!("`{name}` got no gradient"));
                let size = gradient.sqr()?.sum_all()?.to_scalar::<f32>()?;
                // A ranking does not change when all scores move together, so the bias has a gradient of zero.
                assert!(size > 0.0 || name == SCORE_BIAS, "`{name}` has a gradient of zero");
            }
        }
    }
    Ok(())
}

#[test]
fn sft_learns_the_response_alone() -> Result<()> {
    let model = testing::gpt2();
    let weights = testing::weights(&model, HeadKind::Language, 1);
    let mut trainer = LmTrainer::new(&model, &weights, &config(1000), 10)?;
    let example = LmExample::response(testing::tokens(9, 3), 6);
    let by_text = heldout_nll(&trainer.model()?, &[LmExample::text(example.tokens.clone())], 1000)?;
    let by_response = heldout_nll(&trainer.model()?, std::slice::from_ref(&example), 1000)?;
    assert_eq!((by_text.n_tokens, by_response.n_tokens), (8, 3));

    // By hand: the log-probabilities of tokens 6, 7 and 8.
    let next = NextTokens::new([(example.tokens.as_slice(), 1)]);
    let all = trainer.model()?.logprobs_at(&next.packed, &next.rows, &next.targets, 1.0)?.logprobs.to_vec1::<f32>()?;
    let expected = -f64::from(all[5] + all[6] + all[7]) / 3.0;
    assert!((by_response.mean - expected).abs() < 1e-6);
    assert!((trainer.step(&[example])?.loss - expected).abs() < 1e-6);
    Ok(())
}

#[test]
fn an_example_without_a_response_changes_no_bit_of_the_step() -> Result<()> {
    let model = testing::gpt2();
    let weights = testing::weights(&model, HeadKind::Language, 1);
    let (mut without, mut with) =
        (LmTrainer::new(&model, &weights, &config(1000), 10)?, LmTrainer::new(&model, &weights, &config(1000), 10)?);
    let mut batch = demonstrations();
    without.step(&batch)?;
    batch.insert(1, LmExample::response(testing::tokens(8, 9), 8));
    with.step(&batch)?;
    for (name, tensor) in without.weights()?.iter() {
        let other = with.weights()?;
        assert_eq!(bits(tensor)?, bits(other.get(name)?)?, "{name}");
    }
    Ok(())
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

#[test]
fn training_learns() -> Result<()> {
    let model = testing::with_tied(&testing::llama(), true);
    let mut policy = LmTrainer::new(&model, &testing::weights(&model, HeadKind::Language, 1), &config(1000), 30)?;
    let first = policy.step(&demonstrations())?.loss;
    (0..29).try_for_each(|_| policy.step(&demonstrations()).map(drop))?;
    assert!(heldout_nll(&policy.model()?, &demonstrations(), 20)?.mean < first / 2.0);

    let mut reward = RewardTrainer::new(&model, &testing::weights(&model, HeadKind::Scalar, 1), &config(1000), 30)?;
    (0..30).try_for_each(|_| reward.step(&comparisons()).map(drop))?;
    let accuracy = pair_accuracy(&reward.model()?, &comparisons(), 20)?;
    assert_eq!((accuracy.mean, accuracy.n_pairs), (1.0, 1 + 5 + 3));
    Ok(())
}

#[test]
fn the_shifted_bias_brings_the_demonstrations_to_a_mean_score_of_zero() -> Result<()> {
    let model = testing::gpt2();
    let mut trainer = RewardTrainer::new(&model, &testing::weights(&model, HeadKind::Scalar, 1), &config(1000), 10)?;
    let demonstrations: Vec<Vec<u32>> = (1..6).map(|seed| testing::tokens(5, seed)).collect();
    let before = score_sequences(&trainer.model()?, &demonstrations, 7)?;
    let bias = trainer.shift_bias(&demonstrations)?;
    let after = score_sequences(&trainer.model()?, &demonstrations, 1000)?;
    assert!((after.iter().sum::<f32>() / 5.0).abs() < 1e-6);
    for (before, after) in before.iter().zip(&after) {
        assert!((before + bias - after).abs() < 1e-6);
    }
    assert_eq!(trainer.weights()?.get(SCORE_BIAS)?.to_vec1::<f32>()?, [bias]);
    assert!(trainer.shift_bias(&[]).is_err());
    Ok(())
}

#[test]
fn the_score_is_read_at_the_last_token_even_where_the_end_token_occurs_before() -> Result<()> {
    let model = testing::gpt2();
    let eos = model.eos_token_ids[0];
    let scalar = ScalarModel::new(&model, &testing::weights(&model, HeadKind::Scalar, 1))?;
    let sequence = vec![eos, 5, eos, 7, 3, eos];
    let packed = crate::arch::PackedSequences::new(&[&sequence]);
    let at_each_token = scalar.scalars_at(&packed, &[0, 1, 2, 3, 4, 5])?.to_vec1::<f32>()?;
    assert_eq!(score_sequences(&scalar, &[sequence], 1000)?, at_each_token[5..]);
    Ok(())
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_too_many_end_the_training() -> Result<()> {
    let model = testing::gpt2();
    let mut weights = testing::weights(&model, HeadKind::Language, 1);
    let broken = (weights.get("transformer.ln_f.bias")? + f64::NAN)?;
    weights.insert("transformer.ln_f.bias", broken);
    let limits = OptimConfig { max_skipped_in_a_row: 2, ..config(1000) };
    let mut trainer = LmTrainer::new(&model, &weights, &limits, 10)?;
    assert!(trainer.step(&demonstrations())?.skipped);
    for (name, tensor) in trainer.weights()?.iter() {
        assert_eq!(bits(tensor)?, bits(weights.get(name)?)?, "{name}");
    }
    let error = trainer.step(&demonstrations()).unwrap_err().to_string();
    assert!(error.contains("2 optimiser steps in a row") && error.contains("the loss"), "{error}");
    Ok(())
}

#[test]
fn bad_input_is_an_error_that_says_what() -> Result<()> {
    let model = testing::gpt2();
    let weights = testing::weights(&model, HeadKind::Language, 1);
    let mut trainer = LmTrainer::new(&model, &weights, &config(1000), 10)?;
    let says = |result: Result<StepMetrics>, what: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    says(trainer.step(&[LmExample::text(testing::tokens(CONTEXT_LEN + 1, 1))]), "41 tokens");
    says(trainer.step(&[LmExample::text(vec![1])]), "no token to learn");

    let scalar_weights = testing::weights(&model, HeadKind::Scalar, 1);
    let mut reward = RewardTrainer::new(&model, &scalar_weights, &config(1000), 10)?;
    says(reward.step(&[RankedResponses { sequences: vec![vec![1]], ranks: vec![1] }]), "1 responses and 1 ranks");
    says(reward.step(&[RankedResponses { sequences: vec![vec![1], vec![]], ranks: vec![1, 2] }]), "empty sequence");
    says(reward.step(&[]), "no comparison");
    Ok(())
}

#[test]
fn parameters_are_exactly_what_the_config_asks_for() -> Result<()> {
    let model = testing::gpt2();
    let good = testing::weights(&model, HeadKind::Scalar, 1);
    parameters_for(&model, HeadKind::Scalar, &good)?;
    let error_after = |change: &dyn Fn(&mut Weights)| -> String {
        let mut weights = good.clone();
        change(&mut weights);
        parameters_for(&model, HeadKind::Scalar, &weights).unwrap_err().to_string()
    };
    assert!(error_after(&|w| drop(w.remove("score.weight"))).contains("`score.weight` is missing"));
    let narrow = good.get("score.weight")?.narrow(1, 0, 3)?;
    assert!(error_after(&|w| w.insert("score.weight", narrow.clone())).contains("has shape [1, 3]"));
    assert!(error_after(&|w| w.insert("value_head.weight", narrow.clone())).contains("`value_head.weight`"));
    Ok(())
}

#[test]
fn held_out_means_are_by_example_and_by_token() -> Result<()> {
    let model = testing::with_tied(&testing::gpt2(), false);
    let language = LanguageModel::new(&model, &testing::weights(&model, HeadKind::Language, 1))?;
    let nll = heldout_nll(&language, &demonstrations(), 10)?;
    assert_eq!((nll.per_example.len(), nll.n_tokens), (4, 18)); // one example has no response
    let by_token = [2.0, 5.0, 5.0, 6.0].iter().zip(&nll.per_example).map(|(n, mean)| n * mean).sum::<f64>() / 18.0;
    assert!((nll.mean - by_token).abs() < 1e-9);
    Ok(())
}
