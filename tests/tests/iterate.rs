//! `collimate iterate`: rounds of rankings, reward model and PPO.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use collimate_protocol::records::{Comparison, LabelTask};
use collimate_tests::command_line::{Home, RECIPE, Ran};
use collimate_tests::labeling::{Client, by_text};
use collimate_tests::watching::Viewer;
use serde_json::{Value, json};

const SIMULATED: &str = "[collect]\nsource = \"simulated\"\nn_prompts = 10\nk = 3\nmax_new_tokens = 8\n\
     gold = { kind = \"lexicon\", path = \"words.tsv\" }\n";

/// A home with a recipe of two rounds, with these settings for [collect].
fn home(collect: &str) -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    let (before, rest) = RECIPE.split_once("[reward.labeler]").unwrap();
    let (_, ppo) = rest.split_once("[ppo]").unwrap();
    let ppo = format!("[ppo]\nvalue_warmup_updates = 1\n{ppo}");
    home.write("recipe.toml", format!("{before}\n{collect}\n[iterate]\nn_rounds = 2\n\n{ppo}"));
    home
}

fn comparisons(home: &Home, round: usize) -> Vec<Comparison> {
    let text = home.read(format!("r/round-{round}/collect/comparisons.jsonl"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a run came to, without the seconds that it took.
fn everything(home: &Home, out: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for name in [
        "sft/model/model.safetensors",
        "round-1/collect/comparisons.jsonl",
        "round-1/reward/model/model.safetensors",
        "round-1/ppo/model/model.safetensors",
        "round-1/ppo/value_model/model.safetensors",
        "round-2/collect/comparisons.jsonl",
        "round-2/reward/model/model.safetensors",
        "round-2/ppo/model/model.safetensors",
        "round-2/ppo/value_model/model.safetensors",
        "round-2/ppo/journal.bin",
    ] {
        all.push((name.to_owned(), std::fs::read(home.path(Path::new(out).join(name))).unwrap()));
    }
    all
}

#[test]
fn two_rounds_build_on_one_another_and_come_to_a_table_a_report_and_runs_that_can_be_replayed() {
    let home = home(SIMULATED);
    let printed = home.succeed(&["iterate", "recipe.toml", "--out", "r"]);
    let (first, second) = (comparisons(&home, 1), comparisons(&home, 2));
    assert_eq!((first.len(), second.len()), (10, 20));
    assert_eq!(first, second[..10], "the second reward model learns from the first round too");
    assert!(second[10..].iter().all(|new| !first.contains(new)));
    let summary = home.summary("r");
    assert_eq!(summary.rounds.len(), 2);
    for (idx, round) in summary.rounds.iter().enumerate() {
        let (collect, ppo) = (round.collect.as_ref().unwrap(), round.ppo.as_ref().unwrap());
        assert_eq!((collect.n_new, collect.n_comparisons), (10, 10 * (idx + 1)));
        // Held near the SFT model, not near the policy of the round before.
        assert!(ppo.before.kl.mean.abs() < 1e-4 && ppo.after.kl.mean.abs() > 1e-6, "{:?}", ppo.after.kl);
    }
    let gold = |idx: usize| summary.rounds[idx].ppo.as_ref().unwrap().before.gold.unwrap().n;
    assert_eq!((gold(0), gold(1)), (12, 12));
    let table: Vec<&str> = printed.lines().filter(|line| line.contains(" ± ") || line.starts_with("round")).collect();
    assert!(table[0].starts_with("round") && table[0].contains("gold score"), "{printed}");
    let firsts: Vec<&str> = table[1..].iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert!(firsts.ends_with(&["SFT", "1", "2"]), "{printed}");
    assert!(printed.contains("r/round-2/ppo/model"), "{printed}");
    let report = home.read("r/report.html");
    assert!(report.contains("<h2>Rounds</h2>") && report.contains("Gold score by round"), "no table or no chart");
    home.succeed(&["report", "r"]);
    assert_eq!(home.read("r/report.html"), report);
    // Each update says how many rankings its reward model has learnt from: those of the rounds so far.
    let n_labels = [1, 2].map(|round| summary.rounds[round - 1].reward.as_ref().unwrap().n_comparisons);
    assert!(n_labels[0] > 0 && n_labels[1] > n_labels[0], "{n_labels:?}");
    for (round, n_labels) in (1..).zip(n_labels) {
        for line in home.read(format!("r/round-{round}/ppo/metrics.jsonl")).lines() {
            let update: Value = serde_json::from_str(line).unwrap();
            assert_eq!(update["n_labels"], n_labels, "{round}: {update}");
        }
    }
    for round in ["r/round-1", "r/round-2"] {
        let replayed: Value = serde_json::from_str(&home.succeed(&["replay", round, "--json"])).unwrap();
        assert_eq!((&replayed["until"], &replayed["n_rollouts"]), (&json!(3), &json!(24)), "{round}");
    }

    // The same command has nothing left to do; with more rounds it goes on.
    let before = home.read("r/summary.json");
    home.succeed(&["iterate", "recipe.toml", "--out", "r"]);
    assert_eq!(home.read("r/summary.json"), before);
    home.succeed(&["iterate", "recipe.toml", "--out", "r", "--set", "iterate.n_rounds=3"]);
    assert_eq!(comparisons(&home, 3).len(), 30);
    let other = home.fail(&["iterate", "recipe.toml", "--out", "r", "--set", "collect.k=4"]);
    assert!(other.contains("collect.k") && other.contains("differ"), "{other}");
}

#[test]
fn by_adapters_a_round_goes_on_with_those_of_the_round_before() {
    let home = home(SIMULATED);
    let sets = ["ppo.lora.r=2", "reward.lora.r=2", "iterate.value_model=carried_on"].into_iter();
    let arguments: Vec<&str> =
        ["iterate", "recipe.toml", "--out", "r"].into_iter().chain(sets.flat_map(|set| ["--set", set])).collect();
    home.succeed(&arguments);
    let config = home.read("r/round-2/config.toml");
    assert!(config.contains("round-1/ppo/adapter\"") && config.contains("round-1/ppo/value_model\""), "{config}");
    let [first, second] = [1, 2].map(|round| home.summary(&format!("r/round-{round}")).ppo.unwrap());
    assert!(first.after.kl.mean.abs() > 1e-9 && second.after.kl.mean != first.after.kl.mean);
    let replayed: Value = serde_json::from_str(&home.succeed(&["replay", "r/round-2", "--json"])).unwrap();
    assert_eq!(replayed["until"], 3);
    // A whole model can't stand on the SFT model that policy and reference share.
    let named = |key: &str, path: &str| format!("{key}={}", home.path(path).display());
    let policy = named("ppo.policy", "r/round-1/ppo/model");
    let reward_model = named("ppo.reward_model", "r/round-2/reward/model");
    let error = home.fail(&["ppo", "r/round-2/config.toml", "--out", "w", "--set", &policy, "--set", &reward_model]);
    assert!(error.contains("ppo.policy is") && error.contains("name the folder `adapter`"), "{error}");
}

#[test]
fn killed_between_any_two_steps_it_comes_to_the_same_bits() {
    let home = home(SIMULATED);
    let arguments = |out| ["iterate", "recipe.toml", "--out", out, "--set", "iterate.value_model=carried_on"];
    home.succeed(&arguments("straight"));
    let steps = ["sft/model", "sft/complete.json"].map(str::to_owned).into_iter();
    let of_rounds = [1, 2].into_iter().flat_map(|round| {
        ["config.toml", "collect/comparisons.jsonl", "collect/complete.json", "reward/model", "reward/complete.json"]
            .into_iter()
            .chain(["ppo/journal.bin", "ppo/value_model", "ppo/complete.json", "summary.json"])
            .map(move |step| format!("round-{round}/{step}"))
    });
    for step in steps.chain(of_rounds) {
        let mut child =
            home.command(&arguments("killed")).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let reached = home.path(Path::new("killed").join(&step));
        while !reached.exists() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert!(ran.code.is_none_or(|code| code == 0), "before {step}: {}", ran.stderr);
        assert!(reached.exists(), "{step}");
    }
    home.succeed(&arguments("killed"));
    for ((name, straight), (_, killed)) in everything(&home, "straight").into_iter().zip(everything(&home, "killed")) {
        assert!(straight == killed, "{name} differs");
    }
    let carried = home.read("killed/round-2/config.toml");
    assert!(carried.contains("round-1/ppo/value_model"), "{carried}");
}

#[test]
fn rankings_of_a_file_are_waited_for_and_must_be_of_what_was_asked() {
    let home = home("[collect]\nsource = \"file\"\nn_prompts = 6\nk = 2\nmax_new_tokens = 8\nn_enough = 5\n");
    let arguments = ["iterate", "recipe.toml", "--out", "r"];
    let rank = |round: usize, n: usize| {
        let tasks = home.read(format!("r/round-{round}/collect/tasks.jsonl"));
        let ranked = tasks.lines().take(n).map(|line| {
            let task: LabelTask = serde_json::from_str(line).unwrap();
            json!({"prompt": task.prompt, "responses": task.responses, "ranks": [1, 2]}).to_string() + "\n"
        });
        home.write(&format!("r/round-{round}/collect/rankings.jsonl"), ranked.collect::<String>());
    };
    let error = home.fail(&arguments);
    assert!(error.contains("round 1: collect: 6 prompts wait to be ranked in") && error.contains("rankings.jsonl"));
    rank(1, 4);
    let error = home.fail(&arguments);
    assert!(error.contains("ranks 4 of the 6 prompts") && error.contains("5 are wanted"), "{error}");
    rank(1, 6);
    let error = home.fail(&arguments);
    assert!(error.contains("round 2: collect: 6 prompts wait"), "{error}");
    // Those of the first round are no rankings of the second.
    home.write("r/round-2/collect/rankings.jsonl", home.read("r/round-1/collect/rankings.jsonl"));
    let error = home.fail(&arguments);
    assert!(error.contains("the ranking 1 is of a prompt with responses that are not in"), "{error}");
    rank(2, 5);
    home.succeed(&arguments);
    let comparisons = comparisons(&home, 2);
    assert_eq!(comparisons.len(), 11);
    assert!(comparisons.iter().all(|comparison| comparison.tokens.is_some()), "the very tokens that were sampled");
}

#[test]
fn people_rank_on_the_page_while_it_waits_and_keep_their_links_from_round_to_round() {
    let home = home(
        "[collect]\nsource = \"page\"\nn_prompts = 5\nk = 3\nmax_new_tokens = 8\n\
         [collect.page]\naddr = \"0\"\nacquire = { by = \"margin\" }\n[collect.page.label]\nlabelers = [\"anna\", \"ben\"]\noverlap = 2\nrepeat_share = 0.0\n",
    );
    let arguments = ["iterate", "recipe.toml", "--out", "r", "--serve=0"];
    let mut child = home.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let link = told.find_map(|line| Some(line.split_once("watch and steer the run at ")?.1.to_owned()));
    let viewer = Viewer::of(&link.expect("a link"));
    let mut tokens = Vec::new();
    for round in 1..=2 {
        let address = told.find_map(|line| Some(line.split_once(" are to be ranked at ")?.1.to_owned()));
        let url = address.unwrap_or_else(|| panic!("round {round}: no page"));
        // While people rank, whoever watches the run sees this round, in which no update is done yet.
        let shown = viewer.get("/api/run");
        assert_eq!((&shown["round"], &shown["stage"]), (&json!(round), &json!("collect")), "{shown}");
        assert_eq!((&shown["last"], &shown["is_live"]), (&Value::Null, &json!(true)), "{shown}");
        if round == 2 {
            let first = viewer.get("/api/rounds/1/run");
            assert_eq!((&first["last"][0], &first["is_live"]), (&json!(3.0), &json!(false)), "{first}");
            assert_eq!(viewer.get("/api/rounds/1/evaluation")["has_after"], true);
            assert!(viewer.get("/api/rounds/1/rollouts")["total"].as_u64().unwrap() > 0);
        }
        for line in told.by_ref() {
            if let Some((_, token)) = line.split_once("/login#") {
                tokens.push(token.to_owned());
            }
            if line.trim_start().starts_with("admin: ") {
                break;
            }
        }
        assert_eq!(tokens.len(), 3, "round {round}: links are given once");
        if round == 1 {
            // Somebody picks a task from elsewhere.
            let picked = json!({ "kind": "rank", "prompt": "picked", "responses": ["x", "y"] });
            Client::new(&url, Some(&tokens[2])).done("/api/tasks", json!({ "tasks": [picked] }));
        } else {
            // And anna thinks better of her last answer to what the first round asked.
            let anna = Client::new(&url, Some(&tokens[0]));
            let task = anna.done("/api/undo", json!({}));
            let places = vec![1; task["responses"].as_array().unwrap().len()];
            let all_tied = json!({ "handle": task["handle"], "key": "again", "draft": { "places": places } });
            anna.done("/api/answer", all_tied);
        }
        for token in &tokens[..2] {
            let labeler = Client::new(&url, Some(token));
            while let Some(task) = labeler.next() {
                let key = format!("{}-{round}", task["handle"]);
                let draft = json!({ "handle": task["handle"], "key": key, "draft": by_text(&task) });
                // The last answer may be the one that is enough: then nobody may be there any more.
                match labeler.try_post("/api/answer", &draft) {
                    Ok((status, answer)) => assert_eq!(status, 200, "{answer}"),
                    Err(_) => break,
                }
            }
        }
    }
    std::thread::spawn(move || told.for_each(drop));
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    let lines: Vec<Value> = home
        .read("r/round-2/collect/comparisons.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (picked, asked): (Vec<&Value>, Vec<&Value>) = lines.iter().partition(|line| line["prompt"] == "picked");
    assert!(!picked.is_empty() && picked.iter().all(|line| line["labeler"].is_string()), "it is learnt from too");
    assert_eq!(asked.len(), 20, "two labelers, five prompts, two rounds");
    let changed: Vec<&Value> = lines.iter().filter(|line| line["revision"] == 2).collect();
    assert_eq!(changed.len(), 1, "as she has it now, and once");
    assert!(changed[0]["labeler"] == "anna" && changed[0]["ranks"].as_array().unwrap().iter().all(|rank| rank == 1));
    for line in &asked {
        assert!(line["tokens"].is_object() && line["task"].is_string(), "{line}");
        assert!(["anna", "ben"].contains(&line["labeler"].as_str().unwrap()), "{line}");
    }
    // No reward model chose what the first round asked; the one of the first round chose what the second asked first.
    home.succeed(&["label", "export", "r/answers.db", "out.jsonl"]);
    let arms = |round: usize| -> BTreeSet<String> {
        let of_round: BTreeSet<String> = home
            .read(format!("r/round-{round}/collect/tasks.jsonl"))
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["responses"].to_string())
            .collect();
        let exported = home.read("out.jsonl");
        let lines = exported.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| of_round.contains(&line["responses"].to_string()))
            .map(|line| line["arm"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(arms(1), BTreeSet::from(["random".to_owned()]));
    assert_eq!(arms(2), BTreeSet::from(["random".to_owned(), "acquired".to_owned()]));
    // What the second round asks remembers who wrote it, and what the reward model made of it that they were trained on.
    let root = home.path("r/round-1").canonicalize().unwrap();
    for task in home.read("r/round-2/collect/tasks.jsonl").lines() {
        let task: LabelTask = serde_json::from_str(task).unwrap();
        assert_eq!(Path::new(&task.origin.run.unwrap()).canonicalize().unwrap(), root);
        assert_eq!(task.origin.policy_version, Some(3));
        assert!(task.origin.reward_model.unwrap().ends_with("round-1/reward/model"));
        assert!(task.origin.scores.is_some_and(|scores| scores.len() == 3 && scores.iter().all(|s| s.is_finite())));
    }
    // Each label is named by the reward model that has read it.
    assert_eq!(home.read("r/round-2/reward/labels.jsonl").lines().count(), lines.len());
}

#[test]
fn a_recipe_that_has_no_rounds_or_sets_what_rounds_set_is_refused_before_anything_runs() {
    let home = home(SIMULATED);
    let refused = |sets: &[&str], message: &str| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = ["iterate", "recipe.toml", "--out", "r"].into_iter().chain(sets).collect();
        let error = home.fail(&arguments);
        assert!(error.contains(message), "{error}");
        assert!(!home.path("r").exists());
    };
    refused(&["iterate.n_round=3"], "unknown key `iterate.n_round`; did you mean `n_rounds`?");
    refused(&["collect.sorce=page"], "unknown key `collect.sorce`; did you mean `source`?");
    refused(&["collect.source=pages"], "`collect.source` is `pages`");
    refused(&["collect.source=page"], "[collect.gold] has no effect with collect.source = \"page\"");
    refused(&["ppo.policy=x"], "`ppo.policy` is set, but each round has its own");
    refused(&["iterate.n_rounds=0"], "iterate.n_rounds is 0");
    let error = home.fail(&["run", "recipe.toml", "--out", "r"]);
    assert!(error.contains("run it by `collimate iterate`"), "{error}");
    let plain = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    let error = plain.fail(&["iterate", "recipe.toml"]);
    assert!(error.contains("no [iterate] table") && error.contains("collimate config iterate"), "{error}");
    for stage in ["collect", "iterate"] {
        assert!(plain.succeed(&["config", stage]).starts_with("# "));
    }
}
