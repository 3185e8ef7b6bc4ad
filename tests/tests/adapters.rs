//! Adapters that PEFT wrote (`tests/scripts/peft_adapters.py`), merged into their models and put on them as a base; and
//! adapters as they are written for PEFT, which `tests/scripts/check_peft_loads.py` has seen PEFT load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use collimate_models::Device;
use collimate_models::arch::{
    Adapter, HeadKind, LanguageModel, LoraConfig, ModelConfig, PackedSequences, Parameters, SCORE_BIAS, ScalarModel,
    Weights, load_model, save_adapter,
};
use collimate_models::kernels::{self, WeightLayout};
use collimate_models::train::NextTokens;
use collimate_tests::command_line::Home;
use collimate_tests::fixture;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Expected {
    base: String,
    sequences: Vec<Vec<u32>>,
    /// At each sequence's last token, of a language model.
    #[serde(default)]
    logits: Vec<Vec<f32>>,
    /// Of a model with one score.
    #[serde(default)]
    scores: Vec<f32>,
    /// Of a language model: mean over all tokens but the first.
    #[serde(default)]
    loss: f64,
    /// Norms, by the names of the adapter's matrices.
    #[serde(default)]
    gradients: BTreeMap<String, f64>,
}

fn adapter(name: &str) -> PathBuf {
    fixture::path("peft").join(name)
}

fn expected(name: &str) -> Expected {
    serde_json::from_slice(&fs::read(adapter(name).join("expected.json")).unwrap()).unwrap()
}

fn last_rows(packed: &PackedSequences) -> Vec<u32> {
    packed.offsets[1..].iter().map(|end| *end as u32 - 1).collect()
}

fn assert_computes(dir: &Path, name: &str) {
    let head = if expected(name).scores.is_empty() { HeadKind::Language } else { HeadKind::Scalar };
    let (config, weights) = load_model(dir, head, &Device::Cpu).unwrap();
    assert_weights_compute(&config, &weights, name);
}

fn assert_weights_compute(config: &Arc<ModelConfig>, weights: &Weights, name: &str) {
    let Expected { sequences, logits, scores, .. } = expected(name);
    let packed = PackedSequences::new(&sequences);
    let rows = last_rows(&packed);
    if !scores.is_empty() {
        let found = ScalarModel::frozen(config, weights).unwrap().scalars_at(&packed, &rows).unwrap();
        return fixture::assert_close(found.to_vec1::<f32>().unwrap(), scores, 2e-5, name);
    }
    let model = LanguageModel::frozen(config, weights).unwrap();
    let hidden = model.decoder().forward_packed(&packed).unwrap();
    let found = kernels::linear(&hidden, model.unembedding(), WeightLayout::OutIn, None).unwrap();
    let found: Vec<Vec<f32>> = found.to_vec2().unwrap();
    for (row, expected) in rows.iter().zip(logits) {
        fixture::assert_close(found[*row as usize].iter().copied(), expected, 2e-5, name);
    }
}

/// Plain and rank-stabilised scales, ranks and alphas by module, GPT-2's transposed matrices, GPT-NeoX's joined ones,
/// embeddings, and an adapter that makes a reward model of a language model.
#[test]
fn a_merged_model_computes_what_peft_computes() {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    for name in ["llama", "llama_embedding", "gpt2", "gpt_neox", "qwen3", "llama_score"] {
        let base = fixture::path("hf").join(expected(name).base);
        let out = home.path(name);
        let text = [&base, &adapter(name), &out].map(|path| path.to_str().unwrap().to_owned());
        home.succeed(&["merge", &text[0], &text[1], &text[2]]);
        assert_computes(&out, name);
        let again = home.fail(&["merge", &text[0], &text[1], &text[2]]);
        assert!(again.contains("holds a model already"), "{again}");
    }
}

/// An adapter on its frozen base.
fn on_base(name: &str) -> (Arc<ModelConfig>, Option<Weights>) {
    let dir = fixture::path("hf").join(expected(name).base);
    let (config, weights) = load_model(&dir, HeadKind::Language, &Device::Cpu).unwrap();
    let base = weights.into_base(&config).unwrap();
    let adapted = Adapter::load(&adapter(name), &Device::Cpu).unwrap().on_base(&config, &base).unwrap();
    (config, adapted)
}

#[test]
fn an_adapter_on_a_base_computes_what_peft_computes_with_its_gradients() {
    for name in ["llama", "gpt2", "gpt_neox", "qwen3", "llama_score"] {
        let (config, adapted) = on_base(name);
        let adapted = adapted.unwrap();
        assert_weights_compute(&config, &adapted, name);
        let Expected { sequences, gradients, loss, .. } = expected(name);
        if gradients.is_empty() {
            continue;
        }
        let parameters = Parameters::from_weights(&adapted).unwrap();
        assert_eq!(parameters.iter().map(|(name, _)| name).collect::<Vec<_>>(), gradients.keys().collect::<Vec<_>>());
        let model = LanguageModel::new(&config, &parameters.weights()).unwrap();
        let next = NextTokens::new(sequences.iter().map(|sequence| (sequence.as_slice(), 1)));
        let logprobs = model.logprobs_at(&next.packed, &next.rows, &next.targets, 1.0).unwrap().logprobs;
        let mean = logprobs.mean_all().unwrap().neg().unwrap();
        assert!((f64::from(mean.to_scalar::<f32>().unwrap()) - loss).abs() < 1e-5, "{name}");
        let store = mean.backward().unwrap();
        for (name, var) in parameters.iter() {
            let norm = store.get(var).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let expected = gradients[name];
            assert!((f64::from(norm) - expected).abs() < 1e-3 * expected.max(1e-3), "{name}: {norm}, not {expected}");
        }
    }
    let (_, embedding) = on_base("llama_embedding");
    assert!(embedding.is_none(), "an adapter of embeddings can't stand on a base");
}

#[test]
fn an_adapter_is_written_as_peft_wrote_it() {
    let out = tempfile::tempdir().unwrap();
    for (name, head, targets) in [
        ("llama", HeadKind::Language, vec!["down_proj", "q_proj", "v_proj"]),
        ("gpt2", HeadKind::Language, vec!["c_attn", "c_proj"]),
        ("gpt_neox", HeadKind::Language, vec!["all-linear"]),
        ("llama_score", HeadKind::Scalar, vec!["k_proj", "q_proj"]),
    ] {
        let read = |dir: &Path| -> Value {
            serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (config, adapted) = on_base(name);
        let (adapted, theirs) = (adapted.unwrap(), read(&adapter(name)));
        let lora = LoraConfig {
            r: theirs["r"].as_u64().unwrap() as usize,
            lora_alpha: theirs["lora_alpha"].as_f64().unwrap(),
            target_modules: targets.into_iter().map(str::to_owned).collect(),
            use_rslora: theirs["use_rslora"].as_bool().unwrap(),
        };
        let dir = out.path().join(name);
        save_adapter(&dir, &config, head, &adapted, &lora, &expected(name).base).unwrap();
        for (key, value) in read(&dir).as_object().unwrap() {
            let is_same = match (value.as_f64(), theirs[key].as_f64()) {
                (Some(ours), Some(theirs)) => ours == theirs,
                _ if key == "modules_to_save" && !value.is_null() => {
                    theirs[key].as_array().unwrap().contains(&value[0])
                }
                // Of every layer, PEFT writes the whole name and we how it ends: PEFT takes both.
                _ if lora.target_modules == ["all-linear"] && key == "target_modules" => {
                    let ends = |name: &Value| name.as_str().unwrap().rsplit('.').next().unwrap().to_owned();
                    theirs[key].as_array().unwrap().iter().map(ends).collect::<BTreeSet<_>>()
                        == value.as_array().unwrap().iter().map(ends).collect()
                }
                _ => *value == theirs[key],
            };
            assert!(is_same, "{name}: `{key}` is {value}, and PEFT's {}", theirs[key]);
        }
        let tensors = |dir: &Path| candle_core::safetensors::load(dir.join("adapter_model.safetensors"), &Device::Cpu);
        let (ours, theirs) = (tensors(&dir).unwrap(), tensors(&adapter(name)).unwrap());
        assert_eq!(ours.keys().collect::<BTreeSet<_>>(), theirs.keys().collect::<BTreeSet<_>>(), "{name}");
        for (name, tensor) in &ours {
            let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(tensor.dims(), theirs[name].dims(), "{name}");
            assert_eq!(numbers(tensor), numbers(&theirs[name]), "{name}");
        }
        let again = Adapter::load(&dir, &Device::Cpu).unwrap();
        assert_eq!(again.base(), Some(expected(name).base.as_str()));
    }
}

#[test]
fn a_bias_of_the_scalar_head_comes_back() {
    let (config, adapted) = on_base("llama_score");
    let mut adapted = adapted.unwrap();
    adapted.insert(SCORE_BIAS, Tensor::new(&[0.375f32], &Device::Cpu).unwrap());
    let lora = LoraConfig {
        r: 2,
        lora_alpha: 4.0,
        target_modules: vec!["q_proj".into(), "k_proj".into()],
        ..LoraConfig::default()
    };
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &config, HeadKind::Scalar, &adapted, &lora, "somewhere").unwrap();
    let adapter = Adapter::load(dir.path(), &Device::Cpu).unwrap();
    let (_, base) = load_model(&fixture::path("hf").join("llama"), HeadKind::Language, &Device::Cpu).unwrap();
    let (head, merged) = adapter.merged(&config, HeadKind::Language, &base).unwrap();
    assert_eq!(head, HeadKind::Scalar);
    assert_eq!(merged.get(SCORE_BIAS).unwrap().to_vec1::<f32>().unwrap(), [0.375]);
    let on_base = adapter.on_base(&config, &base.into_base(&config).unwrap()).unwrap().unwrap();
    assert_eq!(on_base.get(SCORE_BIAS).unwrap().to_vec1::<f32>().unwrap(), [0.375]);
}

/// The adapter of this name with its settings changed.
fn changed(name: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(adapter(name).join(file), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("adapter_config.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut settings);
    fs::write(&path, settings.to_string()).unwrap();
    dir
}

#[test]
fn what_an_adapter_asks_for_and_is_not_implemented_is_refused_by_name() {
    for (key, value, expected) in [
        ("peft_type", json!("IA3"), "`peft_type` is \"IA3\""),
        ("use_dora", json!(true), "`use_dora` is true"),
        ("bias", json!("lora_only"), "`bias` is \"lora_only\""),
        ("lora_bias", json!(true), "`lora_bias` is true"),
        ("trainable_token_indices", json!([1]), "`trainable_token_indices` is [1]"),
        ("from_the_future", json!("on"), "`from_the_future` is \"on\""),
        ("lora_alpha", json!("8"), "key `lora_alpha` is missing, or no number"),
    ] {
        let dir = changed("llama", |settings| settings[key] = value.clone());
        let message = Adapter::load(dir.path(), &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("adapter_config.json: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn an_adapter_of_another_model_is_refused_with_the_weight_that_does_not_fit() {
    let merge = |base: &str, name: &str| {
        let (config, weights) = load_model(&fixture::path("hf").join(base), HeadKind::Language, &Device::Cpu).unwrap();
        let adapter = Adapter::load(&adapter(name), &Device::Cpu).unwrap();
        adapter.merged(&config, HeadKind::Language, &weights).unwrap_err().to_string()
    };
    let message = merge("gpt2", "llama");
    assert!(
        message.contains("adapts `model.layers.0.mlp.down_proj.weight`, which the model does not have"),
        "{message}"
    );
    let message = merge("qwen2", "llama");
    assert!(message.contains("adapts `model.layers.0.self_attn.q_proj.weight` by [32, 24]"), "{message}");
    let message = merge("llama_tied", "llama_embedding");
    assert!(message.contains("the unembedding too") || message.contains("does not have"), "{message}");

    let dir = changed("llama", |_| ());
    fs::rename(dir.path().join("adapter_model.safetensors"), dir.path().join("adapter_model.bin")).unwrap();
    let message = Adapter::load(dir.path(), &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("a pickle can run code"), "{message}");
}
