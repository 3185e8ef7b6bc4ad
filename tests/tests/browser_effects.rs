//! From a run to people and back, in a real browser: rollouts become a task, and the admin sees what became of labels.

use collimate::label::store::{Store, places, tasks};
use collimate::rundir::{RunDir, Stage};
use collimate_tests::browser::{self, Browser, Look};
use collimate_tests::command_line::Home;
use collimate_tests::labeling::Served;
use collimate_tests::shown::{ShownRun, rollout, update};
use serde_json::{Value, json};

const HOSTILE: &str = "<script>window.hacked = 1</script><img src=x onerror=\"window.hacked = 2\"> \
    <a href=\"javascript:window.hacked=3\">a</a> <svg onload=\"window.hacked = 4\"> \u{202e}evil\u{202c} zero\u{200b}width";

/// Rankings of what the policies of two runs wrote. Of the first run there is a folder: its score rises, and people agree
/// less and less.
fn home(text: &str) -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    let root = home.path("run");
    let run = RunDir::open(&root, &toml::Table::new()).unwrap();
    let ppo = run.begin(Stage::Ppo).unwrap();
    let line = |version: u64| json!({ "version": version, "batch": { "score": version as f64 / 10.0 - 0.5 } });
    std::fs::write(ppo.metrics(), (1..=90).map(|version| format!("{}\n", line(version))).collect::<String>()).unwrap();
    let row = |n: u64, run: &str| {
        let agrees = n < 60 || n.is_multiple_of(3);
        let origin = json!({
            "run": run, "policy_version": n, "seed": 3, "reward_model": format!("{}/reward/model", root.display()),
            "scores": if agrees { [1.5, 0.5, -0.25] } else { [-1.0, 0.0, 1.0] },
        });
        json!({
            "prompt": format!("prompt {n} {text}"), "responses": [format!("a{n} {text}"), format!("b{n}"), format!("c{n}")],
            "ranks": [1, 2, 3], "labeler": "anna", "time": format!("2026-01-01T10:{:02}:{:02}Z", n / 60, n % 60),
            "origin": origin, "arm": "picked", "revision": 1,
        })
        .to_string()
            + "\n"
    };
    let lines = (0..90).map(|n| row(n, &root.display().to_string()));
    let other = (100..104).map(|n| row(n, &format!("/runs/unknown {text}")));
    home.write("labels.jsonl", lines.chain(other).collect::<String>());
    home.succeed(&["label", "import", "label.db", "labels.jsonl"]);
    let task: Value =
        exported(&home).into_iter().find(|line| line["prompt"].as_str().unwrap().starts_with("prompt 89 ")).unwrap();
    let used = json!({
        "task": task["task"], "labeler": "anna", "revision": 1, "used": "training", "scores": [0.75, 0.5, -1.0],
    });
    let reward = run.begin(Stage::Reward).unwrap();
    std::fs::write(reward.path().join("labels.jsonl"), format!("{used}\n")).unwrap();
    home
}

fn exported(home: &Home) -> Vec<Value> {
    home.succeed(&["label", "export", "label.db", "out.jsonl"]);
    home.read("out.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn admin_at_people(home: &Home, look: Look) -> (Served, Browser) {
    let mut served = Served::start(home, &["--run", "run", "--labeler", "anna"]);
    served.renew(home, "admin");
    let browser = Browser::open(look).await;
    browser.go(&format!("{}/login#{}", served.url(), served.tokens["admin"])).await;
    browser.until("return location.pathname === '/overview'").await;
    browser.click("a[href='/people']").await;
    browser.says("People and the reward model").await;
    (served, browser)
}

/// Opens the page of the label that a reward model read.
async fn open_used_label(browser: &Browser) {
    // The newest come first: four of the other run, then this one.
    browser.until("return document.querySelectorAll('.labels .prompt a').length === 94").await;
    browser.run("document.querySelectorAll('.labels .prompt a')[4].click()").await;
    browser.says("What was asked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_sees_people_part_from_the_reward_model_and_what_became_of_a_label() {
    if !browser::is_there() {
        return;
    }
    let home = home("of the run");
    let (_served, browser) = admin_at_people(&home, Look::WIDE).await;
    browser.says("Over-optimisation: the score rises while agreement with people falls.").await;
    browser.says("From v60 on the mean score is 7.05").await;
    browser.says("start collimate label with --run RUN_DIR").await;
    browser.until("return document.querySelectorAll('svg.lines').length === 3").await;
    open_used_label(&browser).await;
    for told in [
        "anna: A > B > C",
        "picked from a run",
        "v89",
        // Before: −1, 0, 1: the pairs are −1, −2 and −1 apart. After: 0.25, 1.75 and 1.5.
        "The margin went from −1.33 to 1.17.",
        "90 updates of PPO followed: the mean score went from −0.40 to 8.50.",
    ] {
        browser.says(told).await;
    }
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_is_inert_on_the_admin_s_pages() {
    if !browser::is_there() {
        return;
    }
    let home = home(HOSTILE);
    let (_served, browser) = admin_at_people(&home, Look::WIDE).await;
    browser.says("/runs/unknown <script>").await;
    let live = "return [window.hacked ?? null, document.querySelectorAll('main script, main img, main iframe, main a[href^=javascript]').length]";
    assert_eq!(browser.run(live).await, json!([null, 0]));
    open_used_label(&browser).await;
    browser.says("<script>window.hacked = 1</script>").await;
    assert_eq!(browser.run(live).await, json!([null, 0]));
    for mark in ["U+202E", "U+202C", "U+200B"] {
        browser.says(mark).await;
    }
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_page_has_a_serious_fault_of_accessibility_wide_or_narrow_light_or_dark() {
    if !browser::is_there() {
        return;
    }
    let home = home("of the run");
    let mut faults = Vec::new();
    for (name, look) in [
        ("wide", Look::WIDE),
        ("wide-dark", Look::WIDE.dark()),
        ("narrow", Look::NARROW),
        ("narrow-dark", Look::NARROW.dark()),
    ] {
        let (_served, browser) = admin_at_people(&home, look).await;
        browser.says("Over-optimisation").await;
        for page in ["people", "effect"] {
            if page == "effect" {
                open_used_label(&browser).await;
                browser.says("updates of PPO followed").await;
            }
            faults.extend(browser.faults(&format!("label-{page}-{name}")).await);
        }
        browser.close().await;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_click_puts_a_prompt_s_rollouts_before_people() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let rollouts = [rollout(5, 1, HOSTILE), rollout(5, 1, "a plain one"), rollout(5, 2, "alone")];
    let run = ShownRun::new(&[update(1, 0.5)], &rollouts);
    browser.go(&run.link).await;
    browser.until("return document.querySelector('nav a[aria-current]') !== null").await;
    browser.run("location.hash = '#rollouts'").await;
    browser.until("return document.querySelectorAll('.row strong').length === 3").await;
    for (row, told) in [(0, "a ranking needs two"), (1, "2 responses to this prompt are people’s next task.")] {
        browser.run(&format!("document.querySelectorAll('.row')[{row}].click()")).await;
        browser.until("return document.querySelector('#ask-people') !== null && document.querySelector('.asked').textContent === ''").await;
        browser.click("#ask-people").await;
        browser.says(told).await;
    }
    browser.close().await;
    let store = Store::existing(&run.labels()).unwrap();
    let task = store.read(|connection| tasks::get(connection, places::open_tasks(connection)?[0].id)).unwrap();
    assert_eq!(task.responses, ["a plain one", HOSTILE]);
}
