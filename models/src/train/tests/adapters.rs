//! Training by adapters on a frozen base.

use std::sync::Arc;

use super::*;
use crate::arch::{LoraConfig, ModelConfig, PackedSequences};
use crate::rng;

fn kinds() -> Vec<Arc<ModelConfig>> {
    testing::each_kind().into_iter().chain([testing::gpt_neox()]).collect()
}

fn hidden(config: &Arc<ModelConfig>, weights: &Weights) -> Vec<f32> {
    let packed = PackedSequences::new(&[testing::tokens(9, 1), testing::tokens(4, 2)]);
    let model = LanguageModel::frozen(config, weights).unwrap();
    model.decoder().forward_packed(&packed).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The whole model with the adapters in its matrices.
fn merged(config: &ModelConfig, head: HeadKind, weights: &Weights) -> Weights {
    let specs = crate::arch::parameter_specs(config, head);
    Weights::new(specs.into_iter().map(|s| (s.name.clone(), weights.merged(config, &s.name).unwrap())).collect())
}

#[test]
fn fresh_adapters_change_no_bit_and_trained_ones_compute_what_the_merged_model_does() {
    for config in kinds() {
        let plain = testing::weights(&config, HeadKind::Language, 1);
        let base = plain.clone().into_base(&config).unwrap();
        assert_eq!(hidden(&config, &base), hidden(&config, &plain), "{:?}", config.family);
        let mut rng = rng::for_purpose(1, "adapters");
        let fresh = base.adapted(&config, HeadKind::Language, &LoraConfig::default(), &mut rng).unwrap();
        assert_eq!(hidden(&config, &fresh), hidden(&config, &plain), "{:?}", config.family);

        let adapted = testing::adapted(&config, HeadKind::Language, 1);
        let (own, whole) = (hidden(&config, &adapted), merged(&config, HeadKind::Language, &adapted));
        whole.check(&config, HeadKind::Language, None).unwrap();
        let gap = own.iter().zip(hidden(&config, &whole)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(gap < 1e-4, "{:?}: {gap}", config.family);
        let moved = own.iter().zip(hidden(&config, &plain)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 1e-2, "{:?}: {moved}", config.family);
    }
}

#[test]
fn every_matrix_of_every_adapter_and_the_scalar_head_get_a_gradient_and_nothing_else_is_trained() -> Result<()> {
    for model in kinds() {
        let weights = testing::adapted(&model, HeadKind::Language, 1);
        let mut policy = LmTrainer::new(&model, &weights, &config(1000), 10)?;
        policy.step(&demonstrations())?;
        let reward_weights = testing::adapted(&model, HeadKind::Scalar, 1);
        let mut reward = RewardTrainer::new(&model, &reward_weights, &config(1000), 10)?;
        reward.step(&comparisons())?;
        let n_layers = crate::arch::linear_layers(&model).len();
        assert_eq!((weights.iter().count(), reward_weights.iter().count()), (2 * n_layers, 2 * n_layers + 2));
        for (weights, gradients) in [(&weights, policy.gradients()), (&reward_weights, reward.gradients())] {
            for (name, _) in weights.iter() {
                let gradient = gradients.get(name).unwrap_or_else(|| panic!("`{name}` got no gradient"));
                let size = gradient.sqr()?.sum_all()?.to_scalar::<f32>()?;
                assert!(size > 0.0 || name == SCORE_BIAS, "`{name}` has a gradient of zero");
            }
        }
        // The step has moved the adapters, and left the base as it was.
        let after = policy.weights()?;
        assert!(after.iter().all(|(name, tensor)| {
            let gap = (tensor - weights.get(name).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
            gap.to_scalar::<f32>().unwrap() > 0.0
        }));
        let without = after.with_tensors([].into());
        let plain = testing::weights(&model, HeadKind::Language, 1);
        assert_eq!(hidden(&model, &without), hidden(&model, &plain));
    }
    Ok(())
}

/// By the chain rule: with W' = W + s B A, ∂/∂B = s (∂/∂W') Aᵀ and ∂/∂A = s Bᵀ (∂/∂W').
#[test]
fn an_adapters_gradient_is_that_of_the_matrix_it_adds_to_by_the_chain_rule() -> Result<()> {
    for model in kinds() {
        let adapted = testing::adapted(&model, HeadKind::Language, 2);
        let whole = merged(&model, HeadKind::Language, &adapted);
        let (mut own, mut full) =
            (LmTrainer::new(&model, &adapted, &config(1000), 10)?, LmTrainer::new(&model, &whole, &config(1000), 10)?);
        own.step(&demonstrations())?;
        full.step(&demonstrations())?;
        let scale = 6.0 / 3.0;
        for layer in crate::arch::linear_layers(&model) {
            let name = layer.name;
            let dw = full.gradients().get(&format!("{name}.weight")).unwrap();
            let dw = if dw.dims() == [layer.n_out, layer.n_in] && model.family != crate::arch::Family::Gpt2 {
                dw.clone()
            } else {
                dw.t()?
            };
            let (a, b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
            let by_a = (adapted.get(&b)?.t()?.matmul(&dw)? * scale)?;
            let by_b = (dw.matmul(&adapted.get(&a)?.t()?)? * scale)?;
            for (name, expected) in [(a, by_a), (b, by_b)] {
                let found = own.gradients().get(&name).unwrap();
                let gap = (found - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
                let size = expected.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(gap < 1e-4 * size.max(1.0), "{:?} {name}: {gap} of {size}", model.family);
            }
        }
    }
    Ok(())
}

#[test]
fn settings_that_fit_no_layer_are_refused_with_the_layers_there_are() {
    let model = testing::llama();
    let targets = |names: &[&str], r: usize, lora_alpha: f64| {
        let target_modules = names.iter().map(|name| name.to_string()).collect();
        LoraConfig { r, lora_alpha, target_modules, use_rslora: false }.targets(&model)
    };
    assert_eq!(targets(&["q_proj", "mlp.up_proj"], 1, 1.0).unwrap().len(), 4);
    assert_eq!(targets(&["model.layers.1.self_attn.v_proj"], 1, 1.0).unwrap().len(), 1);
    let message = targets(&["q_proj", "c_attn"], 1, 1.0).unwrap_err().to_string();
    assert!(
        message.contains("\"c_attn\", which fits no linear layer") && message.contains("q_proj, k_proj"),
        "{message}"
    );
    assert!(targets(&["proj"], 1, 1.0).is_err());
    assert!(targets(&[], 1, 1.0).unwrap_err().to_string().contains("`lora.target_modules` is empty"));
    assert!(targets(&["q_proj"], 0, 1.0).unwrap_err().to_string().contains("`lora.r` is 0"));
    assert!(targets(&["q_proj"], 1, 0.0).unwrap_err().to_string().contains("`lora.lora_alpha` is 0"));
    let stabilised = LoraConfig { r: 4, lora_alpha: 6.0, use_rslora: true, ..LoraConfig::default() };
    assert_eq!((stabilised.scale(), LoraConfig { use_rslora: false, ..stabilised.clone() }.scale()), (3.0, 1.5));
}
