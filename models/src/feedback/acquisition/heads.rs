//! Many small heads on a reward model's last hidden state.
//!
//! A head is linear. Each is pulled towards a beginning of its own and learns from a resampling of the labels of its own
//! (randomised maximum a posteriori, as Pearce et al. 2020, arXiv 1810.05546, have it for ensembles; the bootstrap as
//! Osband et al. 2016, arXiv 1602.04621): heads come to agree where labels tell, and go on to differ where none does.

use rand::Rng;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::RankedFeatures;
use crate::objective::pairs;
use crate::rng::{SeededRng, for_purpose};

/// Passes over the labels.
const N_PASSES: usize = 20;

/// What features are divided by, so that a head that has learnt nothing tells two responses apart by about 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale(Vec<f32>); // (C,)

impl Scale {
    /// Of tasks' features: the root mean square of how two responses to a prompt differ, in each dimension, times √C.
    pub fn of<'a>(tasks: impl IntoIterator<Item = &'a [Vec<f32>]>) -> Self {
        let (mut sums, mut n) = (Vec::<f64>::new(), 0.0);
        for features in tasks {
            for (i, one) in features.iter().enumerate() {
                sums.resize(sums.len().max(one.len()), 0.0);
                for other in &features[i + 1..] {
                    let squares = one.iter().zip(other).map(|(a, b)| f64::from(a - b).powi(2));
                    sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
                    n += 1.0;
                }
            }
        }
        let root_dim = (sums.len() as f64).sqrt();
        let scale = |sum: f64| if sum > 0.0 { ((sum / n).sqrt() * root_dim) as f32 } else { 1.0 };
        Self(sums.into_iter().map(scale).collect())
    }

    fn difference(&self, one: &[f32], other: &[f32]) -> Vec<f32> {
        self.0.iter().zip(one.iter().zip(other)).map(|(scale, (a, b))| (a - b) / scale).collect()
    }
}

/// One prompt's pairs: for each the scaled features of the better response less those of the worse.
struct Pairs {
    differences: Vec<Vec<f32>>,
    /// What each weighs: 1 / C(K, 2), so that a prompt weighs as in the reward model's own loss.
    weight: f32,
}

/// Heads, each of which scores responses.
#[derive(Clone, Debug, PartialEq)]
pub struct Heads {
    weights: Vec<Vec<f32>>, // (H, C)
}

impl Heads {
    /// Trains heads on what people have ranked.
    pub fn train(scale: &Scale, labeled: &[RankedFeatures], n_heads: usize, seed: u64) -> Self {
        let prompts: Vec<Pairs> = labeled
            .iter()
            .map(|RankedFeatures { features, ranks }| {
                let difference = |(better, worse): (u32, u32)| {
                    scale.difference(&features[better as usize], &features[worse as usize])
                };
                let n_all = (ranks.len() * ranks.len().saturating_sub(1) / 2).max(1);
                Pairs { differences: pairs(ranks).into_iter().map(difference).collect(), weight: 1.0 / n_all as f32 }
            })
            .collect();
        let head = |idx: usize| {
            let mut rng = for_purpose(seed, &format!("head {idx}"));
            let start: Vec<f32> = (0..scale.0.len()).map(|_| standard_normal(&mut rng)).collect();
            let drawn: Vec<&Pairs> = (0..prompts.len()).map(|_| &prompts[rng.random_range(0..prompts.len())]).collect();
            fit(start, drawn, &mut rng)
        };
        Self { weights: (0..n_heads).into_par_iter().map(head).collect() }
    }

    /// How much a label of this task would tell of which head is right, in nats: the mean over its pairs of the mutual
    /// information between the label and the head (Houlsby et al. 2011, arXiv 1112.5745). And in which direction: the
    /// scaled difference of the pair on which the heads disagree most.
    pub fn disagreement(&self, scale: &Scale, features: &[Vec<f32>]) -> (f64, Vec<f32>) {
        let (mut sum, mut n, mut most) = (0.0, 0, (f64::NEG_INFINITY, Vec::new()));
        for (i, one) in features.iter().enumerate() {
            for other in &features[i + 1..] {
                let difference = scale.difference(one, other);
                let first_wins: Vec<f64> =
                    self.weights.iter().map(|weights| sigmoid(f64::from(dot(weights, &difference)))).collect();
                let told = mutual_information(&first_wins);
                (sum, n) = (sum + told, n + 1);
                if told > most.0 {
                    most = (told, difference);
                }
            }
        }
        (if n > 0 { sum / f64::from(n) } else { 0.0 }, most.1)
    }
}

/// Minimises `Σ weight · −log σ(w·d) + ½ |w − start|²` over the drawn prompts' pairs by stochastic gradient descent, one
/// prompt at a time, with steps that fall as the objective's strong convexity allows (Bottou et al. 2018, theorem 4.7).
fn fit(start: Vec<f32>, mut drawn: Vec<&Pairs>, rng: &mut SeededRng) -> Vec<f32> {
    let mut weights = start.clone();
    // Of the mean over prompts, which is what a step sees.
    let pull = 1.0 / drawn.len().max(1) as f32;
    let mut n_steps = 0;
    for _ in 0..N_PASSES {
        drawn.shuffle(rng);
        for prompt in &drawn {
            let step = 1.0 / (1.0 + pull * n_steps as f32);
            n_steps += 1;
            // How far each pair's order is from being sure, before the step.
            let doubts: Vec<f32> = prompt
                .differences
                .iter()
                .map(|difference| prompt.weight * sigmoid(-f64::from(dot(&weights, difference))) as f32)
                .collect();
            let shrunk = step * pull;
            weights.iter_mut().zip(&start).for_each(|(weight, start)| *weight -= shrunk * (*weight - start));
            for (difference, doubt) in prompt.differences.iter().zip(doubts) {
                weights.iter_mut().zip(difference).for_each(|(weight, d)| *weight += step * doubt * d);
            }
        }
    }
    weights
}

/// `H(mean p) − mean H(p)`, in nats, of the probabilities that each head gives.
fn mutual_information(probabilities: &[f64]) -> f64 {
    let n = probabilities.len() as f64;
    let mean = probabilities.iter().sum::<f64>() / n;
    (entropy(mean) - probabilities.iter().map(|p| entropy(*p)).sum::<f64>() / n).max(0.0)
}

fn entropy(p: f64) -> f64 {
    [p, 1.0 - p].into_iter().filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A normal number with mean 0 and variance 1, by Box and Muller's transform.
fn standard_normal(rng: &mut SeededRng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_label_would_tell_is_the_mutual_information() {
        // ln 2 − (−0.9 ln 0.9 − 0.1 ln 0.1), by hand.
        assert!((mutual_information(&[0.9, 0.1]) - 0.368_064_207).abs() < 1e-8);
        assert_eq!(
            mutual_information(&[0.3, 0.3, 0.3]),
            0.0,
            "heads that agree are told nothing, however unsure they are"
        );
        assert!((mutual_information(&[1.0, 0.0]) - std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn a_head_comes_to_the_minimum_of_its_objective() {
        let prompt = |difference: f32, weight| Pairs { differences: vec![vec![difference]], weight };
        let mut rng = for_purpose(0, "test");
        // From 0 with one pair of difference 1: w = σ(−w), so w = 0.401 058.
        let one = prompt(1.0, 1.0);
        let weights = fit(vec![0.0], vec![&one], &mut rng);
        assert!((weights[0] - 0.401_058).abs() < 5e-3, "{weights:?}");
        // From 2 with three pairs, one of them the other way round: w − 2 = 2σ(−w) − σ(w), so w = 1.532 77.
        let other = prompt(-1.0, 1.0);
        let weights = fit(vec![2.0], vec![&one, &other, &one], &mut rng);
        assert!((weights[0] - 1.532_77).abs() < 5e-2, "{weights:?}");
        assert_eq!(fit(vec![0.5, -1.0], Vec::new(), &mut rng), [0.5, -1.0], "without labels it stays as it began");
    }

    #[test]
    fn heads_agree_where_labels_have_told_and_differ_elsewhere() {
        // Labels tell of the first dimension alone: the larger it is, the better.
        let mut rng = for_purpose(1, "test");
        let random = |rng: &mut SeededRng| standard_normal(rng);
        let labeled: Vec<RankedFeatures> = (0..200)
            .map(|_| {
                let (a, b) = (random(&mut rng), random(&mut rng));
                let features = vec![vec![a, 0.0], vec![b, 0.0]];
                RankedFeatures { features, ranks: if a > b { vec![1, 2] } else { vec![2, 1] } }
            })
            .collect();
        let (told, untold) = (vec![vec![1.0, 0.0], vec![-1.0, 0.0]], vec![vec![0.0, 1.0], vec![0.0, -1.0]]);
        let scale = Scale::of(labeled.iter().map(|one| one.features.as_slice()).chain([untold.as_slice()]));
        let heads = Heads::train(&scale, &labeled, 32, 7);
        let (of_told, of_untold) = (heads.disagreement(&scale, &told).0, heads.disagreement(&scale, &untold).0);
        assert!(of_told < 0.02 && of_untold > 0.1, "{of_told} and {of_untold}");
        let before = Heads::train(&scale, &[], 32, 7);
        assert!(before.disagreement(&scale, &told).0 > 0.05, "before any label, heads differ everywhere");
        assert_eq!(heads, Heads::train(&scale, &labeled, 32, 7), "a seed gives the same heads");
        assert_ne!(heads, Heads::train(&scale, &labeled, 32, 8));
    }

    #[test]
    fn features_are_scaled_by_how_far_responses_to_a_prompt_differ() {
        // Differences 2 and 4 in the first dimension, 0 in the second: √((4 + 16) / 2) · √2.
        let scale = Scale::of([&[vec![0.0, 5.0], vec![2.0, 5.0]][..], &[vec![9.0, 1.0], vec![5.0, 1.0]][..]]);
        assert!((f64::from(scale.0[0]) - 20.0_f64.sqrt()).abs() < 1e-6, "{scale:?}");
        assert_eq!(scale.0[1], 1.0);
    }
}
