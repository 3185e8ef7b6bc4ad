use std::io::Write;

use serde_json::json;
use tempfile::TempDir;

use super::*;

fn gpt2() -> ModelConfig {
    let value = json!({
        "model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16,
        "eos_token_id": 10,
    });
    ModelConfig::from_hf(Path::new("config.json"), value).unwrap()
}

fn llama(tied: bool) -> ModelConfig {
    let value = json!({
        "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12, "max_position_embeddings": 16,
        "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": [2, 3],
    });
    ModelConfig::from_hf(Path::new("config.json"), value).unwrap()
}

fn fresh(config: &ModelConfig, head: HeadKind) -> Weights {
    Weights::initialise(config, head, &mut rng::for_purpose(7, "weights"), &Device::Cpu).unwrap()
}

fn saved(config: &ModelConfig, head: HeadKind) -> (TempDir, Weights) {
    let dir = tempfile::tempdir().unwrap();
    let weights = fresh(config, head);
    save_model(dir.path(), config, head, &weights).unwrap();
    (dir, weights)
}

/// Writes tensors as they are, past every check of `save_model`.
fn overwrite(dir: &Path, tensors: &BTreeMap<String, Tensor>) {
    safetensors::serialize_to_file(tensors.iter(), None, &dir.join(WEIGHTS_FILE)).unwrap();
}

fn tensors_of(weights: &Weights) -> BTreeMap<String, Tensor> {
    weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

fn assert_same(a: &Weights, b: &Weights) {
    assert_eq!(a.iter().map(|(name, _)| name).collect::<Vec<_>>(), b.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for ((name, x), (_, y)) in a.iter().zip(b.iter()) {
        assert_eq!(bits(x), bits(y), "{name}");
    }
}

fn load_error(dir: &Path, head: HeadKind) -> String {
    load_model(dir, head, &Device::Cpu).unwrap_err().to_string()
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    }
}

#[test]
fn a_saved_model_loads_bit_for_bit() {
    for config in [gpt2(), llama(false), llama(true)] {
        for head in [HeadKind::Language, HeadKind::Scalar] {
            let (dir, weights) = saved(&config, head);
            let (loaded_config, loaded) = load_model(dir.path(), head, &Device::Cpu).unwrap();
            assert_eq!(*loaded_config, config);
            assert_same(&loaded, &weights);
        }
    }
}

#[test]
fn saving_twice_writes_the_same_bytes() {
    let (dir, weights) = saved(&llama(false), HeadKind::Language);
    let read = || ["config.json", WEIGHTS_FILE, GENERATION_FILE].map(|name| fs::read(dir.path().join(name)).unwrap());
    let first = read();
    save_model(dir.path(), &llama(false), HeadKind::Language, &weights).unwrap();
    assert_eq!(first, read());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "a temporary file was left behind");
}

#[test]
fn the_score_bias_travels_in_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let mut weights = fresh(&gpt2(), HeadKind::Scalar);
    weights.insert(SCORE_BIAS, Tensor::new(&[-0.3f32], &Device::Cpu).unwrap());
    save_model(dir.path(), &gpt2(), HeadKind::Scalar, &weights).unwrap();
    let (config, loaded) = load_model(dir.path(), HeadKind::Scalar, &Device::Cpu).unwrap();
    assert_eq!(config.score_bias as f32, -0.3);
    assert_same(&loaded, &weights);
}

#[test]
fn a_missing_file_is_named() {
    let empty = tempfile::tempdir().unwrap();
    assert_says(&load_error(empty.path(), HeadKind::Language), &["config.json"]);
    let (dir, _) = saved(&gpt2(), HeadKind::Language);
    fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    assert_says(&load_error(dir.path(), HeadKind::Language), &["model.safetensors"]);
    fs::write(dir.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    assert_says(&load_error(dir.path(), HeadKind::Language), &["pytorch_model.bin", "as safetensors"]);
}

#[test]
fn a_file_cut_short_is_refused_wherever_the_cut_is() {
    let (dir, _) = saved(&gpt2(), HeadKind::Language);
    let path = dir.path().join(WEIGHTS_FILE);
    let whole = fs::read(&path).unwrap();
    for length in [0, 5, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_says(&load_error(dir.path(), HeadKind::Language), &["model.safetensors", "cut short"]);
    }
}

#[test]
fn another_kind_of_file_is_refused_by_what_it_is() {
    let (dir, _) = saved(&gpt2(), HeadKind::Language);
    let path = dir.path().join(WEIGHTS_FILE);
    for (content, says) in [
        (&b"PK\x03\x04 archive/data.pkl and more"[..], "pickle"),
        (b"\x80\x02}q\x00X and more", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x10\0\0\0\0\0\0\0no json here, at all", "not a safetensors file"),
    ] {
        fs::write(&path, content).unwrap();
        assert_says(&load_error(dir.path(), HeadKind::Language), &["model.safetensors", says]);
    }
}

#[test]
fn a_tensor_missing_misshapen_or_too_many_is_named() {
    let (dir, weights) = saved(&gpt2(), HeadKind::Language);
    let name = "transformer.h.1.mlp.c_fc.weight";

    let mut tensors = tensors_of(&weights);
    let tensor = tensors.remove(name).unwrap();
    overwrite(dir.path(), &tensors);
    assert_says(&load_error(dir.path(), HeadKind::Language), &[name, "missing", "model.safetensors"]);

    tensors.insert(name.into(), tensor.t().unwrap().contiguous().unwrap());
    overwrite(dir.path(), &tensors);
    assert_says(&load_error(dir.path(), HeadKind::Language), &[name, "[32, 8]", "[8, 32]", "model.safetensors"]);

    tensors.insert(name.into(), tensor.clone());
    tensors.insert("transformer.h.2.mlp.c_fc.weight".into(), tensor);
    overwrite(dir.path(), &tensors);
    assert_says(&load_error(dir.path(), HeadKind::Language), &["transformer.h.2.mlp.c_fc.weight", "not part"]);
}

#[test]
fn weights_that_do_not_fit_the_config_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let mut weights = fresh(&gpt2(), HeadKind::Language);
    weights.insert("extra", Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    let message = save_model(dir.path(), &gpt2(), HeadKind::Language, &weights).unwrap_err().to_string();
    assert_says(&message, &["extra"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_integer_tensor_is_refused() {
    let (dir, weights) = saved(&gpt2(), HeadKind::Language);
    let mut tensors = tensors_of(&weights);
    tensors.insert("transformer.ln_f.bias".into(), Tensor::zeros(8, DType::I64, &Device::Cpu).unwrap());
    overwrite(dir.path(), &tensors);
    assert_says(&load_error(dir.path(), HeadKind::Language), &["transformer.ln_f.bias", "I64", "BF16"]);
}

#[test]
fn a_scalar_head_is_never_made_up() {
    let (dir, _) = saved(&llama(false), HeadKind::Language);
    assert_says(&load_error(dir.path(), HeadKind::Scalar), &["score.weight", "missing"]);
}

#[test]
fn a_reward_model_is_no_language_model() {
    let (dir, _) = saved(&gpt2(), HeadKind::Scalar);
    assert_says(&load_error(dir.path(), HeadKind::Language), &["score.weight", "not part"]);
    let (dir, _) = saved(&llama(false), HeadKind::Scalar);
    assert_says(&load_error(dir.path(), HeadKind::Language), &["lm_head.weight", "missing"]);
}

#[test]
fn names_without_prefix_and_harmless_buffers_are_accepted() {
    let (dir, weights) = saved(&gpt2(), HeadKind::Language);
    let mut tensors: BTreeMap<String, Tensor> = weights
        .iter()
        .map(|(name, tensor)| (name.strip_prefix("transformer.").unwrap().to_owned(), tensor.clone()))
        .collect();
    tensors.insert("h.0.attn.bias".into(), Tensor::ones((1, 1, 16, 16), DType::U8, &Device::Cpu).unwrap());
    tensors.insert("h.0.attn.masked_bias".into(), Tensor::new(-1e4f32, &Device::Cpu).unwrap());
    tensors.insert("lm_head.weight".into(), tensors["wte.weight"].copy().unwrap());
    overwrite(dir.path(), &tensors);
    assert_same(&load_model(dir.path(), HeadKind::Language, &Device::Cpu).unwrap().1, &weights);
}

#[test]
fn half_precision_becomes_f32() {
    let (dir, weights) = saved(&llama(true), HeadKind::Language);
    for dtype in [DType::F16, DType::BF16] {
        let halved = tensors_of(&weights).into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()));
        let halved: BTreeMap<_, _> = halved.collect();
        overwrite(dir.path(), &halved);
        let (_, loaded) = load_model(dir.path(), HeadKind::Language, &Device::Cpu).unwrap();
        for (name, tensor) in loaded.iter() {
            assert_eq!(bits(tensor), bits(&halved[name].to_dtype(DType::F32).unwrap()), "{name}");
        }
    }
}

#[test]
fn shards_load_as_one_and_a_lost_one_is_named() {
    let (dir, weights) = saved(&llama(false), HeadKind::Language);
    fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    let (mut map, mut halves) = (serde_json::Map::new(), [BTreeMap::new(), BTreeMap::new()]);
    for (i, (name, tensor)) in tensors_of(&weights).into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("model-0000{}-of-00002.safetensors", i % 2 + 1)));
        halves[i % 2].insert(name, tensor);
    }
    for (i, half) in halves.iter().enumerate() {
        let path = dir.path().join(format!("model-0000{}-of-00002.safetensors", i + 1));
        safetensors::serialize_to_file(half.iter(), None, &path).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::File::create(dir.path().join(INDEX_FILE)).unwrap().write_all(index.as_bytes()).unwrap();
    assert_same(&load_model(dir.path(), HeadKind::Language, &Device::Cpu).unwrap().1, &weights);

    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_says(&load_error(dir.path(), HeadKind::Language), &["model-00002-of-00002.safetensors"]);
    fs::copy(dir.path().join("model-00001-of-00002.safetensors"), dir.path().join("model-00002-of-00002.safetensors"))
        .unwrap();
    assert_says(&load_error(dir.path(), HeadKind::Language), &["in another shard too"]);
}

#[test]
fn a_shard_outside_the_directory_is_refused() {
    let (dir, _) = saved(&gpt2(), HeadKind::Language);
    fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    let index = json!({"weight_map": {"transformer.wte.weight": "../elsewhere.safetensors"}});
    fs::write(dir.path().join(INDEX_FILE), index.to_string()).unwrap();
    assert_says(&load_error(dir.path(), HeadKind::Language), &["../elsewhere.safetensors", "no file name"]);
}

#[test]
fn generation_config_decides_the_end_tokens() {
    let (dir, _) = saved(&gpt2(), HeadKind::Language);
    fs::write(dir.path().join(GENERATION_FILE), r#"{"eos_token_id": [4, 9]}"#).unwrap();
    let (config, _) = load_model(dir.path(), HeadKind::Language, &Device::Cpu).unwrap();
    assert_eq!(config.eos_token_ids, [4, 9]);
    fs::write(dir.path().join(GENERATION_FILE), r#"{"eos_token_id": "x"}"#).unwrap();
    assert_says(&load_error(dir.path(), HeadKind::Language), &["generation_config.json", "eos_token_id"]);
}

#[test]
fn a_reward_model_begins_as_the_language_model() {
    for config in [gpt2(), llama(false)] {
        let language = fresh(&config, HeadKind::Language);
        let scalar = scalar_from_language(&config, &language, &mut rng::for_purpose(7, "head")).unwrap();
        for (name, tensor) in scalar.iter().filter(|(name, _)| !name.starts_with("score.")) {
            assert_eq!(bits(tensor), bits(language.get(name).unwrap()), "{name}");
        }
        assert_eq!(scalar.get(SCORE_BIAS).unwrap().to_vec1::<f32>().unwrap(), [0.0]);
        assert!(scalar.get(COMMON_UNEMBEDDING).is_err());
        assert_eq!(scalar.get(SCORE_WEIGHT).unwrap().dims(), [1, 8]);
    }
}
