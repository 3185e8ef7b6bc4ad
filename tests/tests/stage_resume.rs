//! Pretraining, SFT and reward training that are stopped go on where they were, and come to the same bits.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use collimate::config;
use collimate::observe::{Console, StageRecorder};
use collimate::rundir::{RunDir, Stage, StageDir};
use collimate::stages::context::{StageContext, StageError, StageObserver, StopFlag};
use collimate::stages::recipe::Recipe;
use collimate::stages::{pretrain, reward, sft};
use collimate::view::Live;
use collimate_models::Device;
use collimate_models::arch::Precision;
use collimate_tests::command_line::{Home, RECIPE};

/// Stops the stage after a step, and keeps what it was told.
#[derive(Default)]
struct Watcher {
    stop: StopFlag,
    stage: String,
    stops_at: Option<u64>,
    phase: String,
    steps: Vec<u64>,
    went_on: Vec<u64>,
}

impl StageObserver for Watcher {
    fn phase(&mut self, name: &str, _n_steps: u64) {
        self.phase = name.to_owned();
    }

    fn step(&mut self, n_done: u64, _metrics: &[(&'static str, f64)]) {
        if self.phase == self.stage {
            self.steps.push(n_done);
            if self.stops_at == Some(n_done) {
                self.stop.stop();
            }
        }
    }

    fn goes_on(&mut self, n_done: u64) {
        self.went_on.push(n_done);
    }

    fn note(&mut self, _text: &str) {}

    fn warn(&mut self, _text: &str) {}
}

/// Runs one stage of the home's recipe in a folder.
fn run(home: &Home, stage: Stage, out: &Path, stops_at: Option<u64>) -> (Result<(), StageError>, Watcher) {
    let mut recipe: Recipe = config::load(&home.path("recipe.toml"), &[]).unwrap();
    recipe.resolve_paths(&home.path(""));
    fs::create_dir_all(out).unwrap();
    let mut watcher = Watcher { stage: stage.name().to_owned(), stops_at, ..Watcher::default() };
    let stop = watcher.stop.clone();
    let mut context = StageContext {
        seed: recipe.seed,
        device: Device::Cpu,
        precision: Precision::F32,
        out_dir: out.to_owned(),
        stop,
        live: Live::default(),
        observer: &mut watcher,
        started: Instant::now(),
    };
    let corpus = recipe.corpus.as_ref();
    let base = |stage: &str| home.path(format!("run/{stage}/model"));
    let done = match stage {
        Stage::Pretrain => pretrain::run(&recipe.pretrain.unwrap(), corpus, &mut context).map(drop),
        Stage::Sft => sft::run(&recipe.sft.unwrap(), &base("pretrain"), corpus, &mut context).map(drop),
        Stage::Reward => reward::run(&recipe.reward.unwrap(), &base("sft"), corpus, &mut context).map(drop),
        Stage::Collect => unreachable!("it trains nothing"),
        Stage::Ppo => unreachable!("PPO has checkpoints"),
    };
    (done, watcher)
}

fn home() -> Home {
    let home = Home::new(env!("CARGO_BIN_EXE_collimate-under-test"));
    let lora = "[sft.lora]\nr = 2\n";
    home.write("recipe.toml", format!("{RECIPE}{lora}").replace("max_steps = 3", "n_epochs = 2\nmax_steps = 5"));
    home.succeed(&["pretrain", "recipe.toml", "--out", "run"]);
    home.succeed(&["sft", "recipe.toml", "--out", "run"]);
    home
}

fn weights(out: &Path) -> Vec<u8> {
    fs::read(out.join("model/model.safetensors")).unwrap()
}

#[test]
fn a_stage_that_was_stopped_at_any_step_comes_to_the_bits_of_one_that_was_not() {
    let home = home();
    for stage in [Stage::Pretrain, Stage::Sft, Stage::Reward] {
        let straight = home.path(format!("straight-{}", stage.name()));
        let (done, watcher) = run(&home, stage, &straight, None);
        done.unwrap();
        assert!(watcher.went_on.is_empty());
        let n_steps = watcher.steps.len() as u64;
        assert!(n_steps >= 4, "{}: {n_steps} steps", stage.name());
        for stops_at in 1..n_steps {
            let out = home.path(format!("stopped-{}-{stops_at}", stage.name()));
            let (stopped, _) = run(&home, stage, &out, Some(stops_at));
            assert!(matches!(stopped, Err(StageError::Stopped)), "{stopped:?}");
            assert!(out.join("training.safetensors").exists() && !out.join("model").exists());
            let (done, watcher) = run(&home, stage, &out, None);
            done.unwrap();
            assert_eq!((watcher.went_on, watcher.steps[0]), (vec![stops_at], stops_at + 1), "{}", stage.name());
            assert_eq!(weights(&out), weights(&straight), "{} stopped after {stops_at}", stage.name());
            assert!(!out.join("training.safetensors").exists());
        }
    }
}

#[test]
fn a_broken_state_is_named_and_nothing_is_lost() {
    let home = home();
    let out: PathBuf = home.path("out");
    let (_, _) = run(&home, Stage::Sft, &out, Some(2));
    let state = out.join("training.safetensors");
    let whole = fs::read(&state).unwrap();
    for broken in [&whole[..whole.len() / 2], b"no state at all".as_slice()] {
        fs::write(&state, broken).unwrap();
        let message = run(&home, Stage::Sft, &out, None).0.unwrap_err().to_string();
        assert!(message.contains("training.safetensors: ") && message.contains("remove it to begin"), "{message}");
        assert!(state.exists());
    }
    // The state of another stage's training.
    fs::create_dir_all(home.path("other")).unwrap();
    fs::write(home.path("other/training.safetensors"), &whole).unwrap();
    let message = run(&home, Stage::Reward, &home.path("other"), None).0.unwrap_err().to_string();
    assert!(message.contains("training.safetensors: "), "{message}");
}

#[test]
fn metrics_go_on_after_the_step_that_training_goes_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let begin = || -> StageDir { RunDir::open(dir.path(), &toml::Table::new()).unwrap().begin(Stage::Sft).unwrap() };
    let record = |stage: &StageDir, n_done: Option<u64>, steps: &[(u64, f64)]| {
        let mut recorder = StageRecorder::create(Stage::Sft, stage, &Console::silent()).unwrap();
        recorder.phase("sft", 4);
        n_done.into_iter().for_each(|n_done| recorder.goes_on(n_done));
        steps.iter().for_each(|&(step, loss)| recorder.step(step, &[("loss", loss)]));
    };
    let stage = begin();
    record(&stage, None, &[(1, 0.1), (2, 0.2), (3, 0.3)]);
    fs::write(stage.training(), "a state").unwrap();
    record(&begin(), Some(2), &[(3, 3.3), (4, 4.4)]);
    let text = fs::read_to_string(stage.metrics()).unwrap();
    let losses: Vec<f64> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses, [0.1, 0.2, 3.3, 4.4]);
    // Without a state there is nothing to go on from, and the attempt is forgotten.
    fs::remove_file(stage.training()).unwrap();
    assert!(!begin().metrics().exists());
}
