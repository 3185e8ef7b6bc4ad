//! What people bring, on its way into the stages.
//!
//! - [`corpus`]: plain text to paragraphs, some of them held out, and those to token streams, prompts and demonstrations.
//! - [`windows`]: a token stream to batches of pretraining.
//! - [`rows`]: files of records in any layout, row by row; [`schema`]: what a row holds, by its columns; [`Records`]: the
//!   records of a file, with the line in every error.
//! - [`demonstrations`], [`comparisons`], [`prompts`]: what makes tokens of each. [`tasks`]: what labelers are asked.
//! - [`write`](mod@write): records to files.
//! - [`passes`]: files larger than memory, mixed and shuffled.
//! - [`check`](mod@check): what a file holds, told to people.
//! - [`framing`]: text and dialogues to tokens.

pub mod check;
pub mod comparisons;
pub mod corpus;
pub mod demonstrations;
mod dialogue;
pub mod framing;
pub mod limit;
mod nearest;
pub mod passes;
pub mod prompts;
mod records;
pub mod rows;
pub mod schema;
pub mod tasks;
pub mod windows;
pub mod write;

pub use framing::{prompt_tokens, response_tokens};
pub use nearest::nearest;
pub use records::{Record, Records, stream};
