//! From scored rollouts to experience.

use collimate_protocol::records::BatchMetrics;
use collimate_protocol::roles::ExperienceMaker;

use super::*;
use crate::arch::ScalarModel;
use crate::roles::PpoExperienceMaker;
use crate::train::{KlControl, score_sequences};

fn assemble(models: &Models, config: &PpoConfig, rollouts: Vec<ScoredRollout>) -> Result<ExperienceBatch> {
    let mut maker = PpoExperienceMaker::new(config, &models.config, &Device::Cpu)?;
    Ok(maker.assemble(PolicyVersion(0), rollouts, &models.snapshot()?).expect("a batch"))
}

#[test]
fn before_any_update_the_value_at_the_last_token_is_the_score() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let rollouts = models.rollouts(&[3, 7, 5], 1.0, 1)?;
    // The reward model is what the value model starts from.
    let reward_model = ScalarModel::frozen(&models.config, &models.value)?;
    let sequences: Vec<Vec<u32>> = rollouts.iter().map(|scored| scored.rollout.sequence()).collect();
    let scores = score_sequences(&reward_model, &sequences, 1000)?;

    // A rollout that goes on for one token shows the value before that token, which is the one at the last token.
    let longer = rollouts.into_iter().map(|mut scored| {
        scored.rollout.response.push(1);
        scored.rollout.logprobs.push(-1.0);
        scored.rollout.versions.push(PolicyVersion(0));
        scored.ref_logprobs.push(-1.0);
        scored
    });
    let batch = assemble(&models, &config(), longer.collect())?;
    for (experience, score) in batch.experiences.iter().zip(scores) {
        let at_last_token = *experience.values.last().unwrap();
        assert!((at_last_token - score).abs() < 1e-6, "{at_last_token} against {score}");
    }
    Ok(())
}

#[test]
fn a_value_model_that_lacks_a_tensor_of_the_reward_model_is_refused() -> Result<()> {
    let mut models = Models::new(testing::gpt2())?;
    models.value.remove("score.weight");
    let error = models.learner(&config(), 4).err().expect("an error").to_string();
    assert!(error.contains("`score.weight` is missing"), "{error}");
    Ok(())
}

#[test]
fn values_are_read_before_each_token_and_do_not_depend_on_the_batch() -> Result<()> {
    let models = Models::new(testing::with_tied(&testing::llama(), true))?;
    let rollouts = models.rollouts(&[3, 7, 5], 1.0, 1)?;
    let model = ScalarModel::frozen(&models.config, &models.value)?;
    let together = assemble(&models, &config(), rollouts.clone())?;
    let cut = assemble(&models, &PpoConfig { microbatch_tokens: 1, ..config() }, rollouts.clone())?;
    for (idx, scored) in rollouts.iter().enumerate() {
        let tokens = scored.rollout.sequence();
        let n_prompt = scored.rollout.prompt.tokens.len();
        for t in 0..scored.rollout.response.len() {
            let before = score_sequences(&model, &[&tokens[..n_prompt + t]], 1000)?[0];
            assert!((together.experiences[idx].values[t] - before).abs() < 1e-6);
        }
        assert_eq!(together.experiences[idx].values, cut.experiences[idx].values);
    }
    Ok(())
}

#[test]
fn the_score_stands_on_the_last_token_whether_it_ended_or_was_cut_off() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut rollouts = models.rollouts(&[3, 7], 1.0, 1)?;
    rollouts[1].rollout.finish = FinishReason::Length;
    let config = PpoConfig { kl_coef: 0.5, length_cutoff_penalty: 2.0, ..config() };
    let batch = assemble(&models, &config, rollouts)?;
    assert_eq!(batch.kl_coef, 0.5);
    for (experience, paid) in batch.experiences.iter().zip([1.0, 0.7 - 2.0]) {
        // Each token is 0.1 nats more likely under the policy than under the reference.
        let (last, others) = experience.rewards.split_last().unwrap();
        assert!((last - (paid - 0.05)).abs() < 1e-6);
        assert!(others.iter().all(|reward| (reward + 0.05).abs() < 1e-6));
        let sum = experience.rewards.iter().sum::<f32>();
        assert!((sum - (paid - 0.5 * experience.scored.sequence_kl())).abs() < 1e-5);
        assert_eq!(experience.rewards.len(), experience.scored.rollout.response.len()); // no token was added
    }
    Ok(())
}

#[test]
fn returns_are_raw_advantages_plus_values_and_advantages_are_white() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let rollouts = models.rollouts(&[3, 7, 5], 1.0, 1)?;
    let raw = assemble(&models, &PpoConfig { whiten_advantages: false, ..config() }, rollouts.clone())?;
    let white = assemble(&models, &config(), rollouts)?;
    for (raw, white) in raw.experiences.iter().zip(&white.experiences) {
        assert_eq!((&raw.values, &raw.returns), (&white.values, &white.returns));
        for ((advantage, value), r) in raw.advantages.iter().zip(&raw.values).zip(&raw.returns) {
            assert_eq!(advantage + value, *r);
        }
    }
    let advantages: Vec<f64> = white.experiences.iter().flat_map(|e| e.advantages.iter().map(|&a| a.into())).collect();
    assert!(advantages.iter().sum::<f64>().abs() < 1e-5);
    assert!((advantages.iter().map(|a| a * a).sum::<f64>() / 15.0 - 1.0).abs() < 1e-5);
    Ok(())
}

#[test]
fn an_empty_response_is_counted_and_changes_no_bit_of_the_others() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let rollouts = models.rollouts(&[3, 7, 5], 1.0, 1)?;
    let without = assemble(&models, &config(), rollouts.clone())?;
    let mut with_empty = rollouts;
    let mut empty = rollout(9, 4, 0);
    empty.score = f32::NAN; // it has no token to stand on
    with_empty.insert(1, empty);
    let mut with = assemble(&models, &config(), with_empty)?;
    let empty = with.experiences.remove(1);
    assert!(empty.advantages.is_empty() && empty.returns.is_empty());
    assert_eq!(with.experiences, without.experiences);
    with.experiences.push(empty);
    assert_eq!(BatchMetrics::of(&with).empty_share, 0.25);
    Ok(())
}

#[test]
fn a_batch_of_empty_responses_alone_is_no_error() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let batch = assemble(&models, &config(), vec![rollout(0, 3, 0), rollout(1, 2, 0)])?;
    assert_eq!(batch.experiences.len(), 2);
    Ok(())
}

#[test]
fn the_kl_coefficient_moves_once_a_batch_after_the_batch_was_paid_by_it() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let config = PpoConfig { kl_control: KlControl::Adaptive, kl_target: 0.1, kl_horizon: 30.0, ..config() };
    let mut maker = PpoExperienceMaker::new(&config, &models.config, &Device::Cpu)?;
    let mut kl_coefs = Vec::new();
    for version in 0..3 {
        // A response's KL is 0.3, 0.7 or 0.5: far above the target, so the coefficient rises by 0.2 · 3/30 a batch.
        let rollouts = models.rollouts(&[3, 7, 5], 1.0, 1)?;
        let batch = maker.assemble(PolicyVersion(version), rollouts, &models.snapshot()?).expect("a batch");
        kl_coefs.push(batch.kl_coef);
    }
    for (kl_coef, expected) in kl_coefs.iter().zip([0.02, 0.02 * 1.02, 0.02 * 1.02 * 1.02]) {
        assert!((kl_coef - expected).abs() < 1e-7);
    }
    Ok(())
}

#[test]
fn normalised_scores_are_paid_at_deviation_one_whatever_their_scale() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut rollouts = models.rollouts(&[3, 7, 5, 2], 1.0, 1)?;
    rollouts.iter_mut().for_each(|scored| scored.score = 1e4 * scored.score + 7e5);
    let config = PpoConfig { kl_coef: 0.0, normalize_scores: true, ..config() };
    let batch = assemble(&models, &config, rollouts)?;
    let paid: Vec<f32> = batch.experiences.iter().map(|e| *e.rewards.last().unwrap()).collect();
    assert!(paid.iter().sum::<f32>().abs() < 1e-4);
    assert!((paid.iter().map(|x| x * x).sum::<f32>() / 4.0 - 1.0).abs() < 1e-4);
    assert_eq!(batch.experiences[0].scored.score, 7.1e5); // what the reward function said stays on record
    Ok(())
}

#[test]
fn the_value_model_follows_the_snapshot() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut maker = PpoExperienceMaker::new(&config(), &models.config, &Device::Cpu)?;
    let mut values_under = |version: u64, seed: u64| -> Result<Vec<f32>> {
        let value = Arc::new(testing::weights(&models.config, HeadKind::Scalar, seed));
        let snapshot = Snapshot { version: PolicyVersion(version), value, ..models.snapshot()? };
        let batch = maker.assemble(PolicyVersion(version), models.rollouts(&[3], 1.0, 1)?, &snapshot);
        Ok(batch.expect("a batch").experiences[0].values.clone())
    };
    let first = values_under(0, 2)?;
    assert_ne!(values_under(1, 3)?, first);
    assert_eq!(values_under(2, 2)?, first);
    Ok(())
}

#[test]
fn rollouts_whose_parts_do_not_fit_are_refused_by_ticket() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut maker = PpoExperienceMaker::new(&config(), &models.config, &Device::Cpu)?;
    let mut error = |spoil: &dyn Fn(&mut ScoredRollout)| {
        let mut scored = rollout(4, 3, 5);
        spoil(&mut scored);
        maker.assemble(PolicyVersion(0), vec![scored], &models.snapshot().unwrap()).unwrap_err().to_string()
    };
    let short = error(&|scored| scored.ref_logprobs.truncate(4));
    assert!(short.contains("ticket 4 has 5 response tokens"), "{short}");
    let empty = error(&|scored| scored.rollout.prompt.tokens.clear());
    assert!(empty.contains("ticket 4 has an empty prompt"), "{empty}");
    let long = error(&|scored| *scored = rollout(4, 3, 38));
    assert!(long.contains("41 tokens"), "{long}");
    Ok(())
}
