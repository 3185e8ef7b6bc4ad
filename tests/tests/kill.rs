//! `kill -9` at any moment: the same command goes on, nothing is lost and nothing is trained on twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use collimate::rundir::{Checkpoints, Journal};
use collimate_protocol::records::PpoSummary;
use collimate_tests::command_line::{Home, Ran};
use rand::{Rng, SeedableRng};
use serde_json::Value;

const N_KILLS: usize = 20;
const N_UPDATES: usize = 30;
const BATCH_SIZE: usize = 8;

/// A home in which PPO can start at once.
fn home() -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    for stage in ["pretrain", "sft", "reward"] {
        home.succeed(&[stage, "recipe.toml", "--out", "before"]);
    }
    home
}

/// The PPO stage with so many updates, in this mode. A checkpoint after each update, so that many kills hit the writing
/// of one.
fn arguments(out: &str, mode: &str) -> Vec<String> {
    let sets = [
        "ppo.sft=before/sft/model".to_owned(),
        "ppo.reward_model=before/reward/model".to_owned(),
        format!("ppo.n_updates={N_UPDATES}"),
        format!("ppo.mode={mode}"),
        "ppo.max_staleness=2".to_owned(),
        "ppo.checkpoints.every=1".to_owned(),
        "ppo.n_generators=2".to_owned(),
    ];
    let sets = sets.into_iter().flat_map(|setting| ["--set".to_owned(), setting]);
    ["ppo", "recipe.toml", "--out", out].into_iter().map(str::to_owned).chain(sets).collect()
}

fn run_to_its_end(home: &Home, out: &str, mode: &str) {
    let arguments = arguments(out, mode);
    home.succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Starts the run and kills it once `is_time`, which is asked again and again; whether that came before its end.
fn run_and_kill(home: &Home, out: &str, mode: &str, mut is_time: impl FnMut() -> bool) -> bool {
    let arguments = arguments(out, mode);
    let mut command = home.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !is_time() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert!(ran.code.is_none_or(|code| code == 0), "it failed by itself: {}", ran.stderr);
    ran.code.is_none()
}

/// Kills the run when it has written at least three checkpoints.
fn kill_after_three_checkpoints(home: &Home, out: &str) {
    let checkpoints = Checkpoints::at(&home.path(Path::new(out).join("ppo/checkpoints")));
    let was_killed =
        run_and_kill(home, out, "deterministic", || checkpoints.versions().is_ok_and(|versions| versions.len() >= 3));
    assert!(was_killed, "it came to its end");
}

/// Each update once, each ticket once, and none missing.
fn check_whole(home: &Home, out: &str) {
    let journal = Journal::read(&home.path(Path::new(out).join("ppo/journal.bin"))).unwrap();
    assert_eq!((journal.updates.len(), journal.n_torn), (N_UPDATES, 0));
    let tickets: Vec<_> = journal.updates.iter().flat_map(|update| &update.rollouts).map(|r| r.ticket.id).collect();
    assert_eq!(tickets.len(), N_UPDATES * BATCH_SIZE);
    assert_eq!(tickets.iter().collect::<BTreeSet<_>>().len(), tickets.len(), "a ticket was trained on twice");
    let marker: Value = serde_json::from_str(&home.read(Path::new(out).join("ppo/complete.json"))).unwrap();
    let summary: PpoSummary = serde_json::from_value(marker["summary"].clone()).unwrap();
    assert!(summary.tickets.is_conserved() && summary.tickets.in_flight == 0, "{:?}", summary.tickets);
    assert_eq!(summary.tickets.trained as usize, tickets.len());
    for (file, first) in [("metrics.jsonl", 1), ("rollouts.jsonl", 0)] {
        let text = home.read(Path::new(out).join("ppo").join(file));
        let versions =
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["version"].as_u64().unwrap());
        let mut versions: Vec<u64> = versions.collect();
        if file == "rollouts.jsonl" {
            versions.dedup();
        }
        let expected: Vec<u64> = (first..first + N_UPDATES as u64).collect();
        assert_eq!(versions, expected, "{file}: an update is missing, or there twice");
    }
}

fn model(home: &Home, out: &str) -> Vec<u8> {
    std::fs::read(home.path(Path::new(out).join("ppo/model/model.safetensors"))).unwrap()
}

fn killed_at_random_moments(mode: &str, seed: u64) {
    println!("seed {seed}");
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let home = home();
    let since = Instant::now();
    run_to_its_end(&home, "straight", mode);
    let longest = since.elapsed();
    check_whole(&home, "straight");
    let (mut n_kills, mut n_runs) = (0, 0);
    while n_kills < N_KILLS {
        let out = format!("killed-{n_runs}");
        n_runs += 1;
        while n_kills < N_KILLS {
            // Mostly short: a run that ends is one that can't be killed any more.
            let share: f64 = rng.random::<f64>() * rng.random::<f64>();
            let (since, delay) = (Instant::now(), longest.mul_f64(share));
            if !run_and_kill(&home, &out, mode, || since.elapsed() >= delay) {
                break;
            }
            n_kills += 1;
        }
        run_to_its_end(&home, &out, mode);
        check_whole(&home, &out);
        if mode == "deterministic" {
            assert!(model(&home, &out) == model(&home, "straight"), "{out} has come to other weights");
        }
        let replayed: Value = serde_json::from_str(&home.succeed(&["replay", &out, "--json"])).unwrap();
        assert_eq!(replayed["n_rollouts"].as_u64(), Some((N_UPDATES * BATCH_SIZE) as u64));
    }
}

#[test]
fn a_deterministic_run_that_is_killed_20_times_comes_to_the_weights_of_one_that_is_not() {
    killed_at_random_moments("deterministic", 1);
}

#[test]
fn a_threaded_run_that_is_killed_20_times_loses_nothing_and_can_be_replayed() {
    killed_at_random_moments("threaded", 2);
}

#[test]
fn a_stopped_run_shows_its_status_and_goes_on_but_not_with_other_settings() {
    let home = home();
    let arguments = arguments("r", "deterministic");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    kill_after_three_checkpoints(&home, "r");
    let other = home.fail(&[&arguments[..], &["--set", "ppo.kl_coef=0.5"]].concat());
    assert!(other.contains("ppo.kl_coef") && other.contains("differ"), "{other}");
    let ran = home
        .run(&[&arguments[..], &["--set", "ppo.checkpoints.n_kept=2", "--set", "ppo.restarts.window_s=5"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for key in ["ppo.checkpoints.n_kept", "ppo.restarts.window_s"] {
        assert!(ran.stderr.contains(&format!("goes on with a changed setting: {key}")), "{}", ran.stderr);
    }
    check_whole(&home, "r");
    let status = home.succeed(&["status", "r"]);
    assert!(status.starts_with(&format!("ended: v{N_UPDATES} of {N_UPDATES} updates")), "{status}");
    assert!(status.contains("checkpoints: v29, v30\n") && status.contains("learner-0"), "{status}");
    let error = home.fail(&["replay", "r", "--until", "99"]);
    assert!(error.contains("the journal ends at v30, before v99"), "{error}");
    let replayed = home.succeed(&["replay", "r", "--from", "29"]);
    assert!(replayed.starts_with("v29 to v30: 8 rollouts sampled again"), "{replayed}");
}

/// What lies on the disk is damaged: the run goes on from what is whole, or says what is not.
#[test]
fn a_damaged_checkpoint_is_passed_over_and_a_damaged_journal_is_refused_by_name() {
    let home = home();
    let folder = home.path("r/ppo");
    kill_after_three_checkpoints(&home, "r");
    let newest = Checkpoints::at(&folder.join("checkpoints")).versions().unwrap().pop().unwrap();
    let trainer = folder.join(format!("checkpoints/v{:08}/trainer.safetensors", newest.0));
    let mut bytes = std::fs::read(&trainer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&trainer, bytes).unwrap();
    let arguments = arguments("r", "deterministic");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let journal = folder.join("journal.bin");
    let whole = std::fs::read(&journal).unwrap();
    let mut damaged = whole.clone();
    damaged[30] ^= 1;
    std::fs::write(&journal, damaged).unwrap();
    let error = home.fail(&arguments);
    assert!(error.contains("journal.bin: byte 20: "), "{error}");
    std::fs::write(&journal, whole).unwrap();
    let ran = home.run(&arguments);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    check_whole(&home, "r");
}
