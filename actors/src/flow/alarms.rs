//! What the numbers of an update say is going wrong, in words.

use std::collections::VecDeque;

use collimate_protocol::records::{BatchMetrics, UpdateMetrics};

/// A larger share of empty responses is an alarm: the policy is falling silent.
const EMPTY_SHARE: f64 = 0.25;
/// Updates over which the KL is averaged: single batches are noisy.
const KL_WINDOW: usize = 10;
/// A mean KL of a response (nats) below this is an alarm. An estimate from samples of the policy itself is 0 or more in
/// expectation, so that only its noise may be negative.
const LOWEST_KL: f64 = -1.0;

/// Watches the updates of a run. An alarm is raised when its condition begins to hold, and again only after it has
/// ceased to.
#[derive(Clone, Debug, Default)]
pub struct Alarms {
    kl: VecDeque<f64>,
    is_silent: bool,
    is_negative: bool,
}

impl Alarms {
    /// The alarms that this update raises.
    pub fn of(&mut self, update: &UpdateMetrics) -> Vec<String> {
        let BatchMetrics { empty_share, kl, .. } = update.batch;
        let mut alarms = Vec::new();
        if rises(&mut self.is_silent, empty_share > EMPTY_SHARE) {
            alarms.push(format!(
                "at {} {:.0} % of the responses are empty: the policy is falling silent. A larger ptx_coef or kl_coef \
                 holds it nearer to the text it has learnt",
                update.version,
                100.0 * empty_share
            ));
        }
        self.kl.push_back(kl);
        if self.kl.len() > KL_WINDOW {
            self.kl.pop_front();
        }
        let mean = self.kl.iter().sum::<f64>() / self.kl.len() as f64;
        if rises(&mut self.is_negative, self.kl.len() == KL_WINDOW && mean < LOWEST_KL) {
            alarms.push(format!(
                "at {} the KL to the SFT model has averaged {mean:.2} nats a response over {KL_WINDOW} updates. Under \
                 the policy's own samples it can't be negative, so they are not what the policy is trained as: another \
                 temperature, a cut-off support, or stale responses. The penalty now pays the policy for leaving the \
                 SFT model",
                update.version
            ));
        }
        alarms
    }
}

fn rises(was: &mut bool, is: bool) -> bool {
    let rises = is && !*was;
    *was = is;
    rises
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(empty_share: f64, kl: f64) -> UpdateMetrics {
        UpdateMetrics { batch: BatchMetrics { empty_share, kl, ..BatchMetrics::default() }, ..UpdateMetrics::default() }
    }

    #[test]
    fn a_policy_that_falls_silent_raises_an_alarm_each_time_that_it_does() {
        let mut alarms = Alarms::default();
        let n: Vec<usize> = [0.0, 0.2, 0.3, 0.9, 0.1, 0.5].map(|share| alarms.of(&update(share, 0.0)).len()).into();
        assert_eq!(n, [0, 0, 1, 0, 0, 1]);
        let told = Alarms::default().of(&update(0.5, 0.0));
        assert!(told[0].contains("50 % of the responses are empty"), "{told:?}");
    }

    #[test]
    fn a_kl_well_below_zero_over_a_window_raises_one_alarm_that_says_why() {
        let mut alarms = Alarms::default();
        let told: Vec<String> = (0..15).flat_map(|_| alarms.of(&update(0.0, -2.0))).collect();
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("averaged -2.00 nats") && told[0].contains("temperature"), "{told:?}");
    }

    #[test]
    fn noise_around_zero_raises_none() {
        let mut alarms = Alarms::default();
        let told: Vec<String> =
            (0..40).flat_map(|i| alarms.of(&update(0.0, if i % 2 == 0 { -6.0 } else { 6.0 }))).collect();
        assert_eq!(told, Vec::<String>::new());
    }
}
