//! The passes of an optimiser step: one after the other, each by all threads, or side by side.

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use rayon::prelude::*;

use super::setup::backward_apart;
use crate::error::Result;
use crate::passes::in_pool;

/// What a pass leaves for a [`Training`](super::Training) to add.
pub(crate) enum PassGradients {
    /// A loss whose backward pass is to be run yet.
    Due(Tensor),
    /// The gradients of one that was.
    Done(GradStore),
}

/// Takes passes through their models. `forward` gives a pass' loss with whatever else it found; `take` adds its gradients,
/// always in the order of the passes, so that the sums are the same bits for any number of threads.
///
/// One after the other, what a pass keeps for its backward pass is gone before the next begins. Side by side there are as
/// many at once as threads.
pub(crate) fn train_passes<P: Sync, F: Send>(
    passes: &[P],
    side_by_side: bool,
    forward: impl Fn(&P) -> Result<(Tensor, F)> + Sync + Send,
    mut take: impl FnMut(&P, PassGradients, F) -> Result<()> + Send,
) -> Result<()> {
    if !side_by_side {
        return passes.iter().try_for_each(|pass| {
            let (loss, found) = forward(pass)?;
            take(pass, PassGradients::Due(loss), found)
        });
    }
    in_pool(true, || {
        for passes in passes.chunks(rayon::current_num_threads()) {
            let done = passes.par_iter().map(|pass| {
                let (loss, found) = forward(pass)?;
                Ok((backward_apart(&loss)?, found))
            });
            for (pass, (gradients, found)) in passes.iter().zip(done.collect::<Result<Vec<_>>>()?) {
                take(pass, PassGradients::Done(gradients), found)?;
            }
        }
        Ok(())
    })
}
