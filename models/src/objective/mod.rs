//! What is optimised, as free functions over named inputs. Each is one formula, with its source.
//!
//! In the order in which a rollout meets them: the penalty and [`rewards`](fn@rewards), [`gae`](fn@gae),
//! [`whiten`](fn@whiten), then the losses. Losses are sums over tokens: the caller divides by the whole batch's token
//! count, once, so that no cut into microbatches changes a loss or its gradient. Inputs are ragged: a number for each
//! real token, nothing for anything else, so there is no mask that could multiply a NaN in.

mod gae;
mod kl;
mod lm;
pub mod off_policy;
mod ppo;
mod ptx;
mod ranking;
mod rewards;
mod whiten;

pub use gae::{gae, returns};
pub use kl::{KlController, k1, k2, k3};
pub use lm::lm_loss;
pub use off_policy::{PolicyObjective, PolicyTokens};
pub use ppo::{PolicyLoss, ppo_policy_loss, ppo_value_loss};
pub use ptx::ptx_loss;
pub use ranking::{n_pairs_right, pairs, ranking_loss};
pub use rewards::{ScoreNormalizer, cut_off_score, rewards};
pub use whiten::whiten;
