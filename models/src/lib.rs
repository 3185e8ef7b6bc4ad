//! Collimate's models and maths on candle: synchronous, and single-threaded in style.
//!
//! In the order in which they build on one another:
//!
//! - [`kernels`]: differentiable operations, fused on the CPU.
//! - [`arch`]: the decoder and its heads, its config and its named weights.
//! - [`generate`]: responses from a policy, many at once.
//! - [`tokenizer`]: text to token ids and back.
//! - [`chat`]: dialogues to text.
//! - [`gguf`]: models of llama.cpp to HuggingFace's layout.
//! - [`objective`]: what is optimised, as free functions over named inputs.
//! - [`optim`]: from gradients to new weights.
//! - [`train`]: a language or reward model, step by step; PPO's settings.
//! - [`memory`]: how much memory models take.
//! - [`roles`]: what the actors ask of the models.
//! - [`data`]: text and records on their way into the stages.
//! - [`reward`]: built-in reward functions.
//! - [`curves`]: fewer points and smooth lines, for people to look at.
//! - [`feedback`]: how far people agree, and what their rankings come to.
//! - [`durable`]: files that are whole or absent.
//! - [`rng`]: seeded randomness, a function of (run, prompt, sample).
//!
//! Not here: actors, threads, clocks, the command line (`collimate`).

pub mod arch;
pub mod chat;
pub mod curves;
pub mod data;
pub mod durable;
pub mod error;
pub mod feedback;
pub mod generate;
pub mod gguf;
pub mod kernels;
pub mod memory;
pub mod objective;
pub mod optim;
pub mod passes;
pub mod reward;
pub mod rng;
pub mod roles;
#[cfg(test)]
mod testing;
pub mod tokenizer;
pub mod train;

pub use candle_core::{Device, DeviceLocation};
pub use error::{Error, Result};
