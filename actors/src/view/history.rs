//! Every update's numbers, as columns. Pure.
//!
//! - `table`: a row for each update, and its place on each axis.

mod table;

use std::collections::BTreeMap;

use collimate_models::curves::{Point, downsample, smooth};
use serde::Serialize;
use serde_json::Value;

use self::table::Table;
pub use self::table::{Axis, Place};
use crate::rundir::branches::branch_of;

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
    /// After which update, where that is not the axis: several updates may lie at one place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updates: Option<Vec<f64>>,
}

impl Line {
    /// The column of a table as it is asked for; `None` where there is none, or it has no place on the axis. `smoothing` is
    /// over all of it, so that a line does not change with the zoom.
    fn of(table: &Table, column: &str, query: CurveQuery, smoothing: f64) -> Option<Self> {
        let (rows, ys) = (table.rows(query.axis)?, table.columns().get(column)?);
        // By their rows: those are all different, and in order.
        let known = ys.iter().zip(&rows.is_known).map(|(y, is_known)| if *is_known { *y } else { f64::NAN });
        let mut points: Vec<Point> = known.enumerate().map(|(row, y)| Point { x: row as f64, y }).collect();
        if smoothing > 0.0 {
            points = smooth(&points, smoothing);
        }
        let kept = downsample(&points[rows.within(query.from, query.to)], query.n_buckets);
        let at = |places: &[f64]| kept.iter().map(|point| places[point.x as usize]).collect();
        Some(Self {
            x: at(&rows.places),
            y: kept.iter().map(|point| point.y.is_finite().then_some(point.y)).collect(),
            updates: (query.axis != Axis::Update).then(|| at(table.versions())),
        })
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
        self.main.n_rows()
    }

    /// The newest update's place on each axis.
    pub fn last(&self) -> Option<Place> {
        self.main.last()
    }

    /// The newest update's numbers by name, without those that are not finite.
    pub fn last_numbers(&self) -> BTreeMap<&str, f64> {
        let last = self.main.columns().iter().filter_map(|(name, column)| Some((name.as_str(), *column.last()?)));
        last.filter(|(_, number)| number.is_finite()).collect()
    }

    /// The names of what there are curves of.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.main.columns().keys().map(String::as_str)
    }

    /// The versions of each branch: from the one that the run went on from, to the last that was done again.
    pub fn branches(&self) -> Vec<[f64; 2]> {
        let ends = |table: &Table| Some([*table.versions().first()?, *table.versions().last()?]);
        self.branches.values().filter_map(ends).collect()
    }

    /// Its main line alone, with these columns.
    pub fn main_line(&self, columns: &[String]) -> Self {
        Self { main: self.main.only(columns), branches: BTreeMap::new() }
    }

    /// The main lines of runs that follow on one another, as one: updates, tokens and time go on counting.
    pub fn joined(runs: impl IntoIterator<Item = Self>) -> Self {
        let mut joined = Self::default();
        runs.into_iter().for_each(|run| joined.main.append(run.main));
        joined
    }

    /// A curve; `None` where no update has such a number, or a place on the axis.
    pub fn curve(&self, column: &str, query: CurveQuery) -> Option<Curve> {
        let line = |table: &Table, smoothing| Line::of(table, column, query, smoothing);
        Some(Curve {
            raw: line(&self.main, 0.0)?,
            smooth: if query.smoothing > 0.0 { line(&self.main, query.smoothing) } else { None },
            branches: self.branches.values().filter_map(|table| line(table, 0.0)).collect(),
        })
    }
}

#[cfg(test)]
mod tests;
