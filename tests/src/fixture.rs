//! Numbers that other implementations worked out, kept under `tests/fixtures`.

use std::fs;
use std::path::{Path, PathBuf};

use collimate::device;
use collimate_models::Device;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The path of a fixture.
pub fn path(name: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Where models are held against their fixtures: what `COLLIMATE_TEST_DEVICE` names, or else the CPU.
pub fn device() -> Device {
    let name = std::env::var("COLLIMATE_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    device::open(&name).unwrap_or_else(|error| panic!("COLLIMATE_TEST_DEVICE: {error}"))
}

/// One section of `objectives.json`, which PyTorch wrote (`tests/scripts/objectives.py`).
pub fn objectives<T: DeserializeOwned>(section: &str) -> T {
    let text = fs::read_to_string(path("objectives.json")).unwrap();
    let mut sections: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(sections[section].take()).unwrap_or_else(|error| panic!("section `{section}`: {error}"))
}

/// Asserts that numbers are as many as expected, and each within `tolerance` of what is expected: relative to it
/// where it is above 1 in size, absolute below.
#[track_caller]
pub fn assert_close<F, E>(
    found: impl IntoIterator<Item = F>,
    expected: impl IntoIterator<Item = E>,
    tolerance: f64,
    what: &str,
) where
    F: Into<f64>,
    E: Into<f64>,
{
    let found: Vec<f64> = found.into_iter().map(Into::into).collect();
    let expected: Vec<f64> = expected.into_iter().map(Into::into).collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        // So that a NaN is never close.
        let close = (found - expected).abs() <= tolerance * expected.abs().max(1.0);
        assert!(close, "{what}, number {i}: {found} here, {expected} expected");
    }
}
