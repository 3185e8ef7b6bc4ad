//! Responses from a policy, and what the policy thinks of responses.
//!
//! - [`sampling`]: from one row of logits to one token, with its log-probability.
//! - [`engine`]: many sequences at once, each in a slot with its keys and values; a step is a pass over what they have not
//!   read yet.
//! - [`scoring`]: log-probabilities of responses that are there already.

mod cache;
pub mod engine;
mod pass;
mod running;
pub mod sampling;
pub mod scoring;

pub use engine::{CachePolicy, Engine, TOKENS_PER_STEP_PASS};
pub use running::Response;
pub use sampling::{SampledToken, SamplingParams};
pub use scoring::TOKENS_PER_PASS;
pub use scoring::response_logprobs;
