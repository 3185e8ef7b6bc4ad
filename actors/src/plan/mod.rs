//! What a run of PPO would come to on a machine that is described in numbers: the very roles of a run, with fake models
//! whose work takes as long as is assumed or was measured, in virtual time.
//!
//! - [`config`]: what is assumed. [`measured`]: the same, worked out from a run.
//! - `fakes`: what plays the models.
//! - [`forecast`]: one combination of settings, simulated.
//! - [`advice`]: all combinations, and which one to take.

pub mod advice;
pub mod config;
mod fakes;
pub mod forecast;
pub mod measured;

pub use advice::Advice;
pub use config::PlanConfig;
pub use forecast::{Candidate, Forecast};
