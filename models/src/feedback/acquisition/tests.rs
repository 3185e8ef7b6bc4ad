use proptest::prelude::*;

use super::*;

fn candidate(scores: &[f32], features: &[[f32; 2]]) -> Candidate {
    Candidate { scores: scores.to_vec(), features: features.iter().map(|one| one.to_vec()).collect() }
}

fn n_random(arms: &[Arm]) -> usize {
    arms.iter().filter(|arm| **arm == Arm::Random).count()
}

#[test]
fn fewer_random_tasks_than_a_fifth_are_refused() {
    let acquisition = |by, random_share, n_heads| Acquisition { by, random_share, n_heads }.problem();
    assert_eq!(acquisition(AcquireBy::Disagreement, 0.2, 16), None);
    assert_eq!(acquisition(AcquireBy::Margin, 1.0, 0), None);
    for share in [0.199, 0.0, -1.0, 1.1, f64::NAN] {
        let problem = acquisition(AcquireBy::Margin, share, 16).unwrap();
        assert!(problem.starts_with(&format!("the random share is {share}, expected 0.2 to 1")), "{problem}");
    }
    assert!(acquisition(AcquireBy::Disagreement, 0.5, 1).unwrap().contains("1 heads can't disagree"));
}

#[test]
fn margin_takes_first_what_is_scored_most_alike() {
    let same = [[0.0, 0.0], [0.0, 0.0]];
    let candidates = [
        candidate(&[1.0, -1.0], &same),
        candidate(&[0.5, 0.4], &same),
        // Pairs differ by 1, 2 and 1.
        candidate(&[0.0, 1.0, 2.0], &[[0.0, 0.0]; 3]),
        candidate(&[3.0, 3.0], &same),
    ];
    assert_eq!(order(AcquireBy::Margin, 0, &candidates, &[], 0), [3, 1, 2, 0]);
}

#[test]
fn disagreement_takes_first_what_labels_have_not_told_and_not_the_same_twice() {
    let labeled: Vec<RankedFeatures> = (0..100)
        .map(|n| {
            let x = 1.0 + (n % 7) as f32;
            RankedFeatures { features: vec![vec![x, 0.0, 0.0], vec![-x, 0.0, 0.0]], ranks: vec![1, 2] }
        })
        .collect();
    let along =
        |x: f32, y: f32, z: f32| Candidate { features: vec![vec![x, y, z], vec![-x, -y, -z]], scores: vec![0.0; 2] };
    let told = along(1.0, 0.0, 0.0);
    let (second, again, third) = (along(0.0, 2.0, 0.0), along(0.0, 2.0, 0.01), along(0.0, 0.0, 1.5));
    let candidates = [told, second, again, third];
    let order = order(AcquireBy::Disagreement, 64, &candidates, &labeled, 3);
    assert!(order[..2].contains(&3), "the third direction is among the first two: {order:?}");
    assert_eq!(order[3..].len() + order[..3].len(), 4);
    let mut all = order.clone();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3], "every task has a place");
    assert_ne!(order[0], 0, "what is known comes later: {order:?}");
}

#[test]
fn random_is_another_order_for_each_seed_and_the_same_for_one() {
    let candidates = vec![candidate(&[0.0, 0.0], &[[0.0, 0.0]; 2]); 50];
    let of = |seed| order(AcquireBy::Random, 0, &candidates, &[], seed);
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

proptest! {
    #[test]
    fn at_any_moment_at_least_the_random_share_of_what_was_asked_is_random(
        n in 0usize..400, share in LEAST_RANDOM_SHARE..=1.0, seed in 0u64..100,
    ) {
        let arms = draw_arms(n, share, &mut for_purpose(seed, "test"));
        let drawn = n_random(&arms);
        prop_assert_eq!(drawn, (n as f64 * share).ceil() as usize);
        let turns: Vec<Arm> = turns(drawn, n - drawn).collect();
        prop_assert_eq!((turns.len(), n_random(&turns)), (n, drawn));
        for asked in 1..=n {
            let of_asked = n_random(&turns[..asked]);
            prop_assert!(of_asked as f64 >= share * asked as f64 - 1e-9, "{of_asked} of {asked}");
        }
    }
}
