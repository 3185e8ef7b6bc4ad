use proptest::prelude::*;
use rand::{Rng, SeedableRng};

use super::*;
use crate::rng::SeededRng;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SeededRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// The contract, word for word.
fn by_contract(x: &[f32], k: usize, weight: &[f32], n: usize, layout: WeightLayout, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = Vec::new();
    for x in x.chunks(k) {
        for j in 0..n {
            let w = |t: usize| if layout == WeightLayout::InOut { weight[t * n + j] } else { weight[j * k + t] };
            let blocks = (0..k)
                .step_by(K_BLOCK)
                .map(|t0| (t0..k.min(t0 + K_BLOCK)).fold(0.0_f32, |sum, t| x[t].mul_add(w(t), sum)));
            let sum = match bias {
                Some(bias) => blocks.fold(bias[j], |a, b| a + b),
                None => blocks.reduce(|a, b| a + b).unwrap(),
            };
            y.push(sum);
        }
    }
    y
}

#[test]
fn every_number_is_the_one_that_the_contract_names() {
    for (k, n) in [(1, 1), (2, 3), (7, 64), (16, 70), (40, 200), (513, 9), (1030, 65)] {
        let (weight, bias) = (random(k * n, 1), random(n, 2));
        for m in [1, 2, 5, 6, 7, 13, 60] {
            let x = random(m * k, 3);
            for layout in [WeightLayout::InOut, WeightLayout::OutIn] {
                let with_bias = product(&x, k, &weight, n, layout, Start::Row(&bias));
                assert_eq!(with_bias, by_contract(&x, k, &weight, n, layout, Some(&bias)), "{m} {k} {n} {layout:?}");
                let plain = product(&x, k, &weight, n, layout, Start::Zero);
                assert_eq!(plain, by_contract(&x, k, &weight, n, layout, None), "{m} {k} {n} {layout:?}");
                let panels = panels(&weight, k, n, layout);
                assert_eq!(product_with(&x, k, Operand::Panels(&panels), n, Start::Zero), plain);
                assert_eq!(product_with(&x, k, Operand::Panels(&panels), n, Start::Row(&bias)), with_bias);
            }
        }
    }
}

#[test]
fn rows_and_threads_change_no_bit() {
    let (k, n) = (130, 200);
    let weight = random(k * n, 4);
    let x = random(200 * k, 5);
    for layout in [WeightLayout::InOut, WeightLayout::OutIn] {
        let whole = product(&x, k, &weight, n, layout, Start::Zero);
        for m in [1, 2, 7, 32, 33, 64, 200] {
            assert_eq!(product(&x[..m * k], k, &weight, n, layout, Start::Zero), whole[..m * n], "{m}");
            let last = product(&x[(200 - m) * k..], k, &weight, n, layout, Start::Zero);
            assert_eq!(last, whole[(200 - m) * n..], "{m}");
        }
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| product(&x, k, &weight, n, layout, Start::Zero)), whole, "{threads}");
        }
    }
}

#[test]
fn a_product_of_the_transpose_is_added() {
    for (k, p, n) in [(0, 2, 3), (1, 1, 1), (9, 5, 70), (530, 8, 3)] {
        let (x, z) = (random(k * p, 8), random(k * n, 9));
        let mut y = vec![1.0; p * n];
        add_transposed_product(&mut y, false, &x, p, &z, n);
        for (i, y) in y.iter().enumerate() {
            let sum = (0..k).map(|t| f64::from(x[t * p + i / n]) * f64::from(z[t * n + i % n])).sum::<f64>();
            assert!((f64::from(*y) - 1.0 - sum).abs() < 1e-4, "{y} {sum}");
        }
    }
}

#[test]
fn a_wide_product_of_the_transpose_has_the_bits_of_the_product_and_is_added() {
    for (k, p, n) in [(0, 2, 3), (3, 0, 2), (1, 1, 1), (9, 5, 70), (40, 33, 200), (530, 8, 3)] {
        let (x, z) = (random(k * p, 8), random(k * n, 9));
        let mut product = vec![1.0; p * n]; // (p, n)
        add_transposed_product(&mut product, true, &x, p, &z, n);
        let mut y = vec![f32::NAN; p * n]; // (n, p)
        for (first, times) in [(true, 1.0), (false, 2.0)] {
            add_transposed_wide_product(&mut y, first, &x, p, &z, n);
            for (i, y) in y.iter().enumerate() {
                assert_eq!(*y, times * product[i % p * n + i / p], "{k} {p} {n}: {i}");
            }
        }
    }
}

#[test]
fn a_row_of_nans_stays_alone() {
    let (k, n) = (20, 70);
    let weight = random(k * n, 6);
    let mut x = random(9 * k, 7);
    let clean = product(&x, k, &weight, n, WeightLayout::InOut, Start::Zero);
    x[4 * k..5 * k].fill(f32::NAN);
    let y = product(&x, k, &weight, n, WeightLayout::InOut, Start::Zero);
    assert!(y[4 * n..5 * n].iter().all(|y| y.is_nan()));
    assert_eq!((&y[..4 * n], &y[5 * n..]), (&clean[..4 * n], &clean[5 * n..]));
}

#[test]
fn what_lies_ahead_is_each_number_that_follows_once_in_as_many_parts_as_there_are() {
    let (k, n) = (2 * K_BLOCK + 5, 2 * PANEL + 7);
    let numbers: Vec<f32> = (0..k * n).map(|i| i as f32).collect();
    let panels = panels(&numbers, k, n, WeightLayout::InOut);
    for weight in [Operand::InOut(&numbers), Operand::OutIn(&numbers), Operand::Panels(&panels)] {
        for (t0, next, terms, columns) in [
            (K_BLOCK, Some(2), K_BLOCK..2 * K_BLOCK, 0..PANEL),
            (2 * K_BLOCK, None, 2 * K_BLOCK..k, 0..PANEL),
            (3 * K_BLOCK, Some(2), 0..K_BLOCK, 2 * PANEL..n),
            (3 * K_BLOCK, None, 0..0, 0..0),
        ] {
            for n_parts in [1, 7, 2000] {
                let ahead = weight.ahead(k, n, &(0..PANEL), t0, next);
                let mut seen: Vec<f32> = (0..n_parts)
                    .flat_map(|i| {
                        let part = ahead.part(i, n_parts);
                        (0..part.n_rows).flat_map(move |row| part.numbers[row * part.stride..][..part.width].to_vec())
                    })
                    .collect();
                let number = |t: usize, j: usize| match weight {
                    Operand::OutIn(numbers) => numbers[j * k + t],
                    _ => numbers[t * n + j],
                };
                let mut expected: Vec<f32> = terms
                    .clone()
                    .flat_map(|t| columns.clone().map(move |j| (t, j)))
                    .map(|(t, j)| number(t, j))
                    .collect();
                if let Operand::Panels(_) = weight {
                    expected
                        .extend(vec![0.0; terms.len() * (PANEL * usize::from(!columns.is_empty()) - columns.len())]);
                }
                seen.sort_by(f32::total_cmp);
                expected.sort_by(f32::total_cmp);
                assert!(seen == expected, "{t0} {next:?} in {n_parts}: {} and {} numbers", seen.len(), expected.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_keeps_the_contract(m in 1_usize..20, k in 1_usize..90, n in 1_usize..150, seed: u64, out_in: bool) {
        let layout = if out_in { WeightLayout::OutIn } else { WeightLayout::InOut };
        let (x, weight) = (random(m * k, seed), random(k * n, seed ^ 1));
        let y = product(&x, k, &weight, n, layout, Start::Zero);
        prop_assert_eq!(y, by_contract(&x, k, &weight, n, layout, None));
    }
}
