//! PPO-ptx: one step on the sum of both gradients.

use collimate_protocol::roles::Trainer;

use super::*;
use crate::objective::lm_loss;
use crate::train::{PassGradients, Training, parameters_for};

fn with_ptx(ptx_coef: f64) -> PpoConfig {
    PpoConfig { ptx_coef, ptx_examples_per_episode: 1.0, max_grad_norm: 0.0, ..config() }
}

fn updated_policy(models: &Models, config: &PpoConfig, advantage: f32) -> Result<Arc<Weights>> {
    let mut learner = models.learner(config, 4)?;
    let batch = batch(models.rollouts(&[3, 7, 2, 5], 1.0, 1)?, |idx| advantage * (idx as f32 - 1.0));
    let metrics = learner.update(&batch, &[text()]).expect("an update");
    assert_eq!(metrics.n_steps, 1);
    assert_eq!(metrics.n_ptx_tokens, if config.ptx_coef > 0.0 { 5 + 6 + 7 + 5 } else { 0 });
    Ok(learner.snapshot().expect("a snapshot").policy)
}

#[test]
fn with_zero_advantages_the_update_is_that_of_the_pretraining_text_alone() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let config = with_ptx(3.0);
    let ppo = updated_policy(&models, &config, 0.0)?;

    // By hand: one AdamW step on 3 · mean cross-entropy of the text.
    let parameters = parameters_for(&models.config, HeadKind::Language, &models.policy)?;
    let model = LanguageModel::new(&models.config, &parameters.weights())?;
    let mut training = Training::new(&models.config, HeadKind::Language, parameters, config.adamw(), 0.0)?;
    let sequences = text().sequences;
    let next = NextTokens::new(sequences.iter().map(|sequence| (sequence.as_slice(), 1)));
    let logprobs = model.logprobs_at(&next.packed, &next.rows, &next.targets, 1.0)?.logprobs;
    let loss = (lm_loss(&logprobs)? * (3.0 / next.targets.len() as f64))?;
    training.add(PassGradients::Done(loss.backward()?))?;
    training.step(config.lr, training.grad_norm()?)?;

    assert!(largest_gap(&ppo, &models.policy)? > 1e-3);
    assert_eq!(bits(&ppo)?, bits(&training.parameters().snapshot()?)?);
    Ok(())
}

#[test]
fn doubling_the_coefficient_changes_the_update() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let (once, twice) = (updated_policy(&models, &with_ptx(1.0), 1.0)?, updated_policy(&models, &with_ptx(2.0), 1.0)?);
    // A step of its own would hide the coefficient: Adam's first step has the learning rate's length at any scale.
    assert!(largest_gap(&once, &twice)? > 1e-3);
    Ok(())
}

#[test]
fn both_gradients_meet_in_one_step() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let (both, ppo) = (updated_policy(&models, &with_ptx(1.0), 1.0)?, updated_policy(&models, &with_ptx(0.0), 1.0)?);
    let text = updated_policy(&models, &with_ptx(1.0), 0.0)?;
    let lr = with_ptx(1.0).lr as f32;
    // Adam's first step moves no weight by more than the learning rate; two steps would move some by twice that.
    for one in [&both, &ppo, &text] {
        assert!(largest_gap(one, &models.policy)? <= lr * 1.001);
    }
    assert!(largest_gap(&both, &ppo)? > 1e-3 && largest_gap(&both, &text)? > 1e-3);
    Ok(())
}

#[test]
fn an_update_takes_a_batch_of_text_for_each_optimiser_step() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let config = PpoConfig { n_epochs: 2, minibatch_size: 2, ..with_ptx(1.0) };
    let mut learner = models.learner(&config, 5)?;
    assert_eq!(learner.pretrain_batches_per_update(), 6);
    assert_eq!(models.learner(&with_ptx(0.0), 5)?.pretrain_batches_per_update(), 0);
    let batch = batch(models.rollouts(&[3, 7, 2, 5, 4], 1.0, 1)?, |_| 1.0);
    let error = learner.update(&batch, &vec![text(); 5]).unwrap_err().to_string();
    assert!(error.contains("needs 6 batches of pretraining text, but got 5"), "{error}");
    assert_eq!(learner.update(&batch, &vec![text(); 6]).expect("an update").n_steps, 6);
    Ok(())
}

#[test]
fn text_goes_on_training_the_policy_where_every_response_is_empty() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut learner = models.learner(&with_ptx(1.0), 2)?;
    let metrics = learner.update(&batch(vec![rollout(0, 3, 0), rollout(1, 2, 0)], |_| 1.0), &[text()]);
    let metrics = metrics.expect("an update");
    assert!(metrics.ptx_loss > 0.0 && metrics.policy_grad_norm > 0.0);
    let after = learner.snapshot().expect("a snapshot");
    assert!(largest_gap(&after.policy, &models.policy)? > 1e-3);
    assert_eq!(bits(&after.value)?, bits(&models.value)?);
    Ok(())
}

#[test]
fn the_loss_of_the_text_is_reported_a_token_and_without_its_coefficient() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    for (ptx_coef, microbatch_tokens) in [(1.0, 1000), (27.8, 8)] {
        let config = PpoConfig { microbatch_tokens, ..with_ptx(ptx_coef) };
        let mut learner = models.learner(&config, 2)?;
        let metrics = learner.update(&batch(models.rollouts(&[3, 7], 1.0, 1)?, |_| 1.0), &[text()]).expect("an update");
        let examples: Vec<_> = text().sequences.into_iter().map(crate::train::LmExample::text).collect();
        let model = LanguageModel::frozen(&models.config, &models.policy)?;
        let nll = crate::train::heldout_nll(&model, &examples, 1000)?;
        assert!((metrics.ptx_loss - nll.mean).abs() < 1e-5);
    }
    Ok(())
}
