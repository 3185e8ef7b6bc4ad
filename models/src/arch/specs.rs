//! Which parameters a model has, with their shapes and how they begin.

use super::config::{Mlp, ModelConfig, Norm, Residual};
use super::families::QkvNames;
use super::heads::{SCORE_BIAS, SCORE_WEIGHT};
use crate::kernels::WeightLayout;

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

/// A linear layer of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearLayer {
    /// HuggingFace's name of the module, without `.weight`.
    pub name: String,
    /// Columns of its argument.
    pub n_in: usize,
    /// Columns of its result.
    pub n_out: usize,
}

/// Every linear layer of the blocks, in the order of the forward pass.
pub fn linear_layers(config: &ModelConfig) -> Vec<LinearLayer> {
    let mut specs = Specs::of(config);
    (0..config.n_layers).for_each(|layer_idx| specs.add_block(layer_idx));
    specs.linear_layers
}

/// Every parameter of a model, in the order of the forward pass.
pub fn parameter_specs(config: &ModelConfig, head: HeadKind) -> Vec<ParameterSpec> {
    let (c, names) = (config.hidden_dim, config.family.names());
    let std = Initial::Normal(config.initializer_range);
    let mut specs = Specs::of(config);
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
    linear_layers: Vec<LinearLayer>,
}

impl<'a> Specs<'a> {
    fn of(config: &'a ModelConfig) -> Self {
        Self { config, specs: Vec::new(), linear_layers: Vec::new() }
    }

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
        self.linear_layers.push(LinearLayer { name: name.to_owned(), n_in, n_out });
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
