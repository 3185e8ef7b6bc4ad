//! Sums of the gradients of hidden states and unembedding over the chunks of a pass.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::super::WeightLayout;
use super::super::product::{add_transposed_product, add_transposed_wide_product, product_over};
use super::super::storage::tensor;
use super::super::transpose::add_transposed;
use super::super::weight_gradients::{GradientSum, on_whole, weight_gradient};

/// Sums of the gradients of hidden states and unembedding, where they are asked for.
pub struct Gradients {
    c: usize,
    hidden: Option<Vec<f32>>,
    unembedding: Unembedding,
}

enum Unembedding {
    NotAsked,
    /// Of this pass, transposed: `(C, V)`, which leaves only the hidden states to be transposed in each chunk.
    Own(Vec<f32>),
    /// Added where those of all passes are summed.
    Summed {
        sum: GradientSum,
        /// Whether what stands there means nothing yet.
        is_first: bool,
    },
}

impl Gradients {
    /// Nothing is added yet. With a `sum` the unembedding's gradient goes there at once: for a pass whose loss is what is
    /// differentiated.
    pub fn new(hidden: &Tensor, unembedding: &Tensor, sum: Option<&GradientSum>) -> Self {
        let zeros = |tensor: &Tensor| vec![0.0; tensor.elem_count()];
        let of_unembedding = match sum {
            _ if !unembedding.track_op() => Unembedding::NotAsked,
            Some(sum) => Unembedding::Summed { sum: sum.clone(), is_first: sum.count() },
            None => Unembedding::Own(zeros(unembedding)),
        };
        let hidden_gradient = hidden.track_op().then(|| zeros(hidden));
        Self { c: hidden.dims()[1], hidden: hidden_gradient, unembedding: of_unembedding }
    }

    /// Whether there is anything to add.
    pub fn are_asked_for(&self) -> bool {
        self.hidden.is_some() || !matches!(self.unembedding, Unembedding::NotAsked)
    }

    /// Adds those of a chunk from the loss' gradient by its logits.
    pub fn add(&mut self, chunk: &Range<usize>, by_logits: &[f32], hidden: &[f32], unembedding: &[f32]) -> Result<()> {
        let (c, vocab_size) = (self.c, unembedding.len() / self.c);
        let rows = chunk.start * c..chunk.end * c;
        if let Some(grad_hidden) = &mut self.hidden {
            let grad_hidden = &mut grad_hidden[rows.clone()];
            product_over(grad_hidden, by_logits, vocab_size, unembedding, c, WeightLayout::InOut);
        }
        let hidden = &hidden[rows];
        match &mut self.unembedding {
            Unembedding::NotAsked => Ok(()),
            Unembedding::Own(grad) => {
                // Zeros that are read before they are written cost two page faults each, of which the second interrupts
                // all other threads.
                add_transposed_product(grad, chunk.start == 0, hidden, c, by_logits, vocab_size);
                Ok(())
            }
            Unembedding::Summed { sum, is_first } => {
                let first = std::mem::take(is_first);
                on_whole(sum, |sum| add_transposed_wide_product(sum, first, hidden, c, by_logits, vocab_size))
            }
        }
    }

    /// As an op's `bwd` gives them: `factor` times each.
    pub fn times(
        &self,
        factor: f32,
        hidden: &Tensor,
        unembedding: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (vocab_size, c) = unembedding.dims2()?;
        let hidden = match &self.hidden {
            Some(grad) => Some(tensor(times(grad, factor).into_owned(), hidden.shape())?),
            None => None,
        };
        let unembedding = match &self.unembedding {
            Unembedding::NotAsked => None,
            Unembedding::Own(grad) => weight_gradient(unembedding, |sum, first| {
                add_transposed(sum, first, &times(grad, factor), c, vocab_size);
            })?,
            Unembedding::Summed { .. } if factor != 1.0 => {
                bail!("a loss whose gradients are summed with it is differentiated times {factor}")
            }
            Unembedding::Summed { sum, is_first } => {
                if *is_first {
                    on_whole(sum, |sum| sum.fill(0.0))?;
                }
                None
            }
        };
        Ok((hidden, unembedding))
    }
}

fn times(numbers: &[f32], factor: f32) -> Cow<'_, [f32]> {
    match factor {
        1.0 => Cow::Borrowed(numbers),
        factor => Cow::Owned(numbers.iter().map(|x| factor * x).collect()),
    }
}
