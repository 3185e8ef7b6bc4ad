//! Responses from a policy, and what the policy thinks of responses.
//!
//! - [`sampling`]: from one row of logits to one token, with its log-probability.
//! - [`engine`]: many sequences at once, each in a slot with its keys and values.

mod cache;
pub mod engine;
pub mod sampling;

pub use engine::{Engine, Response};
pub use sampling::{SampledToken, SamplingParams};
