//! A choice that is large and diverse at once.

use super::heads::dot;

/// What is left of an item beside those that are chosen already, as a share of what it was: below it, there is nothing new
/// in it.
const NOTHING_NEW: f64 = 1e-9;

/// Chooses up to `n` items, one after another, each so that the determinant of the chosen ones' kernel grows most: greedy
/// maximum a posteriori inference for a determinantal point process (Chen, Zhang, Zhou 2018, arXiv 1709.05135, algorithm
/// 1). An item is how much it tells, and a direction. The kernel is `√(a_i · a_j) · cos²(i, j)`: two items in the same
/// direction tell the same, whichever way round, and two in orthogonal ones do not know of each other.
///
/// Returns indices of `items` in the order of choice; fewer than `n` where nothing new is left.
pub fn greedy_determinant(items: &[(f64, &[f32])], n: usize) -> Vec<usize> {
    let units: Vec<Vec<f32>> = items.iter().map(|(_, direction)| unit(direction)).collect();
    let kernel = |i: usize, j: usize| {
        let cosine = f64::from(dot(&units[i], &units[j]));
        (items[i].0 * items[j].0).sqrt() * cosine * cosine
    };
    // What an item adds to the determinant beside those chosen: d² of the paper; and its row of the Cholesky factor.
    let first: Vec<f64> = (0..items.len()).map(|idx| kernel(idx, idx)).collect();
    let mut rest = first.clone();
    let mut rows: Vec<Vec<f64>> = vec![Vec::new(); items.len()];
    let mut chosen = Vec::new();
    while chosen.len() < n.min(items.len()) {
        let open = (0..items.len()).filter(|idx| rest[*idx] > NOTHING_NEW * first[*idx]);
        let Some(best) = open.max_by(|a, b| rest[*a].total_cmp(&rest[*b]).then(b.cmp(a))) else { break };
        let (row, root) = (rows[best].clone(), rest[best].sqrt());
        for idx in (0..items.len()).filter(|idx| *idx != best) {
            if rest[idx] <= 0.0 {
                continue;
            }
            let shared: f64 = row.iter().zip(&rows[idx]).map(|(a, b)| a * b).sum();
            let with = (kernel(best, idx) - shared) / root;
            rows[idx].push(with);
            rest[idx] -= with * with;
        }
        rest[best] = f64::NEG_INFINITY;
        chosen.push(best);
    }
    chosen
}

fn unit(direction: &[f32]) -> Vec<f32> {
    let length = dot(direction, direction).sqrt();
    if length > 0.0 { direction.iter().map(|x| x / length).collect() } else { direction.to_vec() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By Gaussian elimination with pivots.
    fn determinant(mut matrix: Vec<Vec<f64>>) -> f64 {
        let n = matrix.len();
        let mut determinant = 1.0;
        for column in 0..n {
            let pivot =
                (column..n).max_by(|a, b| matrix[*a][column].abs().total_cmp(&matrix[*b][column].abs())).unwrap();
            if matrix[pivot][column] == 0.0 {
                return 0.0;
            }
            if pivot != column {
                matrix.swap(pivot, column);
                determinant = -determinant;
            }
            determinant *= matrix[column][column];
            let (above, below) = matrix.split_at_mut(column + 1);
            let pivot = &above[column];
            for row in below {
                let factor = row[column] / pivot[column];
                row.iter_mut().zip(pivot).skip(column).for_each(|(x, of_pivot)| *x -= factor * of_pivot);
            }
        }
        determinant
    }

    #[test]
    fn what_tells_the_same_as_a_chosen_one_comes_after_what_tells_less_but_something_else() {
        let (x, almost_x, y) = ([1.0, 0.0], [-1.0, 0.1], [0.0, 1.0]);
        let items: [(f64, &[f32]); 3] = [(1.0, &x), (0.9, &almost_x), (0.4, &y)];
        assert_eq!(greedy_determinant(&items, 3), [0, 2, 1]);
        assert_eq!(greedy_determinant(&items, 1), [0]);
        let same: [(f64, &[f32]); 3] = [(1.0, &x), (1.0, &x), (0.0, &y)];
        assert_eq!(greedy_determinant(&same, 3), [0], "nothing new is left");
        assert_eq!(greedy_determinant(&[], 3), [0_usize; 0]);
    }

    proptest! {
        #[test]
        fn each_choice_makes_the_determinant_as_large_as_it_can_be(
            items in prop::collection::vec((0.05f64..1.0, prop::collection::vec(-1.0f32..1.0, 4)), 2..9),
        ) {
            let items: Vec<(f64, &[f32])> = items.iter().map(|(told, direction)| (*told, direction.as_slice())).collect();
            let kernel = |i: usize, j: usize| {
                let norm = |k: usize| f64::from(dot(items[k].1, items[k].1));
                let product = f64::from(dot(items[i].1, items[j].1));
                (items[i].0 * items[j].0).sqrt() * product * product / (norm(i) * norm(j))
            };
            let of = |set: &[usize]| determinant(set.iter().map(|i| set.iter().map(|j| kernel(*i, *j)).collect()).collect());
            let chosen = greedy_determinant(&items, 4);
            for n in 1..=chosen.len() {
                let reached = of(&chosen[..n]);
                for other in (0..items.len()).filter(|idx| !chosen[..n].contains(idx)) {
                    let instead = of(&[&chosen[..n - 1], &[other]].concat());
                    prop_assert!(instead <= reached + 1e-5 * reached.abs() + 1e-9, "{chosen:?}: {instead} > {reached}");
                }
            }
        }
    }
}
