//! Tokenizers, texts and models as stages read them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use collimate_models::Device;
use collimate_models::arch::{
    Adapter, HeadKind, ModelConfig, Precision, Weights, head_kind_of, load_config, load_model,
};
use collimate_models::data::corpus::{Corpus, read_paragraphs};
use collimate_models::tokenizer::Tokenizer;

use super::context::StageError;
use super::recipe::CorpusConfig;
use crate::hub;

/// A model that a stage is to start from, before its weights are read.
#[derive(Clone)]
pub struct ModelFiles {
    /// Where it lies.
    pub dir: PathBuf,
    /// What stands on its decoder.
    pub head: HeadKind,
    /// Its config.
    pub config: Arc<ModelConfig>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What its adapters take, where it is an adapter.
    pub adapter_bytes: u64,
    /// The model that it is an adapter on, where it is one, with that one's head.
    base: Option<(PathBuf, HeadKind)>,
}

impl ModelFiles {
    /// Reads config and tokenizer of a model directory; a model of the hub is fetched if need be. A directory that holds an
    /// adapter of PEFT's stands for the model that it was trained on with the adapter in its weights.
    pub fn open(dir: &Path, head: HeadKind) -> Result<Self, StageError> {
        Self::read(dir, Some(head))
    }

    /// The same, with whatever head the model has.
    pub fn open_any(dir: &Path) -> Result<Self, StageError> {
        Self::read(dir, None)
    }

    fn read(dir: &Path, wanted: Option<HeadKind>) -> Result<Self, StageError> {
        let dir = hub::model_dir(dir)?;
        let (mut base, mut adapter_bytes) = (None, 0);
        let (mut config_dir, mut tokenizer_dir) = (dir.clone(), dir.clone());
        let head = if Adapter::is_in(&dir) {
            // Only what it says is read here; a few megabytes.
            let adapter = Adapter::load(&dir, &Device::Cpu)?;
            config_dir = base_dir(&adapter, &dir)?;
            let base_head = head_kind_of(&config_dir)?;
            if !has_tokenizer(&dir) {
                tokenizer_dir.clone_from(&config_dir);
            }
            base = Some((config_dir.clone(), base_head));
            adapter_bytes = adapter.n_bytes();
            let head = adapter.head(base_head);
            if wanted.is_some_and(|wanted| wanted != head) {
                let [made, expected] = match head {
                    HeadKind::Scalar => ["a reward model", "a language model"],
                    HeadKind::Language => ["a language model", "a reward model"],
                };
                return Err(StageError::Setting(format!(
                    "{} holds an adapter that makes {made}, expected {expected}",
                    dir.display()
                )));
            }
            head
        } else {
            wanted.map_or_else(|| head_kind_of(&dir), Ok)?
        };
        let config = Arc::new(load_config(&config_dir)?);
        let tokenizer = Tokenizer::load(&tokenizer_dir)?.with_end_tokens(&config.eos_token_ids);
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(StageError::Setting(format!(
                "{}: the tokenizer has {} tokens, the model only {}",
                tokenizer_dir.display(),
                tokenizer.vocab_size(),
                config.vocab_size
            )));
        }
        Ok(Self { dir, head, config, tokenizer, adapter_bytes, base })
    }

    /// Whether this is an adapter on that model, which can stand on its weights as a base.
    pub fn stands_on(&self, model: &Self) -> bool {
        let real = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        self.base.as_ref().is_some_and(|(base, _)| real(base) == real(&model.dir)) && model.base.is_none()
    }

    /// How an adapter names this model as its base: by its whole path.
    pub fn name(&self) -> String {
        self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone()).display().to_string()
    }

    /// Reads the weights, which models then multiply like this.
    pub fn load(&self, device: &Device, precision: Precision) -> Result<InputModel, StageError> {
        let weights = match &self.base {
            None => load_model(&self.dir, self.head, device)?.1,
            Some((base, head)) => {
                let (config, weights) = load_model(base, *head, device)?;
                Adapter::load(&self.dir, device)?.merged(&config, *head, &weights)?.1
            }
        };
        Ok(InputModel { config: self.config.clone(), weights: weights.with_precision(precision) })
    }
}

/// A model as a stage starts from it.
#[derive(Clone)]
pub struct InputModel {
    /// Its config.
    pub config: Arc<ModelConfig>,
    /// Its weights.
    pub weights: Weights,
}

impl InputModel {
    /// The model frozen, for adapters to stand on: [`Weights::into_base`].
    pub fn into_base(self) -> Result<Self, StageError> {
        Ok(Self { weights: self.weights.into_base(&self.config)?, ..self })
    }

    /// The adapters of a model that [stands on](ModelFiles::stands_on) this one, a base, on the weights that this one has
    /// in memory already; `None` where they are more than can stand on a base.
    pub fn with_adapters_of(&self, other: &ModelFiles) -> Result<Option<Weights>, StageError> {
        Ok(Adapter::load(&other.dir, self.weights.device())?.on_base(&self.config, &self.weights)?)
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
    if path.exists() || hub::is_hub_name(path) {
        return Ok(hub::model_dir(path)?);
    }
    if path.is_relative() && path.components().count() == 2 {
        return Ok(hub::model_dir(&PathBuf::from(format!("hf:{name}")))?);
    }
    Err(StageError::Setting(format!(
        "{}: adapter_config.json names {name} as the model that it belongs to, and nothing is there; `collimate merge` \
         takes both by name",
        dir.display()
    )))
}

/// The recipe's corpus in this tokenizer's tokens; `user` is the key that needs it, for the message.
pub fn load_corpus(config: Option<&CorpusConfig>, tokenizer: &Tokenizer, user: &str) -> Result<Corpus, StageError> {
    let config = config.ok_or_else(|| StageError::Setting(format!("{user} needs a [corpus] table with `paths`")))?;
    Ok(Corpus::new(&read_paragraphs(&config.paths)?, tokenizer, config.heldout_share)?)
}
