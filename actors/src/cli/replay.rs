//! `replay`: a run of PPO again, from its journal.

use anyhow::Context;
use collimate_protocol::PolicyVersion;

use super::args::ReplayArgs;
use super::{Ended, interrupt, print};
use crate::config;
use crate::observe::{Console, StageRecorder};
use crate::rundir::{RunDir, Stage};
use crate::stages::context::{StageError, StopFlag};
use crate::stages::recipe::Recipe;
use crate::stages::replay::{self, ReplayRange};

/// Replays, and says what came of it.
pub fn run(args: &ReplayArgs) -> anyhow::Result<Ended> {
    let dir = RunDir::existing(&args.dir)?;
    let recipe: Recipe = config::load(&dir.config(), &[])?;
    let console = Console::new(false);
    let stop = StopFlag::default();
    interrupt::on_ctrl_c(stop.clone()).context("listening for Ctrl-C")?;
    let mut recorder = StageRecorder::without_files(Stage::Ppo, &console);
    let range = ReplayRange { from: args.from.map(PolicyVersion), until: args.until.map(PolicyVersion) };
    let replayed = replay::run(&recipe, &dir, range, &mut recorder, &stop);
    recorder.finish();
    let replayed = match replayed {
        Err(StageError::Stopped) => return Ok(Ended::Stopped),
        replayed => replayed?,
    };
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&replayed)?))?;
        return Ok(Ended::Complete);
    }
    let (from, until, n_rollouts) = (replayed.from, replayed.until, replayed.n_rollouts);
    let torn = match replayed.n_torn {
        0 => String::new(),
        n => format!(" The last {n} bytes of the journal are of an update that was being written: left out."),
    };
    print(&format!(
        "{from} to {until}: {n_rollouts} rollouts sampled again, and the weights after every update are the same to \
         the bit ({:.1} s).{torn}\n",
        replayed.elapsed_s
    ))?;
    Ok(Ended::Complete)
}
