//! Training as bytes, to go on from: one safetensors file with the tensors, and with the counters in its metadata.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::setup::{SkipLimit, Training};
use crate::error::{Error, Result};

/// Named tensors of a state.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A state's bytes. `key` says what it is of, and is the one key of the metadata: with several, their order would differ
/// from one state to the next.
pub(crate) fn to_bytes(key: &str, tensors: Tensors, counters: &impl Serialize) -> Result<Vec<u8>> {
    let counters = serde_json::to_string(counters).map_err(|error| Error::invalid(error.to_string()))?;
    safetensors::serialize(tensors, Some(HashMap::from([(key.to_owned(), counters)])))
        .map_err(|error| Error::invalid(format!("a state of training: {error}")))
}

/// The counters and tensors of a state, all of which are checked: `expected` has every tensor's name with one of its shape,
/// on the device where it belongs.
pub(crate) fn from_bytes<C: DeserializeOwned>(
    bytes: &[u8],
    key: &str,
    expected: Vec<(String, Tensor)>,
) -> Result<(C, Tensors)> {
    let bad = |error: safetensors::SafeTensorError| {
        Error::invalid(format!("this is no state of training, or is cut short: {error}"))
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(bad)?;
    let state = SafeTensors::deserialize(bytes).map_err(bad)?;
    let counters = header.metadata().as_ref().and_then(|metadata| metadata.get(key)).map_or("", String::as_str);
    let counters = serde_json::from_str(counters)
        .map_err(|error| Error::invalid(format!("the state of training has no `{key}` as expected: {error}")))?;
    let mut tensors = Tensors::new();
    for (name, like) in expected {
        let tensor = read(&state, &name, &like)?;
        tensors.insert(name, tensor);
    }
    match state.names().into_iter().find(|name| !tensors.contains_key(*name)) {
        None => Ok((counters, tensors)),
        Some(name) => {
            Err(Error::invalid(format!("the state of training has a tensor `{name}`, which this training has not")))
        }
    }
}

/// The tensor of this name.
pub(crate) fn tensor(tensors: &Tensors, name: String) -> Result<Tensor> {
    tensors.get(&name).cloned().ok_or(Error::MissingTensor { name, path: None })
}

/// A tensor of a state, on the device and in the shape of another.
fn read(state: &SafeTensors<'_>, name: &str, like: &Tensor) -> Result<Tensor> {
    let view = state.tensor(name).map_err(|_| Error::MissingTensor { name: name.to_owned(), path: None })?;
    if view.dtype() != safetensors::Dtype::F32 {
        return Err(Error::invalid(format!(
            "tensor `{name}` of the state of training is {:?}, expected F32",
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

impl Training {
    /// Adds the parameters and both moments of each, under a name of the model.
    pub(crate) fn add_state(&self, model: &str, tensors: &mut Tensors) -> Result<()> {
        let parameters = self.parameters();
        for (name, var) in parameters.iter() {
            tensors.insert(format!("{model}.weights.{name}"), var.as_tensor().detach());
        }
        for (name, moment) in self.adamw().state(parameters)? {
            tensors.insert(format!("{model}.adam.{name}"), moment);
        }
        Ok(())
    }

    /// What [`add_state`](Self::add_state) adds: each name, and a tensor of its shape.
    pub(crate) fn expected_state(&self, model: &str) -> Vec<(String, Tensor)> {
        let mut expected = Vec::new();
        for (name, var) in self.parameters().iter() {
            let like = var.as_tensor();
            expected.push((format!("{model}.weights.{name}"), like.clone()));
            let moments = self.adamw().names_of_moments(name);
            expected.extend(moments.map(|name| (format!("{model}.adam.{name}"), like.clone())));
        }
        expected
    }

    /// Goes on from tensors that [`add_state`](Self::add_state) gave after `n_steps` steps.
    pub(crate) fn restore_state(&mut self, model: &str, n_steps: u64, tensors: &Tensors) -> Result<()> {
        for (name, var) in self.parameters().iter() {
            var.set(&tensor(tensors, format!("{model}.weights.{name}"))?)?;
        }
        self.adamw_mut().restore(n_steps, |name| tensor(tensors, format!("{model}.adam.{name}")))
    }
}

/// The counters of training one model.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counters {
    /// Steps so far, skipped ones included: where the schedule stands.
    n_steps: u64,
    n_adam_steps: u64,
    n_skipped_in_a_row: usize,
}

const KEY: &str = "collimate_trainer";
const MODEL: &str = "model";

/// The state of training one model, after `n_steps` steps.
pub(crate) fn of_one_model(training: &Training, n_steps: u64, skip_limit: &SkipLimit) -> Result<Vec<u8>> {
    let mut tensors = Tensors::new();
    training.add_state(MODEL, &mut tensors)?;
    let n_skipped_in_a_row = skip_limit.n_in_a_row();
    to_bytes(KEY, tensors, &Counters { n_steps, n_adam_steps: training.adamw().n_steps(), n_skipped_in_a_row })
}

/// Goes on from a state of [`of_one_model`]; returns how many steps it had done.
pub(crate) fn restore_one_model(bytes: &[u8], training: &mut Training, skip_limit: &mut SkipLimit) -> Result<u64> {
    let (counters, tensors) = from_bytes::<Counters>(bytes, KEY, training.expected_state(MODEL))?;
    training.restore_state(MODEL, counters.n_adam_steps, &tensors)?;
    skip_limit.restore(counters.n_skipped_in_a_row);
    Ok(counters.n_steps)
}
