//! Whitening over a batch.

/// Added to the variance, as Huang et al. 2024 ("The N+ Implementation Details of RLHF with PPO") have it.
const EPS: f64 = 1e-8;

/// Shifts and scales ragged numbers to mean 0 and population variance 1 over all of them. Rows that are empty change
/// nothing; sums run in f64, in order.
pub fn whiten(rows: &mut [Vec<f32>]) {
    let n = rows.iter().map(Vec::len).sum::<usize>();
    if n == 0 {
        return;
    }
    let numbers = || rows.iter().flatten().map(|&x| f64::from(x));
    let mean = numbers().sum::<f64>() / n as f64;
    let variance = numbers().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
    let scale = 1.0 / (variance + EPS).sqrt();
    rows.iter_mut().flatten().for_each(|x| *x = ((f64::from(*x) - mean) * scale) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_variance_are_over_all_tokens_not_over_rows() {
        let mut rows = vec![vec![1.0, 2.0, 3.0], vec![], vec![6.0]]; // mean 3, variance 3.5
        whiten(&mut rows);
        let expected = [-2.0, -1.0, 0.0, 3.0].map(|x: f64| (x / 3.5f64.sqrt()) as f32);
        for (x, expected) in rows.iter().flatten().zip(expected) {
            assert!((x - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn equal_numbers_become_zero_and_none_is_no_error() {
        let mut rows = vec![vec![5.0; 3]];
        whiten(&mut rows);
        assert_eq!(rows, [[0.0; 3]]);
        whiten(&mut [vec![], vec![]]);
    }

    #[test]
    fn an_empty_row_changes_no_bit_of_the_others() {
        let (mut with, mut without) = (vec![vec![0.3, -1.7], vec![], vec![2.9]], vec![vec![0.3, -1.7], vec![2.9]]);
        whiten(&mut with);
        whiten(&mut without);
        with.retain(|row| !row.is_empty());
        assert_eq!(with, without);
    }
}
