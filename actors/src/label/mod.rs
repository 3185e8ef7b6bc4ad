//! `collimate label`: where people write demonstrations and rank responses.
//!
//! - [`config`]: the settings of a labelling project.
//! - [`store`]: what lasts, in one SQLite file.
//! - [`links`]: what labelers come by.
//! - [`prioritize`]: which tasks come first.
//! - [`draft`]: what is put down on the page, and the answer that it makes.
//! - [`render`]: hostile text as a tree of harmless elements.
//! - [`transfer`]: tasks and answers from files and to files.
//! - [`effects`]: what became of labels, and people against reward models; [`runs`]: what the folders of runs say of it.
//! - [`overview`]: progress, agreement, bias.
//! - [`disagreements`]: tasks that labelers ranked differently, which the admin may settle.
//! - [`server`]: all of it over HTTP, and the page.
//!
//! A labeler never learns which model wrote a response: pages know tasks by random handles, responses stand in an order of
//! their own for each labeler, and where they came from stays in the store.

pub mod config;
pub mod disagreements;
pub mod draft;
pub mod effects;
pub mod links;
pub mod overview;
pub mod prioritize;
pub mod render;
pub mod runs;
pub mod server;
pub mod store;
pub mod transfer;
