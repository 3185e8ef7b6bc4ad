//! Tokenizers, texts and models as stages read them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use collimate_models::Device;
use collimate_models::arch::{Adapter, HeadKind, ModelConfig, Weights, head_kind_of, load_model};
use collimate_models::data::corpus::{Corpus, read_paragraphs};
use collimate_models::tokenizer::Tokenizer;

use super::context::StageError;
use super::recipe::CorpusConfig;
use crate::hub;

/// A model as a stage starts from it.
pub struct InputModel {
    /// Where it lies.
    pub dir: PathBuf,
    /// What stands on its decoder.
    pub head: HeadKind,
    /// Its config.
    pub config: Arc<ModelConfig>,
    /// Its weights.
    pub weights: Weights,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl InputModel {
    /// Reads a model directory with its tokenizer; one of the hub is fetched if need be. Of a directory that holds an
    /// adapter of PEFT's, the model that it was trained on is read, with the adapter in its weights.
    pub fn load(dir: &Path, head: HeadKind, device: &Device) -> Result<Self, StageError> {
        Self::read(dir, Some(head), device)
    }

    /// The same, with whatever head the model has.
    pub fn load_any(dir: &Path, device: &Device) -> Result<Self, StageError> {
        Self::read(dir, None, device)
    }

    fn read(dir: &Path, wanted: Option<HeadKind>, device: &Device) -> Result<Self, StageError> {
        let dir = hub::model_dir(dir)?;
        let (head, config, weights, tokenizer_dir) = if Adapter::is_in(&dir) {
            let adapter = Adapter::load(&dir, device)?;
            let base = base_dir(&adapter, &dir)?;
            let base_head = head_kind_of(&base)?;
            let (config, weights) = load_model(&base, base_head, device)?;
            let (head, weights) = adapter.merged(&config, base_head, &weights)?;
            if wanted.is_some_and(|wanted| wanted != head) {
                let kind = |head| if head == HeadKind::Scalar { "a reward model" } else { "a language model" };
                let expected = if head == HeadKind::Scalar { HeadKind::Language } else { HeadKind::Scalar };
                return Err(StageError::Setting(format!(
                    "{} holds an adapter that makes {}, expected {}",
                    dir.display(),
                    kind(head),
                    kind(expected)
                )));
            }
            // The adapter may have come with a tokenizer of its own.
            let tokenizer_dir = if has_tokenizer(&dir) { dir.clone() } else { base };
            (head, config, weights, tokenizer_dir)
        } else {
            let head = wanted.map_or_else(|| head_kind_of(&dir), Ok)?;
            let (config, weights) = load_model(&dir, head, device)?;
            (head, config, weights, dir.clone())
        };
        let tokenizer = Tokenizer::load(&tokenizer_dir)?.with_end_tokens(&config.eos_token_ids);
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(StageError::Setting(format!(
                "{}: the tokenizer has {} tokens, the model only {}",
                tokenizer_dir.display(),
                tokenizer.vocab_size(),
                config.vocab_size
            )));
        }
        Ok(Self { dir, head, config, weights, tokenizer })
    }

    /// The model frozen, for adapters to stand on: [`Weights::into_base`].
    pub fn into_base(self) -> Result<Self, StageError> {
        Ok(Self { weights: self.weights.into_base(&self.config)?, ..self })
    }

    /// The model as adapters in `dir` make it, on the weights that this one, a base, already has in memory; `None` where
    /// the adapters are of another model, or are more than can stand on a base.
    pub fn with_adapters_in(&self, dir: &Path) -> Result<Option<Weights>, StageError> {
        if !Adapter::is_in(dir) {
            return Ok(None);
        }
        let adapter = Adapter::load(dir, self.weights.device())?;
        let real = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        if real(&base_dir(&adapter, dir)?) != real(&self.dir) {
            return Ok(None);
        }
        Ok(adapter.on_base(&self.config, &self.weights)?)
    }

    /// How an adapter names this model as its base: by its whole path.
    pub fn name(&self) -> String {
        self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone()).display().to_string()
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

fn has_tokenizer(dir: &Path) -> bool {
    dir.join("tokenizer.json").exists()
}

/// The directory of the model that an adapter was trained on. PEFT names models of the hub without a scheme.
fn base_dir(adapter: &Adapter, dir: &Path) -> Result<PathBuf, StageError> {
    let Some(name) = adapter.base() else {
        return Err(StageError::Setting(format!(
            "{}: adapter_config.json has no `base_model_name_or_path`, so which model it belongs to is not known; \
             `collimate merge` takes both by name",
            dir.display()
        )));
    };
    let path = Path::new(name);
    let is_bare_hub_name = !path.exists() && path.is_relative() && path.components().count() == 2;
    Ok(hub::model_dir(&if is_bare_hub_name { PathBuf::from(format!("hf:{name}")) } else { path.to_owned() })?)
}

/// The recipe's corpus in this tokenizer's tokens; `user` is the key that needs it, for the message.
pub fn load_corpus(config: Option<&CorpusConfig>, tokenizer: &Tokenizer, user: &str) -> Result<Corpus, StageError> {
    let config = config.ok_or_else(|| StageError::Setting(format!("{user} needs a [corpus] table with `paths`")))?;
    Ok(Corpus::new(&read_paragraphs(&config.paths)?, tokenizer, config.heldout_share)?)
}
