//! Control: a supervisor, one actor for each role, and the handle of whoever started the run. Messages alone; what
//! computes is in [`flow`](crate::flow), on threads that the actors own.
//!
//! - [`handle`]: start a run, watch it, end it.
//! - `supervisor`: keeps the roles' states, passes commands down and events up, has roles started again that failed.
//! - `role_actor`: owns one role's compute thread.
//! - `roll`: how each role is, and why the run failed. Pure.

pub mod handle;
mod role_actor;
mod roll;
mod supervisor;

pub use handle::{RunControl, RunHandle};
