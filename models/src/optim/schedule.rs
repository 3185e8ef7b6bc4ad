//! The learning rate over the optimiser's steps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the learning rate does after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Stays at its peak.
    #[default]
    Constant,
    /// Falls in a straight line to a tenth of its peak at the last step.
    Linear,
    /// Falls along half a cosine to a tenth of its peak at the last step (Loshchilov and Hutter 2017).
    Cosine,
}

/// Warm-up starts, and decay ends, at this share of the peak: InstructGPT's appendix C for both.
const FLOOR: f64 = 0.1;

/// The learning rate as a function of the optimiser's step. It has no state, so a resumed run goes on where it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// After the warm-up.
    pub kind: LrSchedule,
    /// Steps of linear warm-up: from a tenth of the peak at step 0 to the peak at step `n_warmup`.
    pub n_warmup: u64,
    /// Steps in all; what decays has decayed at step `n_total - 1`.
    pub n_total: u64,
}

impl Schedule {
    /// The learning rate of step `step_idx` (from 0).
    pub fn lr(&self, step_idx: u64) -> f64 {
        if step_idx < self.n_warmup {
            return self.peak * (FLOOR + (1.0 - FLOOR) * step_idx as f64 / self.n_warmup as f64);
        }
        let n_decay = self.n_total.saturating_sub(self.n_warmup + 1);
        let progress =
            if n_decay == 0 { 0.0 } else { ((step_idx - self.n_warmup) as f64 / n_decay as f64).clamp(0.0, 1.0) };
        let share = match self.kind {
            LrSchedule::Constant => 1.0,
            LrSchedule::Linear => 1.0 - progress,
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.peak * (FLOOR + (1.0 - FLOOR) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: LrSchedule, n_warmup: u64, n_total: u64, steps: &[u64]) -> Vec<f64> {
        let schedule = Schedule { peak: 2.0, kind, n_warmup, n_total };
        steps.iter().map(|&step| (schedule.lr(step) * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn warm_up_rises_in_a_straight_line_from_a_tenth_to_the_peak() {
        assert_eq!(rates(LrSchedule::Constant, 4, 100, &[0, 1, 2, 4, 50, 99]), [0.2, 0.65, 1.1, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn decay_ends_at_a_tenth_of_the_peak_on_the_last_step() {
        assert_eq!(rates(LrSchedule::Linear, 2, 13, &[2, 7, 12, 99]), [2.0, 1.1, 0.2, 0.2]);
        assert_eq!(rates(LrSchedule::Cosine, 2, 13, &[2, 7, 12, 99]), [2.0, 1.1, 0.2, 0.2]);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_is_no_error() {
        assert_eq!(rates(LrSchedule::Cosine, 4, 2, &[0, 4, 5]), [0.2, 2.0, 2.0]);
        assert_eq!(rates(LrSchedule::Linear, 0, 1, &[0]), [2.0]);
    }
}
