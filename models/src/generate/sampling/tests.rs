use super::*;
use crate::rng;

fn params(temperature: f32, top_k: usize, top_p: f32) -> SamplingParams {
    SamplingParams { temperature, top_k, top_p, max_new_tokens: 1 }
}

/// ln p, so that softmax gives p back.
fn logits(p: &[f64]) -> Vec<f32> {
    p.iter().map(|p| p.ln() as f32).collect()
}

/// How often each token is sampled, as shares.
fn shares(logits: &[f32], params: SamplingParams, n: usize) -> Vec<f64> {
    let mut rng = rng::for_purpose(11, "frequencies");
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..n {
        counts[sample(logits, &params, &mut rng).unwrap().token as usize] += 1.0;
    }
    counts.iter().map(|count| count / n as f64).collect()
}

fn assert_close(found: f32, expected: f64) {
    assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
}

#[test]
fn frequencies_follow_the_distribution() {
    // Pearson's χ² with 4 degrees of freedom exceeds 18.5 once in a thousand; over several blocks of ids too.
    let p = [0.4, 0.3, 0.2, 0.05, 0.05];
    let n = 20_000;
    for stretch in [1, 50] {
        let mut stretched = vec![f32::NEG_INFINITY; p.len() * stretch];
        for (i, logit) in logits(&p).into_iter().enumerate() {
            stretched[i * stretch] = logit;
        }
        let shares = shares(&stretched, params(1.0, 0, 1.0), n);
        let chi_square: f64 = p.iter().enumerate().map(|(i, p)| n as f64 * (shares[i * stretch] - p).powi(2) / p).sum();
        assert!(chi_square < 18.5, "{chi_square}");
    }
}

#[test]
fn temperature_raises_probabilities_to_its_inverse() {
    // p = (.8, .2) at temperature 1/2: p² renormalised = (16/17, 1/17); at 2: √p renormalised = (2/3, 1/3).
    for (temperature, likely) in [(0.5, 16.0 / 17.0), (2.0, 2.0 / 3.0)] {
        let params = params(temperature, 0, 1.0);
        let sampled = sample(&logits(&[0.8, 0.2]), &params, &mut rng::for_purpose(1, "")).unwrap();
        let p: f64 = if sampled.token == 0 { likely } else { 1.0 - likely };
        assert_close(sampled.logprob, p.ln());
        assert_close(sampled.entropy, -likely * likely.ln() - (1.0 - likely) * (1.0 - likely).ln());
        assert!((shares(&logits(&[0.8, 0.2]), params, 10_000)[0] - likely).abs() < 0.015);
    }
}

#[test]
fn a_cut_support_is_renormalised_over_what_is_kept() {
    // top-k 2 keeps (.5, .2) of these, in places 1 and 3; top-p .7 too; top-p .71 takes the smaller id of the equals.
    let row = logits(&[0.15, 0.5, 0.15, 0.2]);
    for (params, kept) in [
        (params(1.0, 2, 1.0), vec![(1, 0.5 / 0.7), (3, 0.2 / 0.7)]),
        (params(1.0, 0, 0.699), vec![(1, 0.5 / 0.7), (3, 0.2 / 0.7)]),
        (params(1.0, 0, 0.71), vec![(0, 0.15 / 0.85), (1, 0.5 / 0.85), (3, 0.2 / 0.85)]),
        (params(1.0, 3, 0.5), vec![(1, 1.0)]),
        (params(1.0, 1, 1.0), vec![(1, 1.0)]),
    ] {
        let mut rng = rng::for_purpose(5, "support");
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..400 {
            let sampled = sample(&row, &params, &mut rng).unwrap();
            seen.insert(sampled.token, sampled.logprob);
        }
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), kept.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        for (id, p) in &kept {
            assert_close(seen[id], f64::ln(*p));
        }
        assert_close(seen.values().map(|logprob| logprob.exp()).sum(), 1.0);
    }
}

#[test]
fn greedy_takes_the_most_likely_and_reports_temperature_one() {
    let sampled = sample(&logits(&[0.1, 0.45, 0.45]), &params(0.0, 2, 0.5), &mut rng::for_purpose(1, "")).unwrap();
    assert_eq!(sampled.token, 1);
    assert_close(sampled.logprob, 0.45_f64.ln());
    assert_close(sampled.entropy, -(0.1_f64 * 0.1_f64.ln() + 0.9 * 0.45_f64.ln()));
}

#[test]
fn one_uniform_number_a_token_and_none_when_greedy() {
    use rand::RngCore;
    let row = logits(&[0.3, 0.7]);
    for (temperature, n_words) in [(0.0, 0), (1.0, 2)] {
        let (mut used, mut fresh) = (rng::for_purpose(3, "count"), rng::for_purpose(3, "count"));
        sample(&row, &params(temperature, 0, 1.0), &mut used).unwrap();
        (0..n_words).for_each(|_| _ = fresh.next_u32());
        assert_eq!(used.get_word_pos(), fresh.get_word_pos());
    }
}

#[test]
fn the_number_drawn_inverts_the_distribution_function_in_the_order_of_ids() {
    let row = logits(&[0.25, 0.5, 0.25]);
    let mut block_sums = Vec::new();
    let distribution = Distribution::new(&row, 1.0, &mut block_sums).unwrap();
    let at = |u: f64| distribution.invert(u);
    assert_eq!([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 0.999_999].map(at), [0, 0, 1, 1, 2, 2]);
    assert_eq!(at(1.01), 2, "a target past the end is the last token");
}

#[test]
fn a_target_past_the_end_is_the_last_token_with_any_weight() {
    let mut row = vec![f32::NEG_INFINITY; 5 * BLOCK];
    (row[3], row[2 * BLOCK + 9]) = (0.0, 0.0);
    let mut block_sums = Vec::new();
    let distribution = Distribution::new(&row, 1.0, &mut block_sums).unwrap();
    assert_eq!([0.0, 0.49, 0.51, 1.0].map(|u| distribution.invert(u)), [3, 3, 2 * BLOCK + 9, 2 * BLOCK + 9]);
}

#[test]
fn a_token_without_probability_is_never_sampled() {
    let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    assert_eq!(shares(&row, params(1.0, 0, 1.0), 100), [0.0, 1.0, 0.0]);
    let sampled = sample(&row, &params(1.0, 0, 1.0), &mut rng::for_purpose(1, "")).unwrap();
    assert_eq!((sampled.logprob, sampled.entropy), (0.0, 0.0));
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY] {
        for params in [params(1.0, 0, 1.0), params(0.0, 0, 1.0), params(1.0, 2, 0.9)] {
            let error = sample(&[0.0, bad, 1.0], &params, &mut rng::for_purpose(1, "")).unwrap_err();
            assert!(error.to_string().contains("not finite"));
        }
    }
}

#[test]
fn settings_that_mean_nothing_or_break_ppo_are_refused() {
    for bad in [params(-1.0, 0, 1.0), params(f32::NAN, 0, 1.0), params(1.0, 0, 0.0), params(1.0, 0, 1.5)] {
        assert!(bad.validate().is_err(), "{bad:?}");
    }
    for bad in [params(1.0, 5, 1.0), params(1.0, 0, 0.9), params(0.0, 0, 1.0)] {
        assert!(bad.validate().is_ok() && bad.validate_for_ppo().is_err(), "{bad:?}");
    }
    assert!(params(0.7, 0, 1.0).validate_for_ppo().is_ok());
}
