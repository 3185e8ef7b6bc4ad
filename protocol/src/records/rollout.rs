//! Rollouts for people: a line of `rollouts.jsonl`, which was trained on, and of `evaluation.jsonl`, which was judged.

use serde::{Deserialize, Serialize};

use crate::ids::{PolicyVersion, PromptId};
use crate::rollout::FinishReason;

/// One sample with its score, and with its tokens where they were recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// The version that the update which trained on it started from.
    pub version: PolicyVersion,
    /// Its prompt.
    pub prompt_id: PromptId,
    /// Which sample of the prompt.
    pub sample_idx: u32,
    /// The prompt's text.
    pub prompt: String,
    /// The prompt's token ids. None in records from before they were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt_tokens: Vec<u32>,
    /// The response's text.
    pub response: String,
    /// The response's token ids.
    pub response_tokens: Vec<u32>,
    /// For each of them its log-probability when sampled.
    pub logprobs: Vec<f32>,
    /// For each of them the version that sampled it.
    pub versions: Vec<PolicyVersion>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Its score, as the reward function gave it.
    pub score: f32,
    /// Its gold score, where the run has a gold scorer; PPO never sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold: Option<f32>,
    /// Its summed k1 estimate of the KL to the reference (nats).
    pub kl: f32,
    /// What its tokens pay together for the KL: the coefficient times `kl`. 0 in records from before it was kept.
    #[serde(default)]
    pub kl_penalty: f32,
    /// The sum of its tokens' rewards: the score as it was paid (normalised or cut where configured), less `kl_penalty`.
    /// 0 in records from before it was kept.
    #[serde(default)]
    pub reward: f32,
    /// Its tokens one by one, for as many rollouts of an update as are recorded in detail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenDetail>,
}

/// What is known of a rollout's tokens beside [`RolloutRecord::logprobs`] and [`RolloutRecord::versions`]. Numbers are
/// rounded to four decimals: they are for people to look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenDetail {
    /// The text of each of the prompt's tokens; joined, they are the prompt's text.
    pub prompt: Vec<String>,
    /// The text of each of the response's tokens; joined, they are the response's text. A token that is only a part of a
    /// character has no text, the one that completes it has it all; an end token has none.
    pub response: Vec<String>,
    /// For each response token, its log-probability (nats) under the frozen SFT model.
    pub ref_logprobs: Vec<f32>,
    /// For each response token, the value model's estimate before it.
    pub values: Vec<f32>,
    /// For each response token, its advantage as the policy's loss used it.
    pub advantages: Vec<f32>,
    /// The version of the value model that computed `values`.
    pub values_version: PolicyVersion,
}

/// Which policy was evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluatedPolicy {
    /// The SFT model, before PPO.
    Before,
    /// What PPO has made of it, as it is shipped.
    After,
}

/// One response to a held-out prompt. Both policies answer the same prompts in the same order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Whose it is.
    pub policy: EvaluatedPolicy,
    /// The prompt's text.
    pub prompt: String,
    /// The response's text.
    pub response: String,
    /// Tokens of the response, the end token included where there is one.
    pub n_tokens: usize,
    /// Why it ended.
    pub finish: FinishReason,
    /// Its score, as the reward function gave it.
    pub score: f32,
    /// Its gold score, where the run has a gold scorer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<f32>,
    /// Its summed k1 estimate of the KL to the SFT model (nats).
    pub kl: f32,
}
