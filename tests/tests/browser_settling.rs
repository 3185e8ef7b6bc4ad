//! Where the admin settles what labelers differ on, in a real browser.

use collimate_tests::browser::{self, Browser, Look};
use collimate_tests::command_line::Home;
use collimate_tests::labeling::{Served, by_text};
use serde_json::{Value, json};

const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";
const SUBMIT: &str = "\u{e009}\u{e007}";
const HOSTILE: &str = "<script>window.hacked = 1</script><img src=x onerror=\"window.hacked = 2\"> \
    [click](javascript:window.hacked=3) <svg onload=\"window.hacked = 4\"> admin\u{202e}txt.exe";

/// Tasks that anna and ben rank in opposite orders, with all that they can say beside it.
fn disagreeing(tasks: &[Value]) -> (Home, Served) {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    home.write("tasks.jsonl", tasks.iter().map(|task| format!("{task}\n")).collect::<String>());
    let people = ["--tasks", "tasks.jsonl", "--labeler", "anna", "--labeler", "ben", "--overlap", "2"];
    let served = Served::start(&home, &[people.as_slice(), &["--set", "label.repeat_share=0"]].concat());
    for name in ["anna", "ben"] {
        let client = served.client(name);
        while let Some(task) = client.next() {
            let places = by_text(&task)["places"].clone();
            let places: Vec<u64> = places.as_array().unwrap().iter().map(|place| place.as_u64().unwrap()).collect();
            let n = places.len() as u64;
            let places: Vec<u64> =
                places.into_iter().map(|place| if name == "ben" { n + 1 - place } else { place }).collect();
            let (mut flags, mut scores) = (vec![json!([]); places.len()], vec![Value::Null; places.len()]);
            (flags[0], scores[0]) = (json!(["hallucination"]), json!(2));
            let draft =
                json!({ "places": places, "flags": flags, "scores": scores, "notes": format!("{name}: {HOSTILE}") });
            client.done("/api/answer", json!({ "handle": task["handle"], "key": task["handle"], "draft": draft }));
        }
    }
    (home, served)
}

/// Three responses, the third longer than a list shows.
fn rank(text: &str) -> Value {
    let long = "A sentence of the long text. ".repeat(40) + "The end of it.";
    json!({ "prompt": format!("What floats? {text}"), "responses": [format!("1: ice {text}"), "2: lead", format!("3: {long}")] })
}

/// Two responses.
fn compare() -> Value {
    json!({ "prompt": "Which?", "responses": ["1: this", "2: that"] })
}

async fn admin_at(served: &Served, look: Look) -> Browser {
    let browser = Browser::open(look).await;
    browser.go(&format!("{}/login#{}", served.url(), served.tokens["admin"])).await;
    browser.until("return location.pathname === '/overview'").await;
    browser
}

/// The admin before the worst disagreement.
async fn settling(served: &Served) -> Browser {
    let browser = admin_at(served, Look::WIDE).await;
    browser.click(".disagreement h3 a").await;
    browser.says("What labelers said").await;
    browser
}

/// Presses a button by keyboard.
async fn press(browser: &Browser, css: &str) {
    browser.find(css).await;
    browser.run(&format!("document.querySelector({}).focus()", json!(css))).await;
    browser.press(ENTER).await;
}

fn place(index: usize, place: usize) -> String {
    format!(".response[data-index=\"{index}\"] .places button:nth-of-type({place})")
}

fn exported(home: &Home) -> Vec<Value> {
    home.succeed(&["label", "export", "label.db", "out.jsonl"]);
    home.read("out.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disagreement_is_read_whole_settled_and_taken_back_by_keyboard_alone() {
    if !browser::is_there() {
        return;
    }
    let (home, served) = disagreeing(&[rank("")]);
    let browser = admin_at(&served, Look::WIDE).await;
    browser.says("1 disagreement, 0 of them settled").await;
    press(&browser, "nav a[href='/disagreements']").await;
    browser.says("What labelers differ on").await;
    press(&browser, ".disagreement h3 a").await;
    for told in [
        "Not settled: what labelers said counts",
        "The end of it.",
        "A > B > C",
        "C > B > A",
        "overall 2 of 7; Hallucination",
        "agreement 0.0 %",
    ] {
        browser.says(told).await;
    }
    assert_eq!(browser.find("#settle").await.attr("disabled").await.unwrap(), Some("true".to_owned()));
    for (index, at) in [(0, 1), (1, 2), (2, 1)] {
        press(&browser, &place(index, at)).await;
    }
    browser.says("A = C > B").await;
    press(&browser, "#settle").await;
    browser.says("Settled by admin").await;
    let lines = exported(&home);
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["labeler"], &lines[0]["settled"]), (&json!("admin"), &json!(true)));
    assert_eq!(lines[0]["ranks"], json!([1, 3, 1]));

    // The page opens with what it is settled by.
    browser.client.refresh().await.unwrap();
    browser.says("(revision 1): A = C > B").await;
    press(&browser, &place(1, 1)).await;
    press(&browser, "#settle").await;
    browser.says("(revision 2): A = B = C").await;
    press(&browser, "#take-back").await;
    browser.says("Not settled: what labelers said counts").await;
    assert_eq!(browser.run("return document.activeElement.id").await, "settle", "the focus is not lost");
    assert_eq!(exported(&home).len(), 2, "what both labelers said");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_responses_are_settled_by_which_is_better() {
    if !browser::is_there() {
        return;
    }
    let (home, served) = disagreeing(&[compare()]);
    let browser = settling(&served).await;
    browser.click(".verdict button:nth-of-type(3)").await;
    browser.click("#settle").await;
    browser.says("Settled by admin").await;
    browser.close().await;
    assert_eq!(exported(&home)[0]["ranks"], json!([2, 1]));
}

/// What the list of keys says, key by key.
async fn keys_told(browser: &Browser) -> Vec<String> {
    browser.press("?").await;
    browser.find("#keys[open]").await;
    let keys = browser.run("return [...document.querySelectorAll('#keys dt')].map((key) => key.innerText)").await;
    browser.press(ESCAPE).await;
    browser.until("return document.querySelector('#keys[open]') === null").await;
    serde_json::from_value(keys).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_the_ranking_page_settle_and_the_list_of_keys_holds_those_that_do_something() {
    if !browser::is_there() {
        return;
    }
    let (home, served) = disagreeing(&[rank("")]);
    let browser = settling(&served).await;
    browser.press(SUBMIT).await;
    browser.says("Not settled: what labelers said counts").await;
    // Each digit places the response in focus and goes to the next.
    for digit in ["2", "1", "1"] {
        browser.press(digit).await;
    }
    browser.says("B = C > A").await;
    // From C to B; its place anew, a score, two flags, and one of these off again.
    for key in ["k", "0", "3", "\u{e008}6\u{e000}", "h", "v", "v"] {
        browser.press(key).await;
    }
    browser.says("C > A > B").await;
    browser.press("m").await;
    browser
        .until("return document.querySelector('.response .source')?.textContent.startsWith('1: ice') === true")
        .await;
    browser.press("m").await;
    browser.until("return document.querySelector('.response .source') === null").await;
    // Those of a labeler alone do nothing here.
    for key in ["s", "u", "j", "a", "n"] {
        browser.press(key).await;
    }
    assert_eq!(browser.run("return document.activeElement.id").await, "notes");
    browser.press("smu").await;
    browser.press(SUBMIT).await;
    browser.says("Settled by admin").await;
    let line = &exported(&home)[0];
    assert_eq!((&line["ranks"], &line["all_bad"], &line["notes"]), (&json!([2, 3, 1]), &json!(true), &json!("smu")));
    assert_eq!((&line["scores"][1], &line["flags"]), (&json!(6), &json!([[], ["hallucination"], []])));

    browser.press(ESCAPE).await;
    let flags = ["i", "c", "h", "o", "x", "v", "e", "d", "g", "p", "l"];
    let (first, last) = (["1 – 3", "0", "← →", "Shift 1 – 7", "j", "k", "a", "m", "n"], ["Ctrl ⏎", "Esc", "?"]);
    assert_eq!(keys_told(&browser).await, [first.as_slice(), &flags, &last].concat());
    // Turned off, they do nothing.
    browser.click("#open-keys").await;
    browser.click("#keys dl + button").await;
    browser.press(ESCAPE).await;
    browser.press("a").await;
    assert_eq!(browser.find("#all-bad").await.attr("aria-pressed").await.unwrap(), Some("true".to_owned()));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_a_digit_says_which_is_better_and_the_list_of_keys_says_so() {
    if !browser::is_there() {
        return;
    }
    let (home, served) = disagreeing(&[compare()]);
    let browser = settling(&served).await;
    let told = keys_told(&browser).await;
    assert_eq!(told[..9], ["1", "2", "0", "Shift 1 – 7", "j", "k", "a", "m", "n"]);
    browser.press("2").await;
    browser.press(SUBMIT).await;
    browser.says("(revision 1): B > A").await;
    browser.press("0").await;
    browser.press(SUBMIT).await;
    browser.says("(revision 2): A = B").await;
    browser.close().await;
    assert_eq!(exported(&home)[0]["ranks"], json!([1, 1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_goes_on_over_parts() {
    if !browser::is_there() {
        return;
    }
    let tasks: Vec<Value> =
        (0..52).map(|n| json!({ "prompt": format!("prompt {n}."), "responses": ["1", "2", "3"] })).collect();
    let (_home, served) = disagreeing(&tasks);
    let admin = served.client("admin");
    let listed: Value = serde_json::from_str(&admin.get("/api/disagreements").1).unwrap();
    let task = &listed["disagreements"][0]["task"];
    admin.done("/api/settle", json!({ "task": task, "draft": { "places": [1, 2, 3] } }));
    let browser = admin_at(&served, Look::WIDE).await;
    browser.says("52 disagreements, 1 of them settled").await;
    browser.click("main a[href='/disagreements']").await;
    browser.says("1 to 50 of 52").await;
    browser.click(".parts a").await;
    browser.says("51 to 52 of 52").await;
    let states =
        "return [...document.querySelectorAll('.disagreement .state')].map((one) => one.innerText.split(' ')[0])";
    assert_eq!(browser.run(states).await, json!(["Not", "Settled"]));
    browser.says("prompt 0.").await;
    browser.click(".parts a").await;
    browser.says("1 to 50 of 52").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_is_inert_where_it_is_settled() {
    if !browser::is_there() {
        return;
    }
    let (_home, served) = disagreeing(&[rank(HOSTILE)]);
    let browser = admin_at(&served, Look::WIDE).await;
    let live = "return [window.hacked ?? null, document.querySelectorAll('main script, main img, main svg, main iframe, main a[href^=javascript]').length]";
    browser.click("nav a[href='/disagreements']").await;
    browser.says("What labelers differ on").await;
    assert_eq!(browser.run(live).await, json!([null, 0]));
    browser.click(".disagreement h3 a").await;
    browser.says("anna: <script>window.hacked = 1</script>").await;
    browser.says("U+202E").await;
    assert_eq!(
        browser.run("return document.querySelectorAll('.notes-text mark').length").await,
        2,
        "in each one's notes"
    );
    assert_eq!(browser.run(live).await, json!([null, 0]));
    browser.click("#source").await;
    let source = "return document.querySelector('.response .source').textContent";
    assert_eq!(browser.run(source).await, json!(format!("1: ice {HOSTILE}")));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_page_has_a_serious_fault_of_accessibility_wide_or_narrow_light_or_dark() {
    if !browser::is_there() {
        return;
    }
    let (_home, served) = disagreeing(&[rank(HOSTILE), rank("")]);
    let admin = served.client("admin");
    let listed: Value = serde_json::from_str(&admin.get("/api/disagreements").1).unwrap();
    let task = &listed["disagreements"][0]["task"];
    admin.done("/api/settle", json!({ "task": task, "draft": { "places": [2, 1, 2], "all_bad": true } }));
    let settle = format!("/settle?task={}", task.as_str().unwrap());
    let mut faults = Vec::new();
    for (name, look) in [
        ("wide", Look::WIDE),
        ("wide-dark", Look::WIDE.dark()),
        ("narrow", Look::NARROW),
        ("narrow-dark", Look::NARROW.dark()),
    ] {
        let browser = admin_at(&served, look).await;
        let pages = [
            ("overview-settled", "/overview", "of them settled"),
            ("disagreements", "/disagreements", "What labelers differ on"),
            ("settle", settle.as_str(), "What labelers said"),
        ];
        for (page, path, told) in pages {
            browser.go(&format!("{}{path}", served.url())).await;
            browser.says(told).await;
            faults.extend(browser.faults(&format!("label-{page}-{name}")).await);
        }
        browser.close().await;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
