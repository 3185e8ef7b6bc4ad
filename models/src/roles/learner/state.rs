//! The learner's whole state as bytes: one safetensors file with policy, value model, average and moments, and with
//! the counters in its metadata.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use collimate_protocol::PolicyVersion;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::PpoLearner;
use crate::arch::Parameters;
use crate::error::{Error, Result};

/// The one key of the metadata: with several, their order would differ from one state to the next.
const KEY: &str = "collimate_learner";

/// Where a tensor of the state belongs.
const POLICY: &str = "policy.weights.";
const POLICY_ADAM: &str = "policy.adam.";
const POLICY_EMA: &str = "policy.ema.";
const VALUE: &str = "value.weights.";
const VALUE_ADAM: &str = "value.adam.";

/// The numbers besides the tensors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counters {
    version: PolicyVersion,
    n_minibatches: u64,
    n_policy_steps: u64,
    n_value_steps: u64,
    n_skipped_in_a_row: usize,
}

impl PpoLearner {
    /// The state after the last update.
    pub(super) fn write_state(&self) -> Result<Vec<u8>> {
        let (policy, value) = (self.policy.parameters(), self.value.parameters());
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut add = |prefix: &str, named: Vec<(String, Tensor)>| {
            tensors.extend(named.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
        };
        let of = |parameters: &Parameters| {
            parameters.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().detach())).collect()
        };
        add(POLICY, of(policy));
        add(POLICY_ADAM, self.policy.adamw().state(policy)?);
        add(VALUE, of(value));
        add(VALUE_ADAM, self.value.adamw().state(value)?);
        if let Some(ema) = &self.ema {
            let average = ema.weights()?;
            add(POLICY_EMA, average.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect());
        }
        let counters = Counters {
            version: self.version,
            n_minibatches: self.n_minibatches,
            n_policy_steps: self.policy.adamw().n_steps(),
            n_value_steps: self.value.adamw().n_steps(),
            n_skipped_in_a_row: self.skip_limit.n_in_a_row(),
        };
        let counters = serde_json::to_string(&counters).map_err(|error| Error::invalid(error.to_string()))?;
        let metadata = HashMap::from([(KEY.to_owned(), counters)]);
        safetensors::serialize(tensors, Some(metadata))
            .map_err(|error| Error::invalid(format!("the learner's state: {error}")))
    }

    /// Goes on from a state. Everything is read and checked before anything changes.
    pub(super) fn read_state(&mut self, bytes: &[u8]) -> Result<()> {
        let bad = |error: safetensors::SafeTensorError| {
            Error::invalid(format!("this is no state of a learner, or is cut short: {error}"))
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(bad)?;
        let state = SafeTensors::deserialize(bytes).map_err(bad)?;
        let counters = header.metadata().as_ref().and_then(|metadata| metadata.get(KEY)).map_or("", String::as_str);
        let counters: Counters = serde_json::from_str(counters)
            .map_err(|error| Error::invalid(format!("the learner's state has no `{KEY}` as expected: {error}")))?;

        let mut tensors = BTreeMap::new();
        for (name, like) in self.expected() {
            let tensor = read(&state, &name, &like)?;
            tensors.insert(name, tensor);
        }
        if let Some(name) = state.names().into_iter().find(|name| !tensors.contains_key(*name)) {
            return Err(Error::invalid(format!(
                "the learner's state has a tensor `{name}`, which this learner has not"
            )));
        }

        let tensor = |prefix: &'static str| {
            let tensors = &tensors;
            move |name: &str| {
                let name = format!("{prefix}{name}");
                tensors.get(&name).cloned().ok_or(Error::MissingTensor { name, path: None })
            }
        };
        for (parameters, tensor) in
            [(self.policy.parameters(), tensor(POLICY)), (self.value.parameters(), tensor(VALUE))]
        {
            for (name, var) in parameters.iter() {
                var.set(&tensor(name)?)?;
            }
        }
        if let Some(ema) = &mut self.ema {
            let of = tensor(POLICY_EMA);
            let average = self.policy.parameters().iter().map(|(name, _)| Ok((name.to_owned(), of(name)?)));
            ema.restore(self.policy.parameters().weights().with_tensors(average.collect::<Result<_>>()?));
        }
        self.policy.adamw_mut().restore(counters.n_policy_steps, tensor(POLICY_ADAM))?;
        self.value.adamw_mut().restore(counters.n_value_steps, tensor(VALUE_ADAM))?;
        self.version = counters.version;
        self.n_minibatches = counters.n_minibatches;
        self.skip_limit.restore(counters.n_skipped_in_a_row);
        Ok(())
    }

    /// Every tensor of a state, by its name, and one of the shape and on the device that it should have.
    fn expected(&self) -> Vec<(String, Tensor)> {
        let mut expected = Vec::new();
        for (training, weights, adam) in [(&self.policy, POLICY, POLICY_ADAM), (&self.value, VALUE, VALUE_ADAM)] {
            for (name, var) in training.parameters().iter() {
                let like = var.as_tensor();
                expected.push((format!("{weights}{name}"), like.clone()));
                let moments = training.adamw().names_of_moments(name);
                expected.extend(moments.map(|name| (format!("{adam}{name}"), like.clone())));
            }
        }
        if self.ema.is_some() {
            let averages = self.policy.parameters().iter();
            expected.extend(averages.map(|(name, var)| (format!("{POLICY_EMA}{name}"), var.as_tensor().clone())));
        }
        expected
    }

    /// A checksum of policy and value model.
    pub(super) fn weights_checksum(&self) -> Result<u64> {
        let mut hash = Xxh3::new();
        for parameters in [self.policy.parameters(), self.value.parameters()] {
            for (name, var) in parameters.iter() {
                hash.update(name.as_bytes());
                let numbers = var.as_tensor().to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
                hash.update(bytemuck::cast_slice(&numbers));
            }
        }
        Ok(hash.digest())
    }
}

/// A tensor of a state, on the device and in the shape of another.
fn read(state: &SafeTensors<'_>, name: &str, like: &Tensor) -> Result<Tensor> {
    let view = state.tensor(name).map_err(|_| Error::MissingTensor { name: name.to_owned(), path: None })?;
    if view.dtype() != safetensors::Dtype::F32 {
        return Err(Error::invalid(format!(
            "tensor `{name}` of the learner's state is {:?}, expected F32",
            view.dtype()
        )));
    }
    if view.shape() != like.dims() {
        return Err(Error::WrongShape {
            name: name.to_owned(),
            found: view.shape().to_vec(),
            expected: like.dims().to_vec(),
            path: None,
        });
    }
    let bytes = view.data().chunks_exact(4);
    let numbers: Vec<f32> = bytes.map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
    Ok(Tensor::from_vec(numbers, like.shape(), like.device())?)
}
