//! A forward pass over what some sequences have not read yet, and a sample for each of them.

use candle_core::Device;
use collimate_protocol::PolicyVersion;
use rayon::prelude::*;

use super::cache::{CachedAttention, SequenceCache};
use super::running::Running;
use super::sampling::Scratch;
use crate::arch::GenerationModel;
use crate::error::Result;
use crate::kernels::{self, CacheRow};

/// Logits from which on a pass' rows are sampled in parallel: waking the threads costs about as much as sampling
/// from this many (some 30 microseconds).
pub(super) const PARALLEL_FROM: usize = 1 << 16;

/// A sequence that takes part in a pass.
pub(super) struct Reader<'a, T> {
    pub(super) cache: &'a mut SequenceCache,
    pub(super) running: &'a mut Running<T>,
    /// Others with the same prompt, none of which has been read: they take over what comes of it.
    pub(super) followers: Vec<(&'a mut SequenceCache, &'a mut Running<T>)>,
}

impl<T> Reader<'_, T> {
    /// Whether what this sequence will read is all that the other one has to read.
    pub(super) fn reads_for(&self, other: &Running<T>) -> bool {
        self.running.is_unread() && other.is_unread() && self.running.prompt == other.prompt
    }
}

/// Reads what these sequences have not read, and samples the next token for each.
pub(super) fn read_and_sample<T: Send>(
    model: &GenerationModel,
    version: PolicyVersion,
    readers: Vec<Reader<'_, T>>,
) -> Result<()> {
    let (mut ids, mut rows, mut last_rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut caches = Vec::with_capacity(readers.len());
    let mut samplers = Vec::with_capacity(readers.len());
    for (sequence, Reader { cache, running, followers }) in readers.into_iter().enumerate() {
        ids.extend(running.unread());
        let positions = running.n_cached..running.n_cached + running.n_unread();
        rows.extend(positions.map(|position| CacheRow { sequence, position }));
        last_rows.push(ids.len() as u32 - 1);
        caches.push(cache);
        samplers.push((running, followers));
    }
    if ids.is_empty() {
        return Ok(());
    }
    let positions: Vec<u32> = rows.iter().map(|row| row.position as u32).collect();
    let mut attention = CachedAttention { caches, rows };
    let last_rows = (last_rows.len() < ids.len()).then_some(last_rows.as_slice());
    let hidden = model.decoder().forward(&ids, &positions, last_rows, &mut attention)?; // (B, C)
    let logits = model.logits(&hidden)?.to_device(&Device::Cpu)?.contiguous()?; // (B, V)
    let vocab_size = logits.dim(1)?;
    let logits = kernels::numbers(&logits)?;

    let sample = |scratch: &mut Scratch, task: Sampling<'_, '_, T>| -> Result<()> {
        let (((running, followers), read), logits) = task;
        let n_read = running.n_cached + running.n_unread();
        running.sample(scratch, logits, version)?;
        followers.iter_mut().try_for_each(|(cache, follower)| {
            cache.copy_from(read, n_read);
            follower.sample(scratch, logits, version)
        })
    };
    if logits.len() < PARALLEL_FROM {
        let mut scratch = Scratch::default();
        let mut tasks = samplers.iter_mut().zip(&attention.caches).zip(logits.chunks_exact(vocab_size));
        tasks.try_for_each(|task| sample(&mut scratch, task))
    } else {
        let tasks = samplers.par_iter_mut().zip(&attention.caches).zip(logits.par_chunks_exact(vocab_size));
        tasks.try_for_each_init(Scratch::default, sample)
    }
}

/// A sequence with those that follow it; what it has read; the logits of its next token.
type Sampling<'s, 'a, T> = ((&'s mut Sampled<'a, T>, &'s &'a mut SequenceCache), &'s [f32]);

/// A sequence, and its [`Reader::followers`].
type Sampled<'a, T> = (&'a mut Running<T>, Vec<(&'a mut SequenceCache, &'a mut Running<T>)>);
