//! A run in a browser, while it goes on and afterwards.
//!
//! - [`history`]: every update's numbers, as columns; branches of updates that were done again.
//! - [`hub`]: what is known of a run now, and numbered messages for whoever looks.
//! - [`live`]: what a run in this process tells the hub. [`directory`]: what a run directory tells it.
//! - [`rounds`]: the rounds of `collimate iterate`, and which of them a request is about. [`all_rounds`]: all of them as one.
//! - [`server`]: the server and its secret. [`routes`]: what it answers. [`evaluation`]: answers before and after PPO.
//!   [`token_texts`]: tokens as text. [`control`]: pause, resume, checkpoint, change. [`asking`]: rollouts to people.
//! - [`stream`]: messages as server-sent events.
//! - `page/`: the page, embedded in the binary.
//!
//! All of it reads: a run goes the same way whether anybody looks or not. Only [`control`] does not, and what it does is
//! in the run's journal.

pub mod all_rounds;
pub mod asking;
pub mod control;
pub mod directory;
pub mod evaluation;
pub mod history;
pub mod hub;
pub mod live;
pub mod rounds;
pub mod routes;
pub mod server;
pub mod stream;
pub mod token_texts;

pub use live::Live;
