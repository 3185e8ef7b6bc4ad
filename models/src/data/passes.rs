//! Passes over files of records that may be larger than memory: several files mixed by weight, in an order that a
//! bounded buffer shuffles.

use std::path::{Path, PathBuf};

use rand::Rng;
use rand::distr::{Distribution, weighted::WeightedIndex};

use crate::error::{Error, Result};
use crate::rng::SeededRng;

/// A file with how often a pass takes each of its records.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// How often, on average: 0.5 takes each with even odds, 2 takes each twice.
    pub weight: f64,
}

impl Source {
    /// Refuses weights that are no numbers over 0.
    pub fn validate(&self) -> Result<()> {
        if self.weight > 0.0 && self.weight.is_finite() {
            return Ok(());
        }
        Err(Error::bad_file(&self.path, format!("has the weight {}, expected a number over 0", self.weight)))
    }

    /// The file's bytes, about in proportion to its records.
    fn n_bytes(&self) -> Result<f64> {
        let metadata = std::fs::metadata(&self.path).map_err(|source| Error::io(&self.path, source))?;
        Ok(metadata.len().max(1) as f64)
    }
}

/// What a source holds, one by one.
pub type Items<T> = Box<dyn Iterator<Item = Result<T>>>;

/// One pass over all sources. It holds about `capacity` items at a time; as many as there are, or more, shuffle them
/// all alike. The same generator gives the same order.
pub struct Pass<T> {
    /// What is left of each source, with its weight.
    open: Vec<(Items<T>, f64)>,
    /// Odds of reading from each: in proportion to its size, so that all end about together.
    odds: Vec<f64>,
    buffer: Vec<T>,
    capacity: usize,
    rng: SeededRng,
}

impl<T: Clone> Pass<T> {
    /// Opens every source.
    pub fn new(
        sources: &[Source],
        open: impl Fn(&Path) -> Result<Items<T>>,
        capacity: usize,
        rng: SeededRng,
    ) -> Result<Self> {
        let mut pass = Self { open: Vec::new(), odds: Vec::new(), buffer: Vec::new(), capacity: capacity.max(1), rng };
        for source in sources {
            source.validate()?;
            pass.odds.push(source.n_bytes()?);
            pass.open.push((open(&source.path)?, source.weight));
        }
        Ok(pass)
    }

    /// Fills the buffer, as far as there is anything left.
    fn fill(&mut self) -> Result<()> {
        while self.buffer.len() < self.capacity && !self.open.is_empty() {
            let idx = WeightedIndex::new(&self.odds).expect("odds over 0").sample(&mut self.rng);
            let (items, weight) = &mut self.open[idx];
            let Some(item) = items.next() else {
                drop(self.open.remove(idx));
                self.odds.remove(idx);
                continue;
            };
            let item = item?;
            let extra = if self.rng.random::<f64>() < weight.fract() { 1 } else { 0 };
            self.buffer.extend(std::iter::repeat_n(item, weight.floor() as usize + extra));
        }
        Ok(())
    }
}

impl<T: Clone> Iterator for Pass<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if let Err(error) = self.fill() {
            self.open.clear();
            self.odds.clear();
            self.buffer.clear();
            return Some(Err(error));
        }
        if self.buffer.is_empty() {
            return None;
        }
        let idx = self.rng.random_range(0..self.buffer.len());
        Some(Ok(self.buffer.swap_remove(idx)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng;

    /// Files of so many numbered items each; an item is (file, number).
    fn pass(files: &[(usize, f64)], capacity: usize, seed: u64) -> Vec<(usize, usize)> {
        let dir = tempfile::tempdir().unwrap();
        let sources: Vec<Source> = files
            .iter()
            .enumerate()
            .map(|(idx, (n, weight))| {
                let path = dir.path().join(idx.to_string());
                std::fs::write(&path, vec![0; *n]).unwrap();
                Source { path, weight: *weight }
            })
            .collect();
        let open = |path: &Path| -> Result<Items<(usize, usize)>> {
            let idx: usize = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            Ok(Box::new((0..files[idx].0).map(move |number| Ok((idx, number)))))
        };
        Pass::new(&sources, open, capacity, rng::for_purpose(seed, "pass")).unwrap().map(Result::unwrap).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_pass_takes_every_record_as_often_as_its_weight_says(
            files in prop::collection::vec((0..40_usize, 1..4_usize), 1..4),
            capacity in 1..60_usize,
            seed in any::<u64>(),
        ) {
            let weighted: Vec<(usize, f64)> = files.iter().map(|(n, times)| (*n, *times as f64)).collect();
            let mut taken = pass(&weighted, capacity, seed);
            prop_assert_eq!(&pass(&weighted, capacity, seed), &taken);
            taken.sort_unstable();
            let mut expected: Vec<(usize, usize)> = Vec::new();
            for (idx, (n, times)) in files.iter().enumerate() {
                expected.extend((0..*n).flat_map(|number| std::iter::repeat_n((idx, number), *times)));
            }
            prop_assert_eq!(taken, expected);
        }

        #[test]
        fn no_record_comes_earlier_than_the_buffer_lets_it(n in 1..200_usize, capacity in 1..50_usize, seed in any::<u64>()) {
            for (place, (_, number)) in pass(&[(n, 1.0)], capacity, seed).into_iter().enumerate() {
                prop_assert!(number < place + capacity, "number {} at place {}", number, place);
            }
        }
    }

    #[test]
    fn a_fractional_weight_takes_that_share_and_files_end_together() {
        let taken = pass(&[(4000, 0.25), (1000, 1.0)], 100, 1);
        let n_first = taken.iter().filter(|(idx, _)| *idx == 0).count();
        // 1,000 expected, with a standard deviation of 27.
        assert!((870..1130).contains(&n_first), "{n_first}");
        // Were one file read after the other, the last tenth would be of one alone.
        let last = &taken[taken.len() * 9 / 10..];
        let n_last = last.iter().filter(|(idx, _)| *idx == 0).count();
        assert!(n_last > last.len() / 10 && n_last < last.len() * 9 / 10, "{n_last} of {}", last.len());
    }

    #[test]
    fn a_large_buffer_shuffles_all() {
        let taken = pass(&[(1000, 1.0)], 1000, 1);
        let early = taken[..500].iter().filter(|(_, number)| *number < 500).count();
        // 250 expected, with a standard deviation of about 8.
        assert!((210..290).contains(&early), "{early}");
    }
}
