//! The text of each token of a rollout that was not recorded token by token, by the run's own tokenizer.

use std::path::Path;

use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::FinishReason;
use collimate_protocol::records::RolloutRecord;

use crate::rundir::RunDir;
use crate::rundir::pieces::pieces;
use crate::stages::inputs::ModelFiles;
use crate::stages::recipe::Recipe;
use crate::stages::run::input_models;

/// The tokenizer of the models that the run in a directory trains; `None` where they are not on this machine any more.
pub fn tokenizer_of(root: &Path) -> Option<Tokenizer> {
    let dir = RunDir::existing(root).ok()?;
    let recipe = Recipe::of_run(&dir)?;
    let (sft, _) = input_models(&recipe, &dir).ok()?;
    // To look at a run fetches nothing.
    let files = sft.exists().then(|| ModelFiles::open_any(&sft))?.ok()?;
    Some(files.tokenizer)
}

/// The text of each token of the response, of which the end token has none; `None` where the tokenizer reads the tokens
/// as another text than was recorded.
pub fn texts_of(record: &RolloutRecord, tokenizer: &Tokenizer) -> Option<Vec<String>> {
    let n = record.response_tokens.len();
    let n_body = if record.finish == FinishReason::End { n.saturating_sub(1) } else { n };
    let mut texts = pieces(&record.response_tokens[..n_body], tokenizer).ok()?;
    texts.resize(n, String::new());
    (texts.concat() == record.response).then_some(texts)
}
