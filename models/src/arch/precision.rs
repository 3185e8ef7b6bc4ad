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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::arch::{Decoder, GenerationModel, HeadKind, LanguageModel, ModelConfig, PackedSequences, Parameters};
    use crate::kernels;
    use crate::kernels::testing::flat;
    use crate::testing::{gpt2, llama, tokens, weights};
    use crate::train::{LmExample, LmTrainer, OptimConfig};

    /// Hidden states over weights as they are stored, and laid out for generation.
    fn hidden(config: &Arc<ModelConfig>, precision: Precision) -> (Vec<f32>, Vec<f32>) {
        let weights = weights(config, HeadKind::Language, 1).with_precision(precision);
        let packed = PackedSequences::new(&[tokens(9, 1), tokens(5, 2)]);
        let of = |decoder: &Decoder| flat(&decoder.forward_packed(&packed).unwrap());
        let stored = LanguageModel::new(config, &weights).unwrap();
        let laid_out = GenerationModel::new(config, &weights).unwrap();
        (of(stored.decoder()), of(laid_out.decoder()))
    }

    #[test]
    fn bf16_is_close_to_f32_and_not_the_same_and_leaves_the_cpu_alone_unless_emulated() {
        for config in [gpt2(), llama()] {
            let (exact, _) = hidden(&config, Precision::F32);
            assert_eq!(hidden(&config, Precision::Bf16).0, exact);
            let (stored, laid_out) = hidden(&config, Precision::Bf16Emulated);
            assert_eq!(stored, laid_out);
            assert_ne!(stored, exact);
            for (a, b) in stored.iter().zip(&exact) {
                // bf16 has 8 bits: a sum of products is off by some 2^-8 of its terms.
                assert!((a - b).abs() < 0.05, "{a}, in f32 {b}");
            }
        }
    }

    #[test]
    fn every_parameter_stays_f32_and_receives_an_f32_gradient() {
        for config in [gpt2(), llama()] {
            let weights = weights(&config, HeadKind::Language, 1).with_precision(Precision::Bf16Emulated);
            let parameters = Parameters::from_weights(&weights).unwrap();
            let model = LanguageModel::new(&config, &parameters.weights()).unwrap();
            let packed = PackedSequences::new(&[tokens(9, 1)]);
            let rows: Vec<u32> = (0..8).collect();
            let loss = model.logprobs_at(&packed, &rows, &packed.ids[1..], 1.0).unwrap().logprobs.mean_all().unwrap();
            let gradients = loss.backward().unwrap();
            for (name, var) in parameters.iter() {
                let gradient = gradients.get(var).unwrap_or_else(|| panic!("`{name}` has no gradient"));
                assert_eq!((var.dtype(), gradient.dtype()), (DType::F32, DType::F32), "{name}");
                assert!(gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "{name}");
            }
        }
    }

    #[test]
    fn a_model_learns_by_products_in_bf16() {
        let config = llama();
        let weights = weights(&config, HeadKind::Language, 1).with_precision(Precision::Bf16Emulated);
        let optim = OptimConfig { lr: 1e-2, ..OptimConfig::default() };
        let mut trainer = LmTrainer::new(&config, &weights, &optim, 100).unwrap();
        assert_eq!(trainer.weights().unwrap().precision(), Precision::Bf16Emulated);
        let batch = [LmExample::text(tokens(12, 3))];
        let first = trainer.step(&batch).unwrap().loss;
        let last = (0..20).map(|_| trainer.step(&batch).unwrap().loss).last().unwrap();
        assert!(last < 0.5 * first, "{first} to {last}");
    }

    #[test]
    fn what_has_no_fused_kernel_is_named() {
        assert!(kernels::composed_on(&Device::Cpu, DType::F32).is_empty());
        let names = kernels::composed_on(&Device::Cpu, Precision::Bf16Emulated.on(&Device::Cpu));
        assert_eq!(names, ["linear layers", "layers with adapters", "log-probabilities", "losses over tokens"]);
    }
}
