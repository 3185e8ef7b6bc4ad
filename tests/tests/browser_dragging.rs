//! Ranking by dragging letters, with a mouse and with a finger, in a real browser.

use std::time::Duration;

use collimate_tests::browser::{Browser, Look};
use collimate_tests::label_page::{anna_at, chip, exported, letter_of, rank, rank_of};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_collimate-under-test");

fn place(name: impl std::fmt::Display) -> String {
    format!("[data-drop=\"{name}\"]")
}

/// How far the page is scrolled, and the strip of places in it.
async fn scrolled(browser: &Browser) -> Value {
    browser.run("return [scrollY, document.querySelector('.strip').scrollLeft]").await
}

#[tokio::test]
async fn four_responses_are_ranked_by_dragging_with_a_tie() {
    let Some((home, _served, browser)) = anna_at(BINARY, &[rank()], Look::WIDE).await else { return };
    browser.says("And what else?").await;
    browser.says("Ships.").await;
    for (text, tier) in [("Wood", 2), ("Ice", 1), ("Stones", 3), ("Lead", 3)] {
        let letter = letter_of(&browser, text).await;
        browser.drag(&chip(letter), &format!("[data-drop=\"{tier}\"]")).await;
    }
    browser.says("= ").await;
    browser.click("#submit").await;
    browser.says("All done").await;
    browser.close().await;
    let lines = exported(&home, "comparisons");
    let ranks = ["Ice floats.", "Wood floats.", "Stones float.", "Lead floats."].map(|text| rank_of(&lines[0], text));
    assert_eq!((lines.len(), ranks), (1, [1, 2, 3, 3]));
    assert_eq!((&lines[0]["labeler"], &lines[0]["revision"]), (&json!("anna"), &json!(1)));
}

#[tokio::test]
async fn one_is_dropped_between_two_others() {
    let Some((_home, _served, browser)) = anna_at(BINARY, &[rank()], Look::WIDE).await else { return };
    browser.find(".chip").await;
    for (index, place) in [(0, "1"), (1, "2"), (2, "3"), (3, "before-2")] {
        browser.drag(&chip(index), &format!("[data-drop=\"{place}\"]")).await;
    }
    browser.says("A > D > B > C").await;
    browser.close().await;
}

#[tokio::test]
async fn four_responses_are_ranked_by_a_finger_on_a_phone_and_the_page_keeps_still() {
    let Some((home, _served, browser)) = anna_at(BINARY, &[rank()], Look::PHONE).await else { return };
    browser.find(".chip").await;
    // Somewhere in a page that is longer than the screen.
    browser.run("scrollTo(0, 150)").await;
    assert_eq!(scrolled(&browser).await, json!([150, 0]));
    for (text, to) in [("Wood", "2"), ("Ice", "1"), ("Stones", "4"), ("Lead", "before-4")] {
        let letter = letter_of(&browser, text).await;
        browser.drag_by_finger(&chip(letter), &place(to)).await;
        assert_eq!(scrolled(&browser).await, json!([150, 0]), "{text}");
    }
    browser.until("return document.querySelectorAll('.tiers .chip').length === 4").await;
    assert_eq!(browser.run("return document.querySelectorAll('.lifted, .over').length").await, 0);
    assert_eq!(browser.faults("label-dragged-phone").await, Vec::<String>::new());
    browser.click("#submit").await;
    browser.says("All done").await;
    browser.close().await;
    let lines = exported(&home, "comparisons");
    let ranks = ["Ice floats.", "Wood floats.", "Lead floats.", "Stones float."].map(|text| rank_of(&lines[0], text));
    assert_eq!((lines.len(), ranks), (1, [1, 2, 3, 4]));
}

#[tokio::test]
async fn a_finger_that_moves_scrolls_the_page_unless_it_holds_a_letter_and_one_that_does_not_taps() {
    let Some((_home, _served, browser)) = anna_at(BINARY, &[rank()], Look::PHONE).await else { return };
    browser.find(".chip").await;
    // Up from a letter, by more than half of the screen: it is dragged to where no place is.
    browser.swipe(&chip(0), (0.0, -450.0)).await;
    assert_eq!(scrolled(&browser).await, json!([0, 0]));
    assert_eq!(browser.run("return document.querySelectorAll('.pool .chip').length").await, 4, "nothing is placed");
    browser.swipe(".prompt", (0.0, -150.0)).await;
    browser.until("return scrollY > 50").await;
    browser.run("scrollTo(0, 0)").await;
    browser.swipe(&place(2), (0.0, -150.0)).await;
    browser.until("return scrollY > 50").await;
    browser.click(&chip(3)).await;
    browser.until("return document.activeElement.dataset.index === '3'").await;
    browser.close().await;
}

#[tokio::test]
async fn places_beside_a_phone_s_screen_come_by_while_a_letter_is_held_at_its_side() {
    let responses: Vec<String> = (0..9).map(|n| format!("response number {n}")).collect();
    let nine = json!({ "prompt": "Nine.", "responses": responses });
    let Some((_home, _served, browser)) = anna_at(BINARY, &[nine], Look::PHONE).await else { return };
    browser.find(".chip").await;
    let is_seen = "const [strip, last] = ['.strip', '[data-drop=\"9\"]'].map((css) => document.querySelector(css).getBoundingClientRect());
        return last.right <= strip.right";
    assert_eq!(browser.run(is_seen).await, false, "the last place is beside the screen");
    // Near this side, at the height of the places.
    let side = async |side: &str| {
        let script = format!(
            "const box = document.querySelector('.tiers').getBoundingClientRect();
             return [document.querySelector('.strip').getBoundingClientRect().{side}, (box.top + box.bottom) / 2].map(Math.round)"
        );
        let at: (f64, f64) = serde_json::from_value(browser.run(&script).await).unwrap();
        at
    };
    // Long enough to come to the end and stay there.
    let held = Duration::from_secs(2);
    let (x, y) = side("right").await;
    browser.drag_by_finger_and_hold(&chip(0), (x - 12.0, y), held, &place(9)).await;
    browser.until("return document.querySelector('[data-drop=\"9\"] .chip') !== null").await;
    browser.until("return document.querySelector('.strip').scrollLeft > 50").await;
    let (x, y) = side("left").await;
    browser.drag_by_finger_and_hold(&chip(0), (x + 12.0, y), held, &place(1)).await;
    browser.until("return document.querySelector('[data-drop=\"1\"] .chip') !== null").await;
    assert_eq!(scrolled(&browser).await, json!([0, 0]));
    // The strip is swiped through as well, where no letter is.
    browser.swipe(&place(5), (-120.0, 0.0)).await;
    browser.until("return document.querySelector('.strip').scrollLeft > 50").await;
    browser.close().await;
}
