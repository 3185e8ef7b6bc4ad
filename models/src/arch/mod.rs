//! One decoder for all families, described by its config; with a head for tokens or for scalars.

mod adapter;
mod block;
mod checkpointing;
mod config;
mod decoder;
mod families;
mod files;
mod heads;
mod keys;
mod lora;
mod packed;
mod precision;
mod safetensors_file;
mod specs;
mod weights;

pub use adapter::{Adapter, save_adapter};
pub use checkpointing::BlockGradients;
pub use config::{Attention, Mlp, ModelConfig, Norm, Positions, Residual, Rope, RopeScaling, head_kind_of};
pub use decoder::{Attend, Decoder, PackedAttention};
pub use families::Family;
pub use files::{load_config, load_model, save_model, scalar_from_language, shard_names};
pub use heads::{GenerationModel, LanguageModel, SCORE_BIAS, SCORE_WEIGHT, ScalarModel};
pub use lora::LoraConfig;
pub use packed::PackedSequences;
pub use precision::Precision;
pub(crate) use safetensors_file::SafetensorsFile;
pub use specs::{HeadKind, Initial, LinearLayer, ParameterSpec, linear_layers, parameter_specs};
pub(crate) use weights::hash_numbers;
pub use weights::{Parameters, Weights};
