//! Named tensors: which ones a model has, with their shapes and how they begin.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::config::{Mlp, ModelConfig, Norm, Residual};
use super::families::QkvNames;
use super::heads::{SCORE_BIAS, SCORE_WEIGHT};
use crate::error::{Error, Result};
use crate::kernels::WeightLayout;
use crate::rng::{self, SeededRng};

/// What stands on top of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// The unembedding: logits over the vocabulary.
    Language,
    /// One scalar a position: reward and value models.
    Scalar,
}

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// Normal with this standard deviation.
    Normal(f64),
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
}

/// One parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// HuggingFace's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it begins.
    pub initial: Initial,
}

impl ParameterSpec {
    /// Whether weight decay applies: to matrices, not to gains, biases.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

/// Every parameter of a model, in the order of the forward pass.
pub fn parameter_specs(config: &ModelConfig, head: HeadKind) -> Vec<ParameterSpec> {
    let (c, names) = (config.hidden_dim, config.family.names());
    let std = Initial::Normal(config.initializer_range);
    let mut specs = Specs { config, specs: Vec::new() };
    specs.add(names.embedding(), &[config.vocab_size, c], std);
    if let Some(name) = names.position_embedding() {
        specs.add(name, &[config.context_len, c], std);
    }
    for layer_idx in 0..config.n_layers {
        specs.add_block(layer_idx);
    }
    if let Some(name) = names.final_norm() {
        specs.add_norm(&name, c, config.norm);
    }
    match head {
        HeadKind::Language if config.tied => {}
        HeadKind::Language => specs.add(names.unembedding.into(), &[config.vocab_size, c], std),
        HeadKind::Scalar => {
            // Stiennon et al. 2020, appendix B: the scalar head starts at standard deviation 1/√(C + 1).
            specs.add(SCORE_WEIGHT.into(), &[1, c], Initial::Normal(1.0 / ((c + 1) as f64).sqrt()));
            specs.add(SCORE_BIAS.into(), &[1], Initial::Zeros);
        }
    }
    specs.specs
}

struct Specs<'a> {
    config: &'a ModelConfig,
    specs: Vec<ParameterSpec>,
}

impl Specs<'_> {
    fn add(&mut self, name: String, shape: &[usize], initial: Initial) {
        self.specs.push(ParameterSpec { name, shape: shape.to_vec(), initial });
    }

    fn add_norm(&mut self, name: &str, dim: usize, norm: Norm) {
        let initial = if norm == Norm::RmsPlusOne { Initial::Zeros } else { Initial::Ones };
        self.add(format!("{name}.weight"), &[dim], initial);
        if norm == Norm::Layer {
            self.add(format!("{name}.bias"), &[dim], Initial::Zeros);
        }
    }

    fn add_linear(&mut self, name: &str, n_in: usize, n_out: usize, has_bias: bool, initial: Initial) {
        let shape = match self.config.family.names().layout {
            WeightLayout::InOut => [n_in, n_out],
            WeightLayout::OutIn => [n_out, n_in],
        };
        self.add(format!("{name}.weight"), &shape, initial);
        if has_bias {
            self.add(format!("{name}.bias"), &[n_out], Initial::Zeros);
        }
    }

    fn add_block(&mut self, layer_idx: usize) {
        let (config, names) = (self.config, self.config.family.names());
        let (c, f, attention) = (config.hidden_dim, config.mlp_dim, &config.attention);
        let (q_dim, kv_dim) = (attention.heads.out_dim(), attention.heads.n_kv_heads * attention.heads.head_dim);
        let std = Initial::Normal(config.initializer_range);
        // Projections back into the residual stream start smaller, by the number of additions (GPT-2, section 2.3).
        let residual = Initial::Normal(config.initializer_range / (2.0 * config.n_layers as f64).sqrt());
        let at = |part: &str| names.in_block(layer_idx, part);
        self.add_norm(&at(names.attention_norm), c, config.norm);
        match names.qkv {
            QkvNames::Joined(name) | QkvNames::Interleaved(name) => {
                self.add_linear(&at(name), c, q_dim + 2 * kv_dim, attention.qkv_bias, std);
            }
            QkvNames::Split(parts) => {
                for (name, dim) in parts.into_iter().zip([q_dim, kv_dim, kv_dim]) {
                    self.add_linear(&at(name), c, dim, attention.qkv_bias, std);
                }
            }
        }
        if attention.qk_norm {
            for name in names.qk_norm {
                self.add_norm(&at(name), attention.heads.head_dim, config.norm);
            }
        }
        self.add_linear(&at(names.attention_out), q_dim, c, attention.out_bias, residual);
        if config.residual == Residual::Sandwich {
            self.add_norm(&at(names.branch_norms[0]), c, config.norm);
        }
        self.add_norm(&at(names.mlp_norm), c, config.norm);
        if matches!(config.mlp, Mlp::SwiGlu | Mlp::GeGlu(_)) {
            self.add_linear(&at(names.mlp_gate), c, f, config.mlp_bias, std);
        }
        self.add_linear(&at(names.mlp_up), c, f, config.mlp_bias, std);
        self.add_linear(&at(names.mlp_down), f, c, config.mlp_bias, residual);
        if config.residual == Residual::Sandwich {
            self.add_norm(&at(names.branch_norms[1]), c, config.norm);
        }
    }
}

/// Named tensors. As part of a snapshot they are immutable copies; as [`Parameters::weights`] they are views of
/// what is being trained.
#[derive(Clone, Debug)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Wraps named tensors.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors }
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
        Ok(Self { tensors })
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned(), path: None })
    }

    /// Refuses weights that are not exactly those of the config: a tensor missing, of another shape, or too many.
    /// `path` is where they come from, for messages.
    pub fn check(&self, config: &ModelConfig, head: HeadKind, path: Option<&Path>) -> Result<()> {
        let path = || path.map(Path::to_owned);
        let specs = parameter_specs(config, head);
        for spec in &specs {
            let Some(tensor) = self.tensors.get(&spec.name) else {
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
        match self.tensors.keys().find(|name| !specs.iter().any(|spec| spec.name == **name)) {
            None => Ok(()),
            Some(name) => {
                let problem = format!("tensor `{name}` is not part of the model that the config describes");
                Err(path().map_or_else(|| Error::invalid(&problem), |path| Error::bad_file(path, &problem)))
            }
        }
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Where they lie; the CPU where there are none.
    pub fn device(&self) -> &Device {
        self.tensors.values().next().map_or(&Device::Cpu, Tensor::device)
    }

    /// How many numbers there are in all.
    pub fn n_elements(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }

    /// A real copy: later training of the original does not show in it.
    pub fn deep_copy(&self) -> Result<Self> {
        let copy = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.copy()?.detach()));
        Ok(Self { tensors: self.tensors.iter().map(copy).collect::<Result<_>>()? })
    }

    /// The same weights on another device.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let moved = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_device(device)?.detach()));
        Ok(Self { tensors: self.tensors.iter().map(moved).collect::<Result<_>>()? })
    }

    /// Whether every number is finite.
    pub fn is_finite(&self) -> Result<bool> {
        for tensor in self.tensors.values() {
            if !tensor.flatten_all()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Weights in training: each is a candle `Var`, changed in place by the optimiser.
#[derive(Debug)]
pub struct Parameters {
    vars: BTreeMap<String, Var>,
}

impl Parameters {
    /// Starts training from a copy of these weights.
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        let var = |(name, tensor): (&str, &Tensor)| Ok((name.to_owned(), Var::from_tensor(&tensor.copy()?)?));
        Ok(Self { vars: weights.iter().map(var).collect::<Result<_>>()? })
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
        Weights { tensors: self.vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect() }
    }

    /// A real copy of the weights as they are now.
    pub fn snapshot(&self) -> Result<Weights> {
        self.weights().deep_copy()
    }
}
