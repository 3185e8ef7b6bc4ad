//! Tokenizers, texts and models as stages read them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use collimate_models::arch::{HeadKind, ModelConfig, Weights, load_model};
use collimate_models::data::corpus::{Corpus, read_paragraphs};
use collimate_models::tokenizer::Tokenizer;

use super::context::{StageContext, StageError};
use super::recipe::CorpusConfig;
use crate::hub;

/// A model as a stage starts from it.
pub struct InputModel {
    /// Where it lies.
    pub dir: PathBuf,
    /// Its config.
    pub config: Arc<ModelConfig>,
    /// Its weights.
    pub weights: Weights,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl InputModel {
    /// Reads a model directory with its tokenizer; one of the hub is fetched if need be.
    pub fn load(dir: &Path, head: HeadKind, context: &StageContext<'_>) -> Result<Self, StageError> {
        let dir = &hub::model_dir(dir)?;
        let (config, weights) = load_model(dir, head, &context.device)?;
        let tokenizer = Tokenizer::load(dir)?.with_end_tokens(&config.eos_token_ids);
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(StageError::Setting(format!(
                "{}: the tokenizer has {} tokens, the model only {}",
                dir.display(),
                tokenizer.vocab_size(),
                config.vocab_size
            )));
        }
        Ok(Self { dir: dir.to_owned(), config, weights, tokenizer })
    }

    /// The tokens that end a response: the model's own, or else the tokenizer's.
    pub fn end_tokens(&self) -> Vec<u32> {
        if self.config.eos_token_ids.is_empty() {
            vec![self.tokenizer.eos()]
        } else {
            self.config.eos_token_ids.clone()
        }
    }
}

/// The recipe's corpus in this tokenizer's tokens; `user` is the key that needs it, for the message.
pub fn load_corpus(config: Option<&CorpusConfig>, tokenizer: &Tokenizer, user: &str) -> Result<Corpus, StageError> {
    let config = config.ok_or_else(|| StageError::Setting(format!("{user} needs a [corpus] table with `paths`")))?;
    Ok(Corpus::new(&read_paragraphs(&config.paths)?, tokenizer, config.heldout_share)?)
}
