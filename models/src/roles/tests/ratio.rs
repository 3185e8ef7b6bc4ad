//! What the learner makes of the log-probabilities that were recorded while sampling.

use collimate_protocol::records::Spread;
use collimate_protocol::roles::Trainer;

use super::*;
use crate::train::OffPolicy;

/// One update at learning rate 0 on responses of mixed lengths.
fn ratio_without_learning(
    model: Arc<ModelConfig>,
    temperature: f32,
    rolled_out_together: usize,
    minibatch_size: usize,
    microbatch_tokens: usize,
) -> Result<Spread> {
    let models = Models::new(model)?;
    let rollouts = models.rollouts(&[3, 7, 12, 1, 5], temperature, rolled_out_together)?;
    let config = PpoConfig {
        lr: 0.0,
        value_lr: 0.0,
        n_epochs: 2,
        temperature: f64::from(temperature),
        minibatch_size,
        microbatch_tokens,
        ..config()
    };
    let mut learner = models.learner(&config, 5)?;
    Ok(learner.update(&batch(rollouts, |idx| idx as f32 - 2.0), &[]).expect("an update").ratio)
}

#[test]
fn without_learning_every_ratio_is_one_for_any_mix_of_lengths_and_batch_sizes() -> Result<()> {
    for model in testing::each_kind() {
        for rolled_out_together in [1, 4] {
            for (minibatch_size, microbatch_tokens) in [(1, 1000), (5, 1000), (5, 1), (3, 20)] {
                let ratio =
                    ratio_without_learning(model.clone(), 1.0, rolled_out_together, minibatch_size, microbatch_tokens)?;
                assert!((ratio.min - 1.0).abs() < 1e-5 && (ratio.max - 1.0).abs() < 1e-5, "{ratio:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn without_learning_every_ratio_is_one_at_any_temperature() -> Result<()> {
    for temperature in [0.5, 0.7, 1.3] {
        let ratio = ratio_without_learning(testing::gpt2(), temperature, 2, 3, 20)?;
        assert!((ratio.min - 1.0).abs() < 1e-5 && (ratio.max - 1.0).abs() < 1e-5, "{temperature}: {ratio:?}");
    }
    Ok(())
}

#[test]
fn the_learner_reads_the_temperature_that_was_sampled_at() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let rollouts = models.rollouts(&[3, 7], 0.7, 1)?;
    let config = PpoConfig { lr: 0.0, value_lr: 0.0, temperature: 1.0, ..config() };
    let ratio = models.learner(&config, 2)?.update(&batch(rollouts, |_| 1.0), &[]).expect("an update").ratio;
    assert!(ratio.max - ratio.min > 0.01, "{ratio:?}");
    Ok(())
}

#[test]
fn nothing_is_random_in_the_forward_pass_so_the_first_minibatch_has_ratio_one_exactly() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut rollouts = models.rollouts(&[3, 7, 12, 1], 1.0, 1)?;
    // Sampled by another version, so that the learner computes the proximal policy by its own pass.
    rollouts.iter_mut().for_each(|scored| scored.rollout.versions.fill(PolicyVersion(1)));
    let mut learner = models.learner(&config(), 4)?;
    let metrics = learner.update(&batch(rollouts, |_| 1.0), &[]).expect("an update");
    assert_eq!((metrics.n_steps, metrics.ratio), (1, Spread { min: 1.0, mean: 1.0, max: 1.0 }));
    Ok(())
}

#[test]
fn at_staleness_zero_every_off_policy_weight_is_exactly_one() -> Result<()> {
    let models = Models::new(testing::llama())?;
    let rollouts = models.rollouts(&[3, 7, 12, 1], 1.0, 2)?;
    let config = PpoConfig { minibatch_size: 2, n_epochs: 2, ..config() };
    let metrics = models.learner(&config, 4)?.update(&batch(rollouts, |_| 1.0), &[]).expect("an update");
    assert_eq!(metrics.off_policy_weight, Spread { min: 1.0, mean: 1.0, max: 1.0 });
    Ok(())
}

#[test]
fn stale_rollouts_are_clipped_around_the_learner_and_weighted_by_how_far_it_has_moved() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let stale = |shift: f32| -> Result<Vec<ScoredRollout>> {
        let mut rollouts = models.rollouts(&[3, 7, 5], 1.0, 1)?;
        // The second was sampled, in part, by a version to which its tokens were less likely by `shift` nats.
        rollouts[1].rollout.versions[2] = PolicyVersion(7);
        rollouts[1].rollout.logprobs.iter_mut().for_each(|logprob| *logprob -= shift);
        Ok(rollouts)
    };
    let update = |shift: f32, off_policy: OffPolicy| {
        let config = PpoConfig { lr: 0.0, value_lr: 0.0, off_policy, ..config() };
        let metrics = models.learner(&config, 3)?.update(&batch(stale(shift)?, |_| 1.0), &[]);
        Ok::<_, crate::Error>(metrics.expect("an update"))
    };
    // exp(0.5) = 1.6487 stays below the cap of 2, exp(1.5) = 4.48 does not.
    for (shift, expected) in [(0.5, 0.5f64.exp()), (1.5, 2.0)] {
        let metrics = update(shift, OffPolicy::Decoupled)?;
        assert!((metrics.off_policy_weight.max - expected).abs() < 1e-4, "{metrics:?}");
        assert_eq!(metrics.off_policy_weight.min, 1.0);
        assert!((metrics.ratio.max - 1.0).abs() < 1e-5 && metrics.clip_fraction == 0.0, "{metrics:?}");
    }
    // The stale rollout is left out, but for the number of tokens that the loss is divided by.
    let masked = update(1.5, OffPolicy::Masked)?;
    assert!((masked.masked_share - 7.0 / 15.0).abs() < 1e-9, "{masked:?}");
    assert!((masked.policy_loss + 8.0 / 15.0).abs() < 1e-5, "{masked:?}");
    assert_eq!(masked.off_policy_weight.max, 1.0);
    // Plain PPO would hold the learner to a policy that is gone.
    let metrics = update(1.5, OffPolicy::Plain)?;
    assert!((metrics.ratio.max - 1.5f64.exp()).abs() < 1e-3, "{metrics:?}");
    assert!((metrics.clip_fraction - 7.0 / 15.0).abs() < 1e-9, "{metrics:?}");
    assert_eq!(metrics.off_policy_weight.max, 1.0);
    Ok(())
}

#[test]
fn log_probabilities_are_worked_out_in_f32() -> Result<()> {
    // bf16 would be off by about 0.01 here.
    let models = Models::new(testing::gpt2())?;
    let model = LanguageModel::new(&models.config, &models.policy)?;
    let next = NextTokens::new([(testing::tokens(9, 1).as_slice(), 1)]);
    let logprobs = model.logprobs_at(&next.packed, &next.rows, &next.targets, 0.7)?.logprobs;
    assert_eq!(logprobs.dtype(), candle_core::DType::F32);
    let hidden = model.decoder().forward_packed(&next.packed)?.to_vec2::<f32>()?;
    let unembedding = model.unembedding().to_vec2::<f32>()?;
    for ((&row, &target), logprob) in next.rows.iter().zip(&next.targets).zip(logprobs.to_vec1::<f32>()?) {
        let logit = |token: &Vec<f32>| {
            token.iter().zip(&hidden[row as usize]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / 0.7
        };
        let log_sum = unembedding.iter().map(|token| logit(token).exp()).sum::<f64>().ln();
        assert!((f64::from(logprob) - (logit(&unembedding[target as usize]) - log_sum)).abs() < 1e-5);
    }
    Ok(())
}
