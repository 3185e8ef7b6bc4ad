//! The labelling page in a real browser, as a labeler meets it.

use collimate_tests::browser::{self, Browser, Look};
use collimate_tests::command_line::Home;
use collimate_tests::label_page::{self, exported, letter_of, log_in, rank, rank_of, serve};
use collimate_tests::labeling::{Client, Served};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_collimate-under-test");

fn home(tasks: &[Value]) -> Home {
    label_page::home(BINARY, tasks)
}

/// In a wide window.
async fn anna_at(tasks: &[Value]) -> Option<(Home, Served, Browser)> {
    label_page::anna_at(BINARY, tasks, Look::WIDE).await
}

#[tokio::test]
async fn a_link_logs_in_and_leaves_the_address_bar() {
    if !browser::is_there() {
        return;
    }
    let home = home(&[rank()]);
    let served = serve(&home, &[]);
    let browser = Browser::open(Look::WIDE).await;
    browser.go(&format!("{}/", served.url())).await;
    browser.says("open your own link first").await;
    browser.go(&format!("{}/login#{}", served.url(), "wrong")).await;
    browser.says("that is no link of this project's").await;
    log_in(&browser, &served, "anna").await;
    browser.says("Rank the responses").await;
    let address = browser.run("return location.href").await;
    assert_eq!(address, format!("{}/", served.url()));
    assert_eq!(browser.run("return document.cookie").await, "", "no script reads the session");
    browser.close().await;
}

#[tokio::test]
async fn nine_responses_with_a_tie_scores_flags_and_notes_by_keyboard_alone() {
    let responses: Vec<String> = (0..9).map(|n| format!("response number {n}")).collect();
    let Some((home, _served, browser)) = anna_at(&[json!({ "prompt": "Nine.", "responses": responses })]).await else {
        return;
    };
    browser.find(".response").await;
    // Each digit places the response in focus and goes to the next: A and B tie, the others follow.
    browser.press("j").await;
    for digit in ["1", "1", "2", "3", "4", "5", "6", "7", "8"] {
        browser.press(digit).await;
    }
    browser.says("A = B > C > D > E > F > G > H > I").await;
    // From where the focus is now, up to the first; a score, two flags, and off again with one of them.
    for _ in 0..9 {
        browser.press("k").await;
    }
    browser.client.active_element().await.unwrap().send_keys("\u{e008}6\u{e000}").await.unwrap();
    for key in ["h", "v", "v", "n"] {
        browser.press(key).await;
    }
    browser.press("by hand").await;
    browser.press("\u{e009}\u{e007}").await;
    browser.says("All done").await;
    let shown: Vec<String> = serde_json::from_value(json!(responses)).unwrap();
    browser.close().await;
    let line = &exported(&home, "comparisons")[0];
    let order: Vec<usize> = serde_json::from_value(line["shown"].clone()).unwrap();
    let ranks: Vec<u64> = order.iter().map(|idx| rank_of(line, &shown[*idx])).collect();
    assert_eq!(ranks, [1, 1, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!((&line["scores"][order[0]], &line["flags"][order[0]]), (&json!(6), &json!(["hallucination"])));
    assert_eq!(line["notes"], "by hand");
}

#[tokio::test]
async fn all_bad_is_said_without_a_ranking_and_undone_for_another() {
    let Some((home, _served, browser)) = anna_at(&[rank()]).await else { return };
    browser.find(".response").await;
    assert_eq!(browser.find("#submit").await.attr("disabled").await.unwrap(), Some("true".to_owned()));
    browser.press("a").await;
    browser.press("\u{e009}\u{e007}").await;
    browser.says("All done").await;
    browser.says("1 answered").await;
    assert_eq!(exported(&home, "comparisons")[0]["all_bad"], true);

    browser.click("main button").await;
    browser.says("Your answer (revision 1) stands until you submit again").await;
    browser.press("a").await;
    for (text, place) in [("Wood", "1"), ("Ice", "2"), ("Stones", "3"), ("Lead", "4")] {
        let letter = letter_of(&browser, text).await;
        browser.click(&format!(".response[data-index=\"{letter}\"] .places button:nth-of-type({place})")).await;
    }
    browser.click("#submit").await;
    browser.says("All done").await;
    browser.close().await;
    let line = &exported(&home, "comparisons")[0];
    assert_eq!((&line["all_bad"], &line["revision"]), (&json!(false), &json!(2)));
    assert_eq!(["Wood floats.", "Lead floats."].map(|text| rank_of(line, text)), [1, 4]);
}

#[tokio::test]
async fn a_skip_is_instant_when_empty_and_keeps_what_was_written_when_not() {
    let Some((home, _served, browser)) =
        anna_at(&[json!({ "prompt": "First" }), json!({ "prompt": "Second" }), json!({ "prompt": "Third" })]).await
    else {
        return;
    };
    browser.says("First").await;
    browser.press("half of an answer").await;
    browser.click("#skip").await;
    browser.until("return document.querySelector('.turn').innerText.includes('Second')").await;
    browser.says("Unfinished (1)").await;
    browser.click("#skip").await;
    browser.until("return document.querySelector('.turn').innerText.includes('Third')").await;
    browser.click("#open-unfinished").await;
    browser.click("#unfinished li button").await;
    browser.until("return document.querySelector('#written')?.value === 'half of an answer'").await;
    browser.press(", and the rest").await;
    browser.click("#submit").await;
    // The page comes back to where it was.
    browser.until("return document.querySelector('.turn').innerText.includes('Third')").await;
    browser.close().await;
    let lines = exported(&home, "demonstrations");
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&lines[0]["prompt"], &lines[0]["response"]),
        (&json!("First"), &json!("half of an answer, and the rest"))
    );
}

#[tokio::test]
async fn a_demonstration_is_kept_while_it_is_written_whatever_becomes_of_the_server() {
    let Some((home, mut served, browser)) = anna_at(&[json!({ "prompt": "Write." })]).await else { return };
    browser.find("#written").await;
    browser.press("Some words,").await;
    browser.says("Draft saved").await;
    let (url, address) = (served.url().to_owned(), served.address().to_owned());
    served.kill();
    browser.press(" more without a server").await;
    browser.says("Not saved: no connection").await;
    let token = served.tokens["anna"].clone();
    let served = Served::start_at(&home, &address, &["--labeler", "anna"]);
    assert_eq!(served.url(), url);
    browser.says("Draft saved").await;
    let me = Client::new(&url, Some(&token));
    assert!(me.get("/api/unfinished").1.contains("Write."));
    // The same tab, loaded anew, goes on.
    browser.client.refresh().await.unwrap();
    browser.until("return document.querySelector('#written')?.value === 'Some words, more without a server'").await;
    browser.press("\u{e009}\u{e007}").await;
    browser.says("All done").await;
    browser.close().await;
    assert_eq!(exported(&home, "demonstrations")[0]["response"], "Some words, more without a server");
}

#[tokio::test]
async fn two_browsers_at_once_get_two_tasks_and_the_export_is_what_both_did() {
    if !browser::is_there() {
        return;
    }
    let compare =
        |n: u32| json!({ "prompt": format!("prompt {n}"), "responses": [format!("good {n}"), format!("bad {n}")] });
    let home = home(&[compare(0), compare(1)]);
    let served = serve(&home, &[]);
    let (one, other) = tokio::join!(Browser::open(Look::WIDE), Browser::open(Look::NARROW));
    tokio::join!(log_in(&one, &served, "anna"), log_in(&other, &served, "ben"));
    let mut prompts = Vec::new();
    for browser in [&one, &other] {
        browser.find(".verdict").await;
        prompts.push(browser.run("return document.querySelector('.turn .text').innerText").await);
    }
    assert_ne!(prompts[0], prompts[1]);
    for browser in [&one, &other] {
        let key = if letter_of(browser, "good").await == 0 { "1" } else { "2" };
        browser.press(key).await;
        browser.click("#submit").await;
        browser.says("1 answered").await;
    }
    tokio::join!(one.close(), other.close());
    let mut lines = exported(&home, "preferences");
    lines.sort_by_key(|line| line["labeler"].to_string());
    assert_eq!(lines.len(), 2);
    for (line, prompt) in lines.iter().zip(prompts) {
        let chosen = prompt.as_str().unwrap().replace("prompt", "good");
        assert_eq!((&line["prompt"], &line["chosen"]), (&prompt, &json!(chosen)));
    }
}

/// What attacks, and what is hard to show.
fn hostile() -> Value {
    let attacks = [
        "<script>window.hacked = 1</script><img src=x onerror=\"window.hacked = 2\">",
        "[click](javascript:window.hacked=3) ![i](https://evil.example/x.png) <a href=\"javascript:window.hacked=4\">a</a>",
        "| a | b |\n|---|---|\n| `<b>` | $x^2$ |\n\n```html\n<script>window.hacked = 5</script>\n```\n[fine](https://example.org)",
        "admin\u{202e}txt.exe\u{2066} and zero\u{200b}width\n\nמה שלום העולם? **שלום**\n\n你好，世界。これは長い文章です。",
    ];
    json!({ "prompt": [{ "role": "user", "content": "<svg onload=\"window.hacked = 6\">" }], "responses": attacks })
}

#[tokio::test]
async fn hostile_text_is_inert_and_its_source_is_shown_exactly() {
    let Some((_home, _served, browser)) = anna_at(&[hostile()]).await else { return };
    browser.find(".response").await;
    let live = "document.querySelectorAll('main script, main img, main svg, main iframe, main style').length";
    assert_eq!(browser.run(&format!("return {live}")).await, 0);
    let links = browser.run("return [...document.querySelectorAll('main a')].map((a) => `${a.href} ${a.rel}`)").await;
    assert_eq!(links, json!(["https://example.org/ noopener noreferrer nofollow"]));
    let formulas = "return [...document.querySelectorAll('.response math')].map((one) => [one.namespaceURI, one.getAttribute('alttext'), one.querySelector('msup > mn').textContent])";
    assert_eq!(browser.run(formulas).await, json!([["http://www.w3.org/1998/Math/MathML", "$x^2$", "2"]]));
    assert_eq!(browser.run("return window.hacked ?? null").await, Value::Null);
    for mark in ["U+202E", "U+2066", "U+200B"] {
        browser.says(mark).await;
    }
    let directions = "return [...document.querySelectorAll('.response p')].map((p) => getComputedStyle(p).direction)";
    assert!(browser.run(directions).await.to_string().contains("rtl"));
    // No text becomes a part of the page even if a script were to try.
    let tried = "try { document.body.innerHTML = '<b>x</b>'; return 'live' } catch (error) { return error.name }";
    assert_eq!(browser.run(tried).await, "TypeError", "trusted types");
    browser.screenshot("label-hostile").await;
    browser.press("m").await;
    let sources =
        browser.run("return [...document.querySelectorAll('.response .source')].map((one) => one.textContent)").await;
    for attack in hostile()["responses"].as_array().unwrap() {
        assert!(sources.as_array().unwrap().contains(attack), "{attack} in {sources}");
    }
    browser.close().await;
}

#[tokio::test]
async fn a_long_text_is_read_on_the_page_itself_with_the_dialogue_beside_it() {
    let long = "A sentence of the long text. ".repeat(1_150) + "The end of it.";
    let responses: Vec<String> = (0..9).map(|n| format!("{n}: {long}")).collect();
    let mut task = rank();
    task["responses"] = json!(responses);
    let Some((_home, _served, browser)) = anna_at(&[task]).await else { return };
    browser.find(".response").await;
    assert!(
        browser.run("return document.querySelector('.response .text').innerText.length").await.as_u64() > Some(32_000)
    );
    // At the end of the ninth response, the first turn is on the screen still.
    browser.run("document.querySelector('.response:nth-of-type(9) .judged').scrollIntoView({ block: 'end' })").await;
    let is_seen = "const box = document.querySelector('.turn').getBoundingClientRect();
        return box.top >= 0 && box.bottom <= innerHeight && document.elementFromPoint(box.left + 5, box.top + 5) !== null";
    assert_eq!(browser.run(is_seen).await, true);
    assert_eq!(
        browser.run("return document.documentElement.scrollWidth <= innerWidth").await,
        true,
        "nothing to the side"
    );
    browser.close().await;
}

#[tokio::test]
async fn a_formula_wider_than_a_telephone_is_scrolled_in_its_own_box() {
    if !browser::is_there() {
        return;
    }
    let sum = (1..40).map(|n| format!("\\frac{{a_{{{n}}}}}{{b}}")).collect::<Vec<_>>().join(" + ");
    let responses = [format!("So\n\\[{sum}\\]\nholds."), format!("And \\({sum}\\) too.")];
    let home = home(&[json!({ "prompt": "Sum.", "responses": responses })]);
    let served = serve(&home, &[]);
    let browser = Browser::open(Look::NARROW).await;
    log_in(&browser, &served, "anna").await;
    browser.until("return document.querySelectorAll('.response math').length === 2").await;
    let is_scrolled =
        "return [...document.querySelectorAll('.response .formula')].map((box) => box.scrollWidth > box.clientWidth)";
    assert_eq!(browser.run(is_scrolled).await, json!([true, true]));
    assert_eq!(browser.run("return document.documentElement.scrollWidth <= innerWidth").await, true);
    assert_eq!(browser.serious_violations().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test]
async fn the_overview_tells_how_the_screening_went_and_how_labelers_agree_with_themselves() {
    if !browser::is_there() {
        return;
    }
    let home = home(&[rank()]);
    home.write("known.jsonl", json!({ "prompt": "Known.", "responses": ["1", "2"], "ranks": [1, 2] }).to_string());
    let repeats = ["--set", "label.repeat_share=1", "--set", "label.repeat_after=0"];
    let served = serve(&home, &[["--screening", "known.jsonl"].as_slice(), &repeats].concat());
    let (anna, ben) = (served.client("anna"), served.client("ben"));
    // The screening's, the task, and the task again.
    for key in ["1", "2", "3"] {
        assert_eq!(anna.answer(&anna.next().unwrap(), key).0, 200);
    }
    let tried = ben.next().unwrap();
    let wrong = if tried["responses"][0]["raw"] == "1" { [2, 1] } else { [1, 2] };
    ben.done("/api/answer", json!({ "handle": tried["handle"], "key": "4", "draft": { "places": wrong } }));
    assert_eq!(ben.next(), None);
    let browser = Browser::open(Look::WIDE).await;
    log_in(&browser, &served, "admin").await;
    browser.says("1 hidden repeats").await;
    let rows = "return [...document.querySelectorAll('table.labelers tbody tr')].map((row) => [...row.children].map((cell) => cell.innerText))";
    let rows: Vec<Vec<String>> = serde_json::from_value(browser.run(rows).await).unwrap();
    let told = |row: &[String]| [0, 5, 8].map(|at| row[at].clone());
    assert_eq!(told(&rows[0]), ["anna", "100.0 %, passed", "100.0 % (1)"]);
    assert_eq!(told(&rows[1]), ["ben", "0.0 %, failed", "–"]);
    browser.close().await;
}

#[tokio::test]
async fn no_page_has_a_serious_fault_of_accessibility_wide_or_narrow_light_or_dark() {
    if !browser::is_there() {
        return;
    }
    let looks = [
        ("wide", Look::WIDE),
        ("wide-dark", Look::WIDE.dark()),
        ("narrow", Look::NARROW),
        ("narrow-dark", Look::NARROW.dark()),
    ];
    for (name, look) in looks {
        // Of its own: a task that a look has left stays with it for a time.
        let two = json!({ "prompt": "Which is better?", "responses": ["This one.", "That one."] });
        let home = home(&[hostile(), two, json!({ "prompt": "Write a poem about the sea." }), rank()]);
        let served = serve(&home, &["--overlap", "2", "--set", "label.guidelines=Be **fair**."]);
        // Something to be seen on the overview.
        let ben = served.client("ben");
        for _ in 0..2 {
            let task = ben.next().unwrap();
            ben.answer(&task, task["handle"].as_str().unwrap());
        }
        let mut faults = Vec::new();
        let browser = Browser::open(look).await;
        let mut see = async |page: &str| {
            faults.extend(browser.faults(&format!("label-{page}-{name}")).await);
        };
        browser.go(&format!("{}/login", served.url())).await;
        browser.says("This page is opened by a link of your own").await;
        see("login").await;
        log_in(&browser, &served, "admin").await;
        browser.says("None so far.").await;
        see("overview").await;
        log_in(&browser, &served, "anna").await;
        browser.find(".response").await;
        for place in ["1", "2", "2"] {
            browser.press(place).await;
        }
        browser.press("h").await;
        browser.says("Draft saved").await;
        see("rank").await;
        browser.press("m").await;
        see("source").await;
        browser.press("m").await;
        browser.click("#open-keys").await;
        see("keys").await;
        browser.click("#keys header button").await;
        browser.run("sessionStorage.clear(); location.reload()").await;
        browser.find(".verdict").await;
        see("compare").await;
        browser.run("sessionStorage.clear(); location.reload()").await;
        browser.find("#written").await;
        browser.press("The sea, the sea.").await;
        browser.says("Draft saved").await;
        see("write").await;
        browser.click("#skip").await;
        browser.says("Unfinished").await;
        browser.click("#open-unfinished").await;
        see("unfinished").await;
        browser.close().await;
        // What she holds goes back, so that the next look sees the same.
        let store = rusqlite::Connection::open(home.path("label.db")).unwrap();
        store.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        store
            .execute_batch(
                "UPDATE tasks SET n_taken = n_taken - (SELECT count(*) FROM assignments a, labelers l WHERE a.task = tasks.id
                     AND l.id = a.labeler AND l.name = 'anna' AND a.state = 'taken');
                 DELETE FROM assignments WHERE labeler = (SELECT id FROM labelers WHERE name = 'anna');
                 UPDATE labelers SET last_task = 0, last_return = 0 WHERE name = 'anna';",
            )
            .unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
