//! What goes wrong in this crate. Each variant tells the user what to mend.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// The crate's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A file was read but is not what it should be.
    #[error("{}: {problem}", path.display())]
    BadFile {
        /// Which file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },

    /// A line of a data file is not what it should be.
    #[error("{}:{line}: {problem}", path.display())]
    BadLine {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What was found and what was expected.
        problem: String,
    },

    /// A tensor is absent from a set of weights.
    #[error("tensor `{name}` is missing{}", place(.path))]
    MissingTensor {
        /// Its HuggingFace name.
        name: String,
        /// The file, where there is one.
        path: Option<PathBuf>,
    },

    /// A tensor has another shape than the model's config asks for.
    #[error("tensor `{name}` has shape {found:?}, the config asks for {expected:?}{}", place(.path))]
    WrongShape {
        /// Its HuggingFace name.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// By the config.
        expected: Vec<usize>,
        /// The file, where there is one.
        path: Option<PathBuf>,
    },

    /// A parameter in training got no gradient: an op on its way to the loss has no backward.
    #[error("parameter `{name}` got no gradient")]
    NoGradient {
        /// Its HuggingFace name.
        name: String,
    },

    /// Too many optimiser steps in a row were skipped.
    #[error(
        "{n_in_a_row} optimiser steps in a row were skipped, because {what} was not finite; a lower learning rate \
         or a smaller score scale may help"
    )]
    NonFinite {
        /// How many.
        n_in_a_row: usize,
        /// What was not finite the last time.
        what: String,
    },

    /// A setting or an argument makes no sense.
    #[error("{0}")]
    Invalid(String),

    /// A computation in candle failed.
    #[error("tensor computation failed: {0}")]
    Candle(#[from] candle_core::Error),
}

fn place(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| format!(" ({})", path.display())).unwrap_or_default()
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// An [`Error::BadFile`] about `path`.
    pub fn bad_file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::BadFile { path: path.as_ref().to_owned(), problem: problem.into() }
    }

    /// An [`Error::BadLine`] about `path` and `line` (from 1).
    pub fn bad_line(path: impl AsRef<Path>, line: usize, problem: impl Into<String>) -> Self {
        Self::BadLine { path: path.as_ref().to_owned(), line, problem: problem.into() }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(problem: impl Into<String>) -> Self {
        Self::Invalid(problem.into())
    }
}
