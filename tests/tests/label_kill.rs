//! `kill -9` of the server while many people rank: what was acknowledged is there, once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use collimate_tests::command_line::Home;
use collimate_tests::labeling::{Client, Served, tasks};
use serde_json::{Value, json};

const N_LABELERS: usize = 50;

/// Seconds of ranking. `COLLIMATE_KILL_SECONDS=60 cargo test -p collimate-tests --test label_kill` is the long one.
fn seconds() -> u64 {
    std::env::var("COLLIMATE_KILL_SECONDS").ok().map_or(4, |text| text.parse().expect("a number of seconds"))
}

#[test]
fn no_acknowledged_ranking_is_lost_and_none_is_doubled() {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    home.write("tasks.jsonl", tasks(20_000, 4));
    let names: Vec<String> = (0..N_LABELERS).map(|n| format!("labeler-{n}")).collect();
    let labelers: Vec<&str> = names.iter().flat_map(|name| ["--labeler", name]).collect();
    let arguments = [&["--set", "label.repeat_share=0"], labelers.as_slice()].concat();
    let mut served = Served::start(&home, &[&["--tasks", "tasks.jsonl"], arguments.as_slice()].concat());
    let (address, tokens) = (served.address().to_owned(), std::mem::take(&mut served.tokens));
    let url = served.url().to_owned();

    // What the server said that it has stored, by prompt: how the labeler ranked, and how often it was said.
    let acknowledged = Mutex::new(BTreeMap::<String, (String, Value)>::new());
    let is_over = AtomicBool::new(false);
    let half = Duration::from_millis(500 * seconds());
    std::thread::scope(|scope| {
        for name in &names {
            let client = Client::new(&url, Some(&tokens[name]));
            let (acknowledged, is_over) = (&acknowledged, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    // A server that is down answers nothing: ask again.
                    let Ok((200, next)) = client.try_post("/api/next", &json!({})) else { continue };
                    if next["state"] != "task" {
                        break;
                    }
                    let task = &next["task"];
                    let draft = collimate_tests::labeling::by_text(task);
                    let key = format!("{name}/{}", task["handle"]);
                    let body = json!({ "handle": task["handle"], "key": key, "draft": draft });
                    // As the page does: the same request again until there is an answer.
                    let began = Instant::now();
                    let stored = loop {
                        match client.try_post("/api/answer", &body) {
                            Ok((200, answer)) => break Some(answer),
                            Ok((status, answer)) => panic!("{status}: {answer}"),
                            Err(_) if is_over.load(Ordering::Relaxed) => break None,
                            Err(_) => assert!(began.elapsed() < Duration::from_secs(60), "the server is back by now"),
                        }
                    };
                    if let Some(answer) = stored {
                        assert_eq!(answer["revision"], 1, "one request is one revision, however often it is sent");
                        let prompt = task["turns"][0]["raw"].as_str().unwrap().to_owned();
                        let before = acknowledged.lock().unwrap().insert(prompt.clone(), (name.clone(), draft));
                        assert_eq!(before, None, "{prompt} was handed out twice");
                    }
                }
            });
        }
        std::thread::sleep(half);
        served.kill();
        served = Served::start_at(&home, &address, &arguments);
        std::thread::sleep(half);
        is_over.store(true, Ordering::Relaxed);
    });
    // In the middle of nothing this time: all that was acknowledged is there whether or not anything was closed.
    served.kill();

    home.succeed(&["label", "export", "label.db", "all.jsonl", "--all"]);
    let mut stored = BTreeMap::new();
    for line in home.read("all.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let prompt = line["prompt"].as_str().unwrap().to_owned();
        let ranks = line["ranks"].clone();
        let before = stored.insert(prompt.clone(), (line["labeler"].as_str().unwrap().to_owned(), ranks));
        assert_eq!(before, None, "{prompt} is there twice");
    }
    let acknowledged = acknowledged.into_inner().unwrap();
    println!("{} acknowledged, {} stored", acknowledged.len(), stored.len());
    assert!(acknowledged.len() >= N_LABELERS, "they did rank: {}", acknowledged.len());
    for (prompt, (labeler, _)) in &acknowledged {
        let found = stored.get(prompt).unwrap_or_else(|| panic!("{prompt} was acknowledged and is lost"));
        assert_eq!((&found.0, &found.1), (labeler, &json!([1, 2, 3, 4])), "{prompt}");
    }
    // Those that were under way when all ended may be stored without having been acknowledged.
    assert!(stored.len() - acknowledged.len() <= 2 * N_LABELERS);
}
