//! Collimate: what runs. It takes a language model through SFT, reward model and PPO-ptx.
//!
//! From the outside in:
//!
//! - [`cli`]: the command line. [`config`]: settings from a TOML file.
//! - [`stages`]: what each command does, as library calls, and the recipe that lists them.
//! - [`control`]: the actors of PPO: a supervisor, one actor for each role, and the handle of whoever started the run.
//! - [`flow`]: what the actors run: the roles on their threads, the bounded channels between them, the tickets.
//! - [`plan`]: what a run would come to, simulated.
//! - [`hub`]: models by name. [`rewards`]: scores from a process in any language. [`device`]: where a role computes. [`process`]: how the process
//!   is set up for that.
//! - [`rundir`]: what a run leaves behind. [`observe`]: what is seen while it runs. [`report`]: what is seen afterwards.
//!   [`view`]: both, in a browser.
//! - [`label`]: where people rank responses and write demonstrations.
//! - [`web`]: what every page that is served shares: tokens, sessions, and what is refused.
//!
//! Not here: tensors and formulas (`collimate-models`), plain data and messages (`collimate-protocol`), several machines.

pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod flow;
pub mod hub;
pub mod label;
pub mod observe;
pub mod plan;
pub mod process;
pub mod report;
pub mod rewards;
pub mod rundir;
pub mod stages;
pub mod view;
pub mod web;
