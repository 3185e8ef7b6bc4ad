//! `summary.json`: what a run came to.

use serde::{Deserialize, Serialize};

use crate::ticket::TicketCounts;

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Sample standard deviation over √n; 0 for n < 2.
    pub stderr: f64,
    /// How many numbers.
    pub n: usize,
}

impl Estimate {
    /// Of any numbers.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let numbers: Vec<f64> = numbers.into_iter().collect();
        let n = numbers.len();
        if n == 0 {
            return Self::default();
        }
        let mean = numbers.iter().sum::<f64>() / n as f64;
        let stderr = if n < 2 {
            0.0
        } else {
            let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            (variance / n as f64).sqrt()
        };
        Self { mean, stderr, n }
    }
}

/// A run's `summary.json`. A stage that the run did not have is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The run's seed.
    pub seed: u64,
    /// Raw text to base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrain: Option<PretrainSummary>,
    /// Demonstrations to SFT model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sft: Option<SftSummary>,
    /// A policy's responses to comparisons of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collect: Option<CollectSummary>,
    /// Comparisons to reward model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<RewardSummary>,
    /// SFT model to aligned policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppo: Option<PpoSummary>,
    /// The rounds of `collimate iterate`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<Summary>,
}

/// What pretraining came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PretrainSummary {
    /// Held-out cross-entropy (nats a token).
    pub heldout_nll: f64,
    /// Tokens trained on, repeats counted.
    pub n_tokens: u64,
    /// The model's parameters.
    pub n_parameters: u64,
    /// Seconds it took.
    pub elapsed_s: f64,
}

/// What SFT came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SftSummary {
    /// Cross-entropy of held-out responses (nats a token) before.
    pub heldout_nll_before: f64,
    /// The same after.
    pub heldout_nll: f64,
    /// Demonstrations trained on.
    pub n_demonstrations: usize,
    /// Seconds it took.
    pub elapsed_s: f64,
}

/// What the collect stage came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CollectSummary {
    /// Responses to each prompt.
    pub k: usize,
    /// Prompts that were put to labelers.
    pub n_prompts: usize,
    /// Rankings of this stage.
    pub n_new: usize,
    /// Comparisons in all, with earlier ones.
    pub n_comparisons: usize,
    /// Seconds it took.
    pub elapsed_s: f64,
}

/// What the reward stage came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardSummary {
    /// Share of held-out pairs that the model orders as the ranking does; ties are no pairs.
    pub heldout_accuracy: f64,
    /// Standard error of it over prompts.
    pub heldout_accuracy_stderr: f64,
    /// Held-out pairs.
    pub n_heldout_pairs: usize,
    /// The largest number of responses ranked for one prompt.
    pub k: usize,
    /// Comparisons trained on.
    pub n_comparisons: usize,
    /// Comparisons that were read whose responses a labeler called all bad, whatever their ranks.
    #[serde(default)]
    pub n_all_bad: usize,
    /// Comparisons that were read whose responses all tie, so that they teach nothing.
    #[serde(default)]
    pub n_all_tied: usize,
    /// The bias that shifts the demonstrations' mean score to 0.
    pub bias: f64,
    /// Seconds it took.
    pub elapsed_s: f64,
}

/// A policy, judged on held-out prompts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyEvaluation {
    /// Score of a response by the reward function that PPO uses.
    pub score: Estimate,
    /// Score of a response by the gold scorer, where the run has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<Estimate>,
    /// KL of a response to the SFT model (summed k1, nats).
    pub kl: Estimate,
    /// Cross-entropy of held-out pretraining text (nats a token), over windows.
    pub nll: Estimate,
    /// Response length in tokens.
    pub length: Estimate,
    /// Share of responses with no token besides the end token.
    pub empty_share: Estimate,
}

/// What PPO came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PpoSummary {
    /// The SFT policy.
    pub before: PolicyEvaluation,
    /// The policy that was shipped.
    pub after: PolicyEvaluation,
    /// The ledger at the end.
    pub tickets: TicketCounts,
    /// Updates done.
    pub n_updates: u64,
    /// The ptx coefficient used.
    pub ptx_coef: f64,
    /// The same prompts answered by both policies.
    pub samples: Vec<SampleRecord>,
    /// Seconds it took.
    pub elapsed_s: f64,
}

/// One prompt, answered before and after.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The prompt.
    pub prompt: String,
    /// The SFT policy's response.
    pub before: String,
    /// Its gold score where the run has one, else its score.
    pub before_score: f64,
    /// The final policy's response.
    pub after: String,
    /// Its gold score where the run has one, else its score.
    pub after_score: f64,
}
