//! Each labeler against the others, and against themselves.

use std::collections::BTreeMap;

use super::pairs::ranking_agreement;
use super::{Vote, by_task, merge};

/// Fewer rankings say too little about a labeler.
pub const ENOUGH_RANKINGS: usize = 50;

/// How far a labeler agrees with the consensus of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LabelerAgreement {
    /// Too few rankings that others made too.
    NotEnoughData {
        /// How many there are.
        n_rankings: usize,
    },
    /// Mean agreement.
    Known {
        /// Over the rankings, each by its pairs.
        mean: f64,
        /// Standard error of the mean.
        standard_error: f64,
        /// How many rankings.
        n_rankings: usize,
    },
}

/// For each labeler, agreement with the merged ranking of all others who ranked the same prompt.
pub fn labeler_agreement(votes: &[Vote]) -> BTreeMap<u64, LabelerAgreement> {
    let mut agreements: BTreeMap<u64, Vec<f64>> = votes.iter().map(|vote| (vote.labeler, Vec::new())).collect();
    for votes in by_task(votes) {
        for vote in &votes {
            let others: Vec<&[u32]> = votes
                .iter()
                .filter(|other| other.labeler != vote.labeler)
                .map(|other| other.ranks.as_slice())
                .collect();
            let agreement = (!others.is_empty()).then(|| ranking_agreement(&vote.ranks, &merge(&others))).flatten();
            if let Some(agreement) = agreement {
                agreements.entry(vote.labeler).or_default().push(agreement);
            }
        }
    }
    agreements.into_iter().map(|(labeler, agreements)| (labeler, of(&agreements))).collect()
}

fn of(agreements: &[f64]) -> LabelerAgreement {
    let n_rankings = agreements.len();
    if n_rankings < ENOUGH_RANKINGS {
        return LabelerAgreement::NotEnoughData { n_rankings };
    }
    let (mean, standard_error) = mean_and_error(agreements);
    LabelerAgreement::Known { mean, standard_error, n_rankings }
}

fn mean_and_error(numbers: &[f64]) -> (f64, f64) {
    let n = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// How far people agree with themselves when they see a task again without knowing it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Consistency {
    /// Mean agreement of the two rankings.
    pub mean: f64,
    /// How many tasks were seen twice.
    pub n_repeats: usize,
}

/// Of first and second rankings of the same responses; `None` without any.
pub fn consistency(twice: &[(Vec<u32>, Vec<u32>)]) -> Option<Consistency> {
    let agreements: Vec<f64> = twice.iter().filter_map(|(first, second)| ranking_agreement(first, second)).collect();
    let n_repeats = agreements.len();
    (n_repeats > 0).then(|| Consistency { mean: agreements.iter().sum::<f64>() / n_repeats as f64, n_repeats })
}
