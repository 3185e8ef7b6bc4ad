//! From gradients to new weights: accumulate over microbatches, clip by the global norm, schedule, AdamW, EMA.
//!
//! All of it edits its tensors in place. On the CPU the work is cut into chunks of a fixed size, so the result is
//! the same bits for any number of threads.

mod adamw;
mod ema;
mod gradients;
mod inplace;
mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::Ema;
pub use gradients::{GradAccumulator, clip_factor};
pub use schedule::{LrSchedule, Schedule};
