//! What a run came to, for people: `report.html`, and the table that ends a run on the terminal.
//!
//! Both are made from the files of the run directory alone, so `collimate report DIR` makes them again at any time.
//!
//! - [`curves`]: which curves there are, read from `metrics.jsonl`.
//! - [`chart`]: a curve as SVG.
//! - [`table`]: the policies before and after.
//! - [`page`]: all of it as one self-contained page.
//! - [`terminal`]: the same for the terminal.

pub mod chart;
pub mod curves;
pub mod page;
pub mod table;
pub mod terminal;

pub use page::write;
pub(crate) use terminal::aligned;
pub use terminal::text;
