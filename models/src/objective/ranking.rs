//! The reward model's loss over K ranked responses to one prompt.

use candle_core::{D, Device, Result, Tensor};

/// Every pair (better, worse) of response indices; rank 1 is best, equal ranks make no pair.
pub fn pairs(ranks: &[u32]) -> Vec<(u32, u32)> {
    let ordered = |i: usize, j: usize| if ranks[i] < ranks[j] { (i as u32, j as u32) } else { (j as u32, i as u32) };
    (0..ranks.len())
        .flat_map(|i| (i + 1..ranks.len()).map(move |j| (i, j)))
        .filter(|&(i, j)| ranks[i] != ranks[j])
        .map(|(i, j)| ordered(i, j))
        .collect()
}

/// `−1/C(K,2) · Σ log σ(r_w − r_l)` over the pairs of one prompt (Ouyang et al. 2022, equation 1), for `scores (K,)`.
/// A tie contributes no pair, and the factor stays 1/C(K,2): a prompt whose labeler saw fewer differences weighs less.
pub fn ranking_loss(scores: &Tensor, ranks: &[u32]) -> Result<Tensor> {
    let k = ranks.len();
    let pairs = pairs(ranks);
    if pairs.is_empty() {
        // Zero, but with a gradient (of zero) for every parameter behind the scores. candle's backward does not walk
        // through a product with the number 0, only through one with a tensor.
        return (scores * scores.zeros_like()?)?.sum_all();
    }
    let pick = |indices: Vec<u32>, device: &Device| -> Result<Tensor> {
        scores.index_select(&Tensor::new(indices, device)?, 0)
    };
    let better = pick(pairs.iter().map(|pair| pair.0).collect(), scores.device())?;
    let worse = pick(pairs.iter().map(|pair| pair.1).collect(), scores.device())?;
    // log σ(a − b) is the first of log_softmax([a, b]), which is finite for any finite scores.
    let log_softmax = candle_nn::ops::log_softmax(&Tensor::stack(&[better, worse], 1)?, D::Minus1)?; // (P, 2)
    let n_all_pairs = (k * (k - 1) / 2) as f64;
    log_softmax.narrow(1, 0, 1)?.sum_all()? * (-1.0 / n_all_pairs)
}

/// How many of the pairs the scores order as the ranks do, and how many pairs there are. Equal scores are half right.
pub fn n_pairs_right(scores: &[f32], ranks: &[u32]) -> (f64, usize) {
    let pairs = pairs(ranks);
    let right = |&(better, worse): &(u32, u32)| {
        let (better, worse) = (scores[better as usize], scores[worse as usize]);
        if better > worse {
            1.0
        } else if better == worse {
            0.5
        } else {
            0.0
        }
    };
    (pairs.iter().map(right).sum(), pairs.len())
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn loss_and_gradient(scores: &[f32], ranks: &[u32]) -> Result<(f32, Vec<f32>)> {
        let scores = Var::new(scores, &Device::Cpu)?;
        let loss = ranking_loss(scores.as_tensor(), ranks)?;
        Ok((loss.to_scalar()?, loss.backward()?.get(&scores).unwrap().to_vec1()?))
    }

    #[test]
    fn ties_make_no_pair() {
        assert_eq!(pairs(&[2, 1, 2]), [(1, 0), (1, 2)]);
        assert!(pairs(&[1, 1]).is_empty());
    }

    #[test]
    fn equal_scores_give_ln_2_and_pull_apart_by_a_half() -> Result<()> {
        let (loss, gradient) = loss_and_gradient(&[0.7, 0.7], &[1, 2])?;
        assert!((loss - std::f32::consts::LN_2).abs() < 1e-6);
        assert!((gradient[0] + 0.5).abs() < 1e-6 && (gradient[1] - 0.5).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn a_tie_leaves_its_share_of_the_factor_unused() -> Result<()> {
        // One of three pairs is a tie: (ln 2 + ln 2) / 3.
        let (loss, _) = loss_and_gradient(&[0.0, 0.0, 0.0], &[1, 2, 2])?;
        assert!((loss - 2.0 / 3.0 * std::f32::consts::LN_2).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn only_ties_give_zero_with_a_gradient_of_zero() -> Result<()> {
        assert_eq!(loss_and_gradient(&[1.0, 2.0], &[1, 1])?, (0.0, vec![0.0, 0.0]));
        Ok(())
    }

    #[test]
    fn scores_far_apart_stay_finite() -> Result<()> {
        let (loss, gradient) = loss_and_gradient(&[-1e4, 1e4], &[1, 2])?;
        assert_eq!((loss, gradient), (2e4, vec![-1.0, 1.0]));
        Ok(())
    }

    #[test]
    fn accuracy_counts_pairs_and_halves_equal_scores() {
        assert_eq!(n_pairs_right(&[3.0, 1.0, 2.0], &[1, 2, 3]), (2.0, 3));
        assert_eq!(n_pairs_right(&[1.0, 1.0, 5.0], &[1, 2, 2]), (0.5, 2));
    }
}
