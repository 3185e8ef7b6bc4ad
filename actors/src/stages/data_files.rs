//! Files of records in a recipe: one, or several with weights.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use collimate_models::data::passes::Source;

/// One file of records, or several that are mixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a file, or a list of files and of tables { path, weight }")]
pub enum DataFiles {
    /// One file.
    One(PathBuf),
    /// Several.
    Several(Vec<DataFile>),
}

/// A file, with how often a pass takes each of its records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a file, or a table { path, weight }")]
pub enum DataFile {
    /// Once each.
    Plain(PathBuf),
    /// This often, on average.
    Weighted(WeightedFile),
}

/// A file and its weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedFile {
    /// The file.
    pub path: PathBuf,
    /// How often a pass takes each of its records: 0.5 takes every other one, 2 takes each twice.
    pub weight: f64,
}

impl DataFiles {
    /// The files' paths, to be made absolute.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let (one, several) = match self {
            Self::One(path) => (Some(path), None),
            Self::Several(files) => (None, Some(files)),
        };
        one.into_iter().chain(several.into_iter().flatten().map(|file| match file {
            DataFile::Plain(path) => path,
            DataFile::Weighted(file) => &mut file.path,
        }))
    }

    /// What passes are made of.
    pub fn sources(&self) -> Vec<Source> {
        let plain = |path: &PathBuf| Source { path: path.clone(), weight: 1.0 };
        let source = |file: &DataFile| match file {
            DataFile::Plain(path) => plain(path),
            DataFile::Weighted(WeightedFile { path, weight }) => Source { path: path.clone(), weight: *weight },
        };
        match self {
            Self::One(path) => vec![plain(path)],
            Self::Several(files) => files.iter().map(source).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Table {
        files: DataFiles,
    }

    fn sources(text: &str) -> Result<Vec<(PathBuf, f64)>, String> {
        let table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
        Ok(table.files.sources().into_iter().map(|source| (source.path, source.weight)).collect())
    }

    #[test]
    fn one_file_or_several_with_weights() {
        assert_eq!(sources("files = 'a'").unwrap(), [("a".into(), 1.0)]);
        let several = sources("files = ['a', { path = 'b', weight = 0.5 }]").unwrap();
        assert_eq!(several, [("a".into(), 1.0), ("b".into(), 0.5)]);
        let wrong = sources("files = [{ path = 'b', wieght = 0.5 }]").unwrap_err();
        assert!(wrong.contains("expected a file, or a"), "{wrong}");
    }
}
