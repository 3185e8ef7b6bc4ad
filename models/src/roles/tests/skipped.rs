//! Steps that are not finite: both models skip them together, they are counted, and too many end the run.

use collimate_protocol::roles::Trainer;

use super::*;

/// Which part of an experience is not finite.
fn broken_batch(models: &Models, spoil: impl Fn(&mut Experience)) -> Result<ExperienceBatch> {
    let mut batch = batch(models.rollouts(&[3, 7], 1.0, 1)?, |_| 1.0);
    spoil(&mut batch.experiences[1]);
    Ok(batch)
}

#[test]
fn a_step_that_is_not_finite_is_skipped_for_policy_and_value_model_together() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let spoils: [fn(&mut Experience); 4] = [
        |experience| experience.advantages[0] = f32::NAN,
        |experience| experience.advantages[0] = f32::INFINITY,
        |experience| experience.returns[2] = f32::NAN,
        |experience| experience.scored.rollout.logprobs[1] = f32::NAN,
    ];
    for spoil in spoils {
        let mut learner = models.learner(&config(), 2)?;
        let metrics = learner.update(&broken_batch(&models, spoil)?, &[]).expect("an update");
        assert_eq!((metrics.n_steps, metrics.n_skipped), (0, 1));
        let json = serde_json::to_string(&metrics).expect("JSON");
        assert!(!json.contains("null"), "{json}");
        let after = learner.snapshot().expect("a snapshot");
        assert_eq!(after.version, PolicyVersion(1)); // the update counts all the same
        assert_eq!(bits(&after.policy)?, bits(&models.policy)?);
        assert_eq!(bits(&after.value)?, bits(&models.value)?);
        assert_eq!(bits(&learner.ema_weights()?.expect("an average"))?, bits(&models.policy)?);
    }
    Ok(())
}

#[test]
fn a_gradient_that_is_not_finite_is_caught_where_the_loss_is_fine() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    // The new policy finds the token e^200 times as likely: clipping keeps the loss finite, not its gradient.
    let batch = broken_batch(&models, |experience| experience.scored.rollout.logprobs[0] = -200.0)?;
    let mut learner = models.learner(&config(), 2)?;
    let metrics = learner.update(&batch, &[]).expect("an update");
    assert_eq!((metrics.n_steps, metrics.n_skipped), (0, 1));
    assert_eq!(bits(&learner.snapshot().expect("a snapshot").policy)?, bits(&models.policy)?);
    Ok(())
}

#[test]
fn other_minibatches_of_the_update_go_on() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let batch = broken_batch(&models, |experience| experience.advantages[0] = f32::NAN)?;
    let mut learner = models.learner(&PpoConfig { minibatch_size: 1, ..config() }, 2)?;
    let metrics = learner.update(&batch, &[]).expect("an update");
    assert_eq!((metrics.n_steps, metrics.n_skipped), (1, 1));
    assert!((metrics.policy_loss + 1.0).abs() < 1e-5); // of the step that was taken
    assert!(learner.snapshot().expect("a snapshot").policy.is_finite()?);
    Ok(())
}

#[test]
fn too_many_skipped_steps_in_a_row_end_the_run_and_a_good_one_starts_the_count_again() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut learner = models.learner(&PpoConfig { max_skipped_in_a_row: 2, ..config() }, 2)?;
    let mut update = |version: u64, broken: bool| {
        let spoil = |experience: &mut Experience| experience.advantages[0] = f32::NAN;
        let mut batch = broken_batch(&models, |experience| {
            if broken {
                spoil(experience)
            }
        })
        .unwrap();
        batch.version = PolicyVersion(version);
        learner.update(&batch, &[])
    };
    assert!(update(0, true).is_ok());
    assert!(update(1, false).is_ok());
    assert!(update(2, true).is_ok());
    let error = update(3, true).unwrap_err().to_string();
    assert!(error.contains("2 optimiser steps in a row") && error.contains("the policy loss"), "{error}");
    Ok(())
}
