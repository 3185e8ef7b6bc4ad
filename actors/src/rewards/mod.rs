//! Reward functions that need more than a rule: a process of one's own.

mod line_process;
mod subprocess;

pub use subprocess::{SubprocessConfig, SubprocessError, SubprocessReward};
