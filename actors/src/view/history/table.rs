//! Numbers by update, as columns, and where each update lies on each axis.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::observe::numbers;

/// Labels that the reward model which scored an update's batch has learnt from.
const LABELS: &str = "n_labels";

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
    /// Labels that the reward model in force has learnt from. Updates share them until another reward model takes over.
    Labels,
}

/// An update's place on each axis: updates, tokens, seconds, and labels where they are known.
pub type Place = [Option<f64>; 4];

/// A row of numbers for each update, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
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
    pub fn fork(&self, version: f64) -> Self {
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

    pub fn push(&mut self, record: &Value) {
        let numbers: BTreeMap<String, f64> = numbers::of(record).into_iter().collect();
        let number = |name: &str| numbers.get(name).copied().unwrap_or(0.0);
        let elapsed_s = number("flow/elapsed_s");
        let since_last = if elapsed_s >= self.last_elapsed_s { elapsed_s - self.last_elapsed_s } else { elapsed_s };
        let n = self.n_rows();
        self.versions.push(number("version"));
        self.tokens.push(self.tokens.last().unwrap_or(&0.0) + number("batch/n_tokens"));
        self.times.push(self.times.last().unwrap_or(&0.0) + since_last);
        self.last_elapsed_s = elapsed_s;
        for (name, number) in numbers.into_iter().filter(|(name, _)| name != "version" && name != "branch") {
            self.column_from(name, n).push(number);
        }
        self.fill();
    }

    /// The rows of another table after these: updates, tokens and time go on counting.
    pub fn append(&mut self, later: Self) {
        let n = self.n_rows();
        let go_on = |column: &mut Vec<f64>, later: Vec<f64>| {
            let so_far = column.last().copied().unwrap_or(0.0);
            column.extend(later.into_iter().map(|place| so_far + place));
        };
        go_on(&mut self.versions, later.versions);
        go_on(&mut self.tokens, later.tokens);
        go_on(&mut self.times, later.times);
        for (name, column) in later.columns {
            self.column_from(name, n).extend(column);
        }
        self.fill();
        self.last_elapsed_s = later.last_elapsed_s;
    }

    /// These columns alone, with what is needed for every axis.
    pub fn only(&self, columns: &[String]) -> Self {
        let is_kept = |name: &str| name == LABELS || columns.iter().any(|column| column == name);
        let kept = self.columns.iter().filter(|(name, _)| is_kept(name));
        let columns = kept.map(|(name, column)| (name.clone(), column.clone())).collect();
        let Self { versions, tokens, times, last_elapsed_s, .. } = self;
        Self {
            versions: versions.clone(),
            tokens: tokens.clone(),
            times: times.clone(),
            columns,
            last_elapsed_s: *last_elapsed_s,
        }
    }

    /// The column of this name; one that the first `n` rows did not have is new.
    fn column_from(&mut self, name: String, n: usize) -> &mut Vec<f64> {
        let column = self.columns.entry(name).or_default();
        column.resize(n, f64::NAN);
        column
    }

    /// What the last rows do not have is no number in them.
    fn fill(&mut self) {
        let n = self.n_rows();
        self.columns.values_mut().for_each(|column| column.resize(n, f64::NAN));
    }

    pub fn n_rows(&self) -> usize {
        self.versions.len()
    }

    pub fn versions(&self) -> &[f64] {
        &self.versions
    }

    pub fn columns(&self) -> &BTreeMap<String, Vec<f64>> {
        &self.columns
    }

    /// The last row's place on each axis.
    pub fn last(&self) -> Option<Place> {
        let last = |column: &[f64]| column.last().copied().filter(|place| place.is_finite());
        let labels = self.columns.get(LABELS).map(Vec::as_slice).unwrap_or_default();
        self.versions.last()?;
        Some([last(&self.versions), last(&self.tokens), last(&self.times), last(labels)])
    }

    /// Where the rows lie on an axis; `None` where no row says so.
    pub fn rows(&self, axis: Axis) -> Option<Rows<'_>> {
        let all = |places| Rows { places: Cow::Borrowed(places), is_known: vec![true; self.n_rows()] };
        Some(match axis {
            Axis::Update => all(&*self.versions),
            Axis::Tokens => all(&*self.tokens),
            Axis::Time => all(&*self.times),
            Axis::Labels => {
                let labels = self.columns.get(LABELS)?;
                let is_known = labels.iter().map(|n| n.is_finite()).collect();
                Rows { places: Cow::Owned(carried_on(labels)), is_known }
            }
        })
    }
}

/// Each number, and in place of one that is absent the last that was there.
fn carried_on(column: &[f64]) -> Vec<f64> {
    let mut last = f64::NAN;
    let carried = column.iter().map(|number| {
        last = if number.is_finite() { *number } else { last };
        last
    });
    carried.collect()
}

/// Where rows lie on an axis. Several may lie at one place; and where a reward model was replaced by one that has learnt
/// from fewer labels, a later row lies before an earlier one.
pub(super) struct Rows<'a> {
    /// That of the row before where a row's own is not known; NaN before the first that is.
    pub places: Cow<'a, [f64]>,
    /// Whether a row's place is its own.
    pub is_known: Vec<bool>,
}

impl Rows<'_> {
    /// From the first row at `from` or beyond to the last at `to` or before, and the rows next to them: all rows between
    /// them, as those need not be in the order of their places.
    pub fn within(&self, from: Option<f64>, to: Option<f64>) -> Range<usize> {
        let n = self.places.len();
        let first = self.is_known.iter().position(|is_known| *is_known).unwrap_or(n);
        let begin = |from: f64| self.places.iter().position(|place| *place >= from).unwrap_or(n).saturating_sub(1);
        let end = |to: f64| self.places.iter().rposition(|place| *place <= to).map_or(0, |row| row + 1);
        let begin = from.map_or(first, |from| begin(from).max(first));
        let end = to.map_or(n, |to| (end(to) + 1).min(n));
        begin..end.max(begin)
    }
}
