//! The admin settles what labelers differ on, over HTTP and in files.

use std::path::Path;

use collimate_models::data::Records;
use collimate_protocol::records::Comparison;
use collimate_tests::command_line::Home;
use collimate_tests::labeling::{Client, Served, by_text, refused_line, tasks};
use serde_json::{Value, json};

/// Tasks of three responses that anna ranks in their order and ben the other way round.
fn disagreeing(n_tasks: usize) -> (Home, Served) {
    disagreeing_among(n_tasks, &["anna", "ben"])
}

/// The same of tasks that all these are to rank, anna and ben among them.
fn disagreeing_among(n_tasks: usize, labelers: &[&str]) -> (Home, Served) {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    home.write("tasks.jsonl", tasks(n_tasks, 3));
    let overlap = labelers.len().to_string();
    let people: Vec<&str> = labelers.iter().flat_map(|name| ["--labeler", name]).collect();
    let fixed = ["--tasks", "tasks.jsonl", "--overlap", overlap.as_str(), "--set", "label.repeat_share=0"];
    let served = Served::start(&home, &[fixed.as_slice(), &people].concat());
    for name in ["anna", "ben"] {
        let client = served.client(name);
        while let Some(task) = client.next() {
            let places = by_text(&task)["places"].clone();
            let places = places.as_array().unwrap().iter().map(|place| place.as_u64().unwrap());
            let places: Vec<u64> = places.map(|place| if name == "ben" { 4 - place } else { place }).collect();
            let draft = json!({ "places": places, "notes": format!("{name}'s") });
            client.done("/api/answer", json!({ "handle": task["handle"], "key": task["handle"], "draft": draft }));
        }
    }
    (home, served)
}

fn got(client: &Client, path: &str) -> Value {
    let (status, text) = client.get(path);
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// The first task in the list.
fn first(admin: &Client) -> String {
    got(admin, "/api/disagreements")["disagreements"][0]["task"].as_str().unwrap().to_owned()
}

fn rows(path: &Path) -> Vec<Value> {
    let rows = collimate_models::data::rows::rows(path).unwrap();
    rows.map(|row| Value::Object(row.unwrap().columns)).collect()
}

/// What an export holds.
fn exported(home: &Home, db: &str, name: &str, arguments: &[&str]) -> Vec<Value> {
    home.succeed(&[&["label", "export", db, name], arguments].concat());
    rows(&home.path(name))
}

#[test]
fn the_admin_reads_a_disagreement_whole_settles_it_changes_that_and_takes_it_back() {
    let (_home, served) = disagreeing(2);
    let admin = served.client("admin");
    let list = got(&admin, "/api/disagreements");
    assert_eq!((&list["n_disagreements"], &list["n_settled"], &list["from"]), (&json!(2), &json!(0), &json!(0)));
    let task = first(&admin);
    let one = got(&admin, &format!("/api/disagreements/{task}"));
    assert_eq!((&one["turns"][0]["raw"], &one["responses"][2]["raw"]), (&json!("prompt 0"), &json!("response 2 to 0")));
    let opinion = |idx: usize| {
        let one = &one["opinions"][idx];
        (one["labeler"].clone(), one["ranks"].clone(), one["notes"].clone())
    };
    assert_eq!(opinion(0), (json!("anna"), json!([1, 2, 3]), json!("anna's")));
    assert_eq!(opinion(1), (json!("ben"), json!([3, 2, 1]), json!("ben's")));
    assert_eq!((&one["settled"], &one["draft"]["places"], &one["agreement"]), (&Value::Null, &json!([]), &json!(0.0)));

    let settle = |places: [u32; 3]| {
        let draft = json!({ "places": places, "notes": "both are right" });
        admin.done("/api/settle", json!({ "task": task, "draft": draft }))["settled"].clone()
    };
    let settled = settle([1, 1, 2]);
    assert_eq!((&settled["by"], &settled["revision"]), (&json!("admin"), &json!(1)));
    assert_eq!(
        (&settled["ranking"]["ranks"], &settled["ranking"]["notes"]),
        (&json!([1, 1, 3]), &json!("both are right"))
    );
    assert_eq!(settle([1, 1, 2]), settled, "the same again is no change");
    assert_eq!(settle([2, 1, 3])["revision"], 2);
    let one = got(&admin, &format!("/api/disagreements/{task}"));
    assert_eq!((&one["draft"]["places"], one["opinions"].as_array().unwrap().len()), (&json!([2, 1, 3]), 2));
    let list = got(&admin, "/api/disagreements");
    assert_eq!((&list["n_disagreements"], &list["n_settled"]), (&json!(2), &json!(1)));
    assert_eq!(list["disagreements"][1]["settled"]["ranking"]["ranks"], json!([2, 1, 3]), "unsettled ones come first");
    assert_eq!(got(&admin, "/api/disagreements?from=1")["disagreements"].as_array().unwrap().len(), 1);

    assert_eq!(admin.done("/api/take-back", json!({ "task": task }))["settled"], Value::Null);
    assert_eq!(first(&admin), task, "it is open again");
    let overview = got(&admin, "/api/overview");
    assert_eq!((&overview["n_disagreements"], &overview["n_settled"]), (&json!(2), &json!(0)));
}

#[test]
fn what_is_settled_is_asked_no_more_and_the_overview_counts_what_is_left() {
    let (home, served) = disagreeing_among(3, &["anna", "ben", "cara", "dan"]);
    let (admin, cara, dan) = (served.client("admin"), served.client("cara"), served.client("dan"));
    let prompt = |task: Option<Value>| task.map(|task| task["turns"][0]["raw"].as_str().unwrap().to_owned());
    let listed = got(&admin, "/api/disagreements");
    let task_of = |idx: usize| listed["disagreements"][idx]["task"].as_str().unwrap().to_owned();
    let settle = |idx: usize| {
        let body = json!({ "task": task_of(idx), "draft": { "places": [1, 2, 3] } });
        admin.done("/api/settle", body);
    };
    let counts = || {
        let tasks = got(&admin, "/api/overview")["tasks"].clone();
        ["n_open", "n_wanted", "n_answers"].map(|name| tasks[name].as_u64().unwrap())
    };
    assert_eq!(counts(), [3, 12, 6]);
    let open = cara.next().unwrap();
    settle(0);
    settle(1);
    assert_eq!(counts(), [1, 9, 6], "two of each settled one are there, and cara is at the first");
    assert_eq!(prompt(dan.next()), Some("prompt 2".to_owned()));
    assert_eq!(cara.answer(&open, "hers").0, 200, "she was at it before");
    assert_eq!(prompt(cara.next()), Some("prompt 2".to_owned()));
    let told = home.succeed(&["label", "agreement", "label.db"]);
    assert!(told.contains("7 of 9 answers"), "{told}");
    admin.done("/api/take-back", json!({ "task": task_of(1) }));
    assert_eq!((prompt(cara.next()), prompt(dan.next())), (Some("prompt 1".to_owned()), Some("prompt 1".to_owned())));
    assert_eq!(counts(), [0, 11, 7]);
}

#[test]
fn an_export_has_the_settled_ranking_in_place_of_the_labelers_and_an_option_keeps_them() {
    let (home, served) = disagreeing(2);
    let admin = served.client("admin");
    let task = first(&admin);
    admin.done("/api/settle", json!({ "task": task, "draft": { "places": [2, 1, 2] } }));
    for name in ["out.jsonl", "out.parquet"] {
        let lines = exported(&home, "label.db", name, &[]);
        let settled: Vec<&Value> = lines.iter().filter(|line| line["settled"] == true).collect();
        assert_eq!((lines.len(), settled.len()), (3, 1), "{name}");
        assert_eq!((&settled[0]["labeler"], &settled[0]["task"]), (&json!("admin"), &json!(task)), "{name}");
        assert_eq!((&settled[0]["ranks"], &settled[0]["revision"]), (&json!([2, 1, 2]), &json!(1)), "{name}");
        assert!(lines.iter().all(|line| line["settled"] == true || line["task"] != json!(task)), "{name}");
        // As the reward stage reads it.
        let read: Records<Comparison> = Records::read(&home.path(name)).unwrap();
        let ranks: Vec<&[u32]> = read.iter().map(|one| one.ranks.as_slice()).collect();
        assert_eq!(ranks, [[1, 2, 3], [3, 2, 1], [2, 1, 2]], "{name}");
    }
    for option in ["--overruled", "--all"] {
        let lines = exported(&home, "label.db", "kept.jsonl", &[option]);
        let of_task = lines.iter().filter(|line| line["task"] == json!(task)).map(|line| line["labeler"].clone());
        assert_eq!(of_task.collect::<Vec<_>>(), ["anna", "ben", "admin"], "{option}");
    }
    let pairs = exported(&home, "label.db", "pairs.jsonl", &["--what", "preferences"]);
    assert_eq!(pairs.iter().filter(|pair| pair["settled"] == true).count(), 2, "a tie and two that are no tie");
    let told = home.succeed(&["label", "agreement", "label.db"]);
    assert!(told.contains("2 disagreements, 1 of them settled") && told.contains("4 of 4 answers"), "{told}");
}

#[test]
fn what_is_settled_goes_from_database_to_database_without_doubles() {
    let (home, served) = disagreeing(2);
    let admin = served.client("admin");
    let task = first(&admin);
    for places in [[1, 2, 3], [1, 1, 1]] {
        admin.done("/api/settle", json!({ "task": task, "draft": { "places": places } }));
    }
    for name in ["all.jsonl", "all.parquet"] {
        let lines = exported(&home, "label.db", name, &["--all"]);
        assert_eq!(lines.len(), 6, "each labeler's, and both of the admin's");
        for _ in 0..2 {
            home.succeed(&["label", "import", "other.db", name]);
            home.succeed(&["label", "import", "label.db", name]);
        }
        for db in ["other.db", "label.db"] {
            assert_eq!(exported(&home, db, "again.jsonl", &["--all"]).len(), 6, "{db} {name}");
        }
    }
    let own = exported(&home, "label.db", "own.jsonl", &[]);
    assert_eq!(exported(&home, "other.db", "other.jsonl", &[]), own);
    assert_eq!(own.last().unwrap()["ranks"], json!([1, 1, 1]), "the last that was said");
    // What was taken back does not come back by an older file.
    admin.done("/api/take-back", json!({ "task": task }));
    home.succeed(&["label", "import", "label.db", "all.jsonl"]);
    let lines = exported(&home, "label.db", "taken-back.jsonl", &[]);
    assert!(lines.len() == 4 && lines.iter().all(|line| line["settled"] == false));
}

#[test]
fn a_settled_line_that_settles_nothing_is_refused_by_its_number() {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    let refused = |change: Value| refused_line(&home, &change);
    assert!(refused(json!({ "settled": "yes" })).contains("key `settled`"));
    let screening = json!({ "settled": true, "known_ranks": [1, 2], "prompt": "b" });
    assert!(refused(screening).contains("there is nothing to settle"));
    home.write("in.jsonl", json!({ "prompt": "a", "response": "b", "labeler": "anna", "settled": true }).to_string());
    let error = home.fail(&["label", "import", "label.db", "in.jsonl"]);
    assert!(error.contains("in.jsonl:1: only rankings are settled"), "{error}");
}

#[test]
fn only_the_admin_settles_and_what_makes_no_sense_changes_nothing() {
    let (home, served) = disagreeing(1);
    let (nobody, anna, admin) = (Client::new(served.url(), None), served.client("anna"), served.client("admin"));
    let task = first(&admin);
    let good = json!({ "task": task, "draft": { "places": [1, 2, 3] } });
    for (client, expected) in [(&nobody, 401), (&anna, 403)] {
        for path in ["/api/disagreements".to_owned(), format!("/api/disagreements/{task}")] {
            assert_eq!(client.get(&path).0, expected, "{path}");
        }
        assert_eq!(client.post("/api/settle", good.clone()).0, expected);
        assert_eq!(client.post("/api/take-back", json!({ "task": task })).0, expected);
    }

    let refused = |path: &str, body: Value, status: u16, problem: &str| {
        let (was, answer) = admin.post(path, body.clone());
        assert_eq!(was, status, "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(problem), "{body}: {answer}");
    };
    let settle = |draft: Value, problem: &str| {
        refused("/api/settle", json!({ "task": task, "draft": draft }), 422, problem);
    };
    settle(json!({ "places": [1, 2] }), "`places` holds 2, expected one for each of 3 responses");
    settle(json!({ "places": [1, 2, 3, 4] }), "`places` holds 4, expected one for each of 3 responses");
    settle(json!({ "places": [0, 1, 2] }), "`places` holds 0, expected 1 to 9");
    settle(json!({ "places": [1, 2, 10] }), "`places` holds 10, expected 1 to 9");
    settle(json!({ "places": [1, 2, -1] }), "places");
    settle(json!({ "places": [1, 2, null] }), "a response has no place yet");
    settle(json!({ "place": [1, 2, 3] }), "place");
    settle(json!({ "places": [1, 2, 3], "flags": [["rude"], [], []] }), "`flags` holds `rude`");
    settle(json!({ "places": [1, 2, 3], "scores": [8, null, null] }), "`scores` holds 8, expected 1 to 7");
    settle(json!({ "places": [1, 2, 3], "notes": "x".repeat(100_001) }), "`notes` has 100001 characters");
    let unknown = json!({ "task": "0", "draft": { "places": [1, 2, 3] } });
    refused("/api/settle", unknown, 404, "there is no such task");
    refused("/api/take-back", json!({ "task": "0" }), 404, "there is no such task");
    refused("/api/take-back", json!({ "task": task }), 409, "the task is not settled");
    assert_eq!(admin.get("/api/disagreements/0").0, 404);
    for query in ["from=-1", "from=x", "to=1"] {
        assert_eq!(admin.get(&format!("/api/disagreements?{query}")).0, 400, "{query}");
    }

    assert_eq!(got(&admin, "/api/disagreements")["n_settled"], 0);
    let labelers: Vec<Value> =
        exported(&home, "label.db", "out.jsonl", &["--all"]).iter().map(|line| line["labeler"].clone()).collect();
    assert_eq!(labelers, ["anna", "ben"]);
}

#[test]
fn a_foreign_page_settles_nothing_and_no_request_is_too_large() {
    let (_home, served) = disagreeing(1);
    let admin = served.client("admin");
    let task = first(&admin);
    let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
    let send = |path: &str, headers: &[(&str, &str)], body: String| {
        let request = agent.post(format!("{}{path}", served.url()));
        // As a browser: by cookie.
        let port = served.url().rsplit(':').next().unwrap();
        let cookie = format!("collimate-label-{port}={}", served.tokens["admin"]);
        let request = request.header("cookie", cookie).header("content-type", "application/json");
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send(body)
    };
    let settle = json!({ "task": task, "draft": { "places": [1, 2, 3] } }).to_string();
    let take_back = json!({ "task": task }).to_string();
    let status = |path: &str, headers: &[(&str, &str)], body: &str| {
        send(path, headers, body.to_owned()).unwrap().status().as_u16()
    };
    for (path, body) in [("/api/settle", &settle), ("/api/take-back", &take_back)] {
        assert_eq!(status(path, &[("origin", "https://evil.example")], body), 403, "{path}");
        assert_eq!(status(path, &[("sec-fetch-site", "cross-site")], body), 403, "{path}");
        assert_eq!(status(path, &[("host", "evil.example")], body), 421, "{path}");
        assert_eq!(status(path, &[], "{"), 400, "{path}");
        let huge = format!("{{\"task\": \"{}\"}}", "x".repeat(5 << 20));
        // The server may close before all is sent.
        assert!(send(path, &[], huge).map_or(true, |answer| answer.status() == 413), "{path}");
    }
    assert_eq!(got(&admin, "/api/disagreements")["n_settled"], 0);
    let own = served.url().to_owned();
    let from_own_page = [("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(status("/api/settle", &from_own_page, &settle), 200);
    assert_eq!(status("/api/take-back", &from_own_page, &take_back), 200);
}
