//! Training on disk, to go on from: one safetensors file with the tensors, and with the counters in its metadata.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::{Dtype, SafeTensorError, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::setup::{SkipLimit, Training};
use crate::arch::SafetensorsFile;
use crate::error::{Error, Result};

/// A tensor of a state. It is written from where it lies, so that a state is never in memory twice.
pub(crate) struct Written<'a> {
    shape: Vec<usize>,
    numbers: Numbers<'a>,
}

enum Numbers<'a> {
    Slice(&'a [f32]),
    Tensor(Tensor),
}

impl<'a> Written<'a> {
    /// A tensor as it is when its turn comes.
    pub fn tensor(tensor: &Tensor) -> Self {
        Self { shape: tensor.dims().to_vec(), numbers: Numbers::Tensor(tensor.detach()) }
    }

    /// Numbers in the shape of a tensor.
    pub fn numbers(numbers: &'a [f32], like: &Tensor) -> Self {
        Self { shape: like.dims().to_vec(), numbers: Numbers::Slice(numbers) }
    }
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.numbers {
            Numbers::Slice(numbers) => Cow::Borrowed(bytemuck::cast_slice(numbers)),
            Numbers::Tensor(tensor) => View::data(tensor),
        }
    }

    fn data_len(&self) -> usize {
        size_of::<f32>() * self.shape.iter().product::<usize>()
    }
}

/// Named tensors of a state.
pub(crate) type Tensors<'a> = BTreeMap<String, Written<'a>>;

/// Writes a state. `key` says what it is of, and is the one key of the metadata: with several, their order would differ
/// from one state to the next.
pub(crate) fn save(path: &Path, key: &str, tensors: Tensors<'_>, counters: &impl Serialize) -> Result<()> {
    let counters = serde_json::to_string(counters).map_err(|error| Error::invalid(error.to_string()))?;
    let metadata = HashMap::from([(key.to_owned(), counters)]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(source) => Error::io(path, source),
        other => Error::bad_file(path, format!("a state of training can't be written: {other}")),
    })
}

/// A state on disk that has been found to be whole, and to have the tensors that training needs.
pub(crate) struct SavedState(SafetensorsFile);

impl SavedState {
    /// Opens a state; returns its counters too. `expected` has every tensor's name and shape.
    ///
    /// # Errors
    /// The file is no whole state of this `key`, or has other tensors.
    pub fn open<C: DeserializeOwned>(path: &Path, key: &str, expected: Vec<(String, Vec<usize>)>) -> Result<(C, Self)> {
        let bad = |problem: String| Error::bad_file(path, problem);
        let file = SafetensorsFile::open(path)?;
        let header = file.header();
        let counters = header.metadata().as_ref().and_then(|metadata| metadata.get(key)).map_or("", String::as_str);
        let counters = serde_json::from_str(counters)
            .map_err(|error| bad(format!("the state of training has no `{key}` as expected: {error}")))?;
        for (name, shape) in &expected {
            let missing = || bad(format!("the state of training has no tensor `{name}`"));
            let info = header.info(name).ok_or_else(missing)?;
            if info.dtype != Dtype::F32 {
                let problem = format!("tensor `{name}` of the state of training is {:?}, expected F32", info.dtype);
                return Err(bad(problem));
            }
            if info.shape != *shape {
                let problem =
                    format!("tensor `{name}` of the state of training has shape {:?}, expected {shape:?}", info.shape);
                return Err(bad(problem));
            }
        }
        let expected: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        match header.offset_keys().into_iter().find(|name| !expected.contains(name.as_str())) {
            None => Ok((counters, Self(file))),
            Some(name) => Err(bad(format!("the state of training has a tensor `{name}`, which this training has not"))),
        }
    }

    /// The numbers of the tensor of this name.
    pub fn numbers(&mut self, name: &str) -> Result<Vec<f32>> {
        let path = Some(self.0.path().to_owned());
        let missing = || Error::MissingTensor { name: name.to_owned(), path };
        let info = self.0.header().info(name).cloned().ok_or_else(missing)?;
        self.0.read(&info, DType::F32)
    }

    /// The tensor of this name, in the shape and on the device of another.
    pub fn tensor(&mut self, name: &str, like: &Tensor) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.numbers(name)?, like.shape(), like.device())?)
    }
}

impl Training {
    /// Adds the parameters and both moments of each, under a name of the model.
    pub(crate) fn add_state<'a>(&'a self, model: &str, tensors: &mut Tensors<'a>) -> Result<()> {
        let parameters = self.parameters();
        for (name, var) in parameters.iter() {
            tensors.insert(format!("{model}.weights.{name}"), Written::tensor(var.as_tensor()));
        }
        for (name, moment) in self.adamw().state(parameters)? {
            tensors.insert(format!("{model}.adam.{name}"), moment);
        }
        Ok(())
    }

    /// What [`add_state`](Self::add_state) adds: each name, and the shape.
    pub(crate) fn expected_state(&self, model: &str) -> Vec<(String, Vec<usize>)> {
        let mut expected = Vec::new();
        for (name, var) in self.parameters().iter() {
            let shape = var.dims().to_vec();
            expected.push((format!("{model}.weights.{name}"), shape.clone()));
            let moments = self.adamw().names_of_moments(name);
            expected.extend(moments.map(|name| (format!("{model}.adam.{name}"), shape.clone())));
        }
        expected
    }

    /// Goes on from what [`add_state`](Self::add_state) gave after `n_steps` steps.
    pub(crate) fn restore_state(&mut self, model: &str, n_steps: u64, state: &mut SavedState) -> Result<()> {
        self.check_parted()?;
        for (name, var) in self.parameters().iter() {
            var.set(&state.tensor(&format!("{model}.weights.{name}"), var.as_tensor())?)?;
        }
        self.adamw_mut().restore(n_steps, |name| state.numbers(&format!("{model}.adam.{name}")))
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

/// Writes the state of training one model, after `n_steps` steps.
pub(crate) fn save_one_model(path: &Path, training: &Training, n_steps: u64, skip_limit: &SkipLimit) -> Result<()> {
    let mut tensors = Tensors::new();
    training.add_state(MODEL, &mut tensors)?;
    let n_skipped_in_a_row = skip_limit.n_in_a_row();
    save(path, KEY, tensors, &Counters { n_steps, n_adam_steps: training.adamw().n_steps(), n_skipped_in_a_row })
}

/// Goes on from a state of [`save_one_model`]; returns how many steps it had done.
pub(crate) fn restore_one_model(path: &Path, training: &mut Training, skip_limit: &mut SkipLimit) -> Result<u64> {
    let (counters, mut state) = SavedState::open::<Counters>(path, KEY, training.expected_state(MODEL))?;
    training.restore_state(MODEL, counters.n_adam_steps, &mut state)?;
    skip_limit.restore(counters.n_skipped_in_a_row);
    Ok(counters.n_steps)
}
