//! The objectives and the optimiser give PyTorch's numbers, worked out from the papers' formulas on padded tensors
//! (`tests/scripts/objectives.py`).

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use collimate_models::Device;
use collimate_models::arch::{Parameters, Weights};
use collimate_models::objective::{
    KlController, PolicyObjective, PolicyTokens, gae, k1, k2, k3, ppo_value_loss, ranking_loss, returns, rewards,
    whiten,
};
use collimate_models::optim::{AdamW, AdamWConfig, GradAccumulator, clip_factor};
use collimate_protocol::RoleError;
use collimate_tests::fixture::{self, assert_close};
use serde::Deserialize;

type Result<T> = std::result::Result<T, RoleError>;

/// f32 rounds to 6e-8, and a formula has some ten operations.
const FORMULA: f64 = 1e-6;
/// Both sides work in f64.
const DOUBLE: f64 = 1e-14;

/// Numbers that a gradient is wanted for.
fn var(numbers: &[f32]) -> Result<Var> {
    Ok(Var::new(numbers, &Device::Cpu)?)
}

/// A loss, and its gradient with respect to `inputs`.
fn loss_and_gradient(loss: &Tensor, inputs: &Var) -> Result<(f32, Vec<f32>)> {
    let gradient = loss.backward()?.remove(inputs).ok_or("the loss has no gradient")?;
    Ok((loss.to_scalar()?, gradient.to_vec1()?))
}

#[test]
fn the_ranking_loss_and_its_gradient_are_pytorchs_with_and_without_ties() -> Result<()> {
    #[derive(Deserialize)]
    struct Ranking {
        scores: Vec<f32>,
        ranks: Vec<u32>,
        loss: f64,
        gradient: Vec<f64>,
    }
    for case in fixture::objectives::<Vec<Ranking>>("ranking") {
        let scores = var(&case.scores)?;
        let (loss, gradient) = loss_and_gradient(&ranking_loss(&scores, &case.ranks)?, &scores)?;
        let what = format!("ranks {:?}", case.ranks);
        assert_close([loss], [case.loss], FORMULA, &what);
        assert_close(gradient, case.gradient, FORMULA, &what);
    }
    Ok(())
}

#[test]
fn the_kl_estimators_are_pytorchs() {
    #[derive(Deserialize)]
    struct Kl {
        logprobs: Vec<f32>,
        ref_logprobs: Vec<f32>,
        k1: Vec<f64>,
        k2: Vec<f64>,
        k3: Vec<f64>,
    }
    let kl: Kl = fixture::objectives("kl");
    let estimate = |estimator: fn(f32, f32) -> f32| -> Vec<f32> {
        kl.logprobs.iter().zip(&kl.ref_logprobs).map(|(&logprob, &reference)| estimator(logprob, reference)).collect()
    };
    assert_close(estimate(k1), kl.k1, FORMULA, "k1");
    assert_close(estimate(k2), kl.k2, FORMULA, "k2");
    assert_close(estimate(k3), kl.k3, FORMULA, "k3");
}

#[test]
fn the_adaptive_coefficient_goes_where_ziegler_et_al_send_it() {
    #[derive(Deserialize)]
    struct AdaptiveKl {
        kl_coef: f64,
        target: f64,
        horizon: f64,
        n_rollouts: usize,
        kls: Vec<f64>,
        kl_coefs: Vec<f64>,
    }
    let AdaptiveKl { kl_coef, target, horizon, n_rollouts, kls, kl_coefs } = fixture::objectives("adaptive_kl");
    let mut controller = KlController::Adaptive { kl_coef, target, horizon };
    let found = kls.into_iter().map(|kl| {
        controller.update(kl, n_rollouts);
        controller.kl_coef()
    });
    assert_close(found.collect::<Vec<_>>(), kl_coefs, DOUBLE, "kl_coef");
}

#[test]
fn ragged_rewards_advantages_and_returns_are_those_of_a_padded_batch() {
    #[derive(Deserialize)]
    struct Experience {
        kl_coef: f32,
        gamma: f32,
        gae_lambda: f32,
        scores: Vec<f32>,
        logprobs: Vec<Vec<f32>>,
        ref_logprobs: Vec<Vec<f32>>,
        values: Vec<Vec<f32>>,
        rewards: Vec<Vec<f64>>,
        advantages: Vec<Vec<f64>>,
        returns: Vec<Vec<f64>>,
        white: Vec<Vec<f64>>,
    }
    let expected: Experience = fixture::objectives("experience");
    let mut all_advantages = Vec::new();
    for (i, &score) in expected.scores.iter().enumerate() {
        let values = &expected.values[i];
        let rewards = rewards(&expected.logprobs[i], &expected.ref_logprobs[i], expected.kl_coef, score);
        let advantages = gae(&rewards, values, expected.gamma, expected.gae_lambda);
        let what = |name| format!("{name} of response {i}");
        assert_close(returns(&advantages, values), expected.returns[i].clone(), FORMULA, &what("returns"));
        assert_close(advantages.clone(), expected.advantages[i].clone(), FORMULA, &what("advantages"));
        assert_close(rewards, expected.rewards[i].clone(), FORMULA, &what("rewards"));
        all_advantages.push(advantages);
    }
    whiten(&mut all_advantages);
    assert_close(all_advantages.concat(), expected.white.concat(), FORMULA, "whitened advantages");
}

#[test]
fn ppos_losses_and_their_gradients_are_pytorchs_for_every_objective() -> Result<()> {
    #[derive(Deserialize)]
    struct Ppo {
        new_logprobs: Vec<f32>,
        proximal_logprobs: Vec<f32>,
        behaviour_logprobs: Vec<f32>,
        advantages: Vec<f32>,
        clip_range: f32,
        weight_cap: f32,
        band: [f32; 2],
        policy: BTreeMap<String, Expected>,
        new_values: Vec<f32>,
        old_values: Vec<f32>,
        returns: Vec<f32>,
        clip_range_value: f32,
        value_loss: f64,
        value_gradient: Vec<f64>,
    }
    #[derive(Deserialize)]
    struct Expected {
        loss: f64,
        gradient: Vec<f64>,
        n_clipped: usize,
        n_masked: usize,
    }
    let ppo: Ppo = fixture::objectives("ppo");
    let new_logprobs = var(&ppo.new_logprobs)?;
    let Ppo { clip_range, weight_cap, band, .. } = ppo;
    let objectives = [
        ("plain", PolicyObjective::Plain { clip_range }),
        ("decoupled", PolicyObjective::Decoupled { clip_range, weight_cap }),
        ("truncated", PolicyObjective::Truncated { weight_cap }),
        ("masked", PolicyObjective::Masked { clip_range, band }),
    ];
    for (name, objective) in objectives {
        let expected = &ppo.policy[name];
        let policy = objective.loss(&PolicyTokens {
            new_logprobs: &new_logprobs,
            proximal_logprobs: &ppo.proximal_logprobs,
            behaviour_logprobs: &ppo.behaviour_logprobs,
            advantages: &ppo.advantages,
        })?;
        let (loss, gradient) = loss_and_gradient(&policy.loss, &new_logprobs)?;
        assert_close([loss], [expected.loss], FORMULA, &format!("policy loss, {name}"));
        assert_close(gradient, expected.gradient.clone(), FORMULA, &format!("gradient of the policy loss, {name}"));
        assert_eq!((policy.n_clipped, policy.n_masked), (expected.n_clipped, expected.n_masked), "{name}");
    }

    let new_values = var(&ppo.new_values)?;
    let loss = ppo_value_loss(&new_values, &ppo.old_values, &ppo.returns, ppo.clip_range_value)?;
    let (loss, gradient) = loss_and_gradient(&loss, &new_values)?;
    assert_close([loss], [ppo.value_loss], FORMULA, "value loss");
    assert_close(gradient, ppo.value_gradient, FORMULA, "gradient of the value loss");
    Ok(())
}

#[test]
fn adamw_with_clipping_walks_pytorchs_path() -> Result<()> {
    #[derive(Deserialize)]
    struct Path {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        max_grad_norm: f64,
        /// Of the matrix `(3, 4)`, which decays, and of the gain `(5,)`, which does not; so are all pairs below.
        start: [Vec<f32>; 2],
        steps: Vec<Step>,
    }
    #[derive(Deserialize)]
    struct Step {
        gradients: [Vec<f32>; 2],
        norm: f64,
        parameters: [Vec<f64>; 2],
    }
    const NAMES: [&str; 2] = ["matrix", "gain"];
    let tensors = |[matrix, gain]: [Vec<f32>; 2]| -> Result<[Tensor; 2]> {
        Ok([Tensor::from_vec(matrix, (3, 4), &Device::Cpu)?, Tensor::from_vec(gain, 5, &Device::Cpu)?])
    };
    let path: Path = fixture::objectives("adamw");
    let start = NAMES.map(str::to_owned).into_iter().zip(tensors(path.start)?);
    let parameters = Parameters::from_weights(&Weights::new(start.collect()))?;
    let (beta1, beta2) = (path.beta1, path.beta2);
    let config = AdamWConfig { beta1, beta2, eps: path.eps, weight_decay: path.weight_decay };
    let mut adamw = AdamW::new(&parameters, config)?;
    let mut gradients = GradAccumulator::new(&parameters)?;
    for (i, step) in path.steps.into_iter().enumerate() {
        gradients.clear();
        for (name, gradient) in NAMES.into_iter().zip(tensors(step.gradients)?) {
            // Σ g·p, whose gradient is g.
            let parameter = parameters.get(name).ok_or("no such parameter")?;
            gradients.add(&parameters, vec![(parameter.as_tensor() * gradient)?.sum_all()?.backward()?])?;
        }
        let norm = gradients.norm()?;
        assert_close([norm], [step.norm], FORMULA, &format!("norm of step {i}"));
        adamw.step(&parameters, &gradients, path.lr, clip_factor(norm, path.max_grad_norm))?;
        for (name, expected) in NAMES.into_iter().zip(step.parameters) {
            let found = parameters.get(name).ok_or("no such parameter")?.flatten_all()?.to_vec1::<f32>()?;
            assert_close(found, expected, FORMULA, &format!("{name} after step {i}"));
        }
    }
    Ok(())
}
