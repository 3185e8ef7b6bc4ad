//! A sequence in progress, and what it comes to.

use collimate_protocol::{FinishReason, PolicyVersion};

use super::sampling::{SampledToken, SamplingParams, Scratch, sample_with};
use crate::error::Result;
use crate::rng::SeededRng;

/// A sequence that has ended. Every `Vec` has one element for each response token.
#[derive(Clone, Debug, PartialEq)]
pub struct Response<T> {
    /// What it was admitted with.
    pub tag: T,
    /// Sampled ids, the end token included where there is one. Empty if no token was allowed.
    pub tokens: Vec<u32>,
    /// Log-probabilities (nats); see [`SampledToken::logprob`].
    pub logprobs: Vec<f32>,
    /// Entropies (nats) of the distributions sampled from.
    pub entropies: Vec<f32>,
    /// Which version sampled the token.
    pub versions: Vec<PolicyVersion>,
    /// The version that read the prompt first, which sampled the first token too; of an empty response, the version at
    /// which it was admitted or a newer one.
    pub prompt_version: PolicyVersion,
    /// Why it ended.
    pub finish: FinishReason,
}

/// A sequence in progress.
#[derive(Debug)]
pub(super) struct Running<T> {
    pub(super) response: Response<T>,
    pub(super) prompt: Vec<u32>,
    /// The version that computed the prompt's keys and values; before that, the version that will.
    pub(super) prompt_version: PolicyVersion,
    /// How many of its tokens, prompt and response, the cache holds.
    pub(super) n_cached: usize,
    /// Longest response, by the settings and by the context.
    pub(super) max_response: usize,
    params: SamplingParams,
    rng: SeededRng,
}

impl<T> Running<T> {
    /// A response of which nothing is there yet.
    pub(super) fn new(
        tag: T,
        prompt: Vec<u32>,
        prompt_version: PolicyVersion,
        max_response: usize,
        params: SamplingParams,
        rng: SeededRng,
    ) -> Self {
        let response = Response {
            tag,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            entropies: Vec::new(),
            versions: Vec::new(),
            prompt_version,
            finish: FinishReason::Length,
        };
        Self { response, prompt, prompt_version, n_cached: 0, max_response, params, rng }
    }

    /// Tokens that the cache does not hold yet, of which there is always one: the newest.
    pub(super) fn unread(&self) -> impl Iterator<Item = u32> {
        self.prompt.iter().chain(&self.response.tokens).skip(self.n_cached).copied()
    }

    /// How many they are.
    pub(super) fn n_unread(&self) -> usize {
        self.prompt.len() + self.response.tokens.len() - self.n_cached
    }

    /// Whether it has its prompt and nothing else, none of it read.
    pub(super) fn is_unread(&self) -> bool {
        self.n_cached == 0 && self.response.tokens.is_empty()
    }

    /// Whether the cache holds this prompt as this version computes it.
    pub(super) fn has_read(&self, prompt: &[u32], version: PolicyVersion) -> bool {
        self.n_cached >= prompt.len() && self.prompt_version == version && self.prompt == prompt
    }

    /// Other weights will compute what is not in the cache; with `recompute`, all.
    pub(super) fn new_weights(&mut self, version: PolicyVersion, recompute: bool) {
        if recompute {
            self.n_cached = 0;
        }
        if self.n_cached == 0 {
            self.prompt_version = version;
        }
        if self.response.tokens.is_empty() {
            self.response.prompt_version = version;
        }
    }

    /// Samples the next token from its logits, after everything before it has been read.
    pub(super) fn sample(&mut self, scratch: &mut Scratch, logits: &[f32], version: PolicyVersion) -> Result<()> {
        self.n_cached += self.n_unread();
        let SampledToken { token, logprob, entropy } = sample_with(scratch, logits, &self.params, &mut self.rng)?;
        self.response.tokens.push(token);
        self.response.logprobs.push(logprob);
        self.response.entropies.push(entropy);
        self.response.versions.push(version);
        Ok(())
    }
}
