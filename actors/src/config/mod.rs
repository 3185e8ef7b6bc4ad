//! Settings: read from a TOML file, changed by `--set`, printed with their meaning.
//!
//! - [`mod@file`]: a recipe file to a config struct, with errors that name file, line and key.
//! - [`set`]: `--set a.b=value`.
//! - [`mod@print`]: a struct's defaults as TOML, with each field's doc comment.
//! - [`diff`]: which keys two configs differ in.

pub mod diff;
pub mod file;
pub mod print;
pub mod set;

pub use diff::{KeyDiff, differences};
pub use file::{ConfigError, load, load_table, parse};
pub use print::with_comments;
