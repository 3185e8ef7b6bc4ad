use serde_json::json;

use super::*;

fn update(version: u64, score: f64, elapsed_s: f64) -> Value {
    json!({"version": version, "batch": {"score": score, "n_tokens": 10}, "flow": {"elapsed_s": elapsed_s}})
}

fn query(axis: Axis) -> CurveQuery {
    CurveQuery { axis, from: None, to: None, n_buckets: 1000, smoothing: 0.0 }
}

/// The run had come to 250 when it crashed, and went on from 200.
#[test]
fn what_was_done_again_is_one_main_line_and_a_branch() {
    let main: Vec<Value> = (1..=300)
        .map(|version| update(version, 1.0, if version <= 200 { version as f64 } else { (version - 200) as f64 }))
        .collect();
    let abandoned: Vec<Value> = (201..=250)
        .map(|version| {
            let mut record = update(version, 7.0, version as f64);
            record["branch"] = 1.into();
            record
        })
        .collect();
    let history = History::of(&main, &abandoned);
    assert_eq!((history.n_updates(), history.branches()), (300, vec![[200.0, 250.0]]));
    let curve = history.curve("batch/score", query(Axis::Update)).unwrap();
    assert_eq!(curve.raw.x, (1..=300).map(f64::from).collect::<Vec<_>>());
    assert!(curve.raw.y.iter().all(|y| *y == Some(1.0)));
    let [branch] = &curve.branches[..] else { panic!("{} branches", curve.branches.len()) };
    assert_eq!((branch.x[0], branch.y[0], branch.x.len()), (200.0, Some(1.0), 51));
    assert!(branch.y[1..].iter().all(|y| *y == Some(7.0)));
    // The clock of the second attempt began at 0: time goes on where the first was left.
    let by_time = history.curve("batch/score", query(Axis::Time)).unwrap();
    assert_eq!((by_time.raw.x[199], by_time.raw.x[200], by_time.raw.x[299]), (200.0, 201.0, 300.0));
    assert_eq!(by_time.branches[0].x[50], 250.0);
    let by_tokens = history.curve("batch/score", query(Axis::Tokens)).unwrap();
    assert_eq!((by_tokens.raw.x[299], by_tokens.branches[0].x[50]), (3000.0, 2500.0));
    assert_eq!(history.last(), Some([Some(300.0), Some(3000.0), Some(300.0), None]));
}

#[test]
fn what_is_no_number_is_a_gap_and_a_column_may_begin_late() {
    let mut history = History::default();
    history.push(&json!({"version": 1, "train": {"loss": 1.5}}));
    history.push(&json!({"version": 2, "train": {"loss": null}, "gold": 0.5}));
    history.push(&json!({"version": 3, "train": {"loss": 2.5}}));
    let ys = |name: &str| history.curve(name, query(Axis::Update)).map(|curve| curve.raw.y);
    assert_eq!(ys("train/loss"), Some(vec![Some(1.5), None, Some(2.5)]));
    assert_eq!(ys("gold"), Some(vec![None, Some(0.5), None]));
    assert_eq!(ys("silver"), None);
}

#[test]
fn a_part_has_the_points_next_to_it_and_the_smooth_line_does_not_change_with_it() {
    let mut history = History::default();
    (1..=100).for_each(|version| history.push(&update(version, f64::from(version as u32 % 7), 0.0)));
    let query = CurveQuery { smoothing: 0.9, ..query(Axis::Update) };
    let whole = history.curve("batch/score", query).unwrap().smooth.unwrap();
    let part = history.curve("batch/score", CurveQuery { from: Some(40.0), to: Some(45.0), ..query }).unwrap();
    assert_eq!(part.raw.x, [39.0, 40.0, 41.0, 42.0, 43.0, 44.0, 45.0, 46.0]);
    assert_eq!(part.smooth.unwrap().y, whole.y[38..46]);
    let beyond = history.curve("batch/score", CurveQuery { from: Some(500.0), to: Some(1.0), ..query }).unwrap();
    assert!(beyond.raw.x.len() <= 1);
}

fn labelled(version: u64, score: f64, n_labels: Option<u64>) -> Value {
    let mut record = update(version, score, version as f64);
    record["n_labels"] = n_labels.into();
    record
}

fn of_labels(n_labels: &[Option<u64>]) -> History {
    let mut history = History::default();
    for (version, n_labels) in (1..).zip(n_labels) {
        history.push(&labelled(version, version as f64, *n_labels));
    }
    history
}

#[test]
fn over_labels_all_updates_of_a_reward_model_lie_at_one_place_each_known_by_its_number() {
    let history = of_labels(&[Some(80), Some(80), Some(120), Some(120), Some(120)]);
    let raw = history.curve("batch/score", query(Axis::Labels)).unwrap().raw;
    assert_eq!(raw.x, [80.0, 80.0, 120.0, 120.0, 120.0]);
    assert_eq!(raw.y, [1.0, 2.0, 3.0, 4.0, 5.0].map(Some));
    assert_eq!(raw.updates, Some(vec![1.0, 2.0, 3.0, 4.0, 5.0]));
    assert_eq!(history.curve("batch/score", query(Axis::Update)).unwrap().raw.updates, None);
    assert_eq!(history.last().unwrap()[3], Some(120.0));
}

#[test]
fn updates_without_a_number_of_labels_are_a_gap_over_labels_and_where_none_has_one_there_is_no_curve() {
    let history = of_labels(&[None, Some(80), None, Some(80), None]);
    let raw = history.curve("batch/score", query(Axis::Labels)).unwrap().raw;
    assert_eq!(raw.updates, Some(vec![2.0, 3.0, 4.0, 5.0]));
    assert_eq!((raw.x, raw.y), (vec![80.0; 4], vec![Some(2.0), None, Some(4.0), None]));
    assert_eq!(history.last().unwrap()[3], None);
    let by_update = history.curve("batch/score", query(Axis::Update)).unwrap().raw;
    assert_eq!(by_update.y, [1.0, 2.0, 3.0, 4.0, 5.0].map(Some));

    let mut old = History::default();
    (1..=3).for_each(|version| old.push(&update(version, 0.5, 0.0)));
    assert_eq!(old.curve("batch/score", query(Axis::Labels)), None);
    assert_eq!(old.curve("batch/score", query(Axis::Tokens)).unwrap().raw.x, [10.0, 20.0, 30.0]);
}

/// A curve over labels between two places.
fn part(history: &History, from: f64, to: f64) -> Vec<f64> {
    let query = CurveQuery { from: Some(from), to: Some(to), ..query(Axis::Labels) };
    history.curve("batch/score", query).unwrap().raw.updates.unwrap()
}

#[test]
fn a_part_of_the_labels_has_every_update_that_lies_in_it_also_where_labels_became_fewer() {
    let history = of_labels(&[Some(10), Some(10), Some(20), Some(20), Some(20), Some(30), Some(30)]);
    assert_eq!(part(&history, 20.0, 20.0), [2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(part(&history, 15.0, 25.0), [2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(part(&history, 10.0, 12.0), [1.0, 2.0, 3.0]);
    assert_eq!(part(&history, 30.0, 99.0), [5.0, 6.0, 7.0]);
    let fewer = of_labels(&[Some(20), Some(20), Some(10), Some(20), Some(5)]);
    assert_eq!(part(&fewer, 20.0, 25.0), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(part(&fewer, 8.0, 12.0), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(part(&fewer, 0.0, 6.0), [1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn a_spike_among_many_updates_of_one_reward_model_is_seen_over_labels() {
    let mut history = History::default();
    for version in 1..=10_000 {
        let score = if version == 6543 { 50.0 } else { 1.0 };
        history.push(&labelled(version, score, Some(if version <= 9000 { 80 } else { 120 })));
    }
    for (from, to) in [(None, None), (Some(80.0), Some(80.0)), (Some(79.5), Some(81.0))] {
        let query = CurveQuery { from, to, n_buckets: 100, ..query(Axis::Labels) };
        let raw = history.curve("batch/score", query).unwrap().raw;
        let at = raw.y.iter().position(|y| *y == Some(50.0)).expect("the spike is lost");
        assert_eq!((raw.x[at], raw.updates.unwrap()[at]), (80.0, 6543.0));
        assert!(raw.x.len() <= 500);
    }
}

#[test]
fn joined_rounds_go_on_counting_updates_tokens_and_time_while_labels_are_as_recorded() {
    let round = |n: u64, n_labels: Option<u64>, gold: bool| {
        let mut history = History::default();
        for version in 1..=n {
            let mut record = labelled(version, n as f64, n_labels);
            if gold {
                record["gold"] = 0.5.into();
            }
            history.push(&record);
        }
        history
    };
    // The second round began again after an update; what was done again is no part of the main line.
    let mut abandoned = labelled(2, 9.0, Some(120));
    abandoned["branch"] = 1.into();
    let second: Vec<Value> = (1..=2).map(|version| labelled(version, 2.0, Some(120))).collect();
    let second = History::of(&second, &[abandoned]);
    let columns = ["batch/score".to_owned(), "gold".to_owned()];
    let rounds = [round(3, Some(80), false), second, round(0, None, false), round(1, Some(160), true)];
    let joined = History::joined(rounds.iter().map(|round| round.main_line(&columns)));
    assert_eq!((joined.n_updates(), joined.branches().len()), (6, 0));
    let raw = |axis| joined.curve("batch/score", query(axis)).unwrap().raw;
    assert_eq!(raw(Axis::Update).x, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(raw(Axis::Update).y, [3.0, 3.0, 3.0, 2.0, 2.0, 1.0].map(Some));
    assert_eq!(raw(Axis::Tokens).x, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    assert_eq!(raw(Axis::Time).x, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(raw(Axis::Labels).x, [80.0, 80.0, 80.0, 120.0, 120.0, 160.0]);
    assert_eq!(raw(Axis::Labels).updates, Some(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let gold = joined.curve("gold", query(Axis::Update)).unwrap().raw;
    assert_eq!(gold.y, [None, None, None, None, None, Some(0.5)]);
    assert_eq!(joined.last(), Some([Some(6.0), Some(60.0), Some(6.0), Some(160.0)]));
    assert!(joined.curve("flow/elapsed_s", query(Axis::Update)).is_none(), "a column that was not asked for");
}
