//! Labelling over HTTP: who gets which task, what is kept, what is refused.

use std::collections::{BTreeMap, BTreeSet};

use collimate_tests::command_line::Home;
use collimate_tests::labeling::{Client, Served, by_text, tasks};
use serde_json::{Value, json};

fn home(n_tasks: usize, k: usize) -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    home.write("tasks.jsonl", tasks(n_tasks, k));
    home
}

fn serve(home: &Home, arguments: &[&str]) -> Served {
    Served::start(home, &[&["--tasks", "tasks.jsonl", "--labeler", "anna", "--labeler", "ben"], arguments].concat())
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("labeler-{n}")).collect()
}

/// Starts a server with so many labelers.
fn serve_many(home: &Home, n: usize, arguments: &[&str]) -> Served {
    let names = names(n);
    let labelers: Vec<&str> = names.iter().flat_map(|name| ["--labeler", name]).collect();
    Served::start(home, &[&["--tasks", "tasks.jsonl"], labelers.as_slice(), arguments].concat())
}

#[test]
fn twenty_clients_get_a_thousand_distinct_leases_for_a_thousand_tasks() {
    let home = home(1_000, 2);
    let served = serve_many(&home, 20, &["--set", "label.repeat_share=0"]);
    let prompts: Vec<String> = std::thread::scope(|scope| {
        let takers: Vec<_> = names(20)
            .iter()
            .map(|name| served.client(name))
            .map(|client| scope.spawn(move || std::iter::from_fn(|| client.next()).collect::<Vec<Value>>()))
            .collect();
        let taken = takers.into_iter().flat_map(|taker| taker.join().unwrap());
        taken.map(|task| task["turns"][0]["raw"].as_str().unwrap().to_owned()).collect()
    });
    assert_eq!(prompts.len(), 1_000);
    assert_eq!(prompts.iter().collect::<BTreeSet<_>>().len(), 1_000);
}

#[test]
fn overlap_three_gives_exactly_three_answers_each_blind_to_the_others() {
    let home = home(60, 3);
    let served = serve_many(&home, 8, &["--overlap", "3", "--set", "label.repeat_share=0"]);
    std::thread::scope(|scope| {
        for name in names(8) {
            let client = served.client(&name);
            scope.spawn(move || {
                while let Some(task) = client.next() {
                    assert_eq!((&task["draft"]["places"], &task["revision"]), (&json!([]), &json!(0)), "blind");
                    let key = format!("{name}-{}", task["handle"]);
                    assert_eq!(client.answer(&task, &key).0, 200);
                }
            });
        }
    });
    drop(served);
    home.succeed(&["label", "export", "label.db", "out.jsonl"]);
    let mut labelers = BTreeMap::<String, BTreeSet<String>>::new();
    let lines = home.read("out.jsonl");
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let of_task = labelers.entry(line["prompt"].as_str().unwrap().to_owned()).or_default();
        assert!(of_task.insert(line["labeler"].as_str().unwrap().to_owned()), "nobody twice");
    }
    assert_eq!((lines.lines().count(), labelers.len()), (180, 60));
    assert!(labelers.values().all(|of_task| of_task.len() == 3));
}

#[test]
fn nothing_that_a_labeler_gets_tells_which_model_wrote_what() {
    let home = home(3, 4);
    let served = serve(&home, &[]);
    let anna = served.client("anna");
    let mut seen = vec![anna.done("/api/next", json!({})).to_string(), anna.get("/api/me").1];
    let task = anna.next().unwrap();
    seen.push(anna.answer(&task, "k").1.to_string());
    seen.push(anna.done("/api/undo", json!({})).to_string());
    seen.push(anna.get("/").1);
    seen.push(anna.get("/api/unfinished").1);
    for text in seen {
        for word in ["secret-model", "origin", "policy", "seed", "shown"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
    }
    let served = serve_many(&home, 12, &["--overlap", "12"]);
    let orders: BTreeSet<String> = names(12)
        .iter()
        .map(|name| {
            let task = served.client(name).next().unwrap();
            task["responses"].as_array().unwrap().iter().map(|one| one["raw"].to_string()).collect()
        })
        .collect();
    assert!(orders.len() > 1, "an order of its own for each labeler");
}

#[test]
fn what_is_put_down_outlives_kill_9() {
    let home = home(1, 3);
    let mut served = serve(&home, &[]);
    let task = served.client("anna").next().unwrap();
    let draft =
        json!({ "places": [2, null, 2], "notes": "half-way, \u{5e2}\u{5d1}\u{5e8}", "scores": [null, 7, null] });
    served.client("anna").done("/api/draft", json!({ "handle": task["handle"], "draft": draft }));
    served.kill();
    let tokens = std::mem::take(&mut served.tokens);
    let again = Served::start(&home, &["--labeler", "anna"]);
    assert!(!again.tokens.contains_key("anna"), "her link is good still, and is not printed again");
    let anna = Client::new(again.url(), Some(&tokens["anna"]));
    let back = anna.done("/api/next", json!({ "handle": task["handle"] }));
    assert_eq!(back["task"]["handle"], task["handle"]);
    for key in ["places", "notes", "scores"] {
        assert_eq!(back["task"]["draft"][key], draft[key]);
    }
    assert_eq!(back["task"]["responses"], task["responses"], "in the same order as before");
}

#[test]
fn a_request_that_is_sent_twice_is_stored_once() {
    let home = home(2, 2);
    let served = serve(&home, &[]);
    let anna = served.client("anna");
    let task = anna.next().unwrap();
    let (first, second) = (anna.answer(&task, "one key"), anna.answer(&task, "one key"));
    assert_eq!((first.1["revision"].as_u64(), second.1["revision"].as_u64()), (Some(1), Some(1)));
    assert_eq!(anna.answer(&task, "another").1["revision"], 2, "a change is a revision");
    home.succeed(&["label", "export", "label.db", "all.jsonl", "--all"]);
    home.succeed(&["label", "export", "label.db", "newest.jsonl"]);
    assert_eq!((home.read("all.jsonl").lines().count(), home.read("newest.jsonl").lines().count()), (2, 1));
}

#[test]
fn requests_without_a_token_or_with_a_labeler_s_for_the_admin_s_are_refused() {
    let home = home(1, 2);
    let served = serve(&home, &[]);
    let (nobody, anna, admin) = (Client::new(served.url(), None), served.client("anna"), served.client("admin"));
    let forged = Client::new(served.url(), Some(&served.tokens["anna"].chars().rev().collect::<String>()));
    for path in ["/api/next", "/api/undo"] {
        for client in [&nobody, &forged] {
            let (status, answer) = client.post(path, json!({}));
            assert_eq!(status, 401, "{path}: {answer}");
        }
    }
    for path in ["/api/me", "/api/overview", "/api/unfinished", "/api/effects", "/api/effects/0"] {
        assert_eq!(nobody.get(path).0, 401, "{path}");
        assert_eq!(forged.get(path).0, 401, "{path}");
    }
    for path in ["/api/overview", "/api/effects", "/api/effects/0"] {
        assert_eq!(anna.get(path).0, 403, "{path}");
    }
    assert_eq!(admin.get("/api/effects").0, 200);
    assert_eq!(admin.get("/api/effects/0").0, 404);
    assert_eq!(anna.post("/api/tasks", json!({ "tasks": [] })).0, 403);
    assert_eq!(admin.post("/api/next", json!({})).0, 403, "and the admin labels nothing");
    assert_eq!(admin.get("/api/overview").0, 200);
    assert_eq!(nobody.get("/").0, 200, "the page itself holds nothing");
    assert_eq!(nobody.post("/api/login", json!({ "token": "guess" })).0, 401);
}

#[test]
fn foreign_origins_oversized_and_malformed_requests_are_refused_and_change_nothing() {
    let home = home(1, 2);
    let served = serve(&home, &[]);
    let anna = served.client("anna");
    let task = anna.next().unwrap();
    let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
    let send = |headers: &[(&str, &str)], body: String| {
        let request = agent.post(format!("{}/api/answer", served.url()));
        // As a browser: by cookie.
        let port = served.url().rsplit(':').next().unwrap();
        let cookie = format!("collimate-label-{port}={}", served.tokens["anna"]);
        let request = request.header("cookie", cookie).header("content-type", "application/json");
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send(body)
    };
    let good = json!({ "handle": task["handle"], "key": "k", "draft": by_text(&task) }).to_string();
    let status = |headers: &[(&str, &str)], body: &str| send(headers, body.to_owned()).unwrap().status().as_u16();
    assert_eq!(status(&[("origin", "https://evil.example")], &good), 403);
    assert_eq!(status(&[("sec-fetch-site", "cross-site")], &good), 403);
    assert_eq!(status(&[("host", "evil.example")], &good), 421);
    assert_eq!(status(&[], &good.replace("places", "place")), 422);
    assert_eq!(status(&[], "{"), 400);
    let own = served.url().to_owned();
    let long = json!({ "handle": task["handle"], "key": "k", "draft": { "notes": "x".repeat(100_001) } }).to_string();
    assert_eq!(status(&[], &long), 422);
    let huge = format!("{{\"handle\": \"{}\"}}", "x".repeat(5 << 20));
    // The server may close before all is sent.
    assert!(send(&[], huge).map_or(true, |answer| answer.status() == 413));
    for draft in [
        json!({ "places": [1] }),
        json!({ "places": [1, 99] }),
        json!({ "places": [1, null] }),
        json!({ "flags": [["rude"], []] }),
    ] {
        let body = json!({ "handle": task["handle"], "key": "k", "draft": draft }).to_string();
        assert_eq!(status(&[], &body), 422, "{body}");
    }
    assert!(home.fail(&["label", "export", "label.db", "out.jsonl"]).contains("there is nothing to export"));
    assert_eq!(status(&[("origin", &own), ("sec-fetch-site", "same-origin")], &good), 200, "the page itself is heard");
}

#[test]
fn responses_that_attack_the_page_arrive_as_text() {
    let home = home(0, 2);
    let attacks = [
        "<script>alert(1)</script>",
        "[x](javascript:alert(1)) ![y](https://evil.example/t.png)",
        "<img src=x onerror=alert(1)>",
        "a\u{202e}b\u{200b}c",
    ];
    home.write("tasks.jsonl", json!({ "prompt": "<svg onload=alert(1)>", "responses": attacks }).to_string());
    let served = serve(&home, &[]);
    let task = served.client("anna").next().unwrap();
    fn names(node: &Value, found: &mut BTreeSet<String>) {
        if let Some(name) = node["name"].as_str() {
            found.insert(name.to_owned());
            assert!(node["href"].is_null(), "no link leads anywhere here: {node}");
        }
        node["children"].as_array().into_iter().flatten().for_each(|child| names(child, found));
    }
    let mut found = BTreeSet::new();
    for text in task["responses"].as_array().unwrap().iter().chain(task["turns"].as_array().unwrap()) {
        text["nodes"].as_array().unwrap().iter().for_each(|node| names(node, &mut found));
    }
    assert_eq!(found, ["image", "mark", "p"].map(str::to_owned).into());
    let raw: BTreeSet<&str> =
        task["responses"].as_array().unwrap().iter().map(|one| one["raw"].as_str().unwrap()).collect();
    assert_eq!(raw, attacks.into(), "the raw view is exact");
}

#[test]
fn the_admin_adds_tasks_over_http_and_sees_how_it_goes() {
    let home = home(2, 2);
    let served = serve(&home, &["--overlap", "2", "--set", "label.repeat_share=0"]);
    let admin = served.client("admin");
    let new = json!({ "kind": "rank", "prompt": "live", "responses": ["x", "y", "z"], "origin": { "run": "runs/a", "policy_version": 12 } });
    assert_eq!(admin.done("/api/tasks", json!({ "tasks": [new] })), json!({ "n_new": 1 }));
    assert_eq!(admin.done("/api/tasks", json!({ "tasks": [new] })), json!({ "n_new": 0 }));
    let bad = json!({ "kind": "rank", "prompt": "live", "responses": ["x"] });
    assert_eq!(admin.post("/api/tasks", json!({ "tasks": [bad] })).0, 422);
    for name in ["anna", "ben"] {
        let client = served.client(name);
        while let Some(task) = client.next() {
            // ben turns everything round.
            let mut draft = by_text(&task);
            if name == "ben" {
                let places: Vec<u64> =
                    draft["places"].as_array().unwrap().iter().map(|place| 9 - place.as_u64().unwrap()).collect();
                draft = json!({ "places": places });
            }
            client.done("/api/answer", json!({ "handle": task["handle"], "key": task["handle"], "draft": draft }));
        }
    }
    let overview: Value = serde_json::from_str(&admin.get("/api/overview").1).unwrap();
    assert_eq!((&overview["tasks"]["n_answers"], &overview["tasks"]["n_wanted"]), (&json!(6), &json!(6)));
    assert_eq!(overview["pairwise"]["value"], 0.0);
    assert_eq!(overview["disagreements"].as_array().unwrap().len(), 3);
    assert!(overview["labelers"][0]["agreement"].is_null(), "not enough data under 50 rankings");
    let printed = home.succeed(&["label", "agreement", "label.db"]);
    assert!(printed.contains("6 of 6 answers") && printed.contains("pairwise agreement:   0.000"), "{printed}");
    assert!(
        printed.contains("anna: 3 answers, not enough data on agreement (3 rankings that others made too)"),
        "{printed}"
    );
}

#[test]
fn settings_that_make_no_sense_end_with_one_clear_error() {
    let home = home(1, 2);
    home.write("label.toml", "[label]\nover_lap = 2\n");
    let error = home.fail(&["label", "label.db", "--config", "label.toml"]);
    assert!(error.contains("label.toml:2: unknown key `label.over_lap`; did you mean `overlap`?"), "{error}");
    home.write("label.toml", "[label]\nflags = [{ name = \"a\", label = \"A\", key = \"s\" }]\n");
    let error = home.fail(&["label", "label.db", "--config", "label.toml"]);
    assert!(error.contains("`label.flags.0.key` is 's', which the page uses itself"), "{error}");
    let error = home.fail(&["label", "label.db", "--labeler", "admin"]);
    assert!(error.contains("`admin` is who sees the overview"), "{error}");
    let error = home.fail(&["label", "label.db", "--url", "label.example.org"]);
    assert!(error.contains("--url `label.example.org` is no address of a site"), "{error}");
    home.write(
        "bad.jsonl",
        "{\"prompt\": \"a\", \"responses\": [\"b\", \"c\"]}\n{\"prompt\": \"a\", \"responses\": [\"b\"]}\n",
    );
    let error = home.fail(&["label", "label.db", "--tasks", "bad.jsonl"]);
    assert!(error.contains("bad.jsonl:2: has 1 responses, expected 2 to 9"), "{error}");
}
