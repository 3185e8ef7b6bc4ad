//! What one update does to the models.

use collimate_protocol::roles::{ReferencePolicy, RewardFunction, RewardRequest, Trainer};

use super::*;
use crate::roles::{FrozenReference, RewardModelScorer};

#[test]
fn loss_and_gradient_do_not_depend_on_the_cut() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let run = |microbatch_tokens: usize| {
        let rollouts = models.rollouts(&[1, 3], 1.0, 1)?;
        let config = PpoConfig { microbatch_tokens, ..config() };
        let mut learner = models.learner(&config, 2)?;
        let metrics = learner.update(&batch(rollouts, |idx| if idx == 0 { 1.0 } else { -1.0 }), &[]);
        Ok::<_, crate::Error>((metrics.expect("an update"), learner.snapshot().expect("a snapshot")))
    };
    let (whole, _) = run(1000)?;
    // −(1 · 1 − 1 · 3) / 4 tokens; each row on its own would have given −1 and +1.
    assert!((whole.policy_loss - 0.5).abs() < 1e-6);
    for microbatch_tokens in [1, 4, 5] {
        let (cut, _) = run(microbatch_tokens)?;
        assert!((cut.policy_loss - whole.policy_loss).abs() < 1e-6);
        assert!((cut.value_loss - whole.value_loss).abs() < 1e-6);
        assert!((cut.policy_grad_norm - whole.policy_grad_norm).abs() < 1e-6);
        assert!((cut.value_grad_norm - whole.value_grad_norm).abs() < 1e-5);
    }
    Ok(())
}

#[test]
fn training_does_not_show_in_reference_and_reward_model_which_share_the_weights_it_starts_from() -> Result<()> {
    let models = Models::new(testing::llama())?;
    let mut reference = FrozenReference::new(&models.config, &models.policy, 1.0)?;
    let mut reward_model = RewardModelScorer::new(&models.config, &models.value)?;
    let rollouts = models.rollouts(&[3, 7], 1.0, 1)?;
    let asked: Vec<Rollout> = rollouts.iter().map(|scored| scored.rollout.clone()).collect();
    let of_tokens = |rollout: &Rollout| RewardRequest {
        prompt_tokens: rollout.prompt.tokens.clone(),
        response_tokens: rollout.response.clone(),
        prompt: String::new(),
        response: String::new(),
        finish: rollout.finish,
    };
    let requests: Vec<RewardRequest> = asked.iter().map(of_tokens).collect();
    let mut found = || (reference.logprobs(&asked).expect("logprobs"), reward_model.scores(&requests).expect("scores"));
    let before = found();
    let mut learner = models.learner(&config(), 2)?;
    learner.update(&batch(rollouts, |idx| idx as f32 - 0.5), &[]).expect("an update");
    assert_ne!(bits(&models.policy)?, bits(&learner.snapshot().expect("a snapshot").policy)?);
    assert_eq!(found(), before);
    Ok(())
}

#[test]
fn an_empty_response_changes_no_bit_of_the_update() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let run = |with_empty: bool| {
        let mut batch = batch(models.rollouts(&[3, 7, 5], 1.0, 1)?, |idx| idx as f32 - 1.0);
        if with_empty {
            let mut empty = rollout(9, 4, 0);
            empty.score = f32::NAN;
            batch.experiences.insert(1, super::batch(vec![empty], |_| f32::NAN).experiences.remove(0));
        }
        let mut learner = models.learner(&config(), 4)?;
        let metrics = learner.update(&batch, &[]).expect("an update");
        let after = learner.snapshot().expect("a snapshot");
        Ok::<_, crate::Error>((metrics, bits(&after.policy)?, bits(&after.value)?))
    };
    assert_eq!(run(true)?, run(false)?);
    Ok(())
}

#[test]
fn a_batch_of_empty_responses_alone_trains_nothing_and_is_no_error() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut learner = models.learner(&config(), 2)?;
    let before = learner.snapshot().expect("a snapshot");
    let metrics = learner.update(&batch(vec![rollout(0, 3, 0), rollout(1, 2, 0)], |_| 1.0), &[]).expect("an update");
    let after = learner.snapshot().expect("a snapshot");
    assert_eq!((metrics.n_skipped, after.version), (0, PolicyVersion(1)));
    assert_eq!(bits(&before.policy)?, bits(&after.policy)?);
    assert_eq!(bits(&before.value)?, bits(&after.value)?);
    Ok(())
}

#[test]
fn a_positive_advantage_makes_the_response_likelier_and_values_move_to_the_returns() -> Result<()> {
    let models = Models::new(testing::with_tied(&testing::llama(), true))?;
    let rollouts = models.rollouts(&[3, 7, 12, 5], 1.0, 1)?;
    let config = PpoConfig { n_epochs: 4, clip_range_value: 0.0, ..config() };
    let mut learner = models.learner(&config, 4)?;
    let sign = |idx: usize| if idx.is_multiple_of(2) { 1.0 } else { -1.0 };
    let mut losses = Vec::new();
    for version in 0..5 {
        let mut batch = batch(rollouts.clone(), sign);
        batch.version = PolicyVersion(version);
        losses.push(learner.update(&batch, &[]).expect("an update").value_loss);
    }
    assert!(losses[4] < losses[0] / 2.0, "{losses:?}");

    let trained = Models { policy: learner.snapshot().expect("a snapshot").policy.deep_copy()?, ..models };
    for (idx, (new, old)) in trained.rollouts(&[3, 7, 12, 5], 1.0, 1)?.iter().zip(&rollouts).enumerate() {
        let sum = |scored: &ScoredRollout| scored.rollout.logprobs.iter().sum::<f32>();
        assert!((sum(new) - sum(old)) * sign(idx) > 0.0, "rollout {idx}");
    }
    Ok(())
}

#[test]
fn two_learners_with_one_seed_are_equal_bit_for_bit() -> Result<()> {
    let run = |seed: u64| {
        let models = Models { seed, ..Models::new(testing::with_tied(&testing::gpt2(), false))? };
        let config = PpoConfig { minibatch_size: 2, n_epochs: 2, ..config() };
        let mut learner = models.learner(&config, 5)?;
        let metrics = learner.update(&batch(models.rollouts(&[3, 7, 12, 5, 1], 1.0, 1)?, |idx| idx as f32 - 2.0), &[]);
        assert_eq!(metrics.expect("an update").n_steps, 6); // 2 epochs of 2 + 2 + 1 rollouts
        bits(&learner.snapshot().expect("a snapshot").policy)
    };
    assert_eq!(run(5)?, run(5)?);
    assert_ne!(run(5)?, run(6)?);
    Ok(())
}

#[test]
fn a_snapshot_does_not_change_when_training_goes_on() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut learner = models.learner(&config(), 2)?;
    let snapshot = learner.snapshot().expect("a snapshot");
    assert_eq!(bits(&snapshot.policy)?, bits(&models.policy)?);
    assert_eq!(bits(&snapshot.value)?, bits(&models.value)?);
    learner.update(&batch(models.rollouts(&[3, 7], 1.0, 1)?, |_| 1.0), &[]).expect("an update");
    assert_eq!(bits(&snapshot.policy)?, bits(&models.policy)?);
    let later = learner.snapshot().expect("a snapshot");
    assert_eq!(later.version, PolicyVersion(1));
    assert!(largest_gap(&later.policy, &models.policy)? > 1e-3);
    assert!(largest_gap(&later.value, &models.value)? > 1e-3);
    // Nor in further updates, of several steps each, nor where the learner goes on from another state.
    let state = tempfile::NamedTempFile::new().expect("a file");
    learner.save_state(state.path()).expect("a state");
    let (policy, value) = (bits(&later.policy)?, bits(&later.value)?);
    let mut next = batch(models.rollouts(&[3, 7, 2, 5, 4, 6], 1.0, 1)?, |idx| idx as f32);
    next.version = later.version;
    learner.update(&next, &[]).expect("an update");
    let last = learner.snapshot().expect("a snapshot");
    let last_bits = (bits(&last.policy)?, bits(&last.value)?);
    assert!(last_bits.0 != policy && last_bits.1 != value);
    learner.restore(state.path()).expect("its own");
    assert_eq!((bits(&last.policy)?, bits(&last.value)?), last_bits);
    assert_eq!((bits(&later.policy)?, bits(&later.value)?), (policy.clone(), value.clone()));
    let restored = learner.snapshot().expect("a snapshot");
    assert_eq!((bits(&restored.policy)?, bits(&restored.value)?), (policy, value));
    Ok(())
}

#[test]
fn the_averaged_weights_follow_each_step_at_their_decay() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let update = |ema_decay: f64| {
        let mut learner = models.learner(&PpoConfig { ema_decay, ..config() }, 2)?;
        learner.update(&batch(models.rollouts(&[3, 7], 1.0, 1)?, |_| 1.0), &[]).expect("an update");
        Ok::<_, crate::Error>(learner)
    };
    let learner = update(0.75)?;
    let (average, now) = (learner.ema_weights()?.expect("an average"), learner.snapshot().expect("a snapshot").policy);
    for (name, start) in models.policy.iter() {
        let expected = ((start * 0.75)? + (now.get(name)? * 0.25)?)?;
        let gap = (average.get(name)? - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(gap < 1e-6, "{name}: {gap}");
    }
    assert!(update(0.0)?.ema_weights()?.is_none());
    Ok(())
}

#[test]
fn a_batch_for_another_version_or_without_its_parts_is_refused() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let error = |spoil: &dyn Fn(&mut ExperienceBatch)| {
        let mut batch = batch(models.rollouts(&[3, 7], 1.0, 1).unwrap(), |_| 1.0);
        spoil(&mut batch);
        models.learner(&config(), 2).unwrap().update(&batch, &[]).unwrap_err().to_string()
    };
    let version = error(&|batch| batch.version = PolicyVersion(3));
    assert!(version.contains("made for v3, but the learner is at v0"), "{version}");
    let short = error(&|batch| batch.experiences[0].advantages.truncate(2));
    assert!(short.contains("3 response tokens"), "{short}");
    Ok(())
}
