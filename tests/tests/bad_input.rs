//! What people bring by mistake, at the command line: one clear error each, exit code 1, no panic, and nothing that was
//! finished is lost.

use collimate_tests::command_line::Home;

fn home() -> Home {
    Home::new(env!("CARGO_BIN_EXE_collimate-under-test"))
}

/// A home with a base model in `r`.
fn home_with_base() -> Home {
    let home = home();
    home.succeed(&["pretrain", "recipe.toml", "--out", "r"]);
    home
}

fn expect(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn missing_files_are_named() {
    let home = home();
    expect(&home.fail(&["run", "nowhere.toml"]), &["nowhere.toml", "No such file"]);
    expect(&home.fail(&["pretrain", "recipe.toml", "--set", "corpus.paths=[\"lost\"]"]), &["lost", "No such file"]);
    expect(&home.fail(&["generate", "no/model", "--prompt", "a"]), &["no/model", "No such file"]);
    let arguments = ["sft", "recipe.toml", "--out", "s", "--set", "sft.base=no/base"];
    expect(&home.fail(&arguments), &["sft: ", "no/base", "No such file"]);
}

#[test]
fn a_misspelt_key_is_answered_with_the_nearest_one() {
    let home = home();
    let error = home.fail(&["run", "recipe.toml", "--set", "ppo.ptx_coeff=0"]);
    expect(&error, &["--set ppo.ptx_coeff=0", "`ppo.ptx_coeff`", "did you mean `ptx_coef`?"]);
    home.write("typo.toml", "seed = 1\n[sft]\nmax_step = 3\n");
    expect(&home.fail(&["run", "typo.toml"]), &["typo.toml:3", "`sft.max_step`", "did you mean `max_steps`?"]);
    home.write("typo.toml", "[ppo]\nkl_coef = \"low\"\n");
    expect(&home.fail(&["run", "typo.toml"]), &["typo.toml:2", "`ppo.kl_coef`", "expected a number"]);
    home.write("empty.toml", "seed = 1\n");
    expect(&home.fail(&["run", "empty.toml"]), &["lists no stage"]);
    expect(&home.fail(&["run", "recipe.toml", "--set", "device=gpu"]), &["`gpu` is no device", "cpu"]);
    let error = home.fail(&["run", "recipe.toml", "--metrics-addr", "everywhere"]);
    expect(&error, &["`everywhere` is no address"]);
    home.write("plan.toml", "[costs.learner]\ntoken = 1\n");
    expect(&home.fail(&["plan", "plan.toml"]), &["plan.toml:2", "`costs.learner.token`", "did you mean `token_s`?"]);
    home.write("plan.toml", "n_slots = 0\n");
    expect(&home.fail(&["plan", "plan.toml"]), &["n_slots is 0, it must be at least 1"]);
    expect(&home.fail(&["plan", "--from", "nowhere"]), &["nowhere"]);
    expect(&home.fail(&["status", "127.0.0.1:1"]), &["no status from 127.0.0.1:1"]);
}

#[test]
fn weights_that_are_truncated_of_another_shape_or_no_safetensors_are_refused_by_file_and_tensor() {
    let home = home_with_base();
    let path = home.path("r/pretrain/model/model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let generate = ["generate", "r/pretrain/model", "--prompt", "the"];

    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    expect(&home.fail(&generate), &["model.safetensors"]);
    std::fs::write(&path, b"\x80\x04\x95 a pickle").unwrap();
    expect(&home.fail(&generate), &["model.safetensors"]);
    std::fs::write(&path, &whole).unwrap();

    let config = home.read("r/pretrain/model/config.json");
    home.write(
        "r/pretrain/model/config.json",
        config.replace("\"intermediate_size\": 24", "\"intermediate_size\": 25"),
    );
    expect(&home.fail(&generate), &["model.layers.0.mlp", "25", "24"]);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_both_lengths() {
    let home = home_with_base();
    let long = "the sea ".repeat(60);
    let error = home.fail(&["generate", "r/pretrain/model", "--prompt", "the", "--prompt", &long]);
    expect(&error, &["prompt 2", "32"]);
    home.write("prompts.jsonl", format!("{{\"prompt\": \"the\"}}\n{{\"prompt\": \"{long}\"}}\n"));
    let recipe = "[ppo]\nsft = \"r/pretrain/model\"\nprompts = \"prompts.jsonl\"\nptx_coef = 0\nmax_new_tokens = 8\n\
                  builtin = { kind = \"length\", target_tokens = 3 }\n";
    home.write("ppo.toml", recipe);
    expect(&home.fail(&["run", "ppo.toml"]), &["ppo: ", "prompts.jsonl:2", "context", "32"]);
}

#[test]
fn broken_lines_and_empty_data_are_refused_by_file_and_line() {
    let home = home_with_base();
    let sft = |name: &str| {
        let set = format!("sft.demonstrations={name}");
        home.fail(&[
            "sft",
            "recipe.toml",
            "--out",
            name.trim_end_matches(".jsonl"),
            "--set",
            "sft.base=r/pretrain/model",
            "--set",
            &set,
        ])
    };
    home.write("broken.jsonl", "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": \"a\", \"response\n");
    expect(&sft("broken.jsonl"), &["broken.jsonl:2"]);
    home.write("keys.jsonl", "{\"prompt\": \"a\", \"reponse\": \"b\"}\n");
    expect(&sft("keys.jsonl"), &["keys.jsonl:1", "`response` by `reponse`"]);
    home.write("empty.jsonl", "");
    expect(&sft("empty.jsonl"), &["empty.jsonl"]);
    home.write("text/story.txt", "\n\n");
    expect(&home.fail(&["pretrain", "recipe.toml", "--out", "e"]), &["no text"]);
}

#[test]
fn a_reward_process_that_dies_or_prints_nonsense_ends_the_run_by_its_name_and_keeps_what_is_finished() {
    let home = home();
    for stage in ["pretrain", "sft", "reward"] {
        home.succeed(&[stage, "recipe.toml", "--out", "good"]);
    }
    let model = std::fs::read(home.path("good/sft/model/model.safetensors")).unwrap();
    let ppo = |out: &str, command: &str| {
        let process = format!("ppo.process.command=[\"sh\", \"-c\", \"{command}\"]");
        let sets =
            ["ppo.sft=good/sft/model", "ppo.reward_model=good/reward/model", "ppo.restarts.most_failures=0", &process];
        let sets = sets.iter().flat_map(|setting| ["--set", setting]);
        home.fail(&["ppo", "recipe.toml", "--out", out].into_iter().chain(sets).collect::<Vec<_>>())
    };
    expect(&ppo("dead", "exit 3"), &["ppo: ", "exit 3", "reward process"]);
    expect(&ppo("nonsense", "while read -r line; do echo banana; done"), &["banana"]);
    // It answers the first policy's evaluation and dies in mid-run: 12 held-out prompts are judged first.
    let mortal = "for i in $(seq 12); do read -r line; echo 0.5; done; exec 0<&-; exit 7";
    expect(&ppo("mortal", mortal), &["ppo: ", "reward"]);
    assert_eq!(std::fs::read(home.path("good/sft/model/model.safetensors")).unwrap(), model);
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_takes_no_more_ends_the_stage_and_keeps_the_ones_before() {
    use std::os::unix::process::CommandExt;

    let home = home_with_base();
    let mut command = home.command(&["run", "recipe.toml", "--out", "r"]);
    // SAFETY: both calls may be made between fork and exec; they change limits of the child alone.
    unsafe {
        command.pre_exec(|| {
            // Writes past 8 KiB of any file fail, as they would on a full disk, in place of ending the process.
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: 8 << 10, rlim_max: 8 << 10 };
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            Ok(())
        });
    }
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    expect(&error, &["sft: ", "model", "File too large"]);
    assert!(!error.contains("panicked"), "{error}");
    assert!(home.path("r/pretrain/complete.json").exists() && !home.path("r/sft/complete.json").exists());
    // With room again, the same command goes on.
    home.succeed(&["run", "recipe.toml", "--out", "r"]);
}
