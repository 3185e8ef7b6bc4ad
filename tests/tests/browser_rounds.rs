//! The rounds of `collimate iterate` in a real browser: one is chosen, or the curves of all of them, also over the labels that
//! their reward models have learnt from. Skipped, with a word, where there is no Chromium.

use collimate_tests::browser::{self, Browser, Look};
use collimate_tests::shown::{ShownRun, labelled_update, rollout, update};

/// Chooses among what a field offers.
fn choose(field: &str, value: &str) -> String {
    format!("const s = document.querySelector('#{field}'); s.value = '{value}'; s.dispatchEvent(new Event('change'))")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_is_chosen_in_the_head_and_stays_while_the_next_begins() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let run = ShownRun::of_rounds(&[
        ((1..=3).map(|version| update(version, 0.5)).collect(), vec![rollout(0, 1, "of the first round")]),
        (vec![update(1, 0.75)], vec![rollout(0, 1, "of the second round")]),
    ]);
    let chosen = "document.querySelector('#round').selectedOptions[0]?.textContent";
    let first_row =
        |text: &str| format!("return document.querySelector('.row')?.innerText.includes('{text}') === true");
    browser.go(&run.link).await;
    browser.until(&format!("return {chosen} === '2'")).await;
    browser.run("location.hash = '#rollouts'").await;
    browser.until(&first_row("of the second round")).await;
    browser.run(&choose("round", "1")).await;
    browser.until(&first_row("of the first round")).await;
    browser.click(".row").await;
    browser.until("return document.querySelectorAll('.token').length > 0").await;
    run.begin_round(3);
    browser.until("return document.querySelectorAll('#round option').length === 4").await;
    assert_eq!(browser.run(&format!("return {chosen}")).await, "1");
    assert_eq!(browser.run("return document.querySelectorAll('.token').length > 0").await, true, "it was shown anew");
    browser.run(&choose("round", "2")).await;
    browser.until(&first_row("of the second round")).await;
    assert_eq!(browser.run("return document.querySelectorAll('.token').length").await, 0, "of another round");
    browser.run(&choose("round", "")).await;
    browser.until(&format!("return {chosen} === '3 (before PPO)'")).await;
    browser.until("return document.querySelector('.count').textContent === '0 rollouts'").await;
    browser.close().await;
}

/// Whether the score is a line of so many updates at so many places.
fn is_drawn(n_updates: usize, n_places: usize) -> String {
    format!(
        "const line = document.querySelector('.chart .line path')?.getAttribute('d') ?? ''; \
         const xs = (line.match(/[\\d.]+ /g) ?? []).map(Number); \
         return xs.length === {n_updates} && new Set(xs).size === {n_places}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn curves_are_drawn_over_labels_and_of_all_rounds_as_one_line_which_the_newest_goes_on() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let run = ShownRun::of_rounds(&[
        ((1..=3).map(|version| labelled_update(version, version as f64, 80)).collect(), Vec::new()),
        (
            (1..=2).map(|version| labelled_update(version, 5.0 + version as f64, 120)).collect(),
            vec![rollout(0, 1, "of the second round")],
        ),
    ]);
    browser.go(&run.link).await;
    browser.until(&is_drawn(2, 2)).await;
    browser.run(&choose("axis", "labels")).await;
    browser.until(&is_drawn(2, 1)).await;
    browser.run(&choose("round", "all")).await;
    browser.until(&is_drawn(5, 2)).await;
    browser.run("document.querySelector('.plot').dispatchEvent(new KeyboardEvent('keydown', { key: 'End' }))").await;
    assert_eq!(browser.run("return document.querySelector('.readout').textContent").await, "120 (update 5): 7");
    run.live.updated(&labelled_update(3, 9.0, 120));
    browser.until(&is_drawn(6, 2)).await;
    browser.run(&choose("axis", "update")).await;
    browser.until(&is_drawn(6, 6)).await;

    // Rollouts are of one round.
    browser.run("location.hash = '#rollouts'").await;
    browser.until("return document.querySelector('.row')?.innerText.includes('of the second round') === true").await;
    let note = "document.querySelector('#round-note')";
    browser.until(&format!("return {note}.textContent.includes('here is round 2') && !{note}.hidden")).await;
    browser.run("location.hash = '#curves'").await;
    browser.until(&format!("return {note}.hidden")).await;

    browser.run(&choose("axis", "labels")).await;
    browser.until(&is_drawn(6, 2)).await;
    run.begin_round(3);
    browser.until("return document.querySelectorAll('#round option').length === 4").await;
    assert_eq!(browser.run("return document.querySelector('#round').value").await, "all");
    run.live.updated(&labelled_update(1, 4.0, 160));
    browser.until(&is_drawn(6, 3)).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_tells_of_labels_they_are_no_choice() {
    if !browser::is_there() {
        return;
    }
    let browser = Browser::open(Look::WIDE).await;
    let run = ShownRun::new(&[update(1, 0.5), update(2, 0.75)], &[]);
    browser.go(&run.link).await;
    let labels = "document.querySelector('#axis [value=labels]')";
    browser.until(&format!("return {labels}?.disabled === true")).await;
    assert_eq!(browser.run(&format!("return {labels}.textContent")).await, "labels (nothing tells how many)");
    run.live.updated(&labelled_update(3, 1.0, 80));
    browser.until(&format!("return !{labels}.disabled && {labels}.textContent === 'labels'")).await;
    browser.close().await;
}
