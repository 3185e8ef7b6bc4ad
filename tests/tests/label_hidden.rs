//! What labelers are tried by, over HTTP: the screening, and hidden repeats, which look like any other task.

use std::collections::BTreeSet;

use collimate_tests::command_line::Home;
use collimate_tests::labeling::{Client, Served, by_text, tasks};
use serde_json::{Value, json};

/// Serves so many tasks of four responses, to anna and ben, who are tried with so many others first.
fn serve(n_tasks: usize, n_screening: usize, arguments: &[&str]) -> (Home, Served) {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    home.write("tasks.jsonl", tasks(n_tasks, 4));
    let known = |line: &str| {
        let mut task: Value = serde_json::from_str(line).unwrap();
        task["ranks"] = json!([1, 2, 3, 4]);
        task["origin"]["reward_model"] = json!("secret-reward");
        task["origin"]["scores"] = json!([0.8125, 0.5, 0.25, 0.125]);
        format!("{task}\n")
    };
    // Other tasks than those of the work, which begin at 0.
    home.write("known.jsonl", tasks(100 + n_screening, 4).lines().skip(100).map(known).collect::<String>());
    let people = ["--tasks", "tasks.jsonl", "--screening", "known.jsonl", "--labeler", "anna", "--labeler", "ben"];
    let served = Served::start(&home, &[people.as_slice(), arguments].concat());
    (home, served)
}

fn prompt(task: &Value) -> &str {
    task["turns"][0]["raw"].as_str().unwrap()
}

/// The texts of the responses, as they are shown.
fn shown(task: &Value) -> Vec<&str> {
    task["responses"].as_array().unwrap().iter().map(|one| one["raw"].as_str().unwrap()).collect()
}

fn next(client: &Client) -> Value {
    client.next().expect("a task")
}

/// Ranks a task the other way round than by its texts.
fn answer_reversed(client: &Client, task: &Value) {
    let places = by_text(task)["places"].clone();
    let places: Vec<u64> = places.as_array().unwrap().iter().map(|place| 5 - place.as_u64().unwrap()).collect();
    let draft = json!({ "places": places });
    client.done("/api/answer", json!({ "handle": task["handle"], "key": task["handle"], "draft": draft }));
}

/// Ranks a task by its texts; what is replied.
fn answer(client: &Client, task: &Value) -> Value {
    let (status, reply) = client.answer(task, task["handle"].as_str().unwrap());
    assert_eq!(status, 200, "{reply}");
    reply
}

/// What the admin is told of a labeler.
fn told_of(served: &Served, name: &str) -> Value {
    let overview: Value = serde_json::from_str(&served.client("admin").get("/api/overview").1).unwrap();
    let labelers = overview["labelers"].as_array().unwrap();
    labelers.iter().find(|labeler| labeler["name"] == name).unwrap().clone()
}

/// All keys of a value with where they stand, whatever the values and however many a list holds.
fn keys(value: &Value) -> BTreeSet<String> {
    fn collect(value: &Value, at: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => object.iter().for_each(|(key, value)| {
                let at = format!("{at}.{key}");
                found.insert(at.clone());
                collect(value, &at, found);
            }),
            Value::Array(array) => array.iter().for_each(|value| collect(value, &format!("{at}[]"), found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    collect(value, "", &mut found);
    found
}

#[test]
fn below_the_bar_of_the_screening_there_is_no_task_and_above_it_work_begins() {
    let (home, served) = serve(2, 2, &["--set", "label.repeat_share=0", "--set", "label.screening_threshold=0.6"]);
    let (anna, ben) = (served.client("anna"), served.client("ben"));
    for expected in ["prompt 100", "prompt 101"] {
        let task = next(&anna);
        assert_eq!(prompt(&task), expected);
        answer(&anna, &task);
    }
    assert_eq!(prompt(&next(&anna)), "prompt 0");

    // One right and one wrong are half of it. What is skipped comes again.
    let skipped = next(&ben);
    ben.done("/api/skip", json!({ "handle": skipped["handle"], "draft": {} }));
    answer(&ben, &next(&ben));
    let last = next(&ben);
    assert_eq!(last["handle"], skipped["handle"]);
    answer_reversed(&ben, &last);
    for _ in 0..2 {
        assert_eq!(ben.done("/api/next", json!({})), json!({ "state": "screened" }));
    }
    assert_eq!(ben.done("/api/next", json!({ "handle": last["handle"] })), json!({ "state": "screened" }));
    assert_eq!(ben.post("/api/undo", json!({})).0, 404, "there is no way back to what decided");
    let changed = ben.answer(&last, "another key");
    assert_eq!(changed.0, 409, "{}", changed.1);
    assert_eq!(ben.post("/api/resume", json!({ "handle": last["handle"] })).0, 409);

    for (name, has_passed, agreement) in [("anna", true, 1.0), ("ben", false, 0.5)] {
        let told = told_of(&served, name);
        assert_eq!(
            (&told["has_passed"], &told["screening_agreement"]),
            (&json!(has_passed), &json!(agreement)),
            "{name}"
        );
    }
    assert!(home.fail(&["label", "export", "label.db", "out.jsonl"]).contains("there is nothing to export"));
    home.succeed(&["label", "export", "label.db", "all.jsonl", "--all"]);
    assert_eq!(home.read("all.jsonl").lines().count(), 4, "the screening's answers are kept, and not trained on");
}

#[test]
fn a_hidden_repeat_and_a_screening_task_look_like_any_other_and_the_admin_sees_what_came_of_it() {
    let (home, served) = serve(6, 1, &["--set", "label.repeat_share=1", "--set", "label.repeat_after=2"]);
    for (name, is_consistent) in [("anna", true), ("ben", false)] {
        let client = served.client(name);
        let mut tasks = Vec::new();
        let mut replies = Vec::new();
        // The screening's, three others, and then one of these again: two lie between.
        for _ in 0..4 {
            let task = next(&client);
            replies.push(answer(&client, &task));
            tasks.push(task);
        }
        let repeat = next(&client);
        let first = tasks[1..].iter().find(|task| prompt(task) == prompt(&repeat)).expect("one that was there before");
        assert_eq!(shown(&repeat), shown(first).into_iter().rev().collect::<Vec<_>>(), "the other way round");
        match is_consistent {
            true => replies.push(answer(&client, &repeat)),
            false => answer_reversed(&client, &repeat),
        }
        assert!(!tasks.iter().any(|task| task["handle"] == repeat["handle"]), "by a handle of its own");

        tasks.push(repeat);
        for task in &tasks {
            assert_eq!(keys(task), keys(&tasks[1]));
            assert_eq!(
                (&task["kind"], &task["revision"], &task["draft"]),
                (&json!("rank"), &json!(0), &tasks[1]["draft"])
            );
            let handle = task["handle"].as_str().unwrap();
            assert!(handle.len() == 32 && handle.chars().all(|c| c.is_ascii_hexdigit()), "{handle}");
            let text = task.to_string();
            for word in ["secret-model", "origin", "policy", "seed", "shown", "arm", "known", "pass", "repeat", "told"]
            {
                assert!(!text.contains(word), "{word} in {text}");
            }
        }
        assert!(replies.iter().all(|reply| keys(reply) == keys(&replies[0]) && reply["revision"] == 1));
        let n_answered: Vec<u64> =
            replies.iter().map(|reply| reply["progress"]["n_answered"].as_u64().unwrap()).collect();
        assert_eq!(n_answered, (1..=replies.len() as u64).collect::<Vec<_>>(), "each is counted as any other");
    }

    for (name, consistency) in [("anna", 1.0), ("ben", 0.0)] {
        let told = told_of(&served, name);
        assert_eq!((&told["self_consistency"], &told["n_repeats"]), (&json!(consistency), &json!(1)), "{name}");
        assert_eq!(told["share_of_first"]["n"], 4, "three rankings and one the other way round: {name}");
    }
    let overview: Value = serde_json::from_str(&served.client("admin").get("/api/overview").1).unwrap();
    assert_eq!((&overview["self_consistency"], &overview["n_repeats"]), (&json!(0.5), &json!(2)));
    assert_eq!((&overview["tasks"]["n_answers"], &overview["tasks"]["n_open"]), (&json!(6), &json!(0)));
    // Trained on once.
    home.succeed(&["label", "export", "label.db", "out.jsonl"]);
    home.succeed(&["label", "export", "label.db", "all.jsonl", "--all"]);
    let is_repeat = |line: &&str| serde_json::from_str::<Value>(line).unwrap()["is_repeat"] == true;
    let n_repeats = home.read("all.jsonl").lines().filter(is_repeat).count();
    assert_eq!((home.read("out.jsonl").lines().count(), n_repeats), (6, 2));
}
