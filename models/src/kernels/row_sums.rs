//! Sums of a table's gradient by row, for tables of which a pass reads few rows.

use std::collections::BTreeMap;
use std::ops::Range;

/// The gradient of a table `(V, C)`, of which only the rows that something was added to take memory: all others are zero.
#[derive(Clone, Debug)]
pub struct RowSums {
    n_rows: usize,
    n_columns: usize,
    /// Where in `numbers` a row begins.
    places: BTreeMap<u32, usize>,
    numbers: Vec<f32>,
}

impl RowSums {
    /// Of a table of this size, zero everywhere.
    pub fn new(n_rows: usize, n_columns: usize) -> Self {
        Self { n_rows, n_columns, places: BTreeMap::new(), numbers: Vec::new() }
    }

    /// Rows and columns of the table.
    #[cfg(test)]
    pub fn dims(&self) -> (usize, usize) {
        (self.n_rows, self.n_columns)
    }

    /// Numbers of the table.
    pub fn n_numbers(&self) -> usize {
        self.n_rows * self.n_columns
    }

    /// Zero everywhere again.
    pub fn clear(&mut self) {
        self.places.clear();
        self.numbers.clear();
    }

    /// Adds `gradient (C,)` to a row.
    pub fn add(&mut self, row: u32, gradient: &[f32]) {
        debug_assert_eq!(gradient.len(), self.n_columns);
        let end = self.numbers.len();
        let place = *self.places.entry(row).or_insert(end);
        if place == end {
            self.numbers.resize(end + self.n_columns, 0.0);
        }
        self.numbers[place..][..self.n_columns].iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
    }

    /// Numbers `range` of the table, row after row; `None` where all of them are zero.
    pub fn part(&self, range: Range<usize>) -> Option<Vec<f32>> {
        let c = self.n_columns.max(1);
        let rows = (range.start / c) as u32..range.end.div_ceil(c) as u32;
        let mut part: Option<Vec<f32>> = None;
        for (row, place) in self.places.range(rows) {
            let part = part.get_or_insert_with(|| vec![0.0; range.len()]);
            let first = *row as usize * c;
            let own = range.start.max(first)..range.end.min(first + c);
            let from = place + own.start - first;
            part[own.start - range.start..own.end - range.start].copy_from_slice(&self.numbers[from..from + own.len()]);
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_what_was_added_to_its_rows_and_zeros_between_them() {
        let mut sums = RowSums::new(6, 3);
        sums.add(4, &[1.0, 2.0, 3.0]);
        sums.add(1, &[10.0, 20.0, 30.0]);
        sums.add(4, &[0.5, 0.5, 0.5]);
        let whole = [0.0, 0.0, 0.0, 10.0, 20.0, 30.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.5, 2.5, 3.5, 0.0, 0.0, 0.0];
        for start in 0..=whole.len() {
            for end in start..=whole.len() {
                let part = sums.part(start..end).unwrap_or_else(|| vec![0.0; end - start]);
                assert_eq!(part, whole[start..end], "{start}..{end}");
            }
        }
        assert_eq!((sums.n_numbers(), sums.part(6..12)), (18, None));
        sums.clear();
        assert_eq!(sums.part(0..18), None);
    }
}
