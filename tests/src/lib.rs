//! The harness of Collimate's system tests.
//!
//! - [`fakes`]: every role of the flow as a tiny deterministic machine, whose weights are one number.
//! - [`wrap`]: workers around workers: delayed, watched, stopped, made to fail.
//! - [`sabotage`]: what computes behind a role, made to fail.
//! - [`laws`]: what every run must satisfy.
//! - [`scenario`]: a flow of fakes, described in numbers.
//! - [`strategies`]: random flows of fakes.
//! - [`run`]: runs it.
//! - [`tiny`]: real models small enough to train in milliseconds.
//! - [`cases`]: how many cases property tests try.
//! - [`counting`]: an allocator that counts.
//! - [`command_line`]: a folder in which the binary can be run.
//! - [`shown`]: a run directory that is made up, and its page.
//! - [`watching`]: a program that looks at a run's page.
//! - [`cable`]: the way from a browser to a server, which can be cut.
//! - [`labeling`]: `collimate label` as a process, and people who use it.
//! - [`label_page`]: its page in a browser.
//! - [`browser`]: a real browser, where there is one.
//! - [`fixture`]: numbers of other implementations, and what counts as the same.

pub mod browser;
pub mod cable;
pub mod cases;
pub mod command_line;
pub mod counting;
pub mod fakes;
pub mod fixture;
pub mod label_page;
pub mod labeling;
pub mod laws;
pub mod run;
pub mod sabotage;
pub mod scenario;
pub mod shown;
pub mod strategies;
pub mod tiny;
pub mod watching;
pub mod wrap;
