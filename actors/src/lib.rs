//! Collimate.

pub mod config;
pub mod observe;
pub mod rewards;
pub mod rundir;
