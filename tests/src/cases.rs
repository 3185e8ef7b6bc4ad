//! How many cases property tests try.

use proptest::test_runner::{Config, RngSeed};

/// So many cases, the same ones each time unless the environment says otherwise.
pub fn cases(n: u32) -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = n;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}
