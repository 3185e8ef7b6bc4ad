//! A run's page in a real browser: it follows a run and commands it, stays fluid, keeps still while one reads, and takes
//! what a model wrote for text. Skipped, with a word, where there is no Chromium.

use collimate_protocol::records::EvaluatedPolicy;
use collimate_tests::browser::{self, Browser, Look};
use collimate_tests::cable::Cable;
use collimate_tests::command_line::Home;
use collimate_tests::shown::{ShownRun, answer, lifelike_update, rollout, status, update};
use collimate_tests::watching::Served;
use serde_json::{Value, json};

const STATE: &str = "document.querySelector('#state').textContent";

/// The text of [`HOSTILE`] on the page: characters that can't be seen have names.
fn hostile_as_shown() -> String {
    HOSTILE.replace('\u{202e}', "U+202E").replace('\u{202c}', "U+202C").replace('\u{200b}', "U+200B")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_follows_a_real_run_pauses_it_changes_it_and_lets_it_go_on() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    for stage in ["pretrain", "sft", "reward"] {
        home.succeed(&[stage, "recipe.toml", "--out", "before"]);
    }
    let sets = [
        "ppo.sft=before/sft/model",
        "ppo.reward_model=before/reward/model",
        "ppo.n_updates=100000",
        "ppo.mode=threaded",
    ];
    let sets: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    let arguments = [&["ppo", "recipe.toml", "--out", "r", "--serve=0"][..], &sets].concat();
    let served = Served::run(&mut home.command(&arguments));
    browser.go(&format!("{}/#token={}", served.viewer.base, served.viewer.token)).await;
    browser.until(&format!("return {STATE} === 'running'")).await;
    let address = browser.run("return location.href").await;
    assert!(!address.as_str().unwrap().contains("token"), "the secret is left in {address}");
    assert_eq!(browser.run("return document.cookie").await, "", "a script can read the session");

    let done = "Number(document.querySelector('#progress').value)";
    browser.until(&format!("return {done} > 2")).await;
    browser.until("return document.querySelectorAll('.chart .line path').length > 8").await;
    browser.click("#pause").await;
    browser
        .until(&format!("return {STATE} === 'paused' && document.querySelector('#pause').textContent === 'Resume'"))
        .await;
    browser.click("#change").await;
    browser.find("#new-kl_coef").await.send_keys("0.125").await.unwrap();
    browser.find("#new-lr").await.send_keys("fast").await.unwrap();
    browser.click("#change-form button[type=submit]").await;
    browser.until("return document.querySelector('dialog .problem').textContent.includes('is no number')").await;
    browser.run("document.querySelector('#new-lr').value = '2e-4'").await;
    browser.click("#change-form button[type=submit]").await;
    browser.until("return !document.querySelector('dialog').open").await;
    browser.click("#pause").await;
    browser.until(&format!("return {STATE} === 'running'")).await;
    browser.run("location.hash = '#events'").await;
    browser.until("return document.querySelector('#events').innerText.includes('kl_coef = 0.125, lr = 2e−4')").await;
    browser.run("location.hash = '#pipeline'").await;
    browser.until("return document.querySelectorAll('.role.running').length > 5").await;
    browser.run("location.hash = '#rollouts'").await;
    browser.until("return document.querySelectorAll('.row strong').length > 3").await;
    browser.click(".row").await;
    browser.until("return document.querySelectorAll('.token').length > 0").await;
    let joined = browser
        .run("const row = document.querySelector('.tokens'); return [...row.querySelectorAll('.token')].map((token) => token.textContent).join('')")
        .await;
    assert!(!joined.as_str().unwrap().is_empty());
    assert_eq!(served.interrupt(), Some(130));
    // The run has ended, and the server with it.
    browser.until(&format!("return ['not connected', 'ended'].includes({STATE})")).await;
    browser.close().await;
    let replayed: Value = serde_json::from_str(&home.succeed(&["replay", "r", "--json"])).unwrap();
    assert!(replayed["until"].as_u64().unwrap() > 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_rollouts_stay_fluid_and_what_comes_anew_moves_nothing() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let rollouts: Vec<_> =
        (0..10_000).map(|n| rollout(n / 50, n % 200, &format!("response number {n} of this run"))).collect();
    let run = ShownRun::new(&[update(1, 0.5)], &rollouts);
    browser.go(&run.link).await;
    browser.until("return document.querySelector('nav a[aria-current]') !== null").await;
    browser.run("location.hash = '#rollouts'").await;
    browser.until("return document.querySelector('.count').textContent.includes('10,000')").await;
    // Scrolls through all of it, a screen and a half each frame, and times the frames.
    let script = "const done = arguments[0], list = document.querySelector('.list'); \
        const frames = []; let last = performance.now(), most = 0; \
        (function scroll(now) { frames.push(now - last); last = now; most = Math.max(most, list.querySelectorAll('.row').length); \
        if (frames.length > 150) done({longest: Math.max(...frames.slice(2)), median: frames.sort((a, b) => a - b)[75], most}); \
        else { list.scrollTop += list.clientHeight * 1.5; requestAnimationFrame(scroll); } })(last);";
    let frames = browser.client.execute_async(script, Vec::new()).await.unwrap();
    println!("frames (ms): {frames}");
    assert!(frames["most"].as_u64().unwrap() < 60, "rows out of sight are there too: {frames}");
    assert!(frames["median"].as_f64().unwrap() < 50.0, "{frames}");

    browser.run("document.querySelector('.list').scrollTop = 68 * 500").await;
    browser.until("return document.querySelectorAll('.row strong').length > 5").await;
    browser.click(".row:nth-child(7)").await;
    browser.until("return document.querySelectorAll('.token').length > 0").await;
    let seen = "return [document.querySelector('.list').scrollTop, document.querySelector('.detail').innerText, \
                [...document.querySelectorAll('.row')].map((row) => row.innerText).join()]";
    let before = browser.run(seen).await;
    for version in 2..6 {
        run.push(&update(version, 0.5), &[rollout(version, 3, "a new one")]);
    }
    browser.until("return document.querySelector('.fresh').textContent === '4 new'").await;
    assert_eq!(browser.run(seen).await, before, "it moved");
    // Pages that are read later belong to the same list.
    browser.run("document.querySelector('.list').scrollTop = 68 * 9998").await;
    browser.until("return [...document.querySelectorAll('.row')].at(-1).innerText.includes('number 0 of')").await;
    browser.click(".fresh").await;
    browser.until("return document.querySelector('.row').innerText.includes('a new one')").await;
    browser.find("#search").await.send_keys("number 777 of").await.unwrap();
    browser.until("return document.querySelector('.count').textContent.startsWith('1 rollout')").await;
    browser.close().await;
}

const HOSTILE: &str = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'> <a href=\"javascript:window.hit=3\">x</a> \
    ![i](http://127.0.0.1:9/x.png) {{constructor}} \u{202e}evil\u{202c} zero\u{200b}width </span></p></div>";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_wrote_is_text_whatever_it_holds() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let mut other = rollout(1, 1, &format!("{HOSTILE} and more"));
    other.prompt = HOSTILE.into();
    other.tokens.as_mut().unwrap().prompt = HOSTILE.chars().map(String::from).collect();
    let arabic = rollout(2, 2, "هذا نص عربي مع English كلمات");
    let run = ShownRun::new(&[update(1, 0.5)], &[rollout(0, 1, HOSTILE), other, arabic]);
    run.live.warn(collimate_protocol::PolicyVersion(1), format!("no room for {HOSTILE}"));
    browser.go(&run.link).await;
    browser.until("return document.querySelector('nav a[aria-current]') !== null").await;
    browser.until("return document.querySelector('.banner.problem').innerText.includes('<script>')").await;
    browser.run("location.hash = '#rollouts'").await;
    browser.until("return document.querySelectorAll('.row strong').length === 3").await;
    browser.run("[...document.querySelectorAll('.row')][2].click()").await;
    browser.until("return document.querySelectorAll('.token').length > 20").await;
    let joined = "return [...document.querySelectorAll('.token')].map((token) => token.textContent).join('')";
    // What can't be seen is shown by its number.
    let shown = hostile_as_shown();
    assert_eq!(browser.run(joined).await, json!(shown));
    assert_eq!(browser.run("return document.querySelectorAll('.token mark').length").await, 3);
    assert_eq!(browser.run("return document.querySelectorAll('.row mark').length >= 3").await, true);
    for colour in ["1", "2", "3", "4"] {
        browser.run(&format!("const s = document.querySelector('#colour'); s.value = '{colour}'; s.dispatchEvent(new Event('change'))")).await;
    }
    assert_eq!(browser.run("return document.querySelector('.detail .muted:not(.tools *)').textContent.startsWith('Computed from the scores')").await, true);
    browser.run("[...document.querySelectorAll('.detail button')].find((button) => button.textContent.startsWith('Compare')).click()").await;
    browser.until("return document.querySelectorAll('.aligned p').length >= 4").await;
    assert_eq!(browser.run("return document.querySelector('.aligned .same').textContent").await, json!(shown));
    browser.run("location.hash = '#events'").await;
    browser.until("return document.querySelector('#events').innerText.includes('<script>')").await;
    let foreign = "return [window.hit ?? null, document.querySelectorAll('main script, main img, main a[href^=javascript]').length]";
    assert_eq!(browser.run(foreign).await, json!([null, 0]));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_tokens_are_read_by_scrolling() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let long: String =
        (0..100_000u32).map(|n| if n % 7 == 6 { ' ' } else { char::from(b'a' + (n % 26) as u8) }).collect();
    let run = ShownRun::new(&[update(1, 0.5)], &[rollout(0, 1, &long)]);
    browser.go(&run.link).await;
    browser.until("return document.querySelector('nav a[aria-current]') !== null").await;
    browser.run("location.hash = '#rollouts'").await;
    browser.until("return document.querySelectorAll('.row strong').length === 1").await;
    browser.click(".row").await;
    browser.until("return document.querySelectorAll('.token').length === 100000").await;
    browser.run("const detail = document.querySelector('.detail'); detail.scrollTop = detail.scrollHeight").await;
    let last = "[...document.querySelectorAll('.token')].at(-1).getBoundingClientRect().top < innerHeight";
    browser.run("document.querySelector('.token:last-child')").await;
    browser.until(&format!("return (document.querySelector('.detail').scrollTop = 1e9, {last})")).await;
    let joined = "return [...document.querySelectorAll('.token')].map((token) => token.textContent).join('').length";
    assert_eq!(browser.run(joined).await, 100_000);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_connection_breaks_comes_again_by_itself_and_hears_what_it_missed() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let run = ShownRun::new(&[update(1, 0.5)], &[]);
    run.live.stage_began(collimate::rundir::Stage::Ppo);
    run.live.show_status(&status(1));
    let cable = Cable::to(&run.viewer.base);
    browser.go(&format!("{}/#token={}", cable.base(), run.viewer.token)).await;
    let is_at = |version: u64| {
        format!("return {STATE} === 'running' && Number(document.querySelector('#progress').value) === {version}")
    };
    browser.until(&is_at(1)).await;
    cable.cut();
    browser.until(&format!("return {STATE} === 'not connected'")).await;
    run.push(&update(2, 0.5), &[]);
    cable.mend();
    browser.until(&is_at(2)).await;
    run.push(&update(3, 0.5), &[]);
    browser.until(&is_at(3)).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_before_and_after_is_read_side_by_side() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let run = ShownRun::new(&[update(1, 0.5)], &[]);
    let prompt = |n: usize| format!("prompt number {n} of the held-out ones");
    let before: Vec<_> = (1..=250).map(|n| answer(EvaluatedPolicy::Before, &prompt(n), "as it was", 0.0)).collect();
    run.evaluate(&before);
    browser.go(&run.link).await;
    browser.until("return document.querySelector('nav a[aria-current]') !== null").await;
    browser.run("location.hash = '#evaluation'").await;
    let count = "document.querySelector('#evaluation .count').textContent";
    browser.until(&format!("return {count}.includes('none is answered by the trained policy yet')")).await;
    let text = |n: usize| if n == 7 { HOSTILE.to_owned() } else { format!("better by {n}") };
    let after: Vec<_> = (1..=250).map(|n| answer(EvaluatedPolicy::After, &prompt(n), &text(n), n as f32)).collect();
    run.evaluate(&after);
    browser.run("location.hash = '#curves'").await;
    browser.until("return document.querySelector('#evaluation').hidden").await;
    browser.run("location.hash = '#evaluation'").await;
    browser.until(&format!("return {count} === '250 held-out prompts'")).await;

    let rows = "[...document.querySelectorAll('#evaluation .row')]";
    browser.run("document.querySelector('#evaluation .list').scrollTop = 68 * 249").await;
    browser.until(&format!("return {rows}.at(-1).innerText.includes('prompt 250')")).await;
    let sort =
        "const s = document.querySelector('#evaluation-sort'); s.value = '1'; s.dispatchEvent(new Event('change'))";
    browser.run(sort).await;
    browser.until(&format!("return {rows}[0].innerText.includes('0 → 250')")).await;
    browser.find("#evaluation-search").await.send_keys("<script>").await.unwrap();
    browser.until(&format!("return {count} === '1 held-out prompt'")).await;
    browser.click("#evaluation .row").await;
    browser.until("return document.querySelectorAll('#evaluation .differs').length === 2").await;
    let read = "return [...document.querySelectorAll('#evaluation .differs')].map((text) => text.textContent)";
    assert_eq!(browser.run(read).await, json!(["as it was", hostile_as_shown()]));
    let heads =
        "return [...document.querySelectorAll('#evaluation h3')].map((head) => head.textContent.split(', ')[0])";
    assert_eq!(browser.run(heads).await, json!(["Before: score 0", "After: score 7"]));
    let foreign = "return [window.hit ?? null, document.querySelectorAll('main script, main img').length]";
    assert_eq!(browser.run(foreign).await, json!([null, 0]));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_of_many_rollouts_of_a_prompt_is_compared_with_the_first_and_one_without_detail_says_so() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let mut rollouts: Vec<_> = (0..700).map(|version| rollout(version, 1, &format!("answer {version}"))).collect();
    let mut plain = rollout(700, 2, "without detail");
    plain.tokens = None;
    rollouts.push(plain);
    let run = ShownRun::new(&[update(1, 0.5)], &rollouts);
    browser.go(&run.link).await;
    browser.until("return document.querySelector('nav a[aria-current]') !== null").await;
    browser.run("location.hash = '#rollouts'").await;
    browser.until("return document.querySelectorAll('.row strong').length > 3").await;
    browser.click(".row").await;
    browser.until("return document.querySelector('.detail').innerText.includes('tokenizer')").await;
    assert_eq!(browser.run("return document.querySelectorAll('.token').length").await, 0);
    browser.click(".row:nth-child(2)").await;
    browser.until("return document.querySelectorAll('.token').length > 0").await;
    browser.run("[...document.querySelectorAll('.detail button')].find((button) => button.textContent.startsWith('Compare')).click()").await;
    let compared = "[...document.querySelectorAll('.aligned h3')].map((head) => head.textContent.split(':')[0]).join()";
    browser.until(&format!("return {compared} === 'v0,v699'")).await;
    browser.close().await;
}

/// A run of which there is something of everything.
fn lifelike() -> ShownRun {
    let updates: Vec<_> = (1..=240).map(lifelike_update).collect();
    let texts = [
        "he said, with a smile which was not meant to be seen, that nothing could be more agreeable.",
        "不知道為什麼，今天的天氣特別好，大家都很高興。",
        "هذا نص عربي يصف يوماً جميلاً في الحديقة.",
        "and so they walked on, and the sea was grey, and nobody spoke of it again until the evening came.",
    ];
    let rollouts: Vec<_> = (0..480u64)
        .map(|n| {
            let mut record = rollout(n / 2, n % 12, texts[((n + n / 12) % 4) as usize]);
            record.score = ((n * 37) % 100) as f32 / 20.0 - 1.0;
            record.prompt = "It was a truth, universally acknowledged, that ".into();
            record.tokens.as_mut().unwrap().prompt = vec![record.prompt.clone()];
            record
        })
        .collect();
    let run = ShownRun::new(&updates, &rollouts);
    let abandoned: String = (181..=205)
        .map(|version| {
            let mut record = serde_json::to_value(lifelike_update(version + 40)).unwrap();
            (record["version"], record["branch"]) = (version.into(), 1.into());
            format!("{record}\n")
        })
        .collect();
    std::fs::write(run.ppo().abandoned_metrics(), abandoned).unwrap();
    for policy in [EvaluatedPolicy::Before, EvaluatedPolicy::After] {
        let answers: Vec<_> = (0..40)
            .map(|n| answer(policy, "It was a truth, universally acknowledged, that ", texts[n % 4], n as f32 / 8.0))
            .collect();
        run.evaluate(&answers);
    }
    run.live.load(&run.ppo());
    run.live.stage_began(collimate::rundir::Stage::Ppo);
    run.live.show_status(&status(240));
    run
}

/// Looks at every view in one width and one set of colours; what axe-core finds seriously wrong.
async fn problems_of_every_view(run: &ShownRun, look: Look) -> Vec<String> {
    let browser = Browser::open(look).await;
    let name = |view: &str| format!("view-{view}-{}-{}", look.size.0, if look.is_dark { "dark" } else { "light" });
    let mut found = Vec::new();
    browser.go(&format!("{}/", run.viewer.base)).await;
    for view in ["login", "curves", "pipeline", "rollouts", "compare", "evaluation", "settings", "replace", "events"] {
        match view {
            "login" => browser.until("return !document.querySelector('#login').hidden").await,
            "curves" => {
                browser.find("#login-token").await.send_keys(&run.link).await.unwrap();
                browser.click("#login-form button").await;
                browser.until("return document.querySelectorAll('.line path').length > 10").await;
            }
            "compare" => {
                browser.run("[...document.querySelectorAll('.detail button')].at(0).click()").await;
                browser.until("return document.querySelectorAll('.aligned p').length >= 2").await;
            }
            // Only a run in this process has them; this one is made up.
            "settings" => {
                browser.run("document.querySelector('#controls').hidden = false").await;
                browser.click("#change").await;
            }
            "replace" => {
                browser.run("document.querySelectorAll('dialog').forEach((dialog) => dialog.close())").await;
                browser.click("#replace").await;
            }
            _ => {
                browser.run("document.querySelectorAll('dialog').forEach((dialog) => dialog.close())").await;
                browser.run(&format!("location.hash = '#{view}'")).await;
                browser.until(&format!("return !document.querySelector('#{view}').hidden")).await;
            }
        }
        if view == "pipeline" {
            browser.until("return document.querySelectorAll('.role').length === 8").await;
        }
        if view == "evaluation" {
            browser.until("return document.querySelectorAll('#evaluation .row strong').length > 3").await;
            browser.run("document.querySelectorAll('#evaluation .row')[2].click()").await;
            browser.until("return document.querySelectorAll('#evaluation .differs').length === 2").await;
        }
        if view == "rollouts" {
            browser.until("return document.querySelectorAll('.row strong').length > 3").await;
            browser.run("document.querySelectorAll('.row')[2].click()").await;
            browser.until("return document.querySelectorAll('.token').length > 10").await;
            let colour =
                "const s = document.querySelector('#colour'); s.value = '4'; s.dispatchEvent(new Event('change'))";
            browser.run(colour).await;
        }
        let over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(browser.run(over).await, 0, "{} is wider than the window", name(view));
        browser.screenshot(&name(view)).await;
        found
            .extend(browser.serious_violations().await.into_iter().map(|problem| format!("{}: {problem}", name(view))));
    }
    browser.close().await;
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_is_accessible_wide_and_narrow_light_and_dark() {
    if !browser::is_there() {
        return;
    }
    let run = lifelike();
    let mut found = Vec::new();
    for look in [Look::WIDE, Look::WIDE.dark(), Look::NARROW, Look::NARROW.dark()] {
        found.extend(problems_of_every_view(&run, look).await);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
