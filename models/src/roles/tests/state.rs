//! A learner, or an experience maker, that goes on from a state goes on as the one that wrote it.

use std::fs;

use collimate_protocol::records::TrainMetrics;
use collimate_protocol::roles::{ExperienceMaker, Trainer};
use collimate_protocol::{RewardModelId, SettingChange};
use proptest::prelude::*;
use tempfile::{NamedTempFile, TempPath};

use super::*;
use crate::optim::LrSchedule;
use crate::roles::PpoExperienceMaker;
use crate::train::KlControl;

/// Everything that a state has to hold shows: a schedule, an average, two epochs, pretraining text.
fn restless() -> PpoConfig {
    PpoConfig {
        ptx_coef: 1.0,
        ptx_examples_per_episode: 1.0,
        n_epochs: 2,
        lr_schedule: LrSchedule::Cosine,
        warmup_updates: 2,
        ema_decay: 0.9,
        ..config()
    }
}

/// The update at this version; that of version 2 is not finite, and is skipped.
fn update(models: &Models, learner: &mut PpoLearner) -> Result<TrainMetrics> {
    let version = learner.version();
    let mut batch = batch(models.rollouts(&[3, 7, 2, 5], 1.0, 1)?, |idx| idx as f32 - 1.0 + version.0 as f32);
    batch.version = version;
    if version.0 == 2 {
        batch.experiences[0].advantages[0] = f32::NAN;
    }
    Ok(learner.update(&batch, &[text(), text()]).expect("an update"))
}

/// The learner's state, in a file that is there as long as the path.
fn state_of(learner: &PpoLearner) -> TempPath {
    let path = NamedTempFile::new().expect("a file").into_temp_path();
    learner.save_state(&path).expect("a state");
    path
}

/// Every bit of policy, value model and average, and the checksum.
fn everything(learner: &PpoLearner) -> Result<([Vec<u32>; 3], u64)> {
    let snapshot = learner.snapshot().expect("a snapshot");
    let average = learner.ema_weights()?.expect("an average");
    let all = [bits(&snapshot.policy)?, bits(&snapshot.value)?, bits(&average)?];
    Ok((all, learner.checksum().expect("a checksum")))
}

#[test]
fn a_learner_goes_on_from_its_state_bit_for_bit() -> Result<()> {
    for kind in testing::each_kind() {
        let models = Models::new(kind)?;
        let mut straight = models.learner(&restless(), 4)?;
        for _ in 0..3 {
            update(&models, &mut straight)?;
        }
        let state = state_of(&straight);
        // Made anew, and not at its beginning either.
        let mut resumed = models.learner(&restless(), 4)?;
        update(&models, &mut resumed)?;
        resumed.restore(&state).expect("a state of its own kind");
        assert_eq!(everything(&resumed)?, everything(&straight)?);
        let (again, state) = (fs::read(state_of(&resumed)).expect("a state"), fs::read(&state).expect("a state"));
        assert!(again == state, "the state is not what it was restored from");
        for _ in 0..3 {
            let (its, expected) = (update(&models, &mut resumed)?, update(&models, &mut straight)?);
            assert_eq!(its, expected);
            assert_eq!(everything(&resumed)?, everything(&straight)?);
        }
    }
    Ok(())
}

#[test]
fn what_was_changed_while_a_run_goes_on_is_in_the_state() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut changed = models.learner(&restless(), 4)?;
    for change in [SettingChange::Lr(1e-3), SettingChange::ValueLr(2e-3), SettingChange::KlCoef(9.0)] {
        changed.change(change).expect("a change");
    }
    let state = state_of(&changed);
    let mut resumed = models.learner(&restless(), 4)?;
    resumed.restore(&state).expect("its own");
    let mut unchanged = models.learner(&restless(), 4)?;
    let (its, expected) = (update(&models, &mut resumed)?, update(&models, &mut changed)?);
    assert_eq!((its, everything(&resumed)?), (expected.clone(), everything(&changed)?));
    let other = update(&models, &mut unchanged)?;
    // The schedule keeps its shape under another peak.
    assert!((expected.lr / other.lr - 1e-3 / restless().lr).abs() < 1e-9, "{} and {}", expected.lr, other.lr);
    assert_ne!(everything(&changed)?.0[1], everything(&unchanged)?.0[1], "the value model learnt at its own rate");
    Ok(())
}

#[test]
fn while_the_value_model_warms_up_it_learns_alone_and_so_it_does_after_the_reward_model_was_replaced() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let config = PpoConfig { value_warmup_updates: 2, ..restless() };
    let mut learner = models.learner(&config, 4)?;
    let other = RewardModelId { dir: "other".into(), weights: "0".into() };
    let mut has_learnt = Vec::new();
    for version in 0..7 {
        if version == 4 {
            learner.change(SettingChange::RewardModel(other.clone())).expect("a change");
        }
        // In the midst of warming up, as at any other time.
        let state = state_of(&learner);
        learner = models.learner(&config, 4)?;
        learner.restore(&state).expect("its own");
        let before = everything(&learner)?.0;
        update(&models, &mut learner)?;
        let after = everything(&learner)?.0;
        has_learnt.push([0, 1, 2].map(|which| before[which] != after[which]));
    }
    let [all, value, none] = [[true; 3], [false, true, false], [false; 3]];
    // That of version 2 is not finite.
    assert_eq!(has_learnt, [value, value, none, all, value, value, all]);
    Ok(())
}

#[test]
fn the_checksum_is_of_every_bit_of_both_models() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let checksum = |models: &Models| Ok::<_, crate::Error>(models.learner(&config(), 4)?.checksum().expect("one"));
    assert_eq!(checksum(&models)?, checksum(&Models::new(testing::gpt2())?)?);
    for of_value in [false, true] {
        let mut other = Models::new(testing::gpt2())?;
        let weights = if of_value { &mut other.value } else { &mut other.policy };
        let (name, tensor) =
            weights.iter().last().map(|(name, tensor)| (name.to_owned(), tensor.clone())).expect("one");
        let mut numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
        numbers[0] = f32::from_bits(numbers[0].to_bits() ^ 1);
        weights.insert(name, candle_core::Tensor::from_vec(numbers, tensor.shape(), &Device::Cpu)?);
        assert_ne!(checksum(&models)?, checksum(&other)?);
    }
    Ok(())
}

#[test]
fn a_state_of_another_model_is_refused_by_its_tensor_and_nothing_changes() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let mut learner = models.learner(&restless(), 4)?;
    let before = everything(&learner)?;
    let llama = state_of(&Models::new(testing::llama())?.learner(&restless(), 4)?);
    let error = learner.restore(&llama).expect_err("another model").to_string();
    assert!(error.contains("policy.weights."), "{error}");
    let without_average = state_of(&models.learner(&PpoConfig { ema_decay: 0.0, ..restless() }, 4)?);
    let error = learner.restore(&without_average).expect_err("no average").to_string();
    assert!(error.contains("policy.ema."), "{error}");
    assert_eq!(everything(&learner)?, before);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_state_that_is_cut_short_is_refused(share in 0.0..1.0f64) {
        let models = Models::new(testing::gpt2()).unwrap();
        let mut learner = models.learner(&config(), 4).unwrap();
        let path = state_of(&learner);
        let state = fs::read(&path).unwrap();
        fs::write(&path, &state[..(share * state.len() as f64) as usize]).unwrap();
        prop_assert!(learner.restore(&path).unwrap_err().to_string().contains("cut short"));
    }
}

#[test]
fn an_experience_maker_keeps_its_coefficient_and_its_statistics() -> Result<()> {
    let models = Models::new(testing::gpt2())?;
    let config = PpoConfig { kl_control: KlControl::Adaptive, kl_horizon: 40.0, normalize_scores: true, ..config() };
    let maker = || PpoExperienceMaker::new(&config, &models.config, &Device::Cpu);
    let assemble = |maker: &mut PpoExperienceMaker| {
        let rollouts = models.rollouts(&[3, 7, 2], 1.0, 1)?;
        Ok::<_, crate::Error>(maker.assemble(PolicyVersion(0), rollouts, &models.snapshot()?).expect("a batch"))
    };
    let mut straight = maker()?;
    assemble(&mut straight)?;
    let mut resumed = maker()?;
    resumed.restore(&straight.state().expect("a state")).expect("its own");
    let (its, expected) = (assemble(&mut resumed)?, assemble(&mut straight)?);
    assert!(expected.kl_coef != config.kl_coef as f32);
    assert_eq!(its, expected);
    straight.change(SettingChange::KlCoef(0.75)).expect("a change");
    resumed.restore(&straight.state().expect("a state")).expect("its own");
    let batch = assemble(&mut resumed)?;
    assert_eq!(batch.kl_coef, 0.75);
    assert_eq!(batch, assemble(&mut straight)?, "the controller goes on from it");
    let error = resumed.restore(b"{}").expect_err("no state").to_string();
    assert!(error.contains("experience maker") && error.contains("kl_controller"), "{error}");
    Ok(())
}
