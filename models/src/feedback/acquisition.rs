//! Which task to label next.
//!
//! Some tasks are drawn at random, and what is measured on those holds for all; the others a reward model chooses. Both
//! are asked in turns, so that the share of the random ones holds at any moment and not only at the end.
//!
//! - [`heads`]: many small heads on a reward model's last hidden state, which differ where labels have not told.
//! - [`diverse`]: a choice that is large and diverse at once, by a greedy determinant.

pub mod diverse;
pub mod heads;

use collimate_protocol::records::Arm;
use rand::seq::SliceRandom;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::heads::{Heads, Scale};
use crate::rng::{SeededRng, for_purpose};

/// Fewer random tasks than this share, and what people agree on, and what choosing saves, could not be measured any more.
pub const LEAST_RANDOM_SHARE: f64 = 0.2;
/// So many are chosen for being diverse too; what comes after them will be chosen anew by a later reward model.
const N_DIVERSE: usize = 512;
/// Among so many for each of those.
const N_CANDIDATES_EACH: usize = 8;

/// How tasks are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AcquireBy {
    /// At random, all of them.
    Random,
    /// Those whose responses the reward model scores most alike.
    Margin,
    /// Those on whose order many small heads disagree, and that differ among themselves.
    Disagreement,
}

/// How tasks are chosen, and how many of them are not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Acquisition {
    /// By what.
    pub by: AcquireBy,
    /// The share that is drawn at random, at least [`LEAST_RANDOM_SHARE`].
    pub random_share: f64,
    /// Heads that may disagree.
    pub n_heads: usize,
}

impl Acquisition {
    /// What makes no sense, if something does not.
    pub fn problem(&self) -> Option<String> {
        let Self { random_share, n_heads, by } = *self;
        if !(LEAST_RANDOM_SHARE..=1.0).contains(&random_share) {
            return Some(format!(
                "the random share is {random_share}, expected {LEAST_RANDOM_SHARE} to 1: with fewer tasks drawn at random, \
                 agreement and what choosing saves can't be measured"
            ));
        }
        (by == AcquireBy::Disagreement && n_heads < 2)
            .then(|| format!("{n_heads} heads can't disagree, expected at least 2"))
    }
}

/// A task's responses as a reward model has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// For each response its last hidden state, `(K, C)`.
    pub features: Vec<Vec<f32>>,
    /// For each response its score, `(K,)`.
    pub scores: Vec<f32>,
}

/// Responses that people have ranked, as a reward model has them.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedFeatures {
    /// For each response its last hidden state, `(K, C)`.
    pub features: Vec<Vec<f32>>,
    /// For each response its rank; 1 is best, equal ranks are a tie.
    pub ranks: Vec<u32>,
}

/// Which of `n` new tasks are drawn at random: the share of them, rounded up, each task as likely as any other.
pub fn draw_arms(n: usize, random_share: f64, rng: &mut SeededRng) -> Vec<Arm> {
    let n_random = ((n as f64 * random_share).ceil() as usize).min(n);
    let mut arms = vec![Arm::Acquired; n];
    arms[..n_random].fill(Arm::Random);
    arms.shuffle(rng);
    arms
}

/// In which order the arms take turns: of any number of first turns, at least as large a share is random as of all.
pub fn turns(n_random: usize, n_acquired: usize) -> impl Iterator<Item = Arm> {
    let n = n_random + n_acquired;
    let n_before = move |turn: usize| if n == 0 { 0 } else { (turn * n_random).div_ceil(n) };
    (0..n).map(move |turn| if n_before(turn + 1) > n_before(turn) { Arm::Random } else { Arm::Acquired })
}

/// The order in which a reward model would have tasks labelled, as indices of `candidates`. `labeled` is what the heads
/// learn from; where nothing is labelled yet, they differ as they began.
pub fn order(
    by: AcquireBy,
    n_heads: usize,
    candidates: &[Candidate],
    labeled: &[RankedFeatures],
    seed: u64,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    match by {
        AcquireBy::Random => order.shuffle(&mut for_purpose(seed, "tasks in random order")),
        AcquireBy::Margin => {
            let margins: Vec<f64> = candidates.iter().map(|candidate| mean_margin(&candidate.scores)).collect();
            order.sort_by(|a, b| margins[*a].total_cmp(&margins[*b]));
        }
        AcquireBy::Disagreement => {
            let all = candidates.iter().map(|one| &one.features).chain(labeled.iter().map(|one| &one.features));
            let scale = Scale::of(all.map(Vec::as_slice));
            let heads = Heads::train(&scale, labeled, n_heads, seed);
            let told: Vec<(f64, Vec<f32>)> =
                candidates.iter().map(|one| heads.disagreement(&scale, &one.features)).collect();
            order.sort_by(|a, b| told[*b].0.total_cmp(&told[*a].0));
            let n_shortlisted = (N_DIVERSE * N_CANDIDATES_EACH).min(order.len());
            let shortlist: Vec<(f64, &[f32])> =
                order[..n_shortlisted].iter().map(|idx| (told[*idx].0, told[*idx].1.as_slice())).collect();
            let first = diverse::greedy_determinant(&shortlist, N_DIVERSE);
            let mut is_first = vec![false; n_shortlisted];
            first.iter().for_each(|place| is_first[*place] = true);
            let rest = (0..n_shortlisted).filter(|place| !is_first[*place]);
            let reordered: Vec<usize> = first.iter().copied().chain(rest).map(|place| order[place]).collect();
            order[..n_shortlisted].copy_from_slice(&reordered);
        }
    }
    order
}

/// The mean difference of two responses' scores. A single response differs from none: infinite, so that it comes last.
fn mean_margin(scores: &[f32]) -> f64 {
    let n_pairs = scores.len() * scores.len().saturating_sub(1) / 2;
    let pairs = (0..scores.len()).flat_map(|i| (i + 1..scores.len()).map(move |j| (i, j)));
    let sum: f64 = pairs.map(|(i, j)| f64::from((scores[i] - scores[j]).abs())).sum();
    if n_pairs == 0 { f64::INFINITY } else { sum / n_pairs as f64 }
}

#[cfg(test)]
mod tests;
