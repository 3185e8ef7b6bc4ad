//! All combinations, and which one to take.

use serde::Serialize;

use super::config::PlanConfig;
use super::forecast::{Candidate, Forecast, forecast};
use crate::flow::RunError;

/// What is given up of the highest throughput for less staleness and fewer generators: what a machine varies by anyhow.
const MARGIN: f64 = 0.05;

/// Every combination's forecast, and the recommended one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// By bound, then by number of generators, as they were asked for.
    pub forecasts: Vec<Forecast>,
    /// Within 5 % of the highest throughput: the least bound on staleness, then the fewest generators.
    pub recommended: Candidate,
}

impl Advice {
    /// Simulates every combination. `progress` is told after each how many are done.
    ///
    /// # Errors
    /// See [`forecast`].
    pub fn of(config: &PlanConfig, mut progress: impl FnMut(usize)) -> Result<Self, RunError> {
        config.validate()?;
        let candidates = config.max_staleness.iter().flat_map(|&max_staleness| {
            config.n_generators.iter().map(move |&n_generators| Candidate { max_staleness, n_generators })
        });
        let mut forecasts = Vec::new();
        for candidate in candidates {
            forecasts.push(forecast(config, candidate)?);
            progress(forecasts.len());
        }
        let recommended = recommended(&forecasts);
        Ok(Self { forecasts, recommended })
    }

    /// The recommended combination's forecast.
    pub fn best(&self) -> Option<&Forecast> {
        self.forecasts.iter().find(|forecast| forecast.candidate == self.recommended)
    }
}

fn recommended(forecasts: &[Forecast]) -> Candidate {
    let highest = forecasts.iter().map(|forecast| forecast.tokens_per_s).fold(0.0, f64::max);
    let fast = forecasts.iter().filter(|forecast| forecast.tokens_per_s >= (1.0 - MARGIN) * highest);
    let best = fast.min_by(|a, b| {
        let by_bound = a.candidate.max_staleness.cmp(&b.candidate.max_staleness);
        by_bound.then(a.candidate.n_generators.cmp(&b.candidate.n_generators))
    });
    best.map_or(Candidate { max_staleness: 0, n_generators: 1 }, |best| best.candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator and a learner on a device each, one of one core each; nothing else takes time.
    fn config(decode_s: f64, update_s: f64) -> PlanConfig {
        let mut config = PlanConfig {
            max_staleness: vec![0],
            n_generators: vec![1],
            n_updates: 10,
            batch_size: 4,
            n_slots: 4,
            checkpoints_every: 0,
            response_tokens: vec![10],
            ..PlanConfig::default()
        };
        for cost in [
            &mut config.costs.reference_scorer,
            &mut config.costs.reward_scorer,
            &mut config.costs.experience_buffer,
            &mut config.costs.generator,
            &mut config.costs.learner,
        ] {
            (cost.call_s, cost.token_s) = (0.0, 0.0);
        }
        config.costs.generator.call_s = decode_s;
        config.costs.learner.call_s = update_s;
        config
    }

    fn of(config: &PlanConfig, max_staleness: u64, n_generators: usize) -> Forecast {
        forecast(config, Candidate { max_staleness, n_generators }).unwrap()
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-6, "{found}, expected {expected}");
    }

    #[test]
    fn synchronous_roles_take_their_times_one_after_another() {
        // Ten decode steps of 0.1 s, then an update of 0.5 s, ten times.
        let forecast = of(&config(0.1, 0.5), 0, 1);
        close(forecast.elapsed_s, 10.0 * 1.5);
        close(forecast.tokens_per_s, 40.0 / 1.5);
        close(forecast.busy["generator"], 1.0 / 1.5);
        close(forecast.device_busy[1], 0.5 / 1.5);
        assert_eq!((forecast.mean_staleness, forecast.dropped_share), (0.0, 0.0));
    }

    #[test]
    fn one_update_of_staleness_hides_the_shorter_of_the_two() {
        // The first batch is waited for; then the generator sets the pace, and the last update follows.
        let slow_generator = of(&config(0.1, 0.5), 1, 1);
        close(slow_generator.elapsed_s, 10.0 + 0.5);
        let slow_learner = of(&config(0.1, 2.0), 1, 1);
        close(slow_learner.elapsed_s, 1.0 + 10.0 * 2.0);
        assert_eq!(slow_learner.staleness.len(), 2);
        assert!(slow_learner.staleness[1] > 0.8, "{:?}", slow_learner.staleness);
    }

    #[test]
    fn on_one_device_of_one_core_nothing_is_gained_by_overlap() {
        let mut config = config(0.1, 0.5);
        config.devices = vec![1.0];
        config.costs.reference_scorer.devices = vec![0];
        config.costs.reward_scorer.devices = vec![0];
        config.costs.experience_buffer.devices = vec![0];
        config.costs.learner.devices = vec![0];
        close(of(&config, 0, 1).elapsed_s, 15.0);
        close(of(&config, 2, 1).elapsed_s, 15.0);
    }

    #[test]
    fn generators_on_devices_of_their_own_share_the_sampling() {
        let mut config = config(0.1, 0.5);
        (config.n_slots, config.batch_size) = (2, 8);
        config.devices = vec![1.0; 5];
        config.costs.generator.devices = vec![0, 2, 3, 4];
        // Eight responses in two slots are four rounds of a second; in eight slots they are one.
        close(of(&config, 0, 1).elapsed_s, 10.0 * 4.5);
        close(of(&config, 0, 4).elapsed_s, 10.0 * 1.5);
    }

    #[test]
    fn the_recommendation_gives_up_a_little_speed_for_less_staleness_and_fewer_generators() {
        let mut config = config(0.1, 2.0);
        (config.max_staleness, config.n_generators) = (vec![0, 1, 4], vec![1, 2]);
        config.n_updates = 40;
        let advice = Advice::of(&config, |_| ()).unwrap();
        assert_eq!(advice.forecasts.len(), 6);
        assert_eq!(advice.recommended, Candidate { max_staleness: 1, n_generators: 1 });
        assert_eq!(advice.best().unwrap().candidate, advice.recommended);
    }

    #[test]
    fn failures_cost_time_and_lose_nothing() {
        let mut config = config(0.1, 0.5);
        config.costs.generator.failure_share = 0.02;
        config.costs.learner.failure_share = 0.05;
        let forecast = of(&config, 1, 1);
        assert!(forecast.n_restarts > 0 && forecast.elapsed_s > 10.5, "{forecast:?}");
    }

    #[test]
    fn a_few_long_responses_are_dropped_where_the_bound_is_narrow() {
        let mut config = config(0.01, 0.1);
        // A long one takes as long as six batches.
        config.response_tokens = [vec![10; 19], vec![60]].concat();
        (config.n_updates, config.batch_size, config.n_slots) = (50, 16, 16);
        let (narrow, wide) = (of(&config, 1, 1), of(&config, 8, 1));
        assert!(narrow.dropped_share > 0.01 && wide.dropped_share == 0.0, "{narrow:?} {wide:?}");
        assert!(narrow.staleness.len() <= 2 && wide.staleness.len() <= 9);
    }
}
