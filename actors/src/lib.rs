//! Collimate.

pub mod config;
pub mod observe;
pub mod rundir;
