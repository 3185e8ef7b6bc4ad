//! n rankings of the same responses to one, for people to look at. Training uses the rankings themselves.

use super::pairs::competition_ranks;

/// Merges rankings by ranked pairs (Tideman 1987): majorities are kept from the largest on, unless they contradict larger
/// ones. No response is favoured by its place: a split vote is a tie, and of equal majorities that contradict each other
/// none is kept. Responses are then in the order of how many they stand above less how many stand above them.
///
/// Returns ranks as files hold them.
///
/// # Panics
/// Rankings of different lengths.
pub fn merge(rankings: &[&[u32]]) -> Vec<u32> {
    let Some(n) = rankings.first().map(|ranks| ranks.len()) else { return Vec::new() };
    assert!(rankings.iter().all(|ranks| ranks.len() == n), "rankings of the same responses");
    let margin = |i: usize, j: usize| -> i64 {
        rankings.iter().map(|ranks| i64::from(ranks[i] < ranks[j]) - i64::from(ranks[i] > ranks[j])).sum()
    };
    let mut majorities: Vec<(i64, usize, usize)> =
        (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| (margin(i, j), i, j)).collect();
    majorities.retain(|(margin, ..)| *margin > 0);
    majorities.sort_by_key(|(margin, ..)| -margin);

    let mut is_above = vec![vec![false; n]; n];
    for equal in majorities.chunk_by(|a, b| a.0 == b.0) {
        let mut with_all = is_above.clone();
        equal.iter().for_each(|&(_, i, j)| with_all[i][j] = true);
        close(&mut with_all);
        for &(_, i, j) in equal {
            // A way back from j to i is a contradiction.
            if !with_all[j][i] {
                is_above[i][j] = true;
            }
        }
        close(&mut is_above);
    }
    let net = |i: usize| (0..n).map(|j| i64::from(is_above[i][j]) - i64::from(is_above[j][i])).sum::<i64>();
    let net: Vec<u32> = (0..n).map(|i| (n as i64 - net(i)) as u32).collect();
    competition_ranks(&net)
}

/// Adds what follows: above one that is above another (Warshall 1962).
fn close(is_above: &mut [Vec<bool>]) {
    for k in 0..is_above.len() {
        let below_k = is_above[k].clone();
        for row in is_above.iter_mut().filter(|row| row[k]) {
            row.iter_mut().zip(&below_k).for_each(|(cell, below)| *cell |= below);
        }
    }
}
