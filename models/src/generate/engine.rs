//! Generation with continuous batching: a sequence that ends frees its slot for the next one at once.
//!
//! What a sequence samples depends on its prompt, its generator of random numbers, its settings and the weights,
//! and on nothing else: not on its slot, nor on what else is in progress. Each prompt is prefilled on its own, each
//! row of a step is computed independently of the others, and each sequence draws from its own generator.

use std::sync::Arc;

use candle_core::Device;
use collimate_protocol::{FinishReason, PolicyVersion};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cache::Caches;
use super::sampling::{SampledToken, SamplingParams, Scratch, sample_with};
use crate::arch::{LanguageModel, ModelConfig, Weights};
use crate::error::{Error, Result};
use crate::kernels::{self, CacheRow, WeightLayout};
use crate::rng::SeededRng;

/// Logits from which on a step's rows are sampled in parallel: waking the threads costs about as much as sampling
/// from this many (some 30 microseconds).
const PARALLEL_FROM: usize = 1 << 16;

/// What becomes of the keys and values that a sequence in progress has in the cache when new weights come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CachePolicy {
    /// They stay those of the versions that computed them. It costs nothing; the log-probabilities recorded from then on
    /// are those of the sampler as it was, which no single version gives.
    #[default]
    Keep,
    /// They are computed anew. It costs a pass over all that the sequence has so far; the log-probabilities recorded
    /// from then on are those that the new version gives.
    Recompute,
}

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
    /// The version that read the prompt when the sequence was admitted.
    pub prompt_version: PolicyVersion,
    /// Why it ended.
    pub finish: FinishReason,
}

/// A sequence in progress.
#[derive(Debug)]
struct Running<T> {
    response: Response<T>,
    prompt: Vec<u32>,
    /// The newest token, which the cache does not hold yet, and its position.
    pending: u32,
    position: usize,
    /// Longest response, by the settings and by the context.
    max_response: usize,
    params: SamplingParams,
    rng: SeededRng,
}

/// Samples responses to many prompts at once. `T` is what the caller knows a sequence by.
#[derive(Debug)]
pub struct Engine<T> {
    config: Arc<ModelConfig>,
    model: LanguageModel,
    version: PolicyVersion,
    cache_policy: CachePolicy,
    caches: Caches,
    slots: Vec<Option<Running<T>>>,
}

impl<T> Engine<T> {
    /// An engine with room for `n_slots` sequences, on the device where the weights lie. Keys and values stay in the
    /// host's memory, where attention and sampling are computed; on another device than the CPU every layer's rows
    /// travel there and back.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights, version: PolicyVersion, n_slots: usize) -> Result<Self> {
        if n_slots == 0 {
            return Err(Error::invalid("a generation engine needs at least one slot"));
        }
        let model = LanguageModel::frozen(config, weights)?;
        let slots = (0..n_slots).map(|_| None).collect();
        let (cache_policy, caches) = (CachePolicy::default(), Caches::new(config, n_slots));
        Ok(Self { config: config.clone(), model, version, cache_policy, caches, slots })
    }

    /// Does this with the cache when new weights come.
    pub fn with_cache(mut self, cache_policy: CachePolicy) -> Self {
        self.cache_policy = cache_policy;
        self
    }

    /// Uses these weights from the next step on. Sequences in progress go on, with their cache as the
    /// [`CachePolicy`] has it. New prompts are computed under the new weights alone.
    pub fn set_weights(&mut self, weights: &Weights, version: PolicyVersion) -> Result<()> {
        self.model = LanguageModel::frozen(&self.config, weights)?;
        self.version = version;
        if self.cache_policy == CachePolicy::Keep {
            return Ok(());
        }
        for slot in 0..self.slots.len() {
            let Some(running) = self.slots[slot].as_ref().filter(|running| running.max_response > 0) else { continue };
            let so_far = running.prompt.iter().chain(&running.response.tokens).copied();
            let known: Vec<u32> = so_far.take(running.position).collect();
            self.read(slot, &known)?;
        }
        Ok(())
    }

    /// Computes a slot's keys and values of its first tokens, on their own.
    fn read(&mut self, slot: usize, known: &[u32]) -> Result<()> {
        if known.is_empty() {
            return Ok(());
        }
        let rows: Vec<CacheRow> = (0..known.len()).map(|position| CacheRow { slot, position }).collect();
        let positions: Vec<u32> = (0..known.len() as u32).collect();
        self.model.decoder().forward(known, &positions, &mut self.caches.attention(&rows))?;
        Ok(())
    }

    /// The version of the weights in use.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// How many more sequences can be admitted now.
    pub fn n_free_slots(&self) -> usize {
        self.slots.len() - self.n_running()
    }

    /// How many sequences are in progress.
    pub fn n_running(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// What the sequences in progress have so far, by slot.
    pub fn in_progress(&self) -> impl Iterator<Item = (&T, &[u32])> {
        let running = self.slots.iter().flatten();
        running.map(|running| (&running.response.tag, running.response.tokens.as_slice()))
    }

    /// Starts a response to `prompt`. Computes the prompt's keys and values at once, on its own. Refuses a prompt
    /// that is empty, that leaves no room in the context, or that holds an id outside the vocabulary, and any prompt
    /// while no slot is free.
    pub fn admit(&mut self, tag: T, prompt: &[u32], rng: SeededRng, params: SamplingParams) -> Result<()> {
        params.validate()?;
        self.check_prompt(prompt)?;
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            return Err(Error::invalid(format!("all {} slots of the generation engine are taken", self.slots.len())));
        };
        let max_response = params.max_new_tokens.min(self.config.context_len - prompt.len());
        self.caches.reserve(prompt.len() + max_response);
        // The prompt's last token goes through the first step, together with the other sequences' newest tokens.
        let (pending, known) = (prompt[prompt.len() - 1], &prompt[..prompt.len() - 1]);
        if max_response > 0 {
            self.read(slot, known)?;
        }
        let response = Response {
            tag,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            entropies: Vec::new(),
            versions: Vec::new(),
            prompt_version: self.version,
            finish: FinishReason::Length,
        };
        let (position, prompt) = (known.len(), prompt.to_vec());
        self.slots[slot] = Some(Running { response, prompt, pending, position, max_response, params, rng });
        Ok(())
    }

    /// Samples one token for every sequence in progress. Returns those that ended, by slot.
    pub fn step(&mut self) -> Result<Vec<Response<T>>>
    where
        T: Send,
    {
        let mut ended = self.take_ended(|running| running.max_response == 0);
        let mut running: Vec<(usize, &mut Running<T>)> = Vec::with_capacity(self.slots.len());
        running.extend(self.slots.iter_mut().enumerate().filter_map(|(slot, entry)| Some((slot, entry.as_mut()?))));
        if running.is_empty() {
            return Ok(ended);
        }
        let ids: Vec<u32> = running.iter().map(|(_, running)| running.pending).collect();
        let positions: Vec<u32> = running.iter().map(|(_, running)| running.position as u32).collect();
        let rows: Vec<CacheRow> =
            running.iter().map(|(slot, running)| CacheRow { slot: *slot, position: running.position }).collect();
        let hidden = self.model.decoder().forward(&ids, &positions, &mut self.caches.attention(&rows))?; // (B, C)
        let logits = kernels::linear(&hidden, self.model.unembedding(), WeightLayout::OutIn, None)?; // (B, V)
        let version = self.version;
        let sample_one = |scratch: &mut Scratch, running: &mut Running<T>, logits: &[f32]| -> Result<()> {
            let sampled = sample_with(scratch, logits, &running.params, &mut running.rng)?;
            running.take(sampled, version);
            Ok(())
        };
        let vocab_size = self.config.vocab_size;
        let logits = logits.to_device(&Device::Cpu)?.contiguous()?;
        let rows = kernels::numbers(&logits)?;
        if rows.len() < PARALLEL_FROM {
            let mut scratch = Scratch::default();
            let mut pairs = running.iter_mut().zip(rows.chunks_exact(vocab_size));
            pairs.try_for_each(|((_, running), logits)| sample_one(&mut scratch, running, logits))?;
        } else {
            let pairs = running.par_iter_mut().zip(rows.par_chunks_exact(vocab_size));
            pairs.try_for_each_init(Scratch::default, |scratch, ((_, running), logits)| {
                sample_one(scratch, running, logits)
            })?;
        }
        for running in self.slots.iter_mut().flatten() {
            if self.config.eos_token_ids.contains(&running.pending) {
                running.response.finish = FinishReason::End;
            }
        }
        ended.extend(self.take_ended(|running| {
            running.response.finish == FinishReason::End || running.response.tokens.len() == running.max_response
        }));
        Ok(ended)
    }

    fn take_ended(&mut self, has_ended: impl Fn(&Running<T>) -> bool) -> Vec<Response<T>> {
        let ended = self.slots.iter_mut().filter_map(|entry| entry.take_if(|running| has_ended(running)));
        ended.map(|running| running.response).collect()
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<()> {
        let (n, context_len, vocab_size) = (prompt.len(), self.config.context_len, self.config.vocab_size);
        if n == 0 {
            return Err(Error::invalid("a prompt without any token can't be continued"));
        }
        if n >= context_len {
            return Err(Error::invalid(format!(
                "a prompt of {n} tokens leaves no room for a response in a context of {context_len}"
            )));
        }
        match prompt.iter().find(|id| **id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(Error::invalid(format!("token {id} is outside the model's vocabulary of {vocab_size}"))),
        }
    }
}

impl<T> Running<T> {
    fn take(&mut self, sampled: SampledToken, version: PolicyVersion) {
        self.response.tokens.push(sampled.token);
        self.response.logprobs.push(sampled.logprob);
        self.response.entropies.push(sampled.entropy);
        self.response.versions.push(version);
        self.pending = sampled.token;
        self.position += 1;
    }
}

#[cfg(test)]
mod tests;
