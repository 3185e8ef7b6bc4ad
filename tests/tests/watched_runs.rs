//! Real runs that are looked at: they are commanded and changed from their page, their policy is asked for more, and they are
//! replayed to the same weights.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use collimate::label::store::{Store, tasks};
use collimate::rundir::RunDir;
use collimate::view::directory::Follower;
use collimate::view::live::Watched;
use collimate::view::server::Door;
use collimate_protocol::records::LabelTask;
use collimate_tests::command_line::Home;
use collimate_tests::watching::{Answer, Served, Viewer};
use serde_json::{Value, json};

/// A home in which PPO can start at once.
fn home() -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    for stage in ["pretrain", "sft", "reward"] {
        home.succeed(&[stage, "recipe.toml", "--out", "before"]);
    }
    home
}

fn ppo<'a>(sets: &[&'a str]) -> Vec<&'a str> {
    let own = ["ppo.sft=before/sft/model", "ppo.reward_model=before/reward/model", "ppo.max_staleness=1"];
    let sets = own.into_iter().chain(sets.iter().copied()).flat_map(|set| ["--set", set]);
    ["ppo", "recipe.toml", "--out", "r"].into_iter().chain(sets).collect()
}

#[test]
fn a_run_is_paused_changed_and_kept_from_its_page_and_is_replayed_to_the_same_weights() {
    let home = home();
    let mut arguments = ppo(&["ppo.n_updates=100000", "ppo.mode=threaded", "ppo.checkpoints.every=0"]);
    arguments.push("--serve=0");
    let served = Served::run(&mut home.command(&arguments));
    let viewer = &served.viewer;
    let mut messages = viewer.listen("");
    messages.until(|message| message["kind"] == "updated");
    assert_eq!(viewer.get("/api/run")["is_commandable"], true);

    assert_eq!(viewer.post("/api/control/pause", &json!(null)).status, 202);
    let is_paused = |message: &Value| {
        let roles = message["status"]["roles"].as_array();
        roles.is_some_and(|roles| roles.iter().any(|role| role["state"] == "paused"))
    };
    messages.until(|message| message["event"] == "paused");
    messages.until(is_paused);
    // What was in hand is done; then nothing moves from one look to the next.
    let mut last = messages.until(is_paused)["status"]["version"].clone();
    loop {
        let now = messages.until(is_paused)["status"]["version"].clone();
        if now == last {
            break;
        }
        last = now;
    }
    assert_eq!(viewer.post("/api/settings", &json!({"kl_coef": 0.5, "lr": 1e-4})).status, 202);
    assert_eq!(viewer.post("/api/control/checkpoint", &json!(null)).status, 202);
    assert_eq!(viewer.post("/api/control/explode", &json!(null)).status, 404);
    assert_eq!(viewer.post("/api/control/resume", &json!(null)).status, 202);
    let changed = messages.until(|message| message["event"] == "changed");
    assert_eq!(changed["changes"], json!([{"kl_coef": 0.5}, {"lr": 1e-4}]));
    let since = changed["version"].as_u64().unwrap();
    messages.until(|message| {
        message["kind"] == "updated"
            && message["numbers"]["batch/kl_coef"] == 0.5
            && message["at"][0].as_f64().unwrap() > since as f64 + 3.0
    });
    let run = viewer.get("/api/run");
    let told: Vec<&str> =
        run["events"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
    for event in ["paused", "resumed", "changed", "checkpointed"] {
        assert!(told.contains(&event), "{told:?}");
    }
    assert_eq!(served.interrupt(), Some(130));

    let replayed: Value = serde_json::from_str(&home.succeed(&["replay", "r", "--json"])).unwrap();
    assert!(replayed["until"].as_u64().unwrap() > since + 3, "{replayed}");
    // The rate that was changed last is that of the run that goes on.
    let events = home.read("r/ppo/events.jsonl");
    assert!(events.contains("\"changed\"") && events.contains("\"checkpointed\""), "{events}");
}

/// A reward model in `other/reward/model`, of fewer labels.
fn train_other_reward_model(home: &Home) {
    let settings = ["seed=9", "reward.sft=before/sft/model", "reward.labeler.n_prompts=10"];
    let settings = settings.into_iter().flat_map(|set| ["--set", set]);
    home.succeed(&["reward", "recipe.toml", "--out", "other"].into_iter().chain(settings).collect::<Vec<_>>());
}

#[test]
fn what_is_compared_in_the_end_is_scored_by_the_reward_model_that_gave_the_last_scores() {
    let home = home();
    train_other_reward_model(&home);
    let mut arguments = ppo(&["ppo.n_updates=300", "ppo.mode=threaded"]);
    arguments.push("--serve=0");
    let served = Served::run(&mut home.command(&arguments));
    let mut messages = served.viewer.listen("");
    messages.until(|message| message["kind"] == "updated");
    let answer = served.viewer.post("/api/reward-model", &json!({ "dir": "other/reward/model" }));
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(served.ended(), Some(0));

    let by_other = ["ppo.sft=before/sft/model", "ppo.reward_model=other/reward/model", "ppo.n_updates=1"];
    let by_other = by_other.into_iter().flat_map(|set| ["--set", set]);
    home.succeed(&["ppo", "recipe.toml", "--out", "by-other"].into_iter().chain(by_other).collect::<Vec<_>>());
    let evaluated = |run: &str| -> [Vec<Value>; 2] {
        let lines = home.read(format!("{run}/ppo/evaluation.jsonl"));
        let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        ["before", "after"].map(|policy| records.iter().filter(|record| record["policy"] == policy).cloned().collect())
    };
    let ([before, after], [by_other, _]) = (evaluated("r"), evaluated("by-other"));
    assert!(!before.is_empty() && after.len() == before.len());
    assert_eq!(before, by_other, "the same responses, scored by the same reward model");
}

#[test]
fn the_reward_model_is_replaced_from_the_page_and_a_replay_refuses_another_one_in_its_place() {
    let home = home();
    train_other_reward_model(&home);
    let n_labels = ["before", "other"].map(|run| home.summary(run).reward.unwrap().n_comparisons as u64);
    assert!(n_labels[1] < n_labels[0], "{n_labels:?}");
    let mut arguments = ppo(&["ppo.n_updates=100000", "ppo.mode=threaded", "ppo.checkpoints.every=0"]);
    arguments.push("--serve=0");
    let served = Served::run(&mut home.command(&arguments));
    let viewer = &served.viewer;
    let mut messages = viewer.listen("");
    messages.until(|message| message["kind"] == "updated");
    let before = viewer.get("/api/run")["settings"]["reward_model"].clone();
    assert!(before.as_str().unwrap().ends_with("before/reward/model"), "{before}");
    for (dir, problem) in [("nowhere", "nowhere"), ("before/sft/model", "before/sft/model")] {
        let answer = viewer.post("/api/reward-model", &json!({ "dir": dir }));
        assert_eq!(answer.status, 422, "{}", answer.body);
        assert!(answer.body["error"].as_str().unwrap().contains(problem), "{}", answer.body);
    }
    let answer = viewer.post("/api/reward-model", &json!({ "dir": "other/reward/model" }));
    assert_eq!(answer.status, 202, "{}", answer.body);
    let model = answer.body["reward_model"].clone();
    let replacing = messages.until(|message| message["event"] == "replacing");
    assert_eq!(replacing["reward_model"], model);
    // What was asked for is kept before the first update with it.
    messages.until(|message| message["event"] == "checkpointed" && message["version"] == replacing["version"]);
    let changed = messages.until(|message| message["event"] == "changed");
    assert_eq!(
        (&changed["changes"], &changed["version"]),
        (&json!([{ "reward_model": model }]), &replacing["version"])
    );
    let since = changed["version"].as_u64().unwrap();
    messages.until(|message| message["kind"] == "updated" && message["at"][0].as_f64().unwrap() > since as f64 + 3.0);
    assert_eq!(served.interrupt(), Some(130));
    // Whoever goes on with the run has the new reward model from the first update on.
    let served = Served::run(&mut home.command(&arguments));
    let mut messages = served.viewer.listen("");
    let first = messages.until(|message| message["kind"] == "updated");
    assert_eq!(
        (&first["numbers"]["n_labels"], &first["at"][3]),
        (&json!(n_labels[1] as f64), &json!(n_labels[1] as f64))
    );
    assert_eq!(served.interrupt(), Some(130));
    for line in home.read("r/ppo/metrics.jsonl").lines() {
        let update: Value = serde_json::from_str(line).unwrap();
        let is_replaced = update["version"].as_u64().unwrap() > since;
        assert_eq!(update["n_labels"], n_labels[usize::from(is_replaced)], "{update}");
    }
    let replayed: Value = serde_json::from_str(&home.succeed(&["replay", "r", "--json"])).unwrap();
    assert!(replayed["until"].as_u64().unwrap() > since + 3, "{replayed}");

    let weights = "other/reward/model/model.safetensors";
    std::fs::copy(home.path("before/reward/model/model.safetensors"), home.path(weights)).unwrap();
    let error = home.fail(&["replay", "r"]);
    assert!(error.contains("other/reward/model is another one now") && error.contains("weights"), "{error}");
    std::fs::remove_dir_all(home.path("other")).unwrap();
    let error = home.fail(&["replay", "r"]);
    assert!(error.contains("other/reward/model"), "{error}");
}

#[test]
fn tokens_that_were_recorded_without_their_text_get_it_from_the_runs_own_tokenizer() {
    let home = home();
    home.succeed(&ppo(&["ppo.n_updates=2", "ppo.n_rollouts_in_detail=0"]));
    let root = home.path("r");
    let watched = Arc::new(Watched::of(&root));
    Follower::start(RunDir::existing(&root).unwrap(), &watched);
    let viewer = Viewer::of(&Door::open("0").unwrap().serve(watched, None).unwrap());
    let total = viewer.get("/api/rollouts?limit=0")["total"].as_u64().unwrap();
    assert!(total > 0);
    for id in 1..=total {
        let record = viewer.get(&format!("/api/rollouts/{id}"));
        let texts: Vec<&str> = record["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        assert!(record["tokens"].is_null(), "{record}");
        assert_eq!(texts.len(), record["logprobs"].as_array().unwrap().len(), "{record}");
        assert_eq!(texts.concat(), record["response"].as_str().unwrap());
    }
}

/// Nothing of a reward, of a token or of an evaluation is thrown away.
fn check_rollouts(home: &Home) {
    let lines = |name: &str| -> Vec<Value> {
        home.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let joined =
        |pieces: &Value| -> String { pieces.as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect() };
    for record in lines("r/ppo/rollouts.jsonl") {
        let number = |name: &str| record[name].as_f64().unwrap();
        assert!((number("score") - number("kl_penalty") - number("reward")).abs() < 1e-4, "{record}");
        assert!(record["gold"].is_number(), "{record}");
        let tokens = &record["tokens"];
        assert_eq!(
            (joined(&tokens["prompt"]), joined(&tokens["response"])),
            (record["prompt"].as_str().unwrap().to_owned(), record["response"].as_str().unwrap().to_owned(),)
        );
        let n = record["response_tokens"].as_array().unwrap().len();
        for name in ["response", "ref_logprobs", "values", "advantages"] {
            assert_eq!(tokens[name].as_array().unwrap().len(), n, "{name}: {record}");
        }
    }
    let evaluated = lines("r/ppo/evaluation.jsonl");
    let of = |policy: &str| -> Vec<&Value> { evaluated.iter().filter(|line| line["policy"] == policy).collect() };
    let prompts = |lines: Vec<&Value>| -> Vec<String> { lines.iter().map(|line| line["prompt"].to_string()).collect() };
    assert_eq!(of("before").len(), 12);
    assert_eq!(prompts(of("before")), prompts(of("after")));
    assert!(
        of("before").iter().all(|line| line["kl"].as_f64().unwrap().abs() < 1e-4 && line["gold"].is_number()),
        "{evaluated:?}"
    );
    assert!(of("after").iter().any(|line| line["kl"].as_f64().unwrap().abs() > 1e-4), "{evaluated:?}");
}

/// Killed beyond a checkpoint, the run does updates again: they are a branch of its curves.
#[test]
fn updates_that_are_done_again_after_a_kill_are_a_branch() {
    let home = home();
    let arguments = ppo(&["ppo.n_updates=40", "ppo.checkpoints.every=7"]);
    let metrics = home.path("r/ppo/metrics.jsonl");
    let n_lines = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    let mut child = home.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while n_lines() < 11 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let n_before = n_lines() as u64;
    assert!((11..40).contains(&n_before), "{n_before} updates");
    let newest = n_before - n_before % 7;
    home.succeed(&arguments);

    check_rollouts(&home);

    let mut view = home.command(&["view", "r", "--addr", "0"]);
    let mut child = view.stdout(Stdio::piped()).spawn().unwrap();
    let mut link = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut link).unwrap();
    let viewer = Viewer::of(&link);
    let run = viewer.get("/api/run");
    let curve = viewer.get("/api/curves?columns=batch/score&n_buckets=1000")["batch/score"].clone();
    let answer = viewer.post("/api/control/pause", &json!(null));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(answer.status, 409, "{}", answer.body);
    assert_eq!((&run["last"][0], &run["is_live"]), (&json!(40.0), &json!(false)));
    let xs: Vec<f64> = serde_json::from_value(curve["raw"]["x"].clone()).unwrap();
    assert_eq!(xs, (1..=40).map(f64::from).collect::<Vec<_>>(), "one main line");
    // Killed right at a checkpoint, it had nothing to do again.
    let expected = if newest < n_before { json!([[newest as f64, n_before as f64]]) } else { json!([]) };
    assert_eq!(run["branches"], expected, "{}", Path::new("r/ppo").display());
    assert_eq!(curve["branches"].as_array().unwrap().len(), usize::from(newest < n_before));
}

/// The task that an answer names.
fn task_of(home: &Home, answer: &Answer) -> LabelTask {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let content = answer.body["task"].as_str().unwrap().to_owned();
    let found = Store::existing(&home.path("labels.db")).unwrap().read(move |connection| {
        let id = tasks::find(connection, &content)?.expect("it is there");
        tasks::get(connection, id)
    });
    let task = found.unwrap();
    let n = answer.body["n_responses"].as_u64().unwrap() as usize;
    assert_eq!((task.responses.len(), task.tokens.as_ref().unwrap().responses.len()), (n, n));
    assert!((2..=4).contains(&n), "{task:?}");
    task
}

#[test]
fn a_policy_is_asked_for_more_where_a_prompt_was_recorded_once_while_it_is_trained_and_the_run_is_the_same() {
    let home = home();
    let mut arguments = ppo(&["ppo.n_updates=100000", "ppo.mode=threaded"]);
    arguments.extend(["--serve=0", "--labels=labels.db"]);
    let served = Served::run(&mut home.command(&arguments));
    let mut messages = served.viewer.listen("");
    messages.until(|message| message["kind"] == "updated" && message["at"][0].as_f64().unwrap() > 2.0);
    let answer = served.viewer.post("/api/rollouts/1/label", &json!({}));
    let record = served.viewer.get("/api/rollouts/1");
    messages.until(|message| message["kind"] == "updated");
    assert_eq!(served.interrupt(), Some(130));
    let task = task_of(&home, &answer);
    assert_eq!(task.responses[0], record["response"].as_str().unwrap());
    let origin = task.origin;
    // The rollout was the first policy's; those beside it are of the one that was trained by then.
    let versions = origin.versions.expect("more than one");
    assert_eq!((versions[0], versions.len()), (0, task.responses.len()));
    assert!(
        versions[1..].iter().all(|version| Some(*version) == origin.policy_version && *version > 0),
        "{versions:?}"
    );
    assert!(origin.reward_model.unwrap().ends_with("before/reward/model"));
    let scores = origin.scores.unwrap();
    assert!((f64::from(scores[0]) - record["score"].as_f64().unwrap()).abs() < 1e-4, "{scores:?} {record}");
    home.succeed(&["replay", "r"]);
}

#[test]
fn a_run_that_has_ended_is_asked_for_more_with_what_it_came_to() {
    let home = home();
    home.succeed(&ppo(&["ppo.n_updates=2"]));
    let root = home.path("r");
    let watched = Arc::new(Watched::of(&root));
    Follower::start(RunDir::existing(&root).unwrap(), &watched);
    let labels = Store::open(&home.path("labels.db")).unwrap();
    let viewer = Viewer::of(&Door::open("0").unwrap().serve(watched, Some(labels)).unwrap());
    let answer = viewer.post("/api/rollouts/1/label", &json!({}));
    let origin = task_of(&home, &answer).origin;
    assert_eq!((origin.policy_version, origin.scores.is_some()), (Some(2), true));
    let again = viewer.post("/api/rollouts/1/label", &json!({}));
    assert_eq!(again.body["is_new"], false, "the same version answers the same: {}", again.body);
}
