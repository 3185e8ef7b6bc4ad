//! Generation with continuous batching: a sequence that ends frees its slot for the next one at once.
//!
//! What a sequence samples depends on its prompt, its generator of random numbers, its settings and the weights,
//! and on nothing else: not on its slot, nor on what else is in progress, nor on how a step is shared out to threads.
//! Each row of a step is computed independently of the others, and each sequence draws from its own generator.

use std::sync::Arc;

use collimate_protocol::{FinishReason, PolicyVersion};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cache::SequenceCache;
use super::pass::{Reader, read_and_sample};
use super::running::{Response, Running};
use super::sampling::SamplingParams;
use crate::arch::{GenerationModel, ModelConfig, Weights};
use crate::error::{Error, Result};
use crate::passes;
use crate::rng::SeededRng;
use crate::train::cut_by_tokens;

/// Tokens of one forward pass: enough for the matrix products to run at full speed.
pub const TOKENS_PER_STEP_PASS: usize = 512;

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

/// Room for a sequence: the cache stays from one to the next.
#[derive(Debug)]
struct Slot<T> {
    cache: SequenceCache,
    running: Option<Running<T>>,
}

/// Samples responses to many prompts at once. `T` is what the caller knows a sequence by.
#[derive(Debug)]
pub struct Engine<T> {
    config: Arc<ModelConfig>,
    model: GenerationModel,
    version: PolicyVersion,
    cache_policy: CachePolicy,
    shares_out_sequences: bool,
    slots: Vec<Slot<T>>,
}

impl<T> Engine<T> {
    /// An engine with room for `n_slots` sequences, on the device where the weights lie. Keys and values stay in the
    /// host's memory, where attention and sampling are computed; on another device than the CPU every layer's rows
    /// travel there and back.
    pub fn new(config: &Arc<ModelConfig>, weights: &Weights, version: PolicyVersion, n_slots: usize) -> Result<Self> {
        if n_slots == 0 {
            return Err(Error::invalid("a generation engine needs at least one slot"));
        }
        let model = GenerationModel::new(config, weights)?;
        let shares_out_sequences = weights.device().is_cpu() && passes::are_shared_out(config);
        let slots = (0..n_slots).map(|_| Slot { cache: SequenceCache::new(config), running: None }).collect();
        let cache_policy = CachePolicy::default();
        Ok(Self { config: config.clone(), model, version, cache_policy, shares_out_sequences, slots })
    }

    /// Does this with the cache when new weights come.
    pub fn with_cache(mut self, cache_policy: CachePolicy) -> Self {
        self.cache_policy = cache_policy;
        self
    }

    /// Uses these weights from the next step on. Sequences in progress go on, with their cache as the
    /// [`CachePolicy`] has it. New prompts are computed under the new weights alone.
    pub fn set_weights(&mut self, weights: &Weights, version: PolicyVersion) -> Result<()> {
        self.model.set_weights(weights)?;
        self.version = version;
        let recompute = self.cache_policy == CachePolicy::Recompute;
        self.running_mut().for_each(|running| running.new_weights(version, recompute));
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
        self.running().count()
    }

    /// What the sequences in progress have so far, by slot.
    pub fn in_progress(&self) -> impl Iterator<Item = (&T, &[u32])> {
        self.running().map(|running| (&running.response.tag, running.response.tokens.as_slice()))
    }

    fn running(&self) -> impl Iterator<Item = &Running<T>> {
        self.slots.iter().filter_map(|slot| slot.running.as_ref())
    }

    fn running_mut(&mut self) -> impl Iterator<Item = &mut Running<T>> {
        self.slots.iter_mut().filter_map(|slot| slot.running.as_mut())
    }

    /// Starts a response to `prompt`, which is read in the next step. Refuses a prompt that is empty, that leaves no room
    /// in the context, or that holds an id outside the vocabulary, and any prompt while no slot is free.
    pub fn admit(&mut self, tag: T, prompt: &[u32], rng: SeededRng, params: SamplingParams) -> Result<()> {
        params.validate()?;
        self.check_prompt(prompt)?;
        let (n_slots, version) = (self.slots.len(), self.version);
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.running.is_none()) else {
            return Err(Error::invalid(format!("all {n_slots} slots of the generation engine are taken")));
        };
        let max_response = params.max_new_tokens.min(self.config.context_len - prompt.len());
        if max_response > 0 {
            slot.cache.reserve(prompt.len() + max_response);
        }
        slot.running = Some(Running::new(tag, prompt.to_vec(), version, max_response, params, rng));
        Ok(())
    }

    /// Samples one token for every sequence in progress. Returns those that ended, by slot.
    ///
    /// A prompt that several sequences have in common is computed once, if it is under the same weights.
    pub fn step(&mut self) -> Result<Vec<Response<T>>>
    where
        T: Send,
    {
        let mut ended = self.take_ended(|running| running.max_response == 0);
        self.take_over_prompts();
        let mut readers: Vec<Reader<'_, T>> = Vec::with_capacity(self.slots.len());
        for slot in &mut self.slots {
            let Some(running) = &mut slot.running else { continue };
            match readers.iter_mut().find(|reader| reader.reads_for(running)) {
                Some(reader) => reader.followers.push((&mut slot.cache, running)),
                None => readers.push(Reader { cache: &mut slot.cache, running, followers: Vec::new() }),
            }
        }
        let lengths = || readers.iter().map(|reader| reader.running.n_unread());
        let n_threads = if self.shares_out_sequences { rayon::current_num_threads() } else { 1 };
        let budget = lengths().sum::<usize>().div_ceil(n_threads).min(TOKENS_PER_STEP_PASS);
        let runs = cut_by_tokens(lengths(), budget);
        let mut passes = Vec::with_capacity(runs.len());
        for run in runs.iter().rev() {
            passes.push(readers.split_off(run.start));
        }
        let (model, version) = (&self.model, self.version);
        let pass = |readers: Vec<Reader<'_, T>>| read_and_sample(model, version, readers);
        if n_threads > 1 && passes.len() > 1 {
            passes.into_par_iter().try_for_each(pass)?;
        } else {
            passes.into_iter().try_for_each(pass)?;
        }
        let is_end = |token: &u32| self.config.eos_token_ids.contains(token);
        for running in self.slots.iter_mut().filter_map(|slot| slot.running.as_mut()) {
            if running.response.tokens.last().is_some_and(is_end) {
                running.response.finish = FinishReason::End;
            }
        }
        ended.extend(self.take_ended(|running| {
            running.response.finish == FinishReason::End || running.response.tokens.len() == running.max_response
        }));
        Ok(ended)
    }

    /// Gives sequences whose prompt another one has read under the same weights the keys and values of it.
    fn take_over_prompts(&mut self) {
        for idx in 0..self.slots.len() {
            let (before, rest) = self.slots.split_at_mut(idx);
            let Some((slot, after)) = rest.split_first_mut() else { return };
            let Some(running) = slot.running.as_mut().filter(|running| running.is_unread()) else { continue };
            // The last token's row is computed again: from it the first token is sampled.
            let n_known = running.prompt.len() - 1;
            let donor = before.iter().chain(&*after).find(|other| {
                other.running.as_ref().is_some_and(|other| other.has_read(&running.prompt, running.prompt_version))
            });
            if let Some(donor) = donor {
                slot.cache.copy_from(&donor.cache, n_known);
                running.n_cached = n_known;
            }
        }
    }

    fn take_ended(&mut self, has_ended: impl Fn(&Running<T>) -> bool) -> Vec<Response<T>> {
        let ended = self.slots.iter_mut().filter_map(|slot| slot.running.take_if(|running| has_ended(running)));
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

#[cfg(test)]
mod tests;
