//! The learner's whole state on disk: policy, value model, average and moments, and the counters.

use std::path::Path;

use candle_core::Var;
use collimate_protocol::PolicyVersion;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::PpoLearner;
use crate::arch::hash_numbers;
use crate::error::Result;
use crate::train::state::{self, SavedState, Tensors, Written};

const KEY: &str = "collimate_learner";

/// Where a tensor of the state belongs.
const POLICY: &str = "policy";
const POLICY_EMA: &str = "policy.ema";
const VALUE: &str = "value";

/// The numbers besides the tensors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counters {
    version: PolicyVersion,
    n_minibatches: u64,
    n_policy_steps: u64,
    n_value_steps: u64,
    n_skipped_in_a_row: usize,
    /// The highest learning rates, which may have been changed since the start. `None` in states of learners that could
    /// not change them.
    #[serde(default)]
    peaks: Option<Peaks>,
    /// Updates to come in which the value model alone learns. Absent in states of learners that had no such updates.
    #[serde(default)]
    n_value_warmup: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peaks {
    policy: f64,
    value: f64,
}

impl PpoLearner {
    /// Writes the state after the last update.
    pub(super) fn write_state(&self, path: &Path) -> Result<()> {
        let mut tensors = Tensors::new();
        self.policy.add_state(POLICY, &mut tensors)?;
        self.value.add_state(VALUE, &mut tensors)?;
        if let Some(ema) = &self.ema {
            let average = ema.average().iter();
            tensors.extend(average.map(|(name, tensor)| (format!("{POLICY_EMA}.{name}"), Written::tensor(tensor))));
        }
        let counters = Counters {
            version: self.version,
            n_minibatches: self.n_minibatches,
            n_policy_steps: self.policy.adamw().n_steps(),
            n_value_steps: self.value.adamw().n_steps(),
            n_skipped_in_a_row: self.skip_limit.n_in_a_row(),
            peaks: Some(Peaks { policy: self.policy_schedule.peak, value: self.value_schedule.peak }),
            n_value_warmup: self.n_value_warmup,
        };
        state::save(path, KEY, tensors, &counters)
    }

    /// Goes on from a state. That it is whole and of these models is checked before anything changes.
    pub(super) fn read_state(&mut self, path: &Path) -> Result<()> {
        let (counters, mut state) = SavedState::open::<Counters>(path, KEY, self.expected())?;
        self.part_policy()?;
        self.part_value()?;
        self.policy.restore_state(POLICY, counters.n_policy_steps, &mut state)?;
        self.value.restore_state(VALUE, counters.n_value_steps, &mut state)?;
        if let Some(ema) = &mut self.ema {
            let mut average = |(name, var): (&str, &Var)| {
                Ok((name.to_owned(), state.tensor(&format!("{POLICY_EMA}.{name}"), var.as_tensor())?))
            };
            let average = self.policy.parameters().iter().map(&mut average).collect::<Result<_>>()?;
            ema.restore(self.policy.parameters().weights().with_tensors(average));
        }
        self.version = counters.version;
        self.n_minibatches = counters.n_minibatches;
        self.n_value_warmup = counters.n_value_warmup;
        self.skip_limit.restore(counters.n_skipped_in_a_row);
        if let Some(Peaks { policy, value }) = counters.peaks {
            (self.policy_schedule.peak, self.value_schedule.peak) = (policy, value);
        }
        Ok(())
    }

    /// Every tensor of a state, by its name, and the shape that it should have.
    fn expected(&self) -> Vec<(String, Vec<usize>)> {
        let mut expected = self.policy.expected_state(POLICY);
        expected.extend(self.value.expected_state(VALUE));
        if self.ema.is_some() {
            let averages = self.policy.parameters().iter();
            expected.extend(averages.map(|(name, var)| (format!("{POLICY_EMA}.{name}"), var.dims().to_vec())));
        }
        expected
    }

    /// A checksum of policy and value model.
    pub(super) fn weights_checksum(&self) -> Result<u64> {
        let mut hash = Xxh3::new();
        for parameters in [self.policy.parameters(), self.value.parameters()] {
            for (name, var) in parameters.iter() {
                hash.update(name.as_bytes());
                hash_numbers(&mut hash, var.as_tensor())?;
            }
        }
        Ok(hash.digest())
    }
}
