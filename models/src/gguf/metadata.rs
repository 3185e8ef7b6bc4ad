//! What a GGUF file says about itself, key by key.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};

use crate::error::{Error, Result};

/// The settings and the table of tensors of a GGUF file.
pub struct Metadata<'a> {
    path: &'a Path,
    content: &'a Content,
}

impl<'a> Metadata<'a> {
    /// Those of the file at `path`.
    pub fn new(path: &'a Path, content: &'a Content) -> Self {
        Self { path, content }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.path
    }

    /// The file.
    pub fn content(&self) -> &Content {
        self.content
    }

    /// An error about the file.
    pub fn bad(&self, problem: impl Into<String>) -> Error {
        Error::bad_file(self.path, problem)
    }

    fn missing(&self, key: &str) -> Error {
        self.bad(format!("key `{key}` is missing"))
    }

    fn read<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.content.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.bad(format!("key `{key}` is {}, expected {expected}", shown(value))))
    }

    /// A text, where there is one.
    pub fn optional_text(&self, key: &str) -> Result<Option<String>> {
        self.read(key, "a text", |value| value.to_string().ok().cloned())
    }

    /// A text that must be there.
    pub fn text(&self, key: &str) -> Result<String> {
        self.optional_text(key)?.ok_or_else(|| self.missing(key))
    }

    /// A count, where there is one.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a count", count)
    }

    /// A count that must be there.
    pub fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key))
    }

    /// A number, where there is one.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", number)
    }

    /// True or false, where there is either.
    pub fn optional_flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", |value| value.to_bool().ok())
    }

    /// A list, where there is one.
    fn optional_list<T>(&self, key: &str, expected: &str, item: fn(&Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        self.read(key, expected, |value| value.to_vec().ok()?.iter().map(item).collect())
    }

    /// A list of texts that must be there.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        let texts = self.optional_list(key, "a list of texts", |value| value.to_string().ok().cloned())?;
        texts.ok_or_else(|| self.missing(key))
    }

    /// A list of numbers that must be there.
    pub fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        self.optional_list(key, "a list of numbers", number)?.ok_or_else(|| self.missing(key))
    }

    /// A list of counts, where there is one.
    pub fn optional_counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.optional_list(key, "a list of counts", count)
    }

    /// Whether there is a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// The shape of a tensor that must be there: rows first.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        let info = self.content.tensor_infos.get(name);
        info.map(|info| info.shape.dims()).ok_or_else(|| self.bad(format!("tensor `{name}` is missing")))
    }

    /// How many tensors there are of each type, the most frequent first.
    pub fn types(&self) -> Vec<(String, usize)> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for info in self.content.tensor_infos.values() {
            *counts.entry(format!("{:?}", info.ggml_dtype)).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counts
    }
}

fn count(value: &Value) -> Option<usize> {
    match value {
        Value::U8(n) => Some(usize::from(*n)),
        Value::U16(n) => Some(usize::from(*n)),
        Value::U32(n) => Some(*n as usize),
        Value::U64(n) => usize::try_from(*n).ok(),
        Value::I8(n) => usize::try_from(*n).ok(),
        Value::I16(n) => usize::try_from(*n).ok(),
        Value::I32(n) => usize::try_from(*n).ok(),
        Value::I64(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        // By way of its decimals, so that an f32 of 1e-5 is 1e-5 and not 0.00000999999974.
        Value::F32(x) => x.to_string().parse().ok(),
        Value::F64(x) => Some(*x),
        other => count(other).map(|n| n as f64),
    }
}

/// A value for a message, cut short.
fn shown(value: &Value) -> String {
    let mut text = format!("{value:?}");
    if let Some((at, _)) = text.char_indices().nth(60) {
        text.truncate(at);
        text.push('…');
    }
    text
}
