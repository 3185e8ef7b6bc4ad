//! The page of `collimate label` in a browser, and who is at it.

use serde_json::{Value, json};

use crate::browser::{self, Browser, Look};
use crate::command_line::Home;
use crate::labeling::Served;

/// A home of this binary's with these tasks, each in a file of its own: a file holds tasks of one kind.
pub fn home(binary: &str, tasks: &[Value]) -> Home {
    let home = Home::new(binary);
    for (idx, task) in tasks.iter().enumerate() {
        home.write(&format!("tasks-{idx}.jsonl"), task.to_string());
    }
    home
}

/// Serves the home's tasks to anna and ben, without hidden repeats.
pub fn serve(home: &Home, arguments: &[&str]) -> Served {
    let files: Vec<String> =
        (0..).map(|idx| format!("tasks-{idx}.jsonl")).take_while(|name| home.path(name).exists()).collect();
    let files: Vec<&str> = files.iter().flat_map(|name| ["--tasks", name]).collect();
    let fixed =
        [&["--labeler", "anna", "--labeler", "ben", "--set", "label.repeat_share=0"], files.as_slice()].concat();
    Served::start(home, &[fixed.as_slice(), arguments].concat())
}

/// K = 4, of a dialogue.
pub fn rank() -> Value {
    let prompt = json!([
        { "role": "user", "content": "What floats?" },
        { "role": "assistant", "content": "Ships." },
        { "role": "user", "content": "And what **else**?" },
    ]);
    json!({ "prompt": prompt, "responses": ["Wood floats.", "Ice floats.", "Stones float.", "Lead floats."] })
}

/// Opens one's link.
pub async fn log_in(browser: &Browser, served: &Served, name: &str) {
    browser.go(&format!("{}/login#{}", served.url(), served.tokens[name])).await;
    browser.until("return location.pathname !== '/login'").await;
}

/// Anna at these tasks; none where there is no browser.
pub async fn anna_at(binary: &str, tasks: &[Value], look: Look) -> Option<(Home, Served, Browser)> {
    if !browser::is_there() {
        return None;
    }
    let home = home(binary, tasks);
    let served = serve(&home, &[]);
    let browser = Browser::open(look).await;
    log_in(&browser, &served, "anna").await;
    Some((home, served, browser))
}

/// Where a response stands on the page, by its text: 0 is A.
pub async fn letter_of(browser: &Browser, text: &str) -> usize {
    browser.find(".response .text").await;
    let script = format!(
        "return [...document.querySelectorAll('.response .text')].findIndex((one) => one.innerText.includes({}))",
        json!(text)
    );
    usize::try_from(browser.run(&script).await.as_i64().expect("an index"))
        .unwrap_or_else(|_| panic!("{text} is not there"))
}

/// What is dragged to rank a response.
pub fn chip(index: usize) -> String {
    format!(".chip[data-response=\"{index}\"]:not(.lifted)")
}

/// What came out, the newest revisions alone.
pub fn exported(home: &Home, what: &str) -> Vec<Value> {
    home.succeed(&["label", "export", "label.db", "out.jsonl", "--what", what]);
    home.read("out.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The rank of a line's response.
pub fn rank_of(line: &Value, text: &str) -> u64 {
    let responses = line["responses"].as_array().expect("responses");
    let idx = responses.iter().position(|one| one == text).unwrap_or_else(|| panic!("{text} is not there"));
    line["ranks"][idx].as_u64().expect("a rank")
}
