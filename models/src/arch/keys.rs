//! Reading `config.json` key by key, so that what nobody read can be refused.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Keys that say nothing about the computation here.
const IGNORED: &[&str] = &[
    "_name_or_path",
    "_num_labels",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "auto_map",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "classifier_dropout_prob",
    "dtype",
    "embd_pdrop",
    "embed_dropout",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "model_type",
    "n_ctx",
    "n_special",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "predict_special_tokens",
    "pretraining_tp",
    "problem_type",
    "resid_dropout",
    "resid_pdrop",
    "return_dict",
    "rope_interleaved",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_return_dict",
];

/// One token id or several; `None` where the value is neither.
pub fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(items) => items.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}

/// The keys of an object that are not read yet. A key whose value is null counts as absent.
pub struct Keys<'a> {
    path: &'a Path,
    /// What stands before each key in messages: empty, or the name of an inner object with a dot.
    prefix: String,
    map: Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// The keys of the object in the file at `path`.
    pub fn new(path: &'a Path, map: Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), map }
    }

    /// An error about the file.
    pub fn bad(&self, problem: impl Into<String>) -> Error {
        Error::bad_file(self.path, problem)
    }

    /// An error about a key whose value is not what it should be.
    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.bad(format!("`{}{key}` is {value}, expected {expected}", self.prefix))
    }

    /// Takes a key's value.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    /// Takes the keys of an inner object.
    pub fn object(&mut self, key: &str) -> Result<Option<Keys<'a>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Keys { path: self.path, prefix: format!("{}{key}.", self.prefix), map }))
            }
            Some(other) => Err(self.wrong(key, &other, "an object")),
        }
    }

    /// Takes a positive integer.
    pub fn count(&mut self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let n = value.as_u64().filter(|&n| n > 0);
        n.map(|n| Some(n as usize)).ok_or_else(|| self.wrong(key, &value, "a positive integer"))
    }

    /// Takes a positive integer that must be there.
    pub fn required_count(&mut self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    /// Takes a number.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, &value, "a number"))
    }

    /// Takes a number that must be there.
    pub fn required_number(&mut self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    /// Takes true or false.
    pub fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.take(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, &value, "true or false"))
    }

    /// Takes a text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &other, "a text")),
        }
    }

    /// Takes a list of texts.
    pub fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let text = |item: &Value| item.as_str().map(str::to_owned);
        let texts = value.as_array().and_then(|items| items.iter().map(text).collect());
        texts.map(Some).ok_or_else(|| self.wrong(key, &value, "a list of texts"))
    }

    /// Takes token ids: one, a list, or none.
    pub fn token_ids(&mut self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        token_ids(&value).ok_or_else(|| self.wrong(key, &value, "token ids"))
    }

    /// Refuses a key whose value asks for something that is not implemented.
    pub fn must_be(&mut self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.take(key) {
            Some(value) if !allowed.contains(&value) => Err(self.unsupported(key, &value, allowed)),
            _ => Ok(()),
        }
    }

    /// An error about a value that asks for something that is not implemented.
    pub fn unsupported(&self, key: &str, value: &Value, supported: &[Value]) -> Error {
        let supported: Vec<String> = match supported {
            [] => vec!["none".into()],
            several => several.iter().map(Value::to_string).collect(),
        };
        let supported = supported.join(", ");
        self.bad(format!("`{}{key}` is {value}, which is not supported (supported: {supported})", self.prefix))
    }

    /// An error about a key that is not there.
    pub fn missing(&self, key: &str) -> Error {
        self.bad(format!("key `{}{key}` is missing", self.prefix))
    }

    /// Refuses keys that are left: they may change the computation.
    pub fn finish(mut self) -> Result<()> {
        if self.prefix.is_empty() {
            for key in IGNORED {
                self.map.remove(*key);
            }
        }
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => Err(self.bad(format!(
                "key `{}{key}` (= {value}) is not known for this model type, so it can't be honoured",
                self.prefix
            ))),
        }
    }
}
