//! `run` and the stages' commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use collimate_protocol::records::Summary;

use super::args::RunArgs;
use super::{Ended, interrupt, print};
use crate::label::store::Store;
use crate::observe::{Console, ConsoleEvent, server};
use crate::rundir::{RunDir, Stage};
use crate::stages::context::StopFlag;
use crate::stages::recipe::Recipe;
use crate::stages::run::{self, RunFailure};
use crate::view::live::Watched;
use crate::view::server::Door;
use crate::view::{Live, directory};
use crate::web::bind::parse_address;
use crate::{config, device, report};

/// What a run is started with.
pub(super) struct Started {
    pub recipe: Recipe,
    pub dir: RunDir,
    pub console: Console,
    pub live: Live,
    pub stop: StopFlag,
}

/// Loads the recipe, opens its run directory and whatever it is to be watched by. What `check` refuses leaves the disk
/// untouched. `labels` names the project that people are asked in from a recipe's run, unless the arguments name one.
pub(super) fn start(
    args: &RunArgs,
    check: impl FnOnce(&Recipe) -> anyhow::Result<()>,
    labels: impl FnOnce(&Recipe, &RunDir) -> Option<PathBuf>,
) -> anyhow::Result<Started> {
    let mut recipe: Recipe = config::load(&args.recipe, &args.set)?;
    let file = std::path::absolute(&args.recipe).with_context(|| args.recipe.display().to_string())?;
    recipe.resolve_paths(file.parent().unwrap_or(Path::new("/")));
    let root = match &args.out {
        Some(out) => out.clone(),
        None => Path::new("runs").join(file.file_stem().context("a recipe has a name")?),
    };
    device::open(&recipe.device.0)?;
    check(&recipe)?;
    if let Some(address) = &args.metrics_addr {
        server::serve(parse_address(address, server::EXAMPLE_PORT)?)?;
    }
    let door = args.serve.as_deref().map(Door::open).transpose()?;
    let dir = RunDir::open(&root, &recipe)?;
    let console = Console::new(args.json);
    for difference in dir.changed() {
        console.warn(&format!("goes on with a changed setting: {difference}"));
    }
    let stop = StopFlag::default();
    interrupt::on_ctrl_c(stop.clone()).context("listening for Ctrl-C")?;
    let live = match door {
        None => Live::default(),
        Some(door) => {
            let labels = args.labels.clone().or_else(|| labels(&recipe, &dir));
            let labels = labels.as_deref().map(Store::open).transpose()?;
            serve(door, &dir, labels, &console)?
        }
    };
    Ok(Started { recipe, dir, console, live, stop })
}

/// Runs the recipe, or one stage of it.
pub fn run(args: &RunArgs, only: Option<Stage>) -> anyhow::Result<Ended> {
    let Started { recipe, dir, console, live, stop } = start(args, |_| Ok(()), |_, _| None)?;
    ended(run::run(&recipe, only, &dir, &console, &live, &stop), &console, dir.root())
}

/// Tells how a run in the directory `root` has ended.
pub(super) fn ended(outcome: Result<Summary, RunFailure>, console: &Console, root: &Path) -> anyhow::Result<Ended> {
    match outcome {
        Ok(summary) => {
            console.event(&ConsoleEvent::Finished { dir: root, summary: &summary });
            if !console.is_json() {
                print(&report::text(&summary, root))?;
            }
            Ok(Ended::Complete)
        }
        Err(failure) if failure.is_stopped() => {
            console.event(&ConsoleEvent::Stopped { dir: root });
            Ok(Ended::Stopped)
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Shows the run at this door, as far as it has come in an earlier attempt, and tells the link.
fn serve(door: Door, dir: &RunDir, labels: Option<Store>, console: &Console) -> anyhow::Result<Live> {
    let watched = Arc::new(Watched::of(dir.root()));
    directory::load(&dir.stage(Stage::Ppo), &watched.hub);
    let link = door.serve(watched.clone(), labels)?;
    console.tell(&format!("watch and steer the run at {link}"));
    Ok(Live::to(watched))
}
