//! The decoder, described by its config: GPT-2 or Llama; with a head for tokens or for scalars.

mod config;
mod decoder;
mod files;
mod heads;
mod packed;
mod weights;

pub use config::{Family, Mlp, ModelConfig, Norm, Positions, head_kind_of};
pub use decoder::{Attend, Decoder, PackedAttention};
pub use files::{load_model, save_model, scalar_from_language};
pub use heads::{LanguageModel, SCORE_BIAS, SCORE_WEIGHT, ScalarModel};
pub use packed::PackedSequences;
pub use weights::{HeadKind, Initial, ParameterSpec, Parameters, Weights, parameter_specs};
