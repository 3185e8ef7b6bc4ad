//! Windows on a stream of tokens: what pretraining, and its share of PPO-ptx, reads.

use std::sync::Arc;

use rand::Rng;

use collimate_protocol::roles::PretrainSource;
use collimate_protocol::{PretrainBatch, RoleError};

use crate::error::{Error, Result};
use crate::rng::{self, SeededRng};

/// What the random numbers are for.
const PURPOSE: &str = "pretraining windows";

/// Draws batches of windows, each at a random place of the stream.
#[derive(Clone, Debug)]
pub struct PretrainWindows {
    stream: Arc<[u32]>,
    window_len: usize,
    n_windows: usize,
    seed: u64,
    rng: SeededRng,
    /// The number of the batch that `rng` draws next.
    next_idx: u64,
}

impl PretrainWindows {
    /// `n_windows` windows of `window_len` tokens make a batch. The same stream and seed give the same batches.
    ///
    /// # Errors
    /// The stream holds no whole window, or a window no token to predict.
    pub fn new(stream: impl Into<Arc<[u32]>>, window_len: usize, n_windows: usize, seed: u64) -> Result<Self> {
        let stream = stream.into();
        check_window(&stream, window_len)?;
        if n_windows == 0 {
            return Err(Error::invalid("a batch of 0 windows holds nothing to learn from"));
        }
        Ok(Self { stream, window_len, n_windows, seed, rng: rng::for_purpose(seed, PURPOSE), next_idx: 0 })
    }

    /// The next batch.
    pub fn draw(&mut self) -> Vec<Vec<u32>> {
        let starts = self.next_starts();
        starts.into_iter().map(|start| self.stream[start..start + self.window_len].to_vec()).collect()
    }

    fn next_starts(&mut self) -> Vec<usize> {
        let last_start = self.stream.len() - self.window_len;
        self.next_idx += 1;
        (0..self.n_windows).map(|_| self.rng.random_range(0..=last_start)).collect()
    }
}

impl PretrainSource for PretrainWindows {
    fn batch(&mut self, idx: u64) -> std::result::Result<PretrainBatch, RoleError> {
        if idx < self.next_idx {
            (self.rng, self.next_idx) = (rng::for_purpose(self.seed, PURPOSE), 0);
        }
        while self.next_idx < idx {
            self.next_starts();
        }
        Ok(PretrainBatch { sequences: self.draw() })
    }
}

/// Cuts a stream into windows that follow one another, and takes at most `n_max` of them, evenly spread: what a held-out
/// stream is judged by. A rest that fills no window is left out.
///
/// # Errors
/// The stream holds no whole window, or a window no token to predict.
pub fn consecutive_windows(stream: &[u32], window_len: usize, n_max: usize) -> Result<Vec<Vec<u32>>> {
    check_window(stream, window_len)?;
    let windows: Vec<&[u32]> = stream.chunks_exact(window_len).collect();
    let n_taken = windows.len().min(n_max);
    Ok((0..n_taken).map(|idx| windows[idx * windows.len() / n_taken].to_vec()).collect())
}

fn check_window(stream: &[u32], window_len: usize) -> Result<()> {
    if window_len < 2 {
        return Err(Error::invalid(format!("a window of {window_len} tokens has no token to predict from another")));
    }
    if stream.len() < window_len {
        let n = stream.len();
        return Err(Error::invalid(format!("the text has {n} tokens, fewer than one window of {window_len}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    #[test]
    fn a_batch_is_a_function_of_its_number_in_whatever_order_they_are_asked_for() {
        let windows = || PretrainWindows::new(counting(1000), 4, 3, 1).unwrap();
        let mut in_order = windows();
        let drawn: Vec<_> = (0..6).map(|_| in_order.draw()).collect();
        let mut asked = windows();
        for idx in [0, 4, 4, 2, 5, 0] {
            assert_eq!(asked.batch(idx as u64).unwrap().sequences, drawn[idx]);
        }
    }

    #[test]
    fn windows_are_whole_pieces_of_the_stream_and_reach_both_of_its_ends() {
        let mut windows = PretrainWindows::new(counting(10), 4, 50, 1).unwrap();
        let batch = windows.batch(0).unwrap().sequences;
        assert_eq!(batch.len(), 50);
        for window in &batch {
            assert!(window.len() == 4 && window.windows(2).all(|pair| pair[1] == pair[0] + 1), "{window:?}");
        }
        assert!(batch.iter().any(|window| window[0] == 0) && batch.iter().any(|window| window[3] == 9));
    }

    #[test]
    fn the_seed_says_which_windows_come() {
        let draw = |seed| {
            let mut windows = PretrainWindows::new(counting(1000), 8, 4, seed).unwrap();
            (windows.draw(), windows.draw())
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3).0, draw(4).0);
        assert_ne!(draw(3).0, draw(3).1);
    }

    #[test]
    fn consecutive_windows_do_not_overlap_and_are_evenly_spread() {
        let starts = |n_max| -> Vec<u32> {
            consecutive_windows(&counting(21), 2, n_max).unwrap().iter().map(|window| window[0]).collect()
        };
        assert_eq!(starts(100), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(starts(4), [0, 4, 10, 14]);
        assert!(starts(0).is_empty());
    }

    #[test]
    fn a_text_that_holds_no_window_is_refused() {
        let message = PretrainWindows::new(counting(3), 4, 1, 0).unwrap_err().to_string();
        assert_eq!(message, "the text has 3 tokens, fewer than one window of 4");
        assert!(PretrainWindows::new(counting(3), 1, 1, 0).is_err());
        assert!(PretrainWindows::new(counting(3), 2, 0, 0).is_err());
        assert!(consecutive_windows(&counting(3), 4, 1).is_err());
    }
}
