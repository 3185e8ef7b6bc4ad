//! The KL divergence between policy and reference: how it is estimated from samples, and how its coefficient is
//! steered.

use serde::{Deserialize, Serialize};

/// k1 = −log r of a sampled token, with r = reference / policy: unbiased, negative for some tokens (nats).
/// Estimators by Schulman 2020, "Approximating KL divergence".
pub fn k1(logprob: f32, ref_logprob: f32) -> f32 {
    logprob - ref_logprob
}

/// k2 = (log r)² / 2: biased, never negative (nats).
pub fn k2(logprob: f32, ref_logprob: f32) -> f32 {
    let log_r = ref_logprob - logprob;
    0.5 * log_r * log_r
}

/// k3 = r − 1 − log r: unbiased, never negative (nats).
pub fn k3(logprob: f32, ref_logprob: f32) -> f32 {
    let log_r = ref_logprob - logprob;
    // `exp_m1` keeps the digits that cancel near r = 1; rounding may still leave a few of them below zero.
    (log_r.exp_m1() - log_r).max(0.0)
}

/// The relative error beyond which the adaptive controller reacts no harder (Ziegler et al. 2019, section 2.2).
const LARGEST_ERROR: f64 = 0.2;

/// The coefficient of the KL penalty, and how it moves. It is the only place where the KL is controlled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum KlController {
    /// It does not.
    Fixed {
        /// The coefficient.
        kl_coef: f64,
    },
    /// Proportionally, in log space (Ziegler et al. 2019, section 2.2).
    Adaptive {
        /// The coefficient now.
        kl_coef: f64,
        /// The KL of a response that it steers to (nats).
        target: f64,
        /// Over this many rollouts a KL that is off by 20 % or more changes the coefficient by 20 %.
        horizon: f64,
    },
}

impl KlController {
    /// The coefficient now.
    pub fn kl_coef(&self) -> f64 {
        match *self {
            KlController::Fixed { kl_coef } | KlController::Adaptive { kl_coef, .. } => kl_coef,
        }
    }

    /// Puts the coefficient to this value; an adaptive controller goes on from it.
    pub fn set_kl_coef(&mut self, to: f64) {
        match self {
            KlController::Fixed { kl_coef } | KlController::Adaptive { kl_coef, .. } => *kl_coef = to,
        }
    }

    /// Takes in a batch: `kl_coef *= 1 + clip(mean_kl / target − 1, ±0.2) · n_rollouts / horizon`, with `mean_kl` the
    /// mean over its responses of the summed k1. A mean that is not finite is no measurement and changes nothing.
    pub fn update(&mut self, mean_kl: f64, n_rollouts: usize) {
        if let KlController::Adaptive { kl_coef, target, horizon } = self
            && mean_kl.is_finite()
        {
            let error = (mean_kl / *target - 1.0).clamp(-LARGEST_ERROR, LARGEST_ERROR);
            *kl_coef *= 1.0 + error * n_rollouts as f64 / *horizon;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_estimators_by_hand() {
        // policy 0.5, reference 0.25: log r = −ln 2.
        let (logprob, ref_logprob) = (0.5f32.ln(), 0.25f32.ln());
        let ln2 = std::f32::consts::LN_2;
        assert!((k1(logprob, ref_logprob) - ln2).abs() < 1e-7);
        assert!((k2(logprob, ref_logprob) - 0.5 * ln2 * ln2).abs() < 1e-7);
        assert!((k3(logprob, ref_logprob) - (ln2 - 0.5)).abs() < 1e-7);
        assert!(k1(ref_logprob, logprob) < 0.0);
    }

    proptest! {
        #[test]
        fn k2_and_k3_are_never_negative(logprob in -20f32..0.0, ref_logprob in -20f32..0.0, tiny in -1e-6f32..1e-6) {
            prop_assert!(k2(logprob, ref_logprob) >= 0.0);
            prop_assert!(k3(logprob, ref_logprob) >= 0.0);
            prop_assert!(k3(logprob, logprob + tiny) >= 0.0);
        }
    }

    #[test]
    fn the_adaptive_coefficient_moves_towards_its_target_and_never_faster_than_its_limit() {
        let start = KlController::Adaptive { kl_coef: 0.1, target: 6.0, horizon: 1000.0 };
        let after = |mean_kl: f64| {
            let mut controller = start;
            controller.update(mean_kl, 100);
            controller.kl_coef()
        };
        assert_eq!(after(6.0), 0.1);
        assert!((after(6.6) - 0.1 * 1.01).abs() < 1e-12); // 10 % off, a tenth of the horizon
        assert!((after(600.0) - 0.1 * 1.02).abs() < 1e-12);
        assert!((after(-3.0) - 0.1 * 0.98).abs() < 1e-12);
        assert_eq!(after(f64::NAN), 0.1);
    }

    #[test]
    fn a_fixed_coefficient_stays() {
        let mut controller = KlController::Fixed { kl_coef: 0.02 };
        controller.update(1e9, 512);
        assert_eq!(controller.kl_coef(), 0.02);
    }
}
