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

/// A recipe, and the run directory that it is run in.
pub(super) fn load(file: &Path, sets: &[String], out: Option<&Path>) -> anyhow::Result<(Recipe, PathBuf)> {
    let mut recipe: Recipe = config::load(file, sets)?;
    let whole = std::path::absolute(file).with_context(|| file.display().to_string())?;
    recipe.resolve_paths(whole.parent().unwrap_or(Path::new("/")));
    let root = match out {
        Some(out) => out.to_owned(),
        None => PathBuf::from("runs").join(file.file_stem().context("a recipe has a name")?),
    };
    Ok((recipe, root))
}

/// Runs the recipe, or one stage of it.
pub fn run(args: &RunArgs, only: Option<Stage>) -> anyhow::Result<Ended> {
    let (recipe, root) = load(&args.recipe, &args.set, args.out.as_deref())?;
    // What can be refused without touching the disk comes first.
    device::open(&recipe.device.0)?;
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
            let labels = args.labels.as_deref().map(Store::open).transpose()?;
            serve(door, &dir, labels, &console)?
        }
    };

    ended(run::run(&recipe, only, &dir, &console, &live, &stop), &console, &root)
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
    let watched = Arc::new(Watched::default());
    directory::load(&dir.stage(Stage::Ppo), &watched.hub);
    let link = door.serve(watched.clone(), dir.root().to_owned(), labels)?;
    console.tell(&format!("watch and steer the run at {link}"));
    Ok(Live::to(watched))
}
