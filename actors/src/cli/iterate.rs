//! `iterate`: rounds of rankings, reward model and PPO.

use anyhow::Context;

use super::args::IterateArgs;
use super::{Ended, interrupt, run};
use crate::device;
use crate::observe::Console;
use crate::rundir::RunDir;
use crate::stages::context::StopFlag;
use crate::stages::iterate;

/// Runs the recipe's rounds.
pub fn run(args: &IterateArgs) -> anyhow::Result<Ended> {
    let (recipe, root) = run::load(&args.recipe, &args.set, args.out.as_deref())?;
    // What can be refused without touching the disk comes first.
    device::open(&recipe.device.0)?;
    iterate::check(&recipe)?;
    let dir = RunDir::open(&root, &recipe)?;
    let console = Console::new(args.json);
    for difference in dir.changed() {
        console.warn(&format!("goes on with a changed setting: {difference}"));
    }
    let stop = StopFlag::default();
    interrupt::on_ctrl_c(stop.clone()).context("listening for Ctrl-C")?;
    run::ended(iterate::run(&recipe, &dir, &console, &stop), &console, &root)
}
