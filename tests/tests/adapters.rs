//! Adapters that PEFT wrote (`tests/scripts/peft_adapters.py`), merged into their models.

use std::fs;
use std::path::{Path, PathBuf};

use collimate_models::Device;
use collimate_models::arch::{Adapter, HeadKind, LanguageModel, PackedSequences, ScalarModel, load_model};
use collimate_models::kernels::{self, WeightLayout};
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
    let Expected { sequences, logits, scores, .. } = expected(name);
    let packed = PackedSequences::new(&sequences);
    let rows = last_rows(&packed);
    if !scores.is_empty() {
        let (config, weights) = load_model(dir, HeadKind::Scalar, &Device::Cpu).unwrap();
        let found = ScalarModel::frozen(&config, &weights).unwrap().scalars_at(&packed, &rows).unwrap();
        return fixture::assert_close(found.to_vec1::<f32>().unwrap(), scores, 2e-5, name);
    }
    let (config, weights) = load_model(dir, HeadKind::Language, &Device::Cpu).unwrap();
    let model = LanguageModel::frozen(&config, &weights).unwrap();
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
