//! What the tests of the files share.

use proptest::test_runner::{Config, RngSeed};

/// So many cases, the same ones each time.
pub fn cases(n: u32) -> Config {
    Config { cases: n, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..Config::default() }
}
