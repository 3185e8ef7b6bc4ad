//! Whether what is shown first wins more often.

use super::agreement::Interval;

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// How often the response that was shown first wins against the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionBias {
    /// The share of its pairs, 0.5 by chance, with Wilson's interval (Wilson 1927) for as many independent observations as
    /// there are rankings: the pairs of one ranking depend on each other.
    pub share_of_first: Interval,
    /// Rankings in which something is not tied.
    pub n_rankings: usize,
}

/// Of rankings with the order in which the responses were shown: `shown[place]` is the index of a response. In each
/// ranking, the share of its pairs with the others (without ties) that the one shown first wins; then the mean. `None`
/// where all is tied.
pub fn position_bias<'a>(rankings: impl IntoIterator<Item = (&'a [u32], &'a [usize])>) -> Option<PositionBias> {
    let shares: Vec<f64> = rankings.into_iter().filter_map(|(ranks, shown)| share_won_by_first(ranks, shown)).collect();
    if shares.is_empty() {
        return None;
    }
    let n = shares.len() as f64;
    let share = shares.iter().sum::<f64>() / n;
    let centre = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let share_of_first = Interval { value: share, low: centre - half, high: centre + half };
    Some(PositionBias { share_of_first, n_rankings: shares.len() })
}

fn share_won_by_first(ranks: &[u32], shown: &[usize]) -> Option<f64> {
    let (first, others) = shown.split_first()?;
    let (mut won, mut decided) = (0_u32, 0_u32);
    for other in others.iter().filter(|other| ranks[**other] != ranks[*first]) {
        decided += 1;
        won += u32::from(ranks[*first] < ranks[*other]);
    }
    (decided > 0).then(|| f64::from(won) / f64::from(decided))
}
