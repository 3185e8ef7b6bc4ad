//! How far labelers agree.
//!
//! Both measures are ratios of sums over prompts, so that a bootstrap over prompts adds a prompt's share as often as it is
//! drawn.

use std::collections::BTreeMap;

use rand::Rng;

use super::pairs::{orders, pair_agreement};
use super::{Vote, by_task};
use crate::rng::for_purpose;

/// Resamplings of an interval.
const N_RESAMPLINGS: usize = 1000;

/// A number with the interval that holds it in 95 % of resamplings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Of all the data.
    pub value: f64,
    /// The 2.5 % quantile.
    pub low: f64,
    /// The 97.5 % quantile.
    pub high: f64,
}

/// Agreement among all labelers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Share of pairs of responses that two labelers order alike, over all pairs of labelers: 1 for the same, 0.5 if
    /// exactly one says tie, 0 for opposite.
    pub pairwise: Interval,
    /// Krippendorff's alpha: 1 is full agreement, 0 what chance gives.
    pub alpha: Interval,
    /// Prompts that two or more labelers ranked.
    pub n_prompts: usize,
    /// Judgements that were compared: pairs of responses times pairs of labelers.
    pub n_judgements: u64,
}

/// What one prompt adds to the sums.
#[derive(Clone, Copy, Default)]
struct Sums {
    agreed: f64,
    n_judgements: f64,
    /// Observed squared distances, as alpha weighs them.
    observed: f64,
    /// How often each order was said: -1 and 1 together, and 0.
    n_decided: f64,
    n_tied: f64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.agreed += other.agreed;
        self.n_judgements += other.n_judgements;
        self.observed += other.observed;
        self.n_decided += other.n_decided;
        self.n_tied += other.n_tied;
    }

    fn pairwise(&self) -> f64 {
        self.agreed / self.n_judgements
    }

    /// Krippendorff's alpha with the interval metric (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").
    /// A unit is an unordered pair of responses: each is counted in both directions, so that it does not matter which of
    /// the two is named first. Where nothing varies there is nothing to disagree about: 1.
    fn alpha(&self) -> f64 {
        // Each value with its mirror image: as many -1 as 1.
        let (n_each, n_tied) = (self.n_decided, 2.0 * self.n_tied);
        let n = 2.0 * n_each + n_tied;
        // Σ over ordered pairs of values of n_c · n_k · (c - k)²: -1 and 1 are 2 apart, each 1 from a tie.
        let expected = (2.0 * n_each * n_each * 4.0 + 4.0 * n_each * n_tied) / (n - 1.0);
        if expected > 0.0 { 1.0 - 2.0 * self.observed / expected } else { 1.0 }
    }
}

fn sums_of(votes: &[&Vote]) -> Sums {
    let mut sums = Sums::default();
    let said: Vec<Vec<i8>> = votes.iter().map(|vote| orders(&vote.ranks).collect()).collect();
    let n_others = (said.len() - 1) as f64;
    for (idx, one) in said.iter().enumerate() {
        let n_tied = one.iter().filter(|order| **order == 0).count();
        sums.n_tied += n_tied as f64;
        sums.n_decided += (one.len() - n_tied) as f64;
        for other in &said[idx + 1..] {
            for (a, b) in one.iter().zip(other) {
                sums.agreed += pair_agreement(*a, *b);
                sums.n_judgements += 1.0;
                // Both orders of the two labelers, each weighed by 1 / (labelers of the unit - 1).
                sums.observed += 2.0 * f64::from((a - b).pow(2)) / n_others;
            }
        }
    }
    sums
}

/// Agreement among all who ranked the same prompts, or `None` where no two did. Votes of one task rank the same
/// responses, and no labeler votes twice on it.
pub fn agreement(votes: &[Vote], seed: u64) -> Option<Agreement> {
    let prompts: Vec<Sums> =
        by_task(votes).iter().filter(|votes| votes.len() > 1).map(|votes| sums_of(votes)).collect();
    over(&prompts, seed)
}

/// For each labeler the agreement over the prompts that the labeler and others ranked, of all who ranked them. Who ranked
/// nothing that others did is left out.
pub fn agreement_by_labeler(votes: &[Vote], seed: u64) -> BTreeMap<u64, Agreement> {
    let mut prompts = BTreeMap::<u64, Vec<Sums>>::new();
    for votes in by_task(votes).iter().filter(|votes| votes.len() > 1) {
        let sums = sums_of(votes);
        votes.iter().for_each(|vote| prompts.entry(vote.labeler).or_default().push(sums));
    }
    prompts.into_iter().filter_map(|(labeler, prompts)| Some((labeler, over(&prompts, seed)?))).collect()
}

fn over(prompts: &[Sums], seed: u64) -> Option<Agreement> {
    let total = |draw: &mut dyn Iterator<Item = &Sums>| {
        let mut total = Sums::default();
        draw.for_each(|sums| total.add(sums));
        total
    };
    let all = total(&mut prompts.iter());
    if all.n_judgements == 0.0 {
        return None;
    }
    let mut rng = for_purpose(seed, "agreement");
    let resampled = (0..N_RESAMPLINGS).map(|_| {
        let drawn = total(&mut (0..prompts.len()).map(|_| &prompts[rng.random_range(0..prompts.len())]));
        (drawn.pairwise(), drawn.alpha())
    });
    let (pairwise, alpha): (Vec<f64>, Vec<f64>) = resampled.unzip();
    Some(Agreement {
        pairwise: interval(all.pairwise(), pairwise),
        alpha: interval(all.alpha(), alpha),
        n_prompts: prompts.len(),
        n_judgements: all.n_judgements as u64,
    })
}

fn interval(value: f64, mut resampled: Vec<f64>) -> Interval {
    resampled.sort_by(f64::total_cmp);
    let at = |share: f64| resampled[((resampled.len() - 1) as f64 * share).round() as usize];
    Interval { value, low: at(0.025), high: at(0.975) }
}
