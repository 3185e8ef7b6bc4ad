//! Collimate.

pub mod config;
pub mod rundir;
