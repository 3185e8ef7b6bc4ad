//! PPO as roles joined by bounded channels. A role is a [`Worker`]: a state machine that never blocks, run on a
//! thread of its own or in turn with all others on one ([`driver`]). Who starts, stops and watches them is in
//! [`control`](crate::control).
//!
//! ```text
//! PromptSource --Prompt--> Generator xN --Rollout--> ReferenceScorer --ReferencedRollout--> RewardScorer --ScoredRollout--> ExperienceBuffer
//!      ^ ticket                ^                                                                                                |
//!      |                       | newest snapshot                                                                  ExperienceBatch
//!      |                       +------------------------------- Learner <---------------------------------------------------+
//!      |                                                          |  ^-- PretrainBatch -- PretrainMixer
//!      +-- the ticket comes home: trained, or dropped             +--> Recorder
//! ```
//!
//! In the order of the flow:
//!
//! - [`prompt_source`], `generator`, `scorer` with `reference_scorer` and `reward_scorer`,
//!   `experience_buffer`, `pretrain_mixer`, `learner`, [`recorder`]: the roles.
//! - [`compute`]: what computes behind a role. `restarts`: what follows a failure. [`checkpoint`]: what a run goes on from.
//! - [`hop`]: what joins two of them. [`ledger`]: the tickets, and the gate; [`office`]: where all share it. [`latest`]: the weights' way back.
//! - [`alarms`]: what an update's numbers say is going wrong. [`counters`]: what status and metrics are made of.
//! - [`driver`] and [`seat`]: who gives a worker its turns. [`simulation`]: the same in virtual time. `overseer`: the
//!   supervisor's part where there are no actors. `approach`: how long a scorer waits for more.
//! - [`replay`]: a journal run again, without actors.
//! - [`wiring`]: one function that builds the graph.
//!
//! Three promises: `issued = trained + dropped + in flight` at every moment; no token is trained on that is older
//! than `max_staleness`; whatever happens to any role, what it had in hand is done again, or the run ends with an
//! error that says why.

pub mod alarms;
mod approach;
pub mod checkpoint;
pub mod compute;
pub mod config;
pub mod counters;
pub mod driver;
pub mod error;
mod experience_buffer;
mod generator;
mod here;
pub mod hop;
pub mod latest;
mod learner;
pub mod ledger;
pub mod office;
mod overseer;
mod pretrain_mixer;
pub mod prompt_source;
pub mod recorder;
mod reference_scorer;
pub mod replay;
pub(crate) mod restarts;
mod reward_scorer;
mod scorer;
pub mod seat;
pub mod simulation;
pub mod wiring;
pub mod worker;

pub use checkpoint::{Checkpoint, StateFile};
pub use compute::Factory;
pub use config::{
    Capacities, CheckpointConfig, FlowConfig, FlowMode, OnStop, RestartConfig, RoleThreads, StalenessBound,
    WeightUpdates,
};
pub use error::RunError;
pub use prompt_source::PromptSupply;
pub use recorder::{NoSink, RunSink, TrainedUpdate};
pub use wiring::{FlowOutcome, Graph, PpoFlow, SamplerFactory};
pub use worker::{Step, Worker, Workload};
