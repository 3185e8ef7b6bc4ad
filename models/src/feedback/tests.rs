//! Numbers worked out by hand, or by the Python package `krippendorff` (tests/scripts/agreement.py).

use proptest::prelude::*;

use super::*;

fn vote(task: u64, labeler: u64, ranks: &[u32]) -> Vote {
    Vote { task, labeler, ranks: ranks.to_vec() }
}

#[test]
fn a_tie_on_one_side_is_half_an_agreement() {
    // A=B>C: pairs AB 0, AC 1, BC 1.
    assert_eq!(pairs::orders(&[1, 1, 3]).collect::<Vec<_>>(), [0, 1, 1]);
    assert_eq!(ranking_agreement(&[1, 1, 3], &[1, 1, 3]), Some(1.0));
    assert_eq!(ranking_agreement(&[1, 1, 3], &[1, 2, 3]), Some((0.5 + 1.0 + 1.0) / 3.0));
    assert_eq!(ranking_agreement(&[1, 2, 3], &[3, 2, 1]), Some(0.0));
    assert_eq!(ranking_agreement(&[1], &[1]), None);
}

#[test]
fn agreement_of_two_prompts_by_hand() {
    // Prompt 0: A>B, A>B, A=B: of 3 pairs of labelers 1, 0.5, 0.5. Prompt 1: A>B against B>A: 0.
    let votes =
        [vote(0, 0, &[1, 2]), vote(0, 1, &[1, 2]), vote(0, 2, &[1, 1]), vote(1, 0, &[1, 2]), vote(1, 1, &[2, 1])];
    let agreement = agreement(&votes, 0).unwrap();
    assert_eq!((agreement.n_prompts, agreement.n_judgements), (2, 4));
    assert_eq!(agreement.pairwise.value, 2.0 / 4.0);
    // Each unit in both directions. Observed: prompt 0 has 2 pairs of squared distance 1, both orders, weight 1/2: 2; prompt
    // 1 one pair of distance 4, both orders, weight 1: 8; both directions: 20. Values: four -1, four 1, two 0; expected
    // (2·4·4·4 + 2·2·4·2·1)/9 = 160/9.
    assert!((agreement.alpha.value - (1.0 - 20.0 / (160.0 / 9.0))).abs() < 1e-12, "{agreement:?}");
    assert!(super::agreement(&votes[3..4], 0).is_none(), "one labeler agrees with nobody");
}

#[test]
fn a_labeler_s_alpha_is_over_the_prompts_that_the_labeler_shares_with_others_by_hand() {
    // The two prompts above, and a third that labeler 3 alone ranked.
    let votes = [
        vote(0, 0, &[1, 2]),
        vote(0, 1, &[1, 2]),
        vote(0, 2, &[1, 1]),
        vote(1, 0, &[1, 2]),
        vote(1, 1, &[2, 1]),
        vote(2, 3, &[1, 2]),
    ];
    let of_labelers = agreement_by_labeler(&votes, 0);
    assert_eq!(of_labelers.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "labeler 3 shares nothing");
    // Labeler 2 ranked prompt 0 alone. Observed: 2 pairs of squared distance 1, both orders, weight 1/2: 2; both
    // directions: 4. Values: two -1, two 1, two 0; expected (2·2·2·4 + 2·(2·2 + 2·2)·1)/5 = 48/5.
    let alpha = 1.0 - 4.0 / (48.0 / 5.0);
    assert!((of_labelers[&2].alpha.value - alpha).abs() < 1e-12, "{:?}", of_labelers[&2]);
    assert_eq!((of_labelers[&2].n_prompts, of_labelers[&2].n_judgements), (1, 3), "the others' rankings count");
    // Labelers 0 and 1 ranked all that anybody shares.
    let all = agreement(&votes, 0).unwrap();
    assert_eq!((of_labelers[&0], of_labelers[&1]), (all, all));
}

#[test]
fn full_agreement_gives_alpha_1_and_so_does_agreeing_that_all_ties() {
    let same: Vec<Vote> = (0..6).map(|n| vote(n / 3, n % 3, &[1, 2, 2, 4])).collect();
    let full = agreement(&same, 0).unwrap();
    assert_eq!((full.pairwise.value, full.alpha.value, full.alpha.low, full.alpha.high), (1.0, 1.0, 1.0, 1.0));
    let tied: Vec<Vote> = (0..6).map(|n| vote(n / 3, n % 3, &[1, 1])).collect();
    assert_eq!(agreement(&tied, 0).unwrap().alpha.value, 1.0);
}

#[test]
fn the_interval_is_the_same_each_time_and_holds_the_value() {
    let votes: Vec<Vote> =
        (0..60).map(|n| vote(n / 2, n % 2, if n % 7 < 4 { &[1, 2, 3] } else { &[2, 1, 2] })).collect();
    let one = agreement(&votes, 7).unwrap();
    assert_eq!(agreement(&votes, 7).unwrap(), one);
    assert_ne!(agreement(&votes, 8).unwrap().alpha, one.alpha);
    for interval in [one.pairwise, one.alpha] {
        assert!(interval.low < interval.value && interval.value < interval.high, "{interval:?}");
    }
}

#[test]
fn a_split_vote_is_a_tie_and_not_the_one_that_comes_first() {
    assert_eq!(merge(&[&[1, 2], &[2, 1]]), [1, 1]);
    assert_eq!(merge(&[&[2, 1], &[2, 1], &[1, 2]]), [2, 1]);
    assert_eq!(merge(&[&[1, 1, 3], &[1, 1, 3]]), [1, 1, 3], "[A=B]>C is kept");
    assert_eq!(merge(&[]), Vec::<u32>::new());
}

#[test]
fn a_circle_is_broken_at_its_weakest_majority_and_an_even_one_is_a_tie() {
    // A>B by 5, B>C by 3, C>A by 1 (of 9 votes): the last contradicts the others.
    let (abc, bca, cab): (&[u32], &[u32], &[u32]) = (&[1, 2, 3], &[3, 1, 2], &[2, 3, 1]);
    let votes = [abc, abc, abc, abc, bca, bca, cab, cab, cab];
    assert_eq!(merge(&votes), [1, 2, 3]);
    assert_eq!(merge(&[abc, bca, cab]), [1, 1, 1]);
}

#[test]
fn a_labeler_is_measured_against_the_others_alone_and_only_with_enough_rankings() {
    let n = labelers::ENOUGH_RANKINGS as u64;
    // Labeler 2 says the opposite of 0 and 1; labeler 3 ranked too little.
    let votes = (0..n).flat_map(|task| [vote(task, 0, &[1, 2]), vote(task, 1, &[1, 2]), vote(task, 2, &[2, 1])]);
    let mut votes: Vec<Vote> = votes.collect();
    votes.push(vote(0, 3, &[1, 2]));
    let agreements = labeler_agreement(&votes);
    let LabelerAgreement::Known { mean, n_rankings, .. } = agreements[&2] else { panic!("{agreements:?}") };
    assert_eq!((mean, n_rankings), (0.0, 50));
    let LabelerAgreement::Known { mean, .. } = agreements[&0] else { panic!("{agreements:?}") };
    // The others split 1 to 1, a tie, but on the task with a fourth voter, where 2 of 3 agree with 0.
    assert_eq!(mean, (49.0 * 0.5 + 1.0) / 50.0);
    assert_eq!(agreements[&3], LabelerAgreement::NotEnoughData { n_rankings: 1 });
}

#[test]
fn what_is_shown_first_is_found_to_win_where_it_does() {
    let (ranks, first, last): (&[u32], &[usize], &[usize]) = (&[1, 2], &[0, 1], &[1, 0]);
    let even = position_bias([(ranks, first), (ranks, last)]).unwrap();
    assert_eq!((even.share_of_first.value, even.n_rankings), (0.5, 2));
    let all = position_bias(std::iter::repeat_n((ranks, first), 10)).unwrap();
    // Wilson's interval of 10 of 10: z² = 3.8415; low = 10/(10 + z²).
    assert_eq!(all.share_of_first.value, 1.0);
    assert!((all.share_of_first.low - 10.0 / (10.0 + 3.841_458_820_694_124)).abs() < 1e-9, "{all:?}");
    let tied: &[u32] = &[1, 1];
    assert!(position_bias([(tied, first)]).is_none());
}

#[test]
fn of_more_than_two_only_the_pairs_of_the_first_count_and_its_ties_are_left_out() {
    // Shown B, A, C, D with A>B=C>D: BA is lost, BC a tie, BD won. The pairs AC, AD and CD, which the earlier wins, are
    // none of the first's.
    let (ranks, shown): (&[u32], &[usize]) = (&[1, 2, 2, 4], &[1, 0, 2, 3]);
    let one = position_bias([(ranks, shown)]).unwrap();
    assert_eq!((one.share_of_first.value, one.n_rankings), (0.5, 1));
    // Shown C, A, B with A>B>C: CA and CB are lost. Each ranking counts once, whatever its pairs: (0.5 + 0) / 2.
    let (ordered, last): (&[u32], &[usize]) = (&[1, 2, 3], &[2, 0, 1]);
    let two = position_bias([(ranks, shown), (ordered, last)]).unwrap();
    assert_eq!((two.share_of_first.value, two.n_rankings), (0.25, 2));
    // A=B>C shown A, B, C: the first has one pair that is no tie, and wins it.
    let (tied_above, in_order): (&[u32], &[usize]) = (&[1, 1, 3], &[0, 1, 2]);
    assert_eq!(position_bias([(tied_above, in_order)]).unwrap().share_of_first.value, 1.0);
}

#[test]
fn repeats_are_compared_pair_by_pair() {
    let twice = [(vec![1, 2], vec![1, 2]), (vec![1, 2], vec![1, 1])];
    assert_eq!(consistency(&twice), Some(Consistency { mean: 0.75, n_repeats: 2 }));
    assert_eq!(consistency(&[]), None);
}

/// Made by tests/scripts/agreement.py with the package `krippendorff`.
#[test]
fn alpha_is_that_of_another_implementation() {
    #[derive(serde::Deserialize)]
    struct Case {
        votes: Vec<(u64, u64, Vec<u32>)>,
        alpha: f64,
        pairwise: f64,
    }
    let text = include_str!("../../../tests/fixtures/agreement.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let votes: Vec<Vote> =
            case.votes.into_iter().map(|(task, labeler, ranks)| Vote { task, labeler, ranks }).collect();
        let found = agreement(&votes, 0).unwrap();
        assert!((found.alpha.value - case.alpha).abs() < 1e-9, "{} {}", found.alpha.value, case.alpha);
        assert!((found.pairwise.value - case.pairwise).abs() < 1e-9);
    }
}

fn rankings() -> impl Strategy<Value = Vec<Vec<u32>>> {
    (2_usize..=6).prop_flat_map(|k| prop::collection::vec(prop::collection::vec(1..=k as u32, k), 1..6))
}

proptest! {
    #[test]
    fn merging_does_not_depend_on_the_order_of_labelers_or_of_responses(rankings in rankings(), turn in 0_usize..6) {
        let merged = merge(&rankings.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut others = rankings.clone();
        others.reverse();
        prop_assert_eq!(&merge(&others.iter().map(Vec::as_slice).collect::<Vec<_>>()), &merged);
        let turned = |ranks: &[u32]| { let mut ranks = ranks.to_vec(); let k = ranks.len(); ranks.rotate_left(turn % k); ranks };
        let turned_rankings: Vec<Vec<u32>> = rankings.iter().map(|ranks| turned(ranks)).collect();
        prop_assert_eq!(merge(&turned_rankings.iter().map(Vec::as_slice).collect::<Vec<_>>()), turned(&merged));
    }

    #[test]
    fn rankings_that_all_say_the_same_are_merged_to_it(ranks in prop::collection::vec(1_u32..5, 2..9), n in 1_usize..4) {
        let ranks = competition_ranks(&ranks);
        prop_assert_eq!(merge(&vec![ranks.as_slice(); n]), ranks);
    }

    #[test]
    fn alpha_does_not_depend_on_which_response_comes_first(rankings in rankings()) {
        let votes = |flip: bool| -> Vec<Vote> {
            rankings.iter().enumerate().map(|(labeler, ranks)| {
                let mut ranks = ranks.clone();
                if flip { ranks.reverse(); }
                Vote { task: 0, labeler: labeler as u64, ranks }
            }).collect()
        };
        let (one, other) = (agreement(&votes(false), 1), agreement(&votes(true), 1));
        prop_assert_eq!(one.is_some(), other.is_some());
        if let (Some(one), Some(other)) = (one, other) {
            prop_assert!((one.alpha.value - other.alpha.value).abs() < 1e-9);
            prop_assert!(one.alpha.value <= 1.0 + 1e-12);
        }
    }
}
