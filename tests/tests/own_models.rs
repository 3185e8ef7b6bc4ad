//! A model and data that someone brings: a chat model of another family than the recipe's own, dialogues in several
//! files and layouts, preferences, prompts; through all stages, and back to what others read.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use collimate_models::Device;
use collimate_models::arch::{Family, HeadKind, ModelConfig, Weights, save_model};
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_tests::command_line::Home;
use serde_json::json;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content }}<|endoftext|>\n\
    {% else %}{{ m.role }}:{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}";

const RECIPE: &str = r#"
seed = 3

[sft]
base = "base"
demonstrations = ["dialogues.jsonl", { path = "instructions.json", weight = 2.0 }]
shuffle_buffer = 4
heldout_share = 0.25
batch_size = 4

[reward]
comparisons = "preferences.jsonl"
demonstrations = "instructions.json"
heldout_share = 0.25
batch_size = 4

[ppo]
prompts = "dialogues.jsonl"
mode = "deterministic"
n_updates = 2
batch_size = 4
minibatch_size = 4
max_new_tokens = 6
n_slots = 4
ptx_coef = 0.0

[ppo.evaluate]
n_prompts = 2
heldout_share = 0.25
"#;

/// A tiny Qwen 3 with a byte tokenizer and a chat template, and files of data.
fn home() -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    let tokenizer = Tokenizer::train_byte_level_bpe(["a"], 257, &[]).unwrap().with_chat_template(TEMPLATE).unwrap();
    let config = json!({
        "model_type": "qwen3", "vocab_size": 260, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24, "max_position_embeddings": 128,
        "bos_token_id": null, "eos_token_id": 0, "tie_word_embeddings": true,
    });
    let config = ModelConfig::from_hf("config.json".as_ref(), config).unwrap();
    let mut rng = rng::for_purpose(1, "a model of someone's");
    let weights = Weights::initialise(&config, HeadKind::Language, &mut rng, &Device::Cpu).unwrap();
    save_model(&home.path("base"), &config, HeadKind::Language, &weights).unwrap();
    tokenizer.save(&home.path("base")).unwrap();

    let dialogue = |i: usize| {
        json!({"messages": [
            {"role": "user", "content": format!("say {i}")}, {"role": "assistant", "content": format!("{i}")},
            {"role": "user", "content": "more"}, {"role": "assistant", "content": format!("{i}!")},
        ]})
    };
    let preference = |i: usize| {
        json!({
            "prompt": [{"role": "user", "content": format!("say {i}")}],
            "chosen": [{"role": "assistant", "content": format!("{i}")}],
            "rejected": [{"role": "assistant", "content": "no"}],
        })
    };
    let instruction =
        |i: usize| json!({"instruction": "Add.", "input": format!("{i} 1"), "output": format!("{}", i + 1)});
    let lines =
        |make: &dyn Fn(usize) -> serde_json::Value| (0..12).map(|i| format!("{}\n", make(i))).collect::<String>();
    home.write("dialogues.jsonl", lines(&dialogue));
    home.write("preferences.jsonl", lines(&preference));
    home.write("instructions.json", json!((0..8).map(instruction).collect::<Vec<_>>()).to_string());
    home.write("recipe.toml", RECIPE);
    home
}

#[test]
fn a_chat_model_of_another_family_goes_through_all_stages_on_dialogues_and_comes_back_as_it_was() {
    let home = home();
    home.succeed(&["run", "recipe.toml", "--out", "out"]);
    let summary = home.summary("out");
    // 9 of 12 dialogues, and 6 of 8 instructions twice.
    assert_eq!(summary.sft.unwrap().n_demonstrations, 9 + 2 * 6);
    assert!(summary.ppo.is_some());
    for (stage, head) in [("sft", HeadKind::Language), ("reward", HeadKind::Scalar), ("ppo", HeadKind::Language)] {
        let dir = home.path(format!("out/{stage}/model"));
        let (config, _) = collimate_models::arch::load_model(&dir, head, &Device::Cpu).unwrap();
        assert_eq!(config.family, Family::Qwen3);
        let tokenizer: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.join("tokenizer_config.json")).unwrap()).unwrap();
        assert_eq!(tokenizer["chat_template"], TEMPLATE, "{stage}");
    }
    let prompts = ["generate", "out/ppo/model", "--prompts", "dialogues.jsonl", "--max-new-tokens", "3", "--json"];
    assert_eq!(home.succeed(&prompts).lines().count(), 12);
}

#[test]
fn a_line_that_breaks_off_late_in_a_file_is_named_before_anything_is_trained() {
    let home = home();
    let mut dialogues = home.read("dialogues.jsonl");
    dialogues.push_str("{\"messages\": [{\"role\": \"user\"}]}\n");
    home.write("dialogues.jsonl", dialogues);
    let message = home.fail(&["sft", "recipe.toml", "--out", "out"]);
    assert!(message.contains("dialogues.jsonl:13: key `messages[0].content` is missing"), "{message}");
    assert!(!home.path("out/sft/model").exists());
}

#[test]
fn the_check_counts_what_the_stages_take_and_shows_what_is_learnt() {
    let home = home();
    let text = home.succeed(&["data", "check", "dialogues.jsonl", "--model", "base", "--examples", "1"]);
    for part in [
        "dialogues (messages with role and content), JSON lines",
        "records      12",
        "A:«0<|endoftext|>»\nuser:more\nA:«0!<|endoftext|>»",
    ] {
        assert!(text.contains(part), "{text}\nexpected {part}");
    }
    home.write("broken.jsonl", format!("{}{{\n", home.read("dialogues.jsonl")));
    let ran = home.run(&["data", "check", "broken.jsonl", "--json"]);
    assert_eq!(ran.code, Some(1));
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["n_records"], &report["n_bad"]), (&json!(12), &json!(1)));
}

#[test]
fn a_chat_answers_each_line_and_remembers_those_before() {
    let home = home();
    let mut command = home.command(&["chat", "--model", "base", "--temperature", "0", "--max-new-tokens", "4"]);
    command.args(["--save-prompts", "typed.jsonl"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n\nand you?\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(answers.ends_with('\n'), "{answers:?}");

    // The first answer is what the prompt alone gives.
    let prompt = json!({"prompt": [{"role": "user", "content": "hello"}]});
    home.write("hello.jsonl", prompt.to_string());
    let alone =
        home.succeed(&["generate", "base", "--prompts", "hello.jsonl", "--greedy", "--max-new-tokens", "4", "--json"]);
    let alone: serde_json::Value = serde_json::from_str(alone.trim()).unwrap();
    assert!(answers.starts_with(alone["response"].as_str().unwrap()), "{answers:?} {alone}");
    let imported = home.succeed(&["label", "import", "label.db", "typed.jsonl"]);
    assert_eq!(imported, "typed.jsonl: 2 new tasks\n");
}

/// A reward model of someone else's, with a tokenizer and a chat template of its own.
fn foreign_reward_model(home: &Home) -> String {
    const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}\
        <|endoftext|>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let tokenizer = Tokenizer::train_byte_level_bpe(["say say more more"], 262, &["<|x|>"]).unwrap();
    let tokenizer = tokenizer.with_chat_template(TEMPLATE).unwrap();
    let config = json!({
        "model_type": "gpt2", "vocab_size": tokenizer.vocab_size(), "n_embd": 16, "n_head": 2, "n_layer": 1,
        "n_positions": 128, "eos_token_id": tokenizer.eos(), "bos_token_id": tokenizer.eos(),
    });
    let config = ModelConfig::from_hf("config.json".as_ref(), config).unwrap();
    let mut rng = rng::for_purpose(2, "a reward model of someone's");
    let weights = Weights::initialise(&config, HeadKind::Scalar, &mut rng, &Device::Cpu).unwrap();
    save_model(&home.path("judge"), &config, HeadKind::Scalar, &weights).unwrap();
    tokenizer.save(&home.path("judge")).unwrap();
    "ppo.reward_model=\"judge\"".to_owned()
}

#[test]
fn a_reward_model_with_another_tokenizer_is_refused_or_reads_the_text_anew() {
    let home = home();
    let judge = foreign_reward_model(&home);
    let (_, ppo) = RECIPE.split_once("[ppo]").unwrap();
    home.write("ppo.toml", format!("[ppo]\nsft = \"base\"{ppo}"));
    let message = home.fail(&["ppo", "ppo.toml", "--out", "refused", "--set", &judge]);
    assert!(message.contains("must share one tokenizer"), "{message}");
    assert!(message.contains("with ppo.reward_tokens = \"own\" the reward model reads the text anew"), "{message}");
    let own = "ppo.reward_tokens=\"own\"";
    home.succeed(&["ppo", "ppo.toml", "--out", "own", "--set", &judge, "--set", own]);
    let lora = "ppo.lora={r=2}";
    home.succeed(&["ppo", "ppo.toml", "--out", "adapters", "--set", &judge, "--set", own, "--set", lora]);
    // The same judge of the same responses.
    let score = |out: &str| home.summary(out).ppo.unwrap().before.score.mean;
    assert!(score("own") != 0.0 && (score("own") - score("adapters")).abs() < 1e-4);
}

#[test]
fn what_is_too_long_is_refused_by_line_or_left_out_or_cut_and_told() {
    let home = home();
    let sft = |settings: &[&str], out: &str| {
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        home.run(&["sft", "recipe.toml", "--out", out].into_iter().chain(settings).collect::<Vec<_>>())
    };
    // Dialogues have 31 tokens or more, instructions fewer than 28.
    let refused = sft(&["sft.max_tokens=28"], "a");
    assert!(refused.stderr.contains("dialogues.jsonl:1: the dialogue has"), "{}", refused.stderr);
    assert!(refused.stderr.contains("and `max_tokens` is 28"), "{}", refused.stderr);
    let dropped = sft(&["sft.max_tokens=28", "sft.too_long=\"drop\"", "sft.demonstrations=\"instructions.json\""], "b");
    assert_eq!(dropped.code, Some(0), "{}", dropped.stderr);
    let nothing_left = sft(&["sft.max_tokens=28", "sft.too_long=\"drop\""], "c");
    assert!(nothing_left.stderr.contains("dialogues.jsonl: holds no demonstration: of 12 demonstrations 12 have more"));
    let cut = sft(&["sft.max_tokens=28", "sft.too_long=\"truncate\""], "d");
    assert_eq!(cut.code, Some(0), "{}", cut.stderr);
    assert!(cut.stderr.contains("12 have more than 28 tokens: 12 were cut and 0 left out"), "{}", cut.stderr);
    assert_eq!(home.summary("d").sft.unwrap().n_demonstrations, 9 + 2 * 6);

    let too_much = sft(&["sft.max_tokens=129"], "e");
    assert!(too_much.stderr.contains("`max_tokens` is 129, but the model's context holds 128"), "{}", too_much.stderr);
    home.succeed(&["sft", "recipe.toml", "--out", "f"]);
    let refused = home.fail(&["run", "recipe.toml", "--out", "f2", "--set", "reward.too_long=\"truncate\""]);
    assert!(refused.contains("reward.too_long is \"truncate\""), "{refused}");
}

#[test]
fn a_run_that_can_not_fit_into_memory_is_refused_before_a_model_is_read() {
    let home = home();
    let (_, ppo) = RECIPE.split_once("[ppo]").unwrap();
    let ppo = ppo.replace("n_slots = 4", "n_slots = 400000000");
    let scores = "[ppo.builtin]\nkind = \"length\"\ntarget_tokens = 3\n";
    home.write("ppo.toml", format!("[ppo]\nsft = \"base\"{ppo}{scores}"));
    fs::write(home.path("base/model.safetensors"), "no weights").unwrap();
    let message = home.fail(&["ppo", "ppo.toml", "--out", "out"]);
    assert!(message.contains("ppo: this takes about") && message.contains("are free: "), "{message}");
    assert!(message.contains("ppo.n_slots = 100000000"), "{message}");
}
