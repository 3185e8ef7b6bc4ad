//! Low-rank adapters (Hu et al. 2021): small matrices in training on a base that does not change and is shared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::ModelConfig;
use super::heads::{SCORE_BIAS, SCORE_WEIGHT};
use super::specs::{HeadKind, LinearLayer, linear_layers};
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::kernels::WeightLayout;
use crate::rng::{self, SeededRng};

/// What follows a module's name in the names of its adapter, as PEFT has it: `(R, I)`.
pub(super) const A: &str = ".lora_A.weight";
/// `(O, R)`.
pub(super) const B: &str = ".lora_B.weight";
/// PEFT's word for every linear layer but the head.
pub(super) const ALL_LINEAR: &str = "all-linear";

/// Training by adapters alone, under PEFT's names. There is no dropout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// The adapters' rank.
    pub r: usize,
    /// What an adapter adds is multiplied by lora_alpha / r.
    pub lora_alpha: f64,
    /// The linear layers that get an adapter, by how their names end (as in ["q_proj", "v_proj"]); ["all-linear"] gives
    /// one to each linear layer of the blocks.
    pub target_modules: Vec<String>,
    /// Multiplies by lora_alpha / √r instead (Kalajdzievski 2023).
    pub use_rslora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { r: 16, lora_alpha: 32.0, target_modules: vec![ALL_LINEAR.into()], use_rslora: false }
    }
}

impl LoraConfig {
    /// What B A is multiplied by.
    pub fn scale(&self) -> f64 {
        self.lora_alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }

    /// The layers that get an adapter.
    ///
    /// # Errors
    /// A setting makes no sense, or a name fits no layer of the model.
    pub fn targets(&self, config: &ModelConfig) -> Result<Vec<LinearLayer>> {
        if self.r == 0 {
            return Err(Error::invalid("`lora.r` is 0, expected a rank of at least 1"));
        }
        if !(self.lora_alpha > 0.0 && self.lora_alpha.is_finite()) {
            return Err(Error::invalid(format!("`lora.lora_alpha` is {}, expected a number above 0", self.lora_alpha)));
        }
        let layers = linear_layers(config);
        let fits = |target: &str, layer: &LinearLayer| {
            target == ALL_LINEAR || layer.name == target || layer.name.ends_with(&format!(".{target}"))
        };
        if let Some(target) = self.target_modules.iter().find(|target| !layers.iter().any(|layer| fits(target, layer)))
        {
            let first_block = &layers[..layers.len() / config.n_layers.max(1)];
            let ends: Vec<&str> = first_block.iter().filter_map(|layer| layer.name.rsplit('.').next()).collect();
            return Err(Error::invalid(format!(
                "`lora.target_modules` names {target:?}, which fits no linear layer of this model; it has {}",
                ends.join(", ")
            )));
        }
        let layers = layers.into_iter().filter(|layer| self.target_modules.iter().any(|target| fits(target, layer)));
        let layers: Vec<LinearLayer> = layers.collect();
        if layers.is_empty() {
            return Err(Error::invalid("`lora.target_modules` is empty: nothing would be trained"));
        }
        Ok(layers)
    }
}

/// A layer's adapter.
#[derive(Clone, Debug)]
pub(super) struct LoraTensors {
    pub a: Tensor, // (R, I)
    pub b: Tensor, // (O, R)
    pub scale: f32,
}

/// A base, and by how much each of its layers' adapters counts.
#[derive(Clone, Debug)]
pub(super) struct OnBase {
    pub base: Arc<Base>,
    /// By module.
    pub scales: BTreeMap<String, f64>,
}

/// Tensors that never change. Matrices of linear layers lie as `(in, out)` in memory, which small batches read fastest,
/// and have their own shape as a view.
#[derive(Debug)]
pub(super) struct Base {
    tensors: BTreeMap<String, Tensor>,
    device: Device,
    /// The same on other devices.
    elsewhere: Mutex<Vec<Arc<Base>>>,
}

impl Base {
    fn new(tensors: BTreeMap<String, Tensor>, device: Device) -> Self {
        Self { tensors, device, elsewhere: Mutex::new(Vec::new()) }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }
}

impl OnBase {
    /// The adapter of a module among `tensors`.
    pub(super) fn adapter(&self, module: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Option<LoraTensors>> {
        let Some(a) = tensors.get(&format!("{module}{A}")) else { return Ok(None) };
        let (b, missing) = (format!("{module}{B}"), |name| Error::MissingTensor { name, path: None });
        let b = tensors.get(&b).ok_or_else(|| missing(b))?;
        let scale = self.scales.get(module).copied().unwrap_or(1.0) as f32;
        Ok(Some(LoraTensors { a: a.clone(), b: b.clone(), scale }))
    }

    pub(super) fn to_device(&self, device: &Device) -> Result<Self> {
        if self.base.device.same_device(device) {
            return Ok(self.clone());
        }
        // What a panic leaves there is a whole list.
        let mut elsewhere = self.base.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let base = match elsewhere.iter().find(|base| base.device.same_device(device)) {
            Some(base) => base.clone(),
            None => {
                let moved = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_device(device)?));
                let tensors = self.base.tensors.iter().map(moved).collect::<Result<_>>()?;
                let base = Arc::new(Base::new(tensors, device.clone()));
                elsewhere.push(base.clone());
                base
            }
        };
        Ok(Self { base, scales: self.scales.clone() })
    }
}

impl Weights {
    /// Freezes these weights into a base that stands for itself, and that adapters can stand on. No tensor is there
    /// twice meanwhile. Weights that have a base already are returned as they are.
    pub fn into_base(mut self, config: &ModelConfig) -> Result<Self> {
        if self.on.is_some() {
            return Ok(self);
        }
        let device = self.device().clone();
        if config.family.names().layout == WeightLayout::OutIn {
            for layer in linear_layers(config) {
                let name = format!("{}.weight", layer.name);
                if let Some(weight) = self.tensors.remove(&name) {
                    let turned = weight.t()?.contiguous()?.t()?;
                    self.tensors.insert(name, turned);
                }
            }
        }
        let base = Arc::new(Base::new(self.tensors, device));
        Ok(Self {
            tensors: BTreeMap::new(),
            on: Some(OnBase { base, scales: BTreeMap::new() }),
            precision: self.precision,
        })
    }

    /// Fresh adapters on these weights, which must be a base. A scalar head is trained along with them, not adapted.
    /// A is spread evenly within 1 / √I, which is PEFT's beginning, and B is 0: the model computes what its base does.
    pub fn adapted(
        &self,
        config: &ModelConfig,
        head: HeadKind,
        lora: &LoraConfig,
        rng: &mut SeededRng,
    ) -> Result<Self> {
        let Some(on) = self.on.as_ref().filter(|on| on.scales.is_empty()) else {
            return Err(Error::invalid("adapters need a base that has none yet"));
        };
        let (device, mut tensors, mut scales) = (self.device().clone(), self.tensors.clone(), BTreeMap::new());
        if head == HeadKind::Scalar {
            for name in [SCORE_WEIGHT, SCORE_BIAS] {
                tensors.insert(name.into(), self.get(name)?.clone());
            }
        }
        for LinearLayer { name, n_in, n_out } in lora.targets(config)? {
            let a = rng::uniform(rng, &[lora.r, n_in], 1.0 / (n_in as f64).sqrt(), &device)?;
            tensors.insert(format!("{name}{A}"), a);
            tensors.insert(format!("{name}{B}"), Tensor::zeros((n_out, lora.r), DType::F32, &device)?);
            scales.insert(name, lora.scale());
        }
        Ok(Self { tensors, on: Some(OnBase { base: on.base.clone(), scales }), precision: self.precision })
    }

    /// Own tensors on the same base, with these scales of their adapters.
    pub(super) fn with_adapters(&self, tensors: BTreeMap<String, Tensor>, scales: BTreeMap<String, f64>) -> Self {
        let on = self.on.as_ref().map(|on| OnBase { base: on.base.clone(), scales });
        Self { tensors, on, precision: self.precision }
    }

    /// The tensor of this name with its adapter in it: what the model is without adapters.
    pub fn merged(&self, config: &ModelConfig, name: &str) -> Result<Tensor> {
        let weight = self.get(name)?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        match self.adapter(module)? {
            None => Ok(weight.contiguous()?),
            Some(LoraTensors { a, b, scale }) => {
                let delta = (b.matmul(&a)? * f64::from(scale))?; // (O, I)
                let delta = match config.family.names().layout {
                    WeightLayout::InOut => delta.t()?,
                    WeightLayout::OutIn => delta,
                };
                Ok((weight + delta)?.contiguous()?)
            }
        }
    }
}

/// Whether a tensor's name is one of an adapter on one of these layers.
pub(super) fn is_adapter_of(layers: &[LinearLayer], name: &str) -> bool {
    let module = name.strip_suffix(A).or(name.strip_suffix(B));
    module.is_some_and(|module| layers.iter().any(|layer| layer.name == module))
}
