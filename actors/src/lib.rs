//! Collimate: what runs. Actors, stages, the run directory, the command line.

pub mod config;
pub mod control;
pub mod flow;
pub mod observe;
pub mod report;
pub mod rewards;
pub mod rundir;
