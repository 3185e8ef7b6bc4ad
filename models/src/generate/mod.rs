//! Responses from a policy, and what the policy thinks of responses.
//!
//! - [`sampling`]: from one row of logits to one token, with its log-probability.
//! - [`engine`]: many sequences at once, each in a slot with its keys and values.
//! - [`scoring`]: log-probabilities of responses that are there already.

mod cache;
pub mod engine;
pub mod sampling;
pub mod scoring;

pub use engine::{CachePolicy, Engine, Response};
pub use sampling::{SampledToken, SamplingParams};
pub use scoring::TOKENS_PER_PASS;
pub use scoring::response_logprobs;
