//! How the passes of a model share the threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::arch::{Decoder, HeadKind, ModelConfig};
use crate::error::Result;
use crate::memory;
use crate::train::cut_by_tokens;

/// Bytes of weights, or of gradients, that stay in a CPU's caches.
pub(crate) const SMALL_WEIGHTS: u64 = 16 << 20;

/// Whether a model is so small that its weights stay in a CPU's caches, where each thread can read them all. Then
/// sequences, or whole passes, are shared out, each thread takes its own through the whole model, and no operation has to
/// wait for another thread. Larger weights are read once, with each operation shared out.
pub fn are_shared_out(config: &ModelConfig) -> bool {
    memory::weights(config, HeadKind::Language) <= SMALL_WEIGHTS
}

/// Tokens of a pass in training, of the budget that is set: where passes are shared out, so few that there is one for each
/// thread, and enough for matrix products to run at full speed. It does not ask how many threads there are: where a batch is
/// cut shows in the bits of its gradient.
pub fn training_budget(config: &ModelConfig, budget: usize) -> usize {
    const SMALL: usize = 512;
    if are_shared_out(config) { budget.min(SMALL) } else { budget }
}

/// Training passes that are in work at once.
pub fn side_by_side(config: &ModelConfig, checkpointing: bool) -> usize {
    if are_shared_out(config) && !checkpointing { rayon::current_num_threads() } else { 1 }
}

/// Tokens of the passes that are in work at once, of a batch with so many in sequences of up to `longest`.
pub fn training_tokens_at_once(
    config: &ModelConfig,
    n_tokens: usize,
    budget: usize,
    longest: usize,
    checkpointing: bool,
) -> usize {
    let pass = n_tokens.min(training_budget(config, budget)).max(longest);
    match side_by_side(config, checkpointing) {
        1 => pass,
        n => (pass * n).min(n_tokens).max(longest),
    }
}

/// Runs `work` on a thread of the pool, whose operations then need no change of threads, where passes are shared out.
pub(crate) fn in_pool<R: Send>(shared_out: bool, work: impl FnOnce() -> R + Send) -> R {
    if shared_out { rayon::scope(|_| work()) } else { work() }
}

/// Takes sequences of these lengths through a model in passes of up to `budget` tokens, of which a pass computes some
/// sequences. Returns what the passes return, in order. How the sequences are cut shows in no bit of a result, since rows
/// are independent.
pub(crate) fn over_sequences<T: Send>(
    decoder: &Decoder,
    lengths: &[usize],
    budget: usize,
    pass: impl Fn(Range<usize>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let lengths = || lengths.iter().copied();
    if !(decoder.device().is_cpu() && are_shared_out(decoder.config())) {
        return cut_by_tokens(lengths(), budget).into_iter().map(pass).collect();
    }
    let share = lengths().sum::<usize>().div_ceil(rayon::current_num_threads());
    let runs = cut_by_tokens(lengths(), budget.min(share));
    in_pool(true, || runs.into_par_iter().map(&pass).collect())
}
