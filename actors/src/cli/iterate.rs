//! `iterate`: rounds of rankings, reward model and PPO.

use super::Ended;
use super::args::RunArgs;
use super::run::{self, Started};
use crate::stages::iterate;

/// Runs the recipe's rounds.
pub fn run(args: &RunArgs) -> anyhow::Result<Ended> {
    let started = run::start(args, |recipe| Ok(iterate::check(recipe)?), iterate::labels);
    let Started { recipe, dir, console, live, stop } = started?;
    run::ended(iterate::run(&recipe, &dir, &console, &live, &stop), &console, dir.root())
}
