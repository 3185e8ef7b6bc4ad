//! `view`: a run's page, from its directory.

use std::sync::Arc;

use super::args::ViewArgs;
use super::print;
use crate::label::store::Store;
use crate::rundir::RunDir;
use crate::view::directory::Follower;
use crate::view::live::Watched;
use crate::view::server::Door;

/// Serves the page until the process is ended, and follows the run while another process writes it.
pub fn run(args: &ViewArgs) -> anyhow::Result<()> {
    let dir = RunDir::existing(&std::path::absolute(&args.dir)?)?;
    let door = Door::open(&args.addr)?;
    let watched = Arc::new(Watched::of(dir.root()));
    let follower = Follower::start(dir, &watched);
    let labels = args.labels.as_deref().map(Store::open).transpose()?;
    let link = door.serve(watched.clone(), labels)?;
    print(&format!("{link}\nCtrl-C ends the page, not the run.\n"))?;
    follower.follow(&Arc::downgrade(&watched));
    Ok(())
}
