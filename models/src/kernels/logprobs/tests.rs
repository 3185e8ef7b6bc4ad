use super::*;
use crate::kernels::Summed;
use crate::kernels::storage::tensor;
use crate::kernels::testing::{assert_same_function, flat, random};

fn both(found: Result<TokenLogprobs>) -> Result<Tensor> {
    let found = found?;
    Tensor::stack(&[found.logprobs, found.entropies], 0)
}

/// A loss in which no two tokens count alike.
fn share(targets: Range<usize>, logprobs: &Tensor) -> Result<Tensor> {
    let factors: Vec<f32> = targets.map(|i| 0.5 + i as f32).collect();
    (logprobs.exp()? * Tensor::new(factors, &Device::Cpu)?.to_dtype(logprobs.dtype())?)?.sum_all()
}

#[test]
fn both_outputs_agree_with_the_composition_in_value_and_gradient() {
    for (n, c, vocab_size, scale) in [(5, 3, 7, 1.0), (1, 4, 1, 0.5), (9, 2, 40, 2.0)] {
        let targets: Vec<u32> = (0..n).map(|i| (3 * i % vocab_size) as u32).collect();
        let inputs = [(random((n, c), 1) * 3.0).unwrap(), random((vocab_size, c), 2)];
        // In chunks of 2 rows, and in one.
        for chunk_len in [2, 100] {
            assert_same_function(
                &inputs,
                |t| both(token_logprobs_by(chunk_len, &t[0], &t[1], &targets, scale)),
                |t| both(composed::token_logprobs(&t[0], &t[1], &targets, scale)),
            );
        }
    }
}

#[test]
fn a_loss_of_tokens_agrees_with_the_loss_of_their_logprobs_in_value_and_gradient() {
    for (n, c, vocab_size, scale) in [(5, 3, 7, 1.0), (1, 4, 1, 0.5), (9, 2, 40, 2.0)] {
        let targets: Vec<u32> = (0..n).map(|i| (3 * i % vocab_size) as u32).collect();
        let inputs = [(random((n, c), 1) * 3.0).unwrap(), random((vocab_size, c), 2)];
        for chunk_len in [1, 2, 100] {
            assert_same_function(
                &inputs,
                // What comes after the loss scales its gradient.
                |t| (token_loss_by(chunk_len, &t[0], &t[1], &targets, scale, None, share)? * 3.0)?.reshape(1),
                |t| {
                    (share(0..n, &composed::token_logprobs(&t[0], &t[1], &targets, scale)?.logprobs)? * 3.0)?.reshape(1)
                },
            );
        }
    }
}

#[test]
fn the_unembedding_s_gradient_is_summed_with_the_losses_of_several_passes() {
    let (c, vocab_size) = (3, 70);
    let u = Var::from_tensor(&random((vocab_size, c), 2)).unwrap();
    let sum = GradientSum::new(&u).unwrap();
    for chunk_len in [2, 100] {
        let mut expected = vec![0.0; vocab_size * c];
        for (seed, n) in [(1, 5), (3, 4), (5, 0)] {
            let hidden = Var::from_tensor(&(random((n, c), seed) * 3.0).unwrap()).unwrap();
            let targets: Vec<u32> = (0..n).map(|i| (3 * i % vocab_size) as u32).collect();
            let loss = |sum| token_loss_by(chunk_len, &hidden, &u, &targets, 0.5, sum, share).unwrap();
            let (plain, summed) = (loss(None).backward().unwrap(), loss(Some(&sum)).backward().unwrap());
            assert_eq!(flat(summed.get(&hidden).unwrap()), flat(plain.get(&hidden).unwrap()));
            assert!(summed.get(&u).is_none(), "it is in the sum");
            expected.iter_mut().zip(flat(plain.get(&u).unwrap())).for_each(|(sum, g)| *sum += g);
        }
        assert_eq!(sum.n_added(), 3);
        let Summed::Whole(found) = &sum.summed else { panic!("it is summed as a whole") };
        for (found, expected) in flat(found).iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} {expected}");
        }
        sum.clear();
    }
}

#[test]
fn a_multiple_of_a_loss_whose_gradient_is_summed_with_it_is_refused() {
    let (hidden, u) = (Var::from_tensor(&random((2, 3), 1)).unwrap(), Var::from_tensor(&random((4, 3), 2)).unwrap());
    let sum = GradientSum::new(&u).unwrap();
    let loss = token_loss(&hidden, &u, &[1, 2], 1.0, Some(&sum), share).unwrap();
    let error = (loss * 3.0).unwrap().backward().unwrap_err().to_string();
    assert!(error.contains("differentiated times 3"), "{error}");
}

#[test]
fn the_composed_loss_differentiates_chunk_by_chunk() {
    let targets = [3, 0, 2, 2, 6];
    let inputs = [(random((5, 3), 1) * 3.0).unwrap(), random((7, 3), 2)];
    for chunk_len in [1, 2, 5] {
        assert_same_function(
            &inputs,
            |t| (composed::token_loss(chunk_len, &t[0], &t[1], &targets, 0.5, share)? * 3.0)?.reshape(1),
            |t| (share(0..5, &composed::token_logprobs(&t[0], &t[1], &targets, 0.5)?.logprobs)? * 3.0)?.reshape(1),
        );
    }
}

#[test]
fn a_loss_of_no_tokens_is_nothing_and_one_that_ignores_them_is_refused() {
    let ignores = |_: Range<usize>, _: &Tensor| Tensor::new(1.0_f32, &Device::Cpu);
    let (none, u) = (Var::from_tensor(&random((0, 3), 1)).unwrap(), random((4, 3), 2));
    assert_eq!(token_loss(none.as_tensor(), &u, &[], 1.0, None, ignores).unwrap().to_scalar::<f32>().unwrap(), 0.0);
    let hidden = Var::from_tensor(&random((1, 3), 1)).unwrap();
    let error = token_loss(hidden.as_tensor(), &u, &[2], 1.0, None, ignores).unwrap_err().to_string();
    assert!(error.contains("does not depend on their log-probabilities"), "{error}");
}

#[test]
fn no_rows_have_no_logprobs() {
    let found = token_logprobs(&random((0, 3), 1), &random((4, 3), 2), &[], 1.0).unwrap();
    assert_eq!((found.logprobs.dims(), found.entropies.dims()), (&[0][..], &[0][..]));
}

#[test]
fn a_row_depends_on_no_other_and_on_no_chunk_and_nans_stay_alone() {
    let (n, c, vocab_size) = (150, 8, 300);
    let (hidden, unembedding) = (random((n, c), 1), random((vocab_size, c), 2));
    let targets: Vec<u32> = (0..n as u32).collect();
    let whole = flat(&both(token_logprobs(&hidden, &unembedding, &targets, 0.7)).unwrap());
    for chunk_len in [1, 7, 100] {
        let cut = both(token_logprobs_by(chunk_len, &hidden, &unembedding, &targets, 0.7)).unwrap();
        assert_eq!(flat(&cut), whole);
    }
    let alone = token_logprobs(&hidden.narrow(0, 40, 1).unwrap(), &unembedding, &targets[40..41], 0.7);
    assert_eq!(flat(&both(alone).unwrap()), [whole[40], whole[n + 40]]);
    let mut with_nan = flat(&hidden);
    with_nan[3 * c] = f32::NAN;
    let with_nan = tensor(with_nan, (n, c)).unwrap();
    let with_nan = flat(&both(token_logprobs(&with_nan, &unembedding, &targets, 0.7)).unwrap());
    for (i, (a, b)) in with_nan.iter().zip(&whole).enumerate() {
        assert!(if i % n == 3 { a.is_nan() } else { a == b }, "{i}");
    }
}

#[test]
fn likely_and_hopeless_tokens_stay_finite() {
    let (hidden, unembedding) = (tensor(vec![1.0], (1, 1)).unwrap(), tensor(vec![500.0, 0.0], (2, 1)).unwrap());
    let logprob = |target: u32| flat(&both(token_logprobs(&hidden, &unembedding, &[target], 1.0)).unwrap());
    assert_eq!(logprob(0), [0.0, 0.0]);
    assert_eq!(logprob(1), [-500.0, 0.0]);
}

#[test]
fn targets_and_scales_that_mean_nothing_are_refused() {
    let (hidden, unembedding) = (random((1, 3), 1), random((4, 3), 2));
    let error = token_logprobs(&hidden, &unembedding, &[4], 1.0).unwrap_err().to_string();
    assert!(error.contains("target 4 is outside a vocabulary of 4"), "{error}");
    assert!(token_logprobs(&hidden, &unembedding, &[1, 2], 1.0).is_err());
    assert!(token_logprobs(&hidden, &unembedding, &[1], f32::INFINITY).is_err());
    assert!(token_logprobs(&hidden, &random((4, 2), 2), &[1], 1.0).is_err());
}
