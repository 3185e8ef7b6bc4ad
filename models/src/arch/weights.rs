//! Named tensors: of a model as a whole, or of adapters on a base that is shared.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use xxhash_rust::xxh3::Xxh3;

use super::config::ModelConfig;
use super::lora::{LoraTensors, OnBase, is_adapter_of};
use super::precision::Precision;
use super::specs::{HeadKind, Initial, linear_layers, parameter_specs};
use crate::error::{Error, Result};
use crate::kernels;
use crate::rng::{self, SeededRng};

/// Named tensors. As part of a snapshot they never change; as [`Parameters::weights`] they are views of what is
/// being trained.
///
/// Its own tensors may stand on a frozen base ([`into_base`](Self::into_base)), which all that stand on it share: then
/// they are adapters and whatever else takes the place of the base's. What is iterated over, copied, trained and
/// averaged is the own tensors alone.
#[derive(Clone, Debug)]
pub struct Weights {
    pub(super) tensors: BTreeMap<String, Tensor>,
    pub(super) on: Option<OnBase>,
    pub(super) precision: Precision,
}

impl Weights {
    /// Wraps named tensors, to be multiplied in f32.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, on: None, precision: Precision::default() }
    }

    /// The same weights, of which models over them, or over copies of them, multiply matrices like this.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// What models multiply matrices in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Fresh weights for a config, from a seeded generator, in the order of [`parameter_specs`].
    pub fn initialise(config: &ModelConfig, head: HeadKind, rng: &mut SeededRng, device: &Device) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for spec in parameter_specs(config, head) {
            let tensor = match spec.initial {
                Initial::Normal(std) => rng::normal(rng, &spec.shape, std, device)?,
                Initial::Ones => Tensor::ones(spec.shape.as_slice(), candle_core::DType::F32, device)?,
                Initial::Zeros => Tensor::zeros(spec.shape.as_slice(), candle_core::DType::F32, device)?,
            };
            tensors.insert(spec.name, tensor);
        }
        Ok(Self::new(tensors))
    }

    /// Other own tensors, on the same base.
    pub fn with_tensors(&self, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, on: self.on.clone(), precision: self.precision }
    }

    /// The tensor of this name: its own, or else the base's.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let of_base = || self.on.as_ref().and_then(|on| on.base.get(name));
        let missing = || Error::MissingTensor { name: name.to_owned(), path: None };
        self.tensors.get(name).or_else(of_base).ok_or_else(missing)
    }

    /// Whether they stand on a base.
    pub fn has_base(&self) -> bool {
        self.on.is_some()
    }

    /// Whether they have adapters.
    pub fn has_adapters(&self) -> bool {
        self.on.as_ref().is_some_and(|on| !on.scales.is_empty())
    }

    /// The adapter of a linear layer, where it has one.
    pub(super) fn adapter(&self, module: &str) -> Result<Option<LoraTensors>> {
        self.on.as_ref().map_or(Ok(None), |on| on.adapter(module, &self.tensors))
    }

    /// Refuses weights that are not exactly those of the config: a tensor missing, of another shape, or too many.
    /// `path` is where they come from, for messages.
    pub fn check(&self, config: &ModelConfig, head: HeadKind, path: Option<&Path>) -> Result<()> {
        let path = || path.map(Path::to_owned);
        let specs = parameter_specs(config, head);
        for spec in &specs {
            let Ok(tensor) = self.get(&spec.name) else {
                return Err(Error::MissingTensor { name: spec.name.clone(), path: path() });
            };
            if tensor.dims() != spec.shape {
                return Err(Error::WrongShape {
                    name: spec.name.clone(),
                    found: tensor.dims().to_vec(),
                    expected: spec.shape.clone(),
                    path: path(),
                });
            }
        }
        let adaptable = if self.has_base() { linear_layers(config) } else { Vec::new() };
        let is_known = |name: &str| specs.iter().any(|spec| spec.name == name) || is_adapter_of(&adaptable, name);
        match self.tensors.keys().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => {
                let problem = format!("tensor `{name}` is not part of the model that the config describes");
                Err(path().map_or_else(|| Error::invalid(&problem), |path| Error::bad_file(path, &problem)))
            }
        }
    }

    /// Names and own tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// Takes an own tensor out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Where they lie; the CPU where there are none.
    pub fn device(&self) -> &Device {
        let of_base = || self.on.as_ref().map(|on| on.base.device());
        self.tensors.values().next().map(Tensor::device).or_else(of_base).unwrap_or(&Device::Cpu)
    }

    /// How many own numbers there are in all.
    pub fn n_elements(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }

    /// A real copy, on the same base: later training of the original does not show in it.
    pub fn deep_copy(&self) -> Result<Self> {
        let copy = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.copy()?.detach()));
        Ok(self.with_tensors(self.tensors.iter().map(copy).collect::<Result<_>>()?))
    }

    /// The same tensors, recording no gradient.
    pub fn detached(&self) -> Self {
        self.with_tensors(self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect())
    }

    /// The same weights on another device, where all that stand on one base share it too.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let moved = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_device(device)?.detach()));
        Ok(Self {
            tensors: self.tensors.iter().map(moved).collect::<Result<_>>()?,
            on: self.on.as_ref().map(|on| on.to_device(device)).transpose()?,
            precision: self.precision,
        })
    }

    /// A hash of names, shapes and own numbers (XXH3, 128 bits, hexadecimal): the same for the same weights, however
    /// their files are cut.
    pub fn digest(&self) -> Result<String> {
        let mut hash = Xxh3::new();
        for (name, tensor) in &self.tensors {
            hash.update(name.as_bytes());
            tensor.dims().iter().for_each(|dim| hash.update(&(*dim as u64).to_le_bytes()));
            hash_numbers(&mut hash, tensor)?;
        }
        Ok(format!("{:032x}", hash.digest128()))
    }

    /// Whether every own number is finite.
    pub fn is_finite(&self) -> Result<bool> {
        for tensor in self.tensors.values() {
            if !tensor.flatten_all()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Takes a tensor's numbers into a hash, from where they lie on the CPU.
pub(crate) fn hash_numbers(hash: &mut Xxh3, tensor: &Tensor) -> Result<()> {
    let on_cpu = tensor.to_device(&Device::Cpu)?.contiguous()?;
    hash.update(bytemuck::cast_slice(&kernels::numbers(&on_cpu)?));
    Ok(())
}

/// Weights in training: each of their own tensors is a candle `Var`, changed in place by the optimiser. A base that they
/// stand on is not trained.
#[derive(Debug)]
pub struct Parameters {
    vars: BTreeMap<String, Var>,
    on: Option<OnBase>,
    precision: Precision,
}

impl Parameters {
    /// Starts training from a copy of these weights.
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        let var = |(name, tensor): (&str, &Tensor)| Ok((name.to_owned(), kernels::copied(tensor)?));
        let vars = weights.iter().map(var).collect::<Result<_>>()?;
        Ok(Self { vars, on: weights.on.clone(), precision: weights.precision })
    }

    /// Names and variables, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The variable of this name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// The weights as the forward pass reads them, with gradients. They change as training goes on.
    pub fn weights(&self) -> Weights {
        let tensors = self.vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        Weights { tensors, on: self.on.clone(), precision: self.precision }
    }

    /// A real copy of the weights as they are now.
    pub fn snapshot(&self) -> Result<Weights> {
        self.weights().deep_copy()
    }
}
