//! What people bring, on its way into the stages.
//!
//! - [`corpus`]: plain text to paragraphs, some of them held out, and those to token streams, prompts and demonstrations.
//! - [`PretrainWindows`]: a token stream to batches of pretraining.
//! - [`read_demonstrations`], [`read_comparisons`], [`read_prompts`]: JSON lines, with the line in every error, and
//!   what makes tokens of each.
//!
//! A prompt and its response are encoded each on its own, and joined as token ids: sampling sees the prompt without its
//! response, so training must too.

pub mod corpus;

mod comparisons;
mod demonstrations;
mod framing;
mod lines;
mod nearest;
mod prompts;
mod windows;

pub use comparisons::{MAX_RANKED, MIN_RANKED, n_without_pairs, read_comparisons, tokenize_comparisons};
pub use demonstrations::{read_demonstrations, tokenize_demonstrations};
pub use framing::{prompt_tokens, response_tokens};
pub use lines::Lines;
pub use nearest::nearest;
pub use prompts::{read_prompts, tokenize_prompts};
pub use windows::{PretrainWindows, consecutive_windows};
