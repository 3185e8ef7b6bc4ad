//! What each command does: the stages of the recipe, as library calls.
//!
//! - [`recipe`]: the recipe file. [`run`]: its stages, one after another, in a run directory.
//!   [`iterate`]: rounds of some of them, each a recipe.
//! - [`context`]: what every stage is given.
//! - [`pretrain`], [`sft`], [`collect`], [`reward`], [`ppo`]: the stages, each with its settings ([`ppo_config`] has PPO's).
//! - [`inputs`], [`ppo_parts`]: tokenizers, texts and models as stages read them; `outputs`: as they write them;
//!   [`data_files`]: files with weights.
//! - [`sampling`], [`labeler`], [`evaluate`]: what collect, reward and PPO stage need around them; [`labels_used`]: which labels a reward
//!   model read; [`scored_by`]: which reward model scored a run;
//!   [`answer_more`]: a run's policy, asked by those who watch it.

pub mod answer_more;
pub mod collect;
pub mod context;
pub mod data_files;
pub mod evaluate;
pub mod inputs;
pub mod iterate;
pub mod labeler;
pub mod labels_used;
pub mod memory;
mod outputs;
pub mod ppo;
pub mod ppo_config;
mod ppo_keeper;
pub mod ppo_parts;
mod ppo_prompts;
mod ppo_reward;
pub mod pretrain;
pub mod recipe;
pub mod replay;
pub mod reward;
pub mod run;
pub mod sampling;
pub mod scored_by;
pub mod sft;
mod sft_data;
mod training_file;
