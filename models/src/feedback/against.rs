//! People against a reward model.

use crate::objective::{n_pairs_right, pairs};

/// How a reward model's scores stand to a person's ranking of the same responses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AgainstPeople {
    /// Share of the pairs that the person decided which the scores order alike; equal scores are half right.
    pub agreement: f64,
    /// The mean over these pairs of the better response's score less the worse one's: above 0 where the model is on the
    /// person's side.
    pub margin: f64,
    /// Pairs that the person decided.
    pub n_pairs: usize,
}

/// Of a ranking's responses; `None` where all tie, or where the numbers of scores and ranks differ.
pub fn against_people(scores: &[f32], ranks: &[u32]) -> Option<AgainstPeople> {
    if scores.len() != ranks.len() {
        return None;
    }
    let (n_right, n_pairs) = n_pairs_right(scores, ranks);
    let margin = |(better, worse): (u32, u32)| f64::from(scores[better as usize]) - f64::from(scores[worse as usize]);
    let sum: f64 = pairs(ranks).into_iter().map(margin).sum();
    let n = n_pairs as f64;
    (n_pairs > 0).then(|| AgainstPeople { agreement: n_right / n, margin: sum / n, n_pairs })
}

/// Rankings on either side, at least, for a change to be told of.
pub const ENOUGH_ON_EACH_SIDE: usize = 20;
/// The 95 % quantile of the normal distribution: of a change by chance alone, one in twenty is taken for one.
const Z_ONE_SIDED: f64 = 1.644_853_626_951_472;

/// A person's ranking of what a policy wrote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JudgedRanking {
    /// The policy's version.
    pub version: u64,
    /// The run's mean score at that version.
    pub mean_score: f64,
    /// How far the reward model agrees with the person, 0 to 1.
    pub agreement: f64,
}

/// What has changed between the earlier rankings and the recent ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// The first version of the recent ones.
    pub since: u64,
    /// How many are earlier.
    pub n_earlier: usize,
    /// How many are recent.
    pub n_recent: usize,
    /// The mean score of the earlier ones' versions, and of the recent ones'.
    pub scores: [f64; 2],
    /// Mean agreement on the earlier ones, and on the recent ones.
    pub agreements: [f64; 2],
    /// The standard error of the difference of the two agreements.
    pub agreement_error: f64,
    /// Whether the score has risen while agreement has fallen.
    pub is_alarm: bool,
}

/// Looks for over-optimisation: the policy pleases the reward model more and more, and people less (Gao et al. 2023, arXiv
/// 2210.10760). The newest third of the rankings, by version, and at least [`ENOUGH_ON_EACH_SIDE`], is set against all
/// earlier ones. It is an alarm where the mean score is higher and mean agreement lower, by more than 1.645 standard errors
/// (Welch's, of two means with variances of their own). `None` with fewer than [`ENOUGH_ON_EACH_SIDE`] on either side.
pub fn over_optimisation(rankings: &[JudgedRanking]) -> Option<Change> {
    let mut sorted = rankings.to_vec();
    sorted.sort_by_key(|ranking| ranking.version);
    let n_recent = (sorted.len() / 3).max(ENOUGH_ON_EACH_SIDE);
    let n_earlier = sorted.len().checked_sub(n_recent).filter(|n| *n >= ENOUGH_ON_EACH_SIDE)?;
    let (earlier, recent) = sorted.split_at(n_earlier);
    let of = |side: &[JudgedRanking], number: fn(&JudgedRanking) -> f64| mean_and_square_error(side.iter().map(number));
    let agreements = [of(earlier, |one| one.agreement), of(recent, |one| one.agreement)];
    let scores = [earlier, recent].map(|side| of(side, |one| one.mean_score).0);
    let agreement_error = (agreements[0].1 + agreements[1].1).sqrt();
    let fall = agreements[0].0 - agreements[1].0;
    Some(Change {
        since: recent[0].version,
        n_earlier,
        n_recent,
        scores,
        agreements: agreements.map(|(mean, _)| mean),
        agreement_error,
        is_alarm: scores[1] > scores[0] && fall > 0.0 && fall > Z_ONE_SIDED * agreement_error,
    })
}

/// The mean, and the square of its standard error.
fn mean_and_square_error(numbers: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = numbers.clone().count() as f64;
    let mean = numbers.clone().sum::<f64>() / n;
    let variance = numbers.map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, variance / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_set_against_the_pairs_that_a_person_decided() {
        // The person: A > B = C. Pairs A-B (1.5 better) and A-C (0.5 worse).
        let against = against_people(&[1.0, -0.5, 1.5], &[1, 2, 2]).unwrap();
        assert_eq!(against, AgainstPeople { agreement: 0.5, margin: 0.5, n_pairs: 2 });
        assert_eq!(against_people(&[1.0, 1.0], &[2, 1]).unwrap().agreement, 0.5, "equal scores are half right");
        assert_eq!(against_people(&[1.0, 2.0], &[1, 1]), None);
        assert_eq!(against_people(&[1.0], &[1, 2]), None);
    }

    /// `n` rankings at each of these versions: the run's score, and how many of them the reward model agrees with.
    fn rankings(n: usize, versions: &[(u64, f64, usize)]) -> Vec<JudgedRanking> {
        let at = |&(version, mean_score, n_agreed): &(u64, f64, usize)| {
            (0..n).map(move |idx| JudgedRanking {
                version,
                mean_score,
                agreement: if idx < n_agreed { 1.0 } else { 0.0 },
            })
        };
        versions.iter().flat_map(at).collect()
    }

    #[test]
    fn a_score_that_rises_while_agreement_falls_is_an_alarm() {
        let change = over_optimisation(&rankings(20, &[(1, 0.0, 16), (5, 1.0, 15), (9, 2.0, 8)])).unwrap();
        // By hand: 31/40 and 8/20; variances 0.178 846 and 0.252 632, errors² 0.004 471 2 and 0.012 631 6.
        assert_eq!((change.since, change.n_earlier, change.n_recent), (9, 40, 20));
        assert_eq!((change.scores, change.agreements), ([0.5, 2.0], [0.775, 0.4]));
        assert!((change.agreement_error - 0.130_777).abs() < 1e-5, "{change:?}");
        assert!(change.is_alarm, "0.375 is more than 1.645 · 0.131");
    }

    #[test]
    fn it_is_none_where_agreement_holds_or_falls_within_the_noise_or_the_score_falls_too() {
        let is_alarm = |versions: &[(u64, f64, usize)]| over_optimisation(&rankings(20, versions)).unwrap().is_alarm;
        assert!(!is_alarm(&[(1, 0.0, 15), (5, 1.0, 15), (9, 2.0, 16)]), "agreement rises");
        // 31/40 and 12/20: 0.175 is less than 1.645 · 0.131.
        assert!(!is_alarm(&[(1, 0.0, 16), (5, 1.0, 15), (9, 2.0, 12)]), "within the noise");
        assert!(!is_alarm(&[(1, 2.0, 16), (5, 1.0, 15), (9, 0.0, 8)]), "the score falls too");
        assert!(!is_alarm(&[(1, 0.0, 20), (5, 1.0, 20), (9, 2.0, 20)]), "nothing varies");
    }

    #[test]
    fn few_rankings_tell_nothing_and_their_order_does_not_matter() {
        assert_eq!(over_optimisation(&[]), None);
        assert_eq!(over_optimisation(&rankings(20, &[(1, 0.0, 9)])), None);
        let all = rankings(20, &[(1, 0.0, 16), (5, 1.0, 8)]);
        let reversed: Vec<JudgedRanking> = all.iter().rev().copied().collect();
        let (one, other) = (over_optimisation(&all).unwrap(), over_optimisation(&reversed).unwrap());
        assert_eq!((one.is_alarm, one.since, one.scores), (true, 5, [0.0, 1.0]));
        assert_eq!((one.is_alarm, one.since, one.agreements), (other.is_alarm, other.since, other.agreements));
    }
}
