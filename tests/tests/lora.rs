//! The recipe by adapters: one SFT model in memory for policy, reference, value and reward model.

use std::fs;
use std::path::Path;

use candle_core::Tensor;
use collimate_models::Device;
use collimate_models::arch::{Adapter, HeadKind, Weights, load_model};
use collimate_tests::command_line::{Home, RECIPE};
use serde_json::Value;

const ADAPTERS: &str = r#"
[sft.lora]
r = 2

[reward.lora]
r = 3
lora_alpha = 6

[ppo.lora]
r = 2
target_modules = ["q_proj", "v_proj"]
"#;

fn home() -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    home.write("recipe.toml", format!("{RECIPE}{ADAPTERS}"));
    home
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn load(dir: &Path, head: HeadKind) -> Weights {
    load_model(dir, head, &Device::Cpu).unwrap().1
}

#[test]
fn every_stage_trains_adapters_alone_and_writes_them_and_the_whole_model() {
    let home = home();
    home.succeed(&["run", "recipe.toml", "--out", "out"]);
    for (stage, base, head, r, targets) in [
        ("sft", "pretrain", HeadKind::Language, 2, 7),
        ("reward", "sft", HeadKind::Scalar, 3, 7),
        ("ppo", "sft", HeadKind::Language, 2, 2),
    ] {
        let path = |name: &str| home.path(format!("out/{name}"));
        let adapter = path(stage).join("adapter");
        let settings: Value = serde_json::from_slice(&fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(settings["r"], r, "{stage}");
        assert_eq!(settings["target_modules"].as_array().unwrap().len(), targets, "{stage}");
        let base_dir = path(base).join("model");
        let named = settings["base_model_name_or_path"].as_str().unwrap();
        assert_eq!(Path::new(named), base_dir.canonicalize().unwrap(), "{stage}");

        // `model` is the base with the adapter in it, and the adapter has learnt something.
        let (config, base) = load_model(&base_dir, HeadKind::Language, &Device::Cpu).unwrap();
        let loaded = Adapter::load(&adapter, &Device::Cpu).unwrap();
        let (found, merged) = loaded.merged(&config, HeadKind::Language, &base).unwrap();
        assert_eq!(found, head, "{stage}");
        let model = load(&path(stage).join("model"), head);
        let mut n_changed = 0;
        for (name, tensor) in merged.iter() {
            assert_eq!(numbers(tensor), numbers(model.get(name).unwrap()), "{stage}: {name}");
            n_changed += usize::from(base.get(name).is_ok_and(|before| numbers(before) != numbers(tensor)));
        }
        // One layer, and no other tensor of it.
        assert_eq!(n_changed, targets, "{stage}");
    }
    // An adapter is a model wherever one is asked for: here, the reward model's scores are the same both ways.
    home.write("texts.jsonl", "{\"text\": \"the cat was happy\"}\n{\"text\": \"the dog was cold\"}\n");
    let scores = |model: &str| home.succeed(&["score", model, "texts.jsonl"]);
    let (whole, adapter) = (scores("out/reward/model"), scores("out/reward/adapter"));
    assert_eq!(whole.lines().count(), 2);
    assert_eq!(whole, adapter);
    let config = home.path("out/reward/adapter/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("sft", "moved")).unwrap();
    let error = home.fail(&["score", "out/reward/adapter", "texts.jsonl"]);
    assert!(error.contains("out/moved/model as the model that it belongs to, and nothing is there"), "{error}");
    fs::write(&config, text).unwrap();
    let error = home.fail(&["generate", "out/reward/adapter", "--prompt", "the"]);
    assert!(error.contains("holds an adapter that makes a reward model, expected a language model"), "{error}");
}

#[test]
fn a_run_by_adapters_comes_out_the_same_in_its_replay_and_when_it_is_begun_again() {
    let home = home();
    home.succeed(&["run", "recipe.toml", "--out", "one"]);
    home.succeed(&["replay", "one"]);
    home.succeed(&["run", "recipe.toml", "--out", "two", "--set", "ppo.gradient_checkpointing=true"]);
    let weights = |run: &str| fs::read(home.path(format!("{run}/ppo/adapter/adapter_model.safetensors"))).unwrap();
    // Checkpointing changes no bit either.
    assert_eq!(weights("one"), weights("two"));
}

#[test]
fn ppo_by_adapters_takes_a_whole_reward_model_or_none_too() {
    let home = home();
    home.succeed(&["run", "recipe.toml", "--out", "one"]);
    let (corpus, _) = RECIPE.split_once("[pretrain]").unwrap();
    let (_, ppo) = RECIPE.split_once("[ppo]").unwrap();
    let (_, lora) = ADAPTERS.split_once("[ppo.lora]").unwrap();
    home.write("alone.toml", format!("{corpus}[ppo]\nsft = \"one/sft/model\"{ppo}[ppo.lora]{lora}"));
    for (out, scores) in [
        ("whole", "ppo.reward_model=\"one/reward/model\""),
        ("adapter", "ppo.reward_model=\"one/reward/adapter\""),
        ("builtin", "ppo.builtin={kind=\"length\",target_tokens=4}"),
    ] {
        home.succeed(&["ppo", "alone.toml", "--out", out, "--set", scores]);
        assert!(home.path(out).join("ppo/adapter/adapter_config.json").exists(), "{out}");
    }
    // The reward model of the whole is the same one, so only rounding differs.
    let score = |out: &str| home.summary(out).ppo.unwrap().before.score.mean;
    assert!((score("whole") - score("adapter")).abs() < 1e-4);
}

#[test]
fn layers_that_the_model_has_not_are_refused_with_those_it_has() {
    let home = home();
    home.succeed(&["pretrain", "recipe.toml", "--out", "out"]);
    let base = "sft.base=\"out/pretrain/model\"";
    let targets = "sft.lora.target_modules=[\"c_attn\"]";
    let error = home.fail(&["sft", "recipe.toml", "--out", "other", "--set", base, "--set", targets]);
    assert!(error.contains("`lora.target_modules` names \"c_attn\""), "{error}");
    assert!(error.contains("it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"), "{error}");
    let error = home.fail(&["sft", "recipe.toml", "--out", "out", "--set", "sft.lora.rank=4"]);
    assert!(error.contains("unknown key `sft.lora.rank`"), "{error}");
}
