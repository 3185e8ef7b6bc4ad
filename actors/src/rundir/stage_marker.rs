//! `complete.json`: a stage that has it is done, and is not run again.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{RunDirError, atomic};

/// What a finished stage says of itself. Written last and at once, so that a stage without it is not finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageMarker<S> {
    /// The stage's settings, every default filled in.
    pub config: serde_json::Value,
    /// What it came to.
    pub summary: S,
}

impl<S: Serialize + DeserializeOwned> StageMarker<S> {
    /// Writes the marker.
    pub fn write(&self, path: &Path) -> Result<(), RunDirError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| RunDirError::bad(path, error.to_string()))?;
        atomic::write(path, format!("{text}\n").as_bytes())
    }

    /// Reads the marker; `None` for a stage that is not finished.
    pub fn read(path: &Path) -> Result<Option<Self>, RunDirError> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                serde_json::from_str(&text).map(Some).map_err(|error| RunDirError::bad(path, error.to_string()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RunDirError::io(path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_comes_back_and_an_absent_one_means_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("complete.json");
        assert_eq!(StageMarker::<u32>::read(&path).unwrap(), None);
        let marker = StageMarker { config: serde_json::json!({"lr": 0.1}), summary: 3 };
        marker.write(&path).unwrap();
        assert_eq!(StageMarker::read(&path).unwrap(), Some(marker));
    }

    #[test]
    fn a_damaged_marker_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("complete.json");
        std::fs::write(&path, "{").unwrap();
        let error = StageMarker::<u32>::read(&path).unwrap_err().to_string();
        assert!(error.contains("complete.json: "), "{error}");
    }
}
