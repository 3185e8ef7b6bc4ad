//! Text to token ids and back, by HuggingFace's tokenizer files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use collimate_protocol::RoleError;
use collimate_protocol::roles::Detokenizer;

use crate::chat::ChatTemplate;
use crate::durable;
use crate::error::{Error, Result};

/// The end token of the tokenizers trained here: it ends responses and stands between documents.
pub const END_TOKEN: &str = "<|endoftext|>";

const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// The dialogues of those who have no template of their own.
const TRANSCRIPT: &str = "\
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{{ message.content }}
    {%- elif message.role == 'user' -%}{{ '\n\nHuman: ' ~ message.content }}
    {%- else -%}{{ '\n\nAssistant: ' ~ message.content ~ eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\n\nAssistant:' }}{%- endif -%}";

/// A byte has this many values, each a token of a byte-level vocabulary.
const N_BYTES: usize = 256;

/// A tokenizer with what `tokenizer_config.json` says about its special tokens.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    config: Map<String, Value>,
    bos: Option<u32>,
    eos: u32,
    /// The tokens that end a response; `eos` among them.
    end_tokens: Vec<u32>,
    /// Compiled, or what is wrong with it: who needs none is not troubled by a broken one.
    template: std::result::Result<ChatTemplate, String>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, with `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` where
    /// they are there.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(TOKENIZER_FILE);
        let bytes = fs::read(&path).map_err(|source| Error::io(&path, source))?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| Error::bad_file(&path, format!("is no tokenizer: {error}")))?;
        let mut config = read_object(&dir.join(SPECIAL_TOKENS_FILE))?;
        config.extend(read_object(&dir.join(CONFIG_FILE))?);
        let template_path = dir.join(TEMPLATE_FILE);
        if template_path.exists() {
            let template = fs::read_to_string(&template_path).map_err(|source| Error::io(&template_path, source))?;
            config.insert("chat_template".into(), json!(template));
        }
        Self::new(inner, config).map_err(|error| Error::bad_file(&path, error.to_string()))
    }

    /// Learns a byte-level byte pair encoding (Sennrich et al. 2016; Radford et al. 2019) from texts. The end token
    /// has id 0, `special_tokens` follow, then the bytes, then the merges. The same texts in any order give the same
    /// tokenizer. Texts with too few pairs to merge give a smaller vocabulary than asked for.
    pub fn train_byte_level_bpe<S: AsRef<str> + Send>(
        texts: impl IntoIterator<Item = S, IntoIter: Send>,
        vocab_size: usize,
        special_tokens: &[&str],
    ) -> Result<Self> {
        let specials: Vec<&str> = std::iter::once(END_TOKEN).chain(special_tokens.iter().copied()).collect();
        let smallest = N_BYTES + specials.len();
        if vocab_size < smallest {
            return Err(Error::invalid(format!(
                "a byte-level vocabulary needs at least {smallest} tokens ({N_BYTES} bytes and {} special tokens), not \
                 {vocab_size}",
                specials.len()
            )));
        }
        // No space is put before the first word, so that decoding gives the text back.
        let byte_level = ByteLevel::new(false, false, true);
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(specials.iter().map(|token| AddedToken::from(*token, true)).collect())
            .build();
        let mut inner: TokenizerImpl<
            BPE,
            NormalizerWrapper,
            PreTokenizerWrapper,
            PostProcessorWrapper,
            DecoderWrapper,
        > = TokenizerImpl::new(BPE::default());
        inner.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
        inner.train(&mut trainer, texts.into_iter()).map_err(|error| Error::invalid(error.to_string()))?;
        // Through its JSON form: from here on a trained tokenizer is what a loaded one is.
        let text = inner.to_string(false).map_err(|error| Error::invalid(error.to_string()))?;
        let inner = text.parse().map_err(|error: tokenizers::Error| Error::invalid(error.to_string()))?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_TOKEN, "eos_token": END_TOKEN,
            // transformers would otherwise drop spaces before punctuation when it decodes.
            "clean_up_tokenization_spaces": false,
        });
        Self::new(inner, config.as_object().cloned().unwrap_or_default())
    }

    /// From the content of `tokenizer.json` and `tokenizer_config.json`.
    pub(crate) fn from_json(tokenizer: &Value, config: Map<String, Value>) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(tokenizer.to_string())
            .map_err(|error| Error::invalid(format!("is no tokenizer: {error}")))?;
        Self::new(inner, config)
    }

    fn new(mut inner: tokenizers::Tokenizer, config: Map<String, Value>) -> Result<Self> {
        // A file may ask for either; sequences here are ragged, and a text cut unseen would be another text.
        inner.with_truncation(None).map_err(|error| Error::invalid(error.to_string()))?;
        inner.with_padding(None);
        let eos_token = token_text(&config, "eos_token").unwrap_or(END_TOKEN).to_owned();
        let eos = inner.token_to_id(&eos_token).ok_or_else(|| {
            Error::invalid(format!("the end token `{eos_token}` is not in the vocabulary (`eos_token` names it)"))
        })?;
        let bos = token_text(&config, "bos_token").and_then(|token| inner.token_to_id(token));
        let bos = match config.get("add_bos_token").and_then(Value::as_bool) {
            Some(adds) => bos.filter(|_| adds),
            None => {
                let empty = inner.encode("", true).map_err(|error| Error::invalid(error.to_string()))?;
                bos.filter(|bos| empty.get_ids().first() == Some(bos))
            }
        };
        let template = compiled_template(&config);
        Ok(Self { inner, config, bos, eos, end_tokens: vec![eos], template })
    }

    /// Writes the files that [`load`](Self::load) and transformers' `AutoTokenizer` read.
    pub fn save(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))?;
        let text = self.inner.to_string(true).map_err(|error| Error::invalid(error.to_string()))?;
        durable::write_file(&dir.join(TOKENIZER_FILE), text.as_bytes())?;
        let is_special = |name: &str| name.ends_with("_token") && token_text(&self.config, name).is_some();
        let specials: Map<String, Value> =
            self.config.iter().filter(|(name, _)| is_special(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
        write_object(&dir.join(SPECIAL_TOKENS_FILE), &specials)?;
        write_object(&dir.join(CONFIG_FILE), &self.config)
    }

    /// The ids of a text. No beginning and no end token is added. A special token spelled out in the text becomes
    /// that token, as in transformers.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|error| Error::invalid(format!("a text can't be tokenized: {error}")))?.get_ids().to_vec())
    }

    /// The text of these ids, special tokens left out. Bytes that are no UTF-8 become U+FFFD; an id outside the
    /// vocabulary (a model may have spare rows) has no text.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(|error| Error::invalid(format!("tokens can't be decoded: {error}")))
    }

    /// The text of these ids, special tokens spelled out.
    pub fn decode_with_specials(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, false).map_err(|error| Error::invalid(format!("tokens can't be decoded: {error}")))
    }

    /// The token to put before every sequence, where the tokenizer is one that does so; exactly one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a response.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The tokens that end a response: `eos`, and what the model has besides.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The same tokenizer for a model that ends responses with these tokens too.
    pub fn with_end_tokens(mut self, ids: &[u32]) -> Self {
        self.end_tokens.extend(ids.iter().filter(|id| **id != self.eos));
        self
    }

    /// The texts of the end tokens.
    pub fn end_texts(&self) -> impl Iterator<Item = String> {
        self.end_tokens.iter().filter_map(|id| self.inner.id_to_token(*id))
    }

    /// Whether the files have a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.config.contains_key("chat_template")
    }

    /// How a dialogue is written as one text. Where the files have no template, it is a transcript as Bai et al. 2022
    /// have it: "Human:" and "Assistant:" before the turns, an end token after each of the assistant's.
    ///
    /// # Errors
    /// The template is not valid Jinja.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().map_err(Error::invalid)
    }

    /// The same tokenizer with this chat template, which [`save`](Self::save) writes.
    ///
    /// # Errors
    /// The template is not valid Jinja.
    pub fn with_chat_template(mut self, template: &str) -> Result<Self> {
        self.config.insert("chat_template".into(), json!(template));
        self.template = compiled_template(&self.config);
        self.chat_template()?;
        Ok(self)
    }

    /// The id of a token by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Rows that an embedding needs: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Refuses two models with different tokenizers: token ids pass from one to the other as they are. `this` and
    /// `other_name` are whose they are, for the message.
    pub fn require_same(&self, this: &str, other: &Tokenizer, other_name: &str) -> Result<()> {
        let differ = |what: String| {
            Err(Error::invalid(format!(
                "{this} and {other_name} must share one tokenizer, since token ids pass between them: {what}"
            )))
        };
        let by_id = |tokenizer: &Tokenizer| -> BTreeMap<u32, String> {
            tokenizer.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect()
        };
        let (a, b) = (by_id(self), by_id(other));
        if let Some(id) = a.keys().chain(b.keys()).filter(|id| a.get(id) != b.get(id)).min() {
            let text = |token: Option<&String>| token.map_or("absent".to_owned(), |token| format!("`{token}`"));
            return differ(format!(
                "token {id} is {} in the one and {} in the other",
                text(a.get(id)),
                text(b.get(id))
            ));
        }
        if self.eos != other.eos {
            return differ(format!("their end tokens are {} and {}", self.eos, other.eos));
        }
        let (a, b) = (self.as_json()?, other.as_json()?);
        // What turns text into ids. Decoders and templates may differ.
        match ["model", "normalizer", "pre_tokenizer", "added_tokens"].iter().find(|part| a.get(part) != b.get(part)) {
            None => Ok(()),
            Some(part) => differ(format!("their `{part}` differs, so one text has two encodings")),
        }
    }

    fn as_json(&self) -> Result<Value> {
        let text = self.inner.to_string(false).map_err(|error| Error::invalid(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| Error::invalid(error.to_string()))
    }
}

impl Detokenizer for Tokenizer {
    fn decode(&self, tokens: &[u32]) -> std::result::Result<String, RoleError> {
        Ok(self.decode(tokens)?)
    }
}

/// A special token stands as its text, or as an object with its text under `content`.
fn token_text<'a>(config: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    let value = config.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The template of `tokenizer_config.json`: a text, or a list of several by name of which `default` counts.
fn compiled_template(config: &Map<String, Value>) -> std::result::Result<ChatTemplate, String> {
    let named = |templates: &Vec<Value>| {
        let default = templates.iter().find(|template| template["name"] == "default");
        default.and_then(|template| template["template"].as_str()).map(str::to_owned)
    };
    let source = match config.get("chat_template") {
        None | Some(Value::Null) => Some(TRANSCRIPT.to_owned()),
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(templates)) => named(templates),
        Some(_) => None,
    };
    let source =
        source.ok_or("`chat_template` of tokenizer_config.json is neither a text nor a list with a `default`")?;
    let specials = config.keys().filter(|name| name.ends_with("_token"));
    let specials = specials.filter_map(|name| Some((name.clone(), token_text(config, name)?.to_owned()))).collect();
    ChatTemplate::new(&source, specials).map_err(|error| error.to_string())
}

/// The JSON object in a file; empty where there is no file.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_str(&text).map_err(|error| Error::bad_file(path, format!("is no JSON object: {error}")))
}

fn write_object(path: &Path, map: &Map<String, Value>) -> Result<()> {
    let mut text = serde_json::to_string_pretty(map).map_err(|error| Error::invalid(error.to_string()))?;
    text.push('\n');
    durable::write_file(path, text.as_bytes())
}

#[cfg(test)]
mod tests;
