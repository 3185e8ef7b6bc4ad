//! How a batch is cut: minibatches (one optimiser step each) by a seeded shuffle, microbatches (one pass through the
//! model each) by a budget of tokens.

use std::ops::Range;

use rand::seq::SliceRandom;

use crate::arch::PackedSequences;
use crate::rng::SeededRng;

/// Sequences packed for a forward pass, with the rows from which their own later tokens are predicted. The last token
/// of a sequence predicts nothing and is left out of the pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextTokens {
    /// Each sequence without its last token; sequences without a target are left out.
    pub packed: PackedSequences,
    /// Packed rows, R: the one before each target.
    pub rows: Vec<u32>,
    /// The tokens to predict, R.
    pub targets: Vec<u32>,
    /// For each sequence given, how many of the targets are its own.
    pub n_targets: Vec<usize>,
}

impl NextTokens {
    /// Of `(tokens, n_prompt)`: the targets are the tokens from `n_prompt` on. The first token of a sequence has
    /// nothing before it to be predicted from, so an `n_prompt` of 0 counts as 1.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
        let spans = |(tokens, n_prompt): (&'a [u32], usize)| (tokens, [n_prompt..tokens.len()]);
        Self::within(sequences.into_iter().map(spans))
    }

    /// Of `(tokens, spans)`: the targets are the tokens within the spans, but for the first token of a sequence. Spans
    /// are in order and don't overlap.
    pub fn within<'a>(sequences: impl IntoIterator<Item = (&'a [u32], impl AsRef<[Range<usize>]>)>) -> Self {
        let mut inputs: Vec<&[u32]> = Vec::new();
        let (mut rows, mut targets, mut n_targets) = (Vec::new(), Vec::new(), Vec::new());
        let mut first_row = 0;
        for (tokens, spans) in sequences {
            let spans = spans.as_ref().iter().map(|span| span.start.max(1)..span.end);
            let before = targets.len();
            for span in spans.filter(|span| span.start < span.end) {
                rows.extend((span.start - 1..span.end - 1).map(|row| (first_row + row) as u32));
                targets.extend_from_slice(&tokens[span]);
            }
            n_targets.push(targets.len() - before);
            if targets.len() > before {
                inputs.push(&tokens[..tokens.len() - 1]);
                first_row += tokens.len() - 1;
            }
        }
        Self { packed: PackedSequences::new(&inputs), rows, targets, n_targets }
    }

    /// Cuts a number for each target into a `Vec` for each sequence given.
    pub fn split(&self, per_target: &[f32]) -> Vec<Vec<f32>> {
        let mut rest = per_target;
        self.n_targets
            .iter()
            .map(|&n| {
                let (own, others) = rest.split_at(n);
                rest = others;
                own.to_vec()
            })
            .collect()
    }
}

/// Cuts items of these token counts, in order, into runs of at most `budget` tokens; an item that is larger than the
/// budget stands alone.
pub fn cut_by_tokens(n_tokens: impl IntoIterator<Item = usize>, budget: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut n_in_run = 0;
    for (idx, n) in n_tokens.into_iter().enumerate() {
        match runs.last_mut() {
            Some(run) if n_in_run + n <= budget => {
                run.end = idx + 1;
                n_in_run += n;
            }
            _ => {
                runs.push(idx..idx + 1);
                n_in_run = n;
            }
        }
    }
    runs
}

/// The indices `0..n`, shuffled and cut into minibatches of `size` (the last may be smaller). Within a minibatch they
/// ascend: its sums run in the order of the batch, whatever the shuffle.
pub fn shuffled_minibatches(n: usize, size: usize, rng: &mut SeededRng) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(rng);
    let ascending = |minibatch: &[usize]| {
        let mut minibatch = minibatch.to_vec();
        minibatch.sort_unstable();
        minibatch
    };
    order.chunks(size.max(1)).map(ascending).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn targets_are_the_tokens_after_the_prompt_and_rows_the_ones_before_them() {
        let next = NextTokens::new([([5, 6, 7, 8].as_slice(), 2), (&[1, 2], 2), (&[3, 4], 0)]);
        assert_eq!(next.packed.ids, [5, 6, 7, 3]); // the second has no response and takes no part
        assert_eq!(next.packed.offsets, [0, 3, 4]);
        assert_eq!(next.rows, [1, 2, 3]);
        assert_eq!(next.targets, [7, 8, 4]);
        assert_eq!(next.n_targets, [2, 0, 1]);
        assert_eq!(next.split(&[0.1, 0.2, 0.3]), [vec![0.1, 0.2], vec![], vec![0.3]]);
    }

    #[test]
    fn a_sequence_of_one_token_or_none_has_no_target() {
        let next = NextTokens::new([([1].as_slice(), 0), (&[], 0), (&[1], 5)]);
        assert_eq!((next.packed.n_tokens(), next.packed.n_sequences()), (0, 0));
        assert_eq!(next.n_targets, [0, 0, 0]);
    }

    #[test]
    fn runs_keep_the_order_and_the_budget() {
        assert_eq!(cut_by_tokens([3, 4, 2, 9, 1], 7), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(cut_by_tokens([3, 4, 100], 100), [0..2, 2..3]);
        assert!(cut_by_tokens([], 7).is_empty());
    }

    #[test]
    fn minibatches_hold_every_index_once_in_an_order_of_the_seed() {
        let cut = |seed| shuffled_minibatches(10, 4, &mut rng::for_purpose(seed, "test"));
        assert_eq!(cut(1), cut(1));
        assert_ne!(cut(1), cut(2));
        assert_eq!(cut(1).iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        assert!(cut(1).iter().all(|minibatch| minibatch.is_sorted()));
        let mut all = cut(1).concat();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }
}
