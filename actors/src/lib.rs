//! Collimate: what runs. Actors, stages, the run directory, the command line.

pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod flow;
pub mod observe;
pub mod report;
pub mod rewards;
pub mod rundir;
pub mod stages;
