//! What people bring, on its way into the stages.
//!
//! - [`corpus`]: plain text to paragraphs, some of them held out, and those to token streams, prompts and demonstrations.
//! - [`windows`]: a token stream to batches of pretraining.
//! - [`demonstrations`], [`comparisons`], [`prompts`]: JSON lines, with the line in every error, and what makes tokens
//!   of each.
//!
//! A prompt and its response are encoded each on its own, and joined as token ids: sampling sees the prompt without its
//! response, so training must too.

pub mod comparisons;
pub mod corpus;
pub mod demonstrations;
mod framing;
mod lines;
mod nearest;
pub mod prompts;
pub mod windows;

pub use framing::{prompt_tokens, response_tokens};
pub use lines::Lines;
pub use nearest::nearest;
