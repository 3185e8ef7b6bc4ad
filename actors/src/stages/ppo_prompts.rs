//! The prompts of PPO: of a file, or cut from the corpus.

use std::collections::HashMap;

use collimate_models::data::Records;
use collimate_models::data::corpus::{Corpus, Split, split_by_index};
use collimate_models::data::limit::{LengthCounts, LengthLimit};
use collimate_models::data::prompts::tokenize_prompts;
use collimate_protocol::records::PromptText;

use super::context::{StageError, StageObserver};
use super::inputs::ModelFiles;
use super::ppo_config::PpoStageConfig;
use super::recipe::CorpusConfig;

/// Prompts in tokens.
type TokenPrompts = Vec<Vec<u32>>;

/// Prompts of a stage.
pub struct Prompts {
    /// To sample from.
    pub train: TokenPrompts,
    /// That both policies are judged on.
    pub heldout: TokenPrompts,
    /// What those of a file say, by their tokens.
    pub texts: HashMap<Vec<u32>, PromptText>,
}

/// Reads or cuts the prompts that the settings name.
pub fn load_prompts(
    config: &PpoStageConfig,
    sft: &ModelFiles,
    corpus: Option<&CorpusConfig>,
    cut: Option<&Corpus>,
    observer: &mut dyn StageObserver,
) -> Result<Prompts, StageError> {
    let stage = &config.stage;
    let mut texts = HashMap::new();
    let (train, mut heldout) = match (&stage.prompts, corpus.zip(cut)) {
        (Some(path), _) => {
            let records = Records::read(path)?;
            let (context_len, n_response) = (sft.config.context_len, stage.max_new_tokens);
            let limit = LengthLimit::leaving_room(stage.max_prompt_tokens, context_len, n_response, stage.too_long)?;
            let mut counts = LengthCounts::default();
            let fitted = tokenize_prompts(&records, &sft.tokenizer, limit)?;
            let mut prompts = TokenPrompts::new();
            for (record, prompt) in records.into_records().into_iter().zip(fitted) {
                let Some(prompt) = counts.count(prompt) else { continue };
                texts.insert(prompt.clone(), record.prompt);
                prompts.push(prompt);
            }
            if let Some(told) = counts.tell("prompts", limit) {
                observer.warn(&told);
            }
            split_by_index(prompts, stage.evaluate.heldout_share)
        }
        (None, Some((lengths, cut))) => {
            let prompts = |split| -> TokenPrompts {
                let continuations = cut.continuations(split, lengths.prompt_tokens, lengths.response_tokens);
                continuations.into_iter().map(|continuation| continuation.prompt).collect()
            };
            let n_tokens = lengths.prompt_tokens + usize::from(sft.tokenizer.bos().is_some());
            if n_tokens + stage.max_new_tokens > sft.config.context_len {
                return Err(StageError::Setting(format!(
                    "corpus.prompt_tokens = {} and ppo.max_new_tokens = {} do not fit the model's context of {}",
                    lengths.prompt_tokens, stage.max_new_tokens, sft.config.context_len
                )));
            }
            (prompts(Split::Train), prompts(Split::Heldout))
        }
        (None, None) => {
            return Err(StageError::Setting("[ppo] needs `prompts`, or a [corpus] table to cut them from".into()));
        }
    };
    if train.is_empty() || heldout.is_empty() {
        return Err(StageError::Setting(format!(
            "{} prompts to sample from and {} held out: there must be at least one of each",
            train.len(),
            heldout.len()
        )));
    }
    heldout.truncate(stage.evaluate.n_prompts);
    Ok(Prompts { train, heldout, texts })
}
