//! How long a role's work takes, measured: what a plan is made from.

use serde::{Deserialize, Serialize};

/// Sums over a role's pieces of work, from which a straight line of seconds over tokens follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkSums {
    /// Pieces of work.
    pub n: u64,
    /// Tokens that went through a model.
    pub tokens: f64,
    /// Their squares, piece by piece.
    pub tokens_squared: f64,
    /// Seconds that the pieces took.
    pub seconds: f64,
    /// Seconds times tokens, piece by piece.
    pub seconds_tokens: f64,
    /// CPU seconds of the whole process while the role was at work. Where no other role was at work meanwhile, this
    /// over `seconds` is how many cores the role uses.
    pub cpu_s: f64,
}

/// Seconds that a piece of work takes: `call_s + token_s * tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkLine {
    /// Seconds for the piece as such.
    pub call_s: f64,
    /// Seconds for each token.
    pub token_s: f64,
}

/// Below this coefficient of variation of the pieces' sizes a slope would be made of noise.
const LEAST_VARIATION: f64 = 0.2;

impl WorkSums {
    /// Adds one piece of work.
    pub fn add(&mut self, n_tokens: usize, seconds: f64, cpu_s: f64) {
        let tokens = n_tokens as f64;
        self.n += 1;
        self.tokens += tokens;
        self.tokens_squared += tokens * tokens;
        self.seconds += seconds;
        self.seconds_tokens += seconds * tokens;
        self.cpu_s += cpu_s;
    }

    /// These and others.
    pub fn and(self, other: Self) -> Self {
        Self {
            n: self.n + other.n,
            tokens: self.tokens + other.tokens,
            tokens_squared: self.tokens_squared + other.tokens_squared,
            seconds: self.seconds + other.seconds,
            seconds_tokens: self.seconds_tokens + other.seconds_tokens,
            cpu_s: self.cpu_s + other.cpu_s,
        }
    }

    /// The line of least squares with neither part negative. Pieces of much the same size say nothing about a slope:
    /// their time is then taken to be in proportion to their tokens. Work without tokens has its time for each piece.
    pub fn line(&self) -> WorkLine {
        let n = self.n as f64;
        if self.n == 0 {
            return WorkLine::default();
        }
        if self.tokens == 0.0 {
            return WorkLine { call_s: self.seconds / n, token_s: 0.0 };
        }
        let proportional = WorkLine { call_s: 0.0, token_s: self.seconds / self.tokens };
        let mean = self.tokens / n;
        let variance = self.tokens_squared / n - mean * mean;
        if variance < (LEAST_VARIATION * mean).powi(2) {
            return proportional;
        }
        let token_s = (self.seconds_tokens / n - mean * self.seconds / n) / variance;
        let call_s = self.seconds / n - token_s * mean;
        match (call_s >= 0.0, token_s >= 0.0) {
            (true, true) => WorkLine { call_s, token_s },
            (_, false) => WorkLine { call_s: self.seconds / n, token_s: 0.0 },
            (false, true) => proportional,
        }
    }

    /// How many cores the role uses, as far as `cpu_s` tells; 0 where nothing was measured.
    pub fn cores(&self) -> f64 {
        if self.seconds > 0.0 { self.cpu_s / self.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(pieces: &[(usize, f64)]) -> WorkSums {
        let mut sums = WorkSums::default();
        pieces.iter().for_each(|&(tokens, seconds)| sums.add(tokens, seconds, 2.0 * seconds));
        sums
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
    }

    #[test]
    fn what_lies_on_a_line_gives_that_line() {
        let line = sums(&[(1, 0.3), (10, 1.2), (20, 2.2)]).line();
        close(line.call_s, 0.2);
        close(line.token_s, 0.1);
    }

    #[test]
    fn neither_part_is_negative() {
        // The free line through (1, 0), (3, 4) is -2 + 2x; through (1, 4), (3, 0) it is 6 - 2x.
        assert_eq!(sums(&[(1, 0.0), (3, 4.0)]).line(), WorkLine { call_s: 0.0, token_s: 1.0 });
        assert_eq!(sums(&[(1, 4.0), (3, 0.0)]).line(), WorkLine { call_s: 2.0, token_s: 0.0 });
    }

    #[test]
    fn pieces_of_one_size_take_time_in_proportion_and_those_of_none_each_their_own() {
        assert_eq!(sums(&[(10, 1.0), (10, 3.0)]).line(), WorkLine { call_s: 0.0, token_s: 0.2 });
        assert_eq!(sums(&[(0, 1.0), (0, 3.0)]).line(), WorkLine { call_s: 2.0, token_s: 0.0 });
        assert_eq!(WorkSums::default().line(), WorkLine::default());
    }

    #[test]
    fn sums_of_parts_are_the_sums_of_all() {
        let (first, second) = (sums(&[(1, 0.3), (10, 1.2)]), sums(&[(20, 2.2)]));
        let both = first.and(second);
        assert_eq!(both.n, 3);
        close(both.line().token_s, 0.1);
        close(both.cores(), 2.0);
    }
}
