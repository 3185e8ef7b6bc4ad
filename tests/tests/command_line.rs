//! The binary as a person meets it: the whole recipe, and what is left after it.

use collimate_tests::command_line::Home;
use serde_json::Value;

fn home() -> Home {
    Home::new(env!("CARGO_BIN_EXE_collimate-under-test"))
}

#[test]
fn a_recipe_runs_from_raw_text_to_an_aligned_policy_and_leaves_everything_behind() {
    let home = home();
    let printed = home.succeed(&["run", "recipe.toml", "--out", "runs/one"]);
    assert!(printed.contains("SFT policy") && printed.contains("after PPO"), "{printed}");
    assert!(printed.contains("runs/one/report.html"), "{printed}");

    let summary = home.summary("runs/one");
    let reward = summary.reward.unwrap();
    assert_eq!((reward.k, reward.n_comparisons), (3, 13));
    assert!((0.0..=1.0).contains(&reward.heldout_accuracy));
    let ppo = summary.ppo.unwrap();
    assert_eq!((ppo.n_updates, ppo.tickets.trained, ppo.tickets.in_flight), (3, 24, 0));
    assert!(ppo.tickets.is_conserved());
    assert_eq!((ppo.before.gold.unwrap().n, ppo.after.gold.unwrap().n, ppo.after.nll.n), (12, 12, 6));
    assert!(ppo.before.kl.mean.abs() < 1e-5, "the SFT policy is its own reference");

    for stage in ["pretrain", "sft", "reward", "ppo"] {
        for file in ["complete.json", "metrics.jsonl", "model/model.safetensors", "model/tokenizer.json"] {
            assert!(home.path("runs/one").join(stage).join(file).exists(), "{stage}/{file}");
        }
        assert_eq!(std::fs::read_dir(home.path("runs/one").join(stage).join("tb")).unwrap().count(), 1, "{stage}");
    }
    let updates = home.read("runs/one/ppo/metrics.jsonl");
    let versions: Vec<u64> =
        updates.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert!(home.read("runs/one/ppo/rollouts.jsonl").lines().count() >= 3);
    let planned = home.succeed(&["plan", "--from", "runs/one", "--set", "n_generators=[1]", "--json"]);
    let planned: Value = serde_json::from_str(&planned).unwrap();
    assert_eq!((&planned["measured"]["n_updates"], planned["forecasts"].as_array().unwrap().len()), (&3.into(), 4));
    let assumed = home.succeed(&["plan", "--from", "runs/one", "--toml"]);
    home.write("plan.toml", assumed);
    assert!(home.succeed(&["plan", "plan.toml"]).contains("recommended: max_staleness = "));

    let report = home.read("runs/one/report.html");
    assert!(report.contains("<svg") && !report.contains("http-equiv"), "a page with curves");
    assert!(!report.contains("src=\"http"), "the page is self-contained");
}

#[test]
fn stages_one_by_one_are_the_whole_run_and_a_complete_stage_is_not_run_again() {
    let home = home();
    let error = home.fail(&["sft", "recipe.toml", "--out", "r"]);
    assert!(error.contains("r/pretrain is not complete: run `collimate pretrain`"), "{error}");
    for stage in ["pretrain", "sft", "reward", "ppo"] {
        home.succeed(&[stage, "recipe.toml", "--out", "r"]);
    }
    let policy = std::fs::read(home.path("r/ppo/model/model.safetensors")).unwrap();
    let events = home.succeed(&["run", "recipe.toml", "--out", "r", "--json"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.iter().filter(|event| event["event"] == "stage_skipped").count(), 4);
    assert_eq!(events.last().unwrap()["event"], "finished");

    // The same recipe in another place gives the same policy, bit for bit.
    home.succeed(&["run", "recipe.toml", "--out", "again"]);
    assert_eq!(std::fs::read(home.path("again/ppo/model/model.safetensors")).unwrap(), policy);
}

#[test]
fn a_run_directory_of_another_recipe_is_refused_with_the_keys_that_differ() {
    let home = home();
    home.succeed(&["pretrain", "recipe.toml", "--out", "r"]);
    let model = std::fs::read(home.path("r/pretrain/model/model.safetensors")).unwrap();
    let error = home.fail(&["run", "recipe.toml", "--out", "r", "--set", "ppo.kl_coef=0.3"]);
    assert!(error.contains("ppo.kl_coef") && error.contains("0.3"), "{error}");
    assert_eq!(std::fs::read(home.path("r/pretrain/model/model.safetensors")).unwrap(), model);
    std::fs::create_dir(home.path("photos")).unwrap();
    home.write("photos/cat.txt", "a cat");
    let error = home.fail(&["pretrain", "recipe.toml", "--out", "photos"]);
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(home.read("photos/cat.txt"), "a cat");
}

#[test]
fn the_printed_settings_are_a_recipe_and_the_written_ones_too() {
    let home = home();
    let printed = home.succeed(&["config", "ppo"]);
    assert!(printed.contains("\nptx_coef = 27.8\n"), "{printed}");
    home.succeed(&["pretrain", "recipe.toml", "--out", "r"]);
    home.succeed(&["pretrain", "r/config.toml", "--out", "r"]);
}

#[test]
fn responses_are_generated_and_scored_again_to_the_same_log_probabilities() {
    let home = home();
    home.succeed(&["pretrain", "recipe.toml", "--out", "r"]);
    let model = "r/pretrain/model";
    let arguments =
        ["generate", model, "--prompt", "the old man", "--n-samples", "2", "--max-new-tokens", "6", "--json"];
    let generated: Vec<Value> =
        home.succeed(&arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(generated.len(), 2);
    for response in &generated {
        let n = response["tokens"].as_array().unwrap().len();
        assert!(n <= 6 && response["logprobs"].as_array().unwrap().len() == n, "{response}");
        assert!(["end", "length"].contains(&response["finish"].as_str().unwrap()));
    }
    let greedy = ["generate", model, "--prompt", "the old man", "--greedy", "--max-new-tokens", "5", "--json"];
    assert_eq!(home.succeed(&greedy), home.succeed(&greedy));

    home.write("lines.jsonl", "{\"text\": \"the happy man\"}\n{\"prompt\": \"the\", \"response\": \" sea\"}\n");
    let scored: Vec<Value> = home
        .succeed(&["score", model, "lines.jsonl"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(scored.len(), 2);
    for line in &scored {
        let sum: f64 = line["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).sum();
        assert!((sum - line["logprob"].as_f64().unwrap()).abs() < 1e-4 && sum < 0.0, "{line}");
    }
}

#[test]
fn nothing_is_shown_when_piped_and_help_teaches() {
    let home = home();
    let ran = home.run(&["pretrain", "recipe.toml", "--out", "r"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("r/report.html"), "{}", ran.stdout);
    let help = home.succeed(&["--help"]);
    assert!(help.contains("Exit codes") && help.contains("collimate run"), "{help}");
    assert_eq!(home.run(&["fly"]).code, Some(2));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_in_good_order_and_the_same_command_goes_on() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let home = home();
    let arguments = ["run", "recipe.toml", "--out", "r", "--json", "--set", "ppo.n_updates=100000"];
    let mut child = home.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let is_update = |line: &String| line.contains("\"event\":\"updated\"");
    events.by_ref().find(is_update).expect("an update");
    // SAFETY: sends a signal to a process that this test has started and not yet waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let rest: Vec<String> = events.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.last().unwrap().contains("\"event\":\"stopped\""), "{rest:?}");
    assert!(home.path("r/reward/complete.json").exists() && !home.path("r/ppo/complete.json").exists());
    assert!(home.path("r/ppo/model/model.safetensors").exists(), "the policy as it was");
    let n_updates = home.read("r/ppo/metrics.jsonl").lines().count();
    assert!(n_updates > rest.iter().filter(|line| is_update(line)).count());
    let error = home.fail(&["run", "recipe.toml", "--out", "r"]);
    assert!(error.contains("ppo.n_updates"), "another number of updates is another recipe: {error}");
}
