//! What a person or a program sees of a run while it runs.
//!
//! - [`console`]: progress bars, or JSON events, or nothing.
//! - [`update_line`]: one line an update.
//! - [`tensorboard`]: event files.
//! - [`gauges`] and [`server`]: the same, served.
//! - [`stage_recorder`]: a training stage's steps to all of these and to `metrics.jsonl`.
//! - [`ppo_recorder`]: PPO's updates and rollouts to all of these.

pub mod console;
pub mod gauges;
pub mod numbers;
pub mod ppo_recorder;
pub mod server;
pub mod stage_recorder;
pub mod tensorboard;
pub mod update_line;

pub use console::{Console, ConsoleEvent};
pub use ppo_recorder::PpoRecorder;
pub use stage_recorder::StageRecorder;
pub use tensorboard::EventWriter;
