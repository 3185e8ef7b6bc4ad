//! What the example's run must have come to: the alignment worked. Looks at the run directory of
//! `collimate run examples/instructgpt.toml`, so it runs after that alone:
//!
//!     cargo test --workspace --test main_job -- --ignored

use std::path::Path;

use collimate_protocol::records::{Estimate, Summary};

/// How far a difference must be from 0, in standard errors of it.
const WELL_OUTSIDE_THE_NOISE: f64 = 5.0;

fn margin(before: &Estimate, after: &Estimate) -> f64 {
    (after.mean - before.mean) / before.stderr.hypot(after.stderr)
}

#[test]
#[ignore = "looks at what the main job left behind"]
fn the_example_ends_with_a_policy_that_pleases_more_and_still_speaks() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runs/instructgpt/summary.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let summary: Summary = serde_json::from_str(&text).unwrap();
    let (reward, ppo) = (summary.reward.unwrap(), summary.ppo.unwrap());
    assert_eq!(reward.k, 4);
    assert!(reward.heldout_accuracy > 0.65, "{reward:?}");

    let (before, after) = (ppo.before.gold.unwrap(), ppo.after.gold.unwrap());
    assert!(before.n >= 256 && after.n >= 256, "{before:?} {after:?}");
    assert!(margin(&before, &after) > WELL_OUTSIDE_THE_NOISE, "gold {before:?} -> {after:?}");
    assert!(margin(&ppo.before.score, &ppo.after.score) > WELL_OUTSIDE_THE_NOISE);
    // Plain PPO loses several tenths of a nat here.
    assert!(ppo.after.nll.mean - ppo.before.nll.mean < 0.2, "{:?} -> {:?}", ppo.before.nll, ppo.after.nll);
    assert!(ppo.after.kl.mean < 40.0 && ppo.after.empty_share.mean < 0.05, "{:?}", ppo.after);
    assert!(ppo.tickets.is_conserved() && ppo.tickets.in_flight == 0, "{:?}", ppo.tickets);
}
