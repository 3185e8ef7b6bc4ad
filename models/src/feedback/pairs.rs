//! A ranking as its pairs.

/// How two rankings of the same responses order each pair: 1 where the first of the pair is better, -1 where the second
/// is, 0 where they tie. Pairs (0, 1), (0, 2), …, (1, 2), ….
pub fn orders(ranks: &[u32]) -> impl Iterator<Item = i8> + '_ {
    (0..ranks.len()).flat_map(move |i| (i + 1..ranks.len()).map(move |j| ranks[j].cmp(&ranks[i]) as i8))
}

/// Agreement on one pair: 1 for the same, 0.5 if exactly one says tie, 0 for opposite (Nakano et al. 2021, WebGPT,
/// appendix C).
pub fn pair_agreement(a: i8, b: i8) -> f64 {
    1.0 - f64::from((a - b).abs()) / 2.0
}

/// Mean agreement over the pairs of two rankings of the same responses. Rankings of fewer than 2 have no pair: `None`.
pub fn ranking_agreement(a: &[u32], b: &[u32]) -> Option<f64> {
    let n_pairs = a.len() * a.len().saturating_sub(1) / 2;
    let sum: f64 = orders(a).zip(orders(b)).map(|(a, b)| pair_agreement(a, b)).sum();
    (n_pairs > 0 && a.len() == b.len()).then(|| sum / n_pairs as f64)
}

/// The same order with the ranks that files hold: 1 is best, equal ones share a rank, and the next rank counts those
/// above (1, 1, 3).
pub fn competition_ranks(ranks: &[u32]) -> Vec<u32> {
    ranks.iter().map(|rank| 1 + ranks.iter().filter(|other| *other < rank).count() as u32).collect()
}
