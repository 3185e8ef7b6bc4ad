//! Which labels a reward model learnt from.
//!
//! A labeler may change an answer after a reward model has read it. A file of comparisons that `collimate label` exported
//! names task, labeler and revision in each line; the reward stage keeps these names beside its model, with the scores that
//! the model gives to what was ranked.

use std::path::Path;

use collimate_models::arch::ScalarModel;
use collimate_models::durable::write_file;
use collimate_models::train::{RankedResponses, score_sequences};
use collimate_protocol::records::{LabelName, LabelUse, UsedFor};

use super::context::StageError;

/// Where they are written, in the stage's folder.
pub const LABELS_FILE: &str = "labels.jsonl";

/// The labels that a file's comparisons are, where they have names.
pub struct Labels {
    /// For each comparison its name, if it has one, and whether it was short enough.
    rows: Vec<(Option<LabelName>, bool)>,
}

impl Labels {
    /// Of all comparisons of the file, and what is kept of each.
    pub fn new(names: impl Iterator<Item = Option<LabelName>>, fitted: &[Option<RankedResponses>]) -> Self {
        Self { rows: names.zip(fitted.iter().map(Option::is_some)).collect() }
    }

    /// Writes what became of each, with the trained model's scores. The comparisons that were kept are split into what was
    /// trained on and what was held out; `is_heldout` says of each of them where it is. Where no comparison has a name,
    /// nothing is written.
    pub fn write(
        &self,
        out_dir: &Path,
        model: &ScalarModel,
        [train, heldout]: [&[RankedResponses]; 2],
        is_heldout: &[bool],
        microbatch_tokens: usize,
    ) -> Result<(), StageError> {
        let mut lines = Vec::new();
        for (name, used, comparison) in self.used(train, heldout, is_heldout) {
            let scores = match comparison {
                None => None,
                Some(comparison) => Some(score_sequences(model, &comparison.sequences, microbatch_tokens)?),
            };
            let LabelName { task, labeler, revision } = name.clone();
            let label = LabelUse { task, labeler, revision, used, scores };
            serde_json::to_writer(&mut lines, &label).expect("plain data is JSON");
            lines.push(b'\n');
        }
        match lines.is_empty() {
            true => Ok(()),
            false => Ok(write_file(&out_dir.join(LABELS_FILE), &lines)?),
        }
    }

    /// Each label that has a name, what became of it, and its comparison, unless it was too long.
    fn used<'a>(
        &'a self,
        train: &'a [RankedResponses],
        heldout: &'a [RankedResponses],
        is_heldout: &'a [bool],
    ) -> impl Iterator<Item = (&'a LabelName, UsedFor, Option<&'a RankedResponses>)> {
        let (mut train, mut heldout, mut is_heldout) = (train.iter(), heldout.iter(), is_heldout.iter());
        self.rows.iter().filter_map(move |(name, is_kept)| {
            let side = if *is_kept { is_heldout.next() } else { None };
            let (used, comparison) = match side {
                None => (UsedFor::Nothing, None),
                Some(true) => (UsedFor::Heldout, heldout.next()),
                Some(false) => (UsedFor::Training, train.next()),
            };
            Some((name.as_ref()?, used, comparison))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(token: u32) -> RankedResponses {
        RankedResponses { sequences: vec![vec![token], vec![token, token]], ranks: vec![1, 2] }
    }

    #[test]
    fn each_label_is_named_with_what_it_was_used_for_and_its_own_comparison() {
        let name = |n: u32| LabelName { task: format!("t{n}"), labeler: "anna".to_owned(), revision: n };
        let fitted = [Some(comparison(1)), Some(comparison(2)), None, Some(comparison(4)), Some(comparison(5))];
        // The second has no name.
        let labels = Labels::new([1, 2, 3, 4, 5].into_iter().map(|n| (n != 2).then(|| name(n))), &fitted);
        let (train, heldout) = ([comparison(1), comparison(5)], [comparison(2), comparison(4)]);
        let used: Vec<_> = labels.used(&train, &heldout, &[false, true, true, false]).collect();
        let expected = [
            (&name(1), UsedFor::Training, Some(&comparison(1))),
            (&name(3), UsedFor::Nothing, None),
            (&name(4), UsedFor::Heldout, Some(&comparison(4))),
            (&name(5), UsedFor::Training, Some(&comparison(5))),
        ];
        assert_eq!(used, expected);
    }
}
