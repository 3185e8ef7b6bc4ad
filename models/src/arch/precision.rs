//! What matrices are multiplied in.

use candle_core::{DType, Device, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What matrices are multiplied in. Whichever it is, parameters, their gradients and moments, the residual stream, norms,
/// attention, softmaxes, log-probabilities and losses are f32: each product takes copies of its arguments in bf16, and its
/// result is f32 again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// f32 everywhere.
    #[default]
    F32,
    /// bf16 on GPUs; f32 on the CPU, which has no fast products in bf16.
    Bf16,
    /// bf16 on the CPU too, where each product widens its arguments again: slow, but it shows on any machine what bf16
    /// does to a model.
    Bf16Emulated,
}

impl Precision {
    /// What a product on this device takes.
    pub fn on(self, device: &Device) -> DType {
        match self {
            Precision::Bf16 if !device.is_cpu() => DType::BF16,
            Precision::Bf16Emulated => DType::BF16,
            Precision::F32 | Precision::Bf16 => DType::F32,
        }
    }

    /// A matrix as products take it: itself in f32, or a copy whose gradient goes on to it.
    pub(super) fn matrix(self, weight: &Tensor) -> Result<Tensor> {
        weight.to_dtype(self.on(weight.device()))
    }
}
