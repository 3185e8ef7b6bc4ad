//! Every update's numbers, as columns. Pure.

use std::collections::BTreeMap;

use collimate_models::curves::{Point, downsample, smooth};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::observe::numbers;
use crate::rundir::branches::branch_of;

/// What curves are drawn over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Updates done.
    #[default]
    Update,
    /// Response tokens trained on since the start.
    Tokens,
    /// Seconds that the run has taken, over all attempts.
    Time,
}

/// A row of numbers for each update, in order.
#[derive(Clone, Debug, Default)]
pub struct Table {
    versions: Vec<f64>,
    tokens: Vec<f64>,
    times: Vec<f64>,
    /// By name; a number that a row does not have is NaN.
    columns: BTreeMap<String, Vec<f64>>,
    /// The last row's own clock: it begins anew with each attempt.
    last_elapsed_s: f64,
}

impl Table {
    /// Where the rows after `version` of a table would go on.
    fn fork(&self, version: f64) -> Self {
        let Some(idx) = self.versions.iter().rposition(|its| *its <= version) else { return Self::default() };
        let last = |column: &[f64]| vec![column[idx]];
        Self {
            versions: last(&self.versions),
            tokens: last(&self.tokens),
            times: last(&self.times),
            columns: self.columns.iter().map(|(name, column)| (name.clone(), last(column))).collect(),
            // The branch is of the attempt that came to the fork, and its clock goes on.
            last_elapsed_s: self.columns.get("flow/elapsed_s").map_or(0.0, |column| column[idx]),
        }
    }

    fn push(&mut self, record: &Value) {
        let numbers: BTreeMap<String, f64> = numbers::of(record).into_iter().collect();
        let number = |name: &str| numbers.get(name).copied().unwrap_or(0.0);
        let elapsed_s = number("flow/elapsed_s");
        let since_last = if elapsed_s >= self.last_elapsed_s { elapsed_s - self.last_elapsed_s } else { elapsed_s };
        let n = self.versions.len();
        self.versions.push(number("version"));
        self.tokens.push(self.tokens.last().unwrap_or(&0.0) + number("batch/n_tokens"));
        self.times.push(self.times.last().unwrap_or(&0.0) + since_last);
        self.last_elapsed_s = elapsed_s;
        for (name, number) in numbers.into_iter().filter(|(name, _)| name != "version" && name != "branch") {
            let column = self.columns.entry(name).or_default();
            // A number that earlier rows did not have.
            column.resize(n, f64::NAN);
            column.push(number);
        }
        self.columns.values_mut().for_each(|column| column.resize(n + 1, f64::NAN));
    }

    fn axis(&self, axis: Axis) -> &[f64] {
        match axis {
            Axis::Update => &self.versions,
            Axis::Tokens => &self.tokens,
            Axis::Time => &self.times,
        }
    }

    fn points(&self, axis: Axis, column: &str) -> Option<Vec<Point>> {
        let ys = self.columns.get(column)?;
        Some(self.axis(axis).iter().zip(ys).map(|(&x, &y)| Point { x, y }).collect())
    }
}

/// What is asked of a history.
#[derive(Clone, Copy, Debug)]
pub struct CurveQuery {
    /// Over what.
    pub axis: Axis,
    /// From where on the axis; none for the beginning.
    pub from: Option<f64>,
    /// To where; none for the end.
    pub to: Option<f64>,
    /// Into how many buckets points are gathered.
    pub n_buckets: usize,
    /// The weight of the past in the smooth line; 0 for none.
    pub smoothing: f64,
}

/// A line as a browser draws it: a `null` is a gap.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Line {
    /// Where.
    pub x: Vec<f64>,
    /// How high.
    pub y: Vec<Option<f64>>,
}

impl Line {
    fn of(points: &[Point]) -> Self {
        let y = points.iter().map(|point| point.y.is_finite().then_some(point.y)).collect();
        Self { x: points.iter().map(|point| point.x).collect(), y }
    }
}

/// A curve with its branches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// As it was recorded, spikes and gaps and all.
    pub raw: Line,
    /// The smooth line over it, where one is asked for.
    pub smooth: Option<Line>,
    /// Updates that were done again, each beginning at the update that the run went on from.
    pub branches: Vec<Line>,
}

/// A run's updates.
#[derive(Clone, Debug, Default)]
pub struct History {
    main: Table,
    branches: BTreeMap<u64, Table>,
}

impl History {
    /// Of the lines of `metrics.jsonl` and of `metrics.abandoned.jsonl`.
    pub fn of(main: &[Value], abandoned: &[Value]) -> Self {
        let mut history = Self::default();
        main.iter().for_each(|record| history.push(record));
        for record in abandoned {
            let first = record["version"].as_f64().unwrap_or(0.0);
            let table = history.branches.entry(branch_of(record));
            table.or_insert_with(|| history.main.fork(first - 1.0)).push(record);
        }
        history
    }

    /// Adds an update.
    pub fn push(&mut self, record: &Value) {
        self.main.push(record);
    }

    /// Updates that are there.
    pub fn n_updates(&self) -> usize {
        self.main.versions.len()
    }

    /// The newest update's place on each axis.
    pub fn last(&self) -> Option<[f64; 3]> {
        Some([*self.main.versions.last()?, *self.main.tokens.last()?, *self.main.times.last()?])
    }

    /// The newest update's numbers by name, without those that are not finite.
    pub fn last_numbers(&self) -> BTreeMap<&str, f64> {
        let last = self.main.columns.iter().filter_map(|(name, column)| Some((name.as_str(), *column.last()?)));
        last.filter(|(_, number)| number.is_finite()).collect()
    }

    /// The names of what there are curves of.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.main.columns.keys().map(String::as_str)
    }

    /// The versions of each branch: from the one that the run went on from, to the last that was done again.
    pub fn branches(&self) -> Vec<[f64; 2]> {
        let ends = |table: &Table| Some([*table.versions.first()?, *table.versions.last()?]);
        self.branches.values().filter_map(ends).collect()
    }

    /// A curve; `None` where no update has such a number.
    pub fn curve(&self, column: &str, query: CurveQuery) -> Option<Curve> {
        let drawn = |points: Vec<Point>| {
            let from = query.from.map_or(0, |from| points.partition_point(|point| point.x < from).saturating_sub(1));
            let to = query
                .to
                .map_or(points.len(), |to| (points.partition_point(|point| point.x <= to) + 1).min(points.len()));
            Line::of(&downsample(points.get(from..to).unwrap_or_default(), query.n_buckets))
        };
        let points = self.main.points(query.axis, column)?;
        // Over all of it, so that a line does not change with the zoom.
        let smooth = (query.smoothing > 0.0).then(|| drawn(smooth(&points, query.smoothing)));
        let branches = self.branches.values().filter_map(|table| table.points(query.axis, column)).map(drawn).collect();
        Some(Curve { raw: drawn(points), smooth, branches })
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(history.last(), Some([300.0, 3000.0, 300.0]));
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
}
