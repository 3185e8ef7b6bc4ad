//! Dialogues as the model was taught to read them: a Jinja template, rendered as transformers renders it.
//!
//! The template comes with the tokenizer. It writes the beginning token itself where the model wants one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use collimate_protocol::records::Message;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error as JinjaError, ErrorKind};
use regex::Regex;

use crate::error::{Error, Result};

const NAME: &str = "chat_template";

/// A compiled template. A clone shares it.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    /// `bos_token`, `eos_token` and the like, by name.
    special_tokens: BTreeMap<String, String>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are the tokenizer's, by name: `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// A template that is not valid Jinja; the line is named.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        // transformers' settings: `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)`.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("Jinja's own delimiters"));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| Error::invalid(format!("the chat template is broken: {}", described(&error))))?;
        Ok(Self { environment: Arc::new(environment), source: source.into(), special_tokens })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The dialogue as one text. With `add_generation_prompt` it ends with what the assistant's turn begins with.
    ///
    /// # Errors
    /// What the template refuses, in its own words: many take no system turn, or want user and assistant in turns.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let failed = |error: JinjaError| Error::invalid(format!("the chat template: {}", described(&error)));
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let none = || Value::from(());
        let mut given: BTreeMap<&str, Value> =
            self.special_tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))).collect();
        given.insert("messages", Value::from(Serde(messages)));
        given.insert("add_generation_prompt", add_generation_prompt.into());
        given.extend([("tools", none()), ("documents", none())]);
        template.render(given).map_err(failed)
    }
}

/// `{% generation %}` marks the assistant's text for training in transformers and prints nothing. As a condition that
/// always holds it treats the space around it in the same way.
fn without_generation_tags(source: &str) -> String {
    let tag = |name: &str| Regex::new(&format!(r"\{{%(-?)\s*{name}\s*(-?)%\}}")).expect("a valid pattern");
    let opened = tag("generation").replace_all(source, "{%$1 if true $2%}");
    tag("endgeneration").replace_all(&opened, "{%$1 endif $2%}").into_owned()
}

/// What the template has to say, without minijinja's framing.
fn described(error: &JinjaError) -> String {
    let detail = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

fn raise_exception(message: String) -> std::result::Result<String, JinjaError> {
    Err(JinjaError::new(ErrorKind::InvalidOperation, message))
}

/// Now, in this format of `strftime`.
fn strftime_now(format: String) -> std::result::Result<String, JinjaError> {
    let bad = |error: jiff::Error| JinjaError::new(ErrorKind::InvalidOperation, error.to_string());
    jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now()).map_err(bad)
}

/// `json.dumps(value, ensure_ascii=False)`, which unlike minijinja's own filter escapes nothing for HTML and puts
/// spaces after commas and colons.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<String, JinjaError> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let bad = |error: serde_json::Error| JinjaError::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(n) => {
            let indent = " ".repeat(n);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
        None => serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)),
    }
    .map_err(bad)?;
    String::from_utf8(bytes).map_err(|error| JinjaError::new(ErrorKind::BadSerialization, error.to_string()))
}

/// JSON on one line as Python writes it.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use collimate_protocol::records::Role;

    use super::*;

    fn rendered(source: &str, contents: &[&str]) -> Result<String> {
        let messages: Vec<Message> =
            contents.iter().map(|content| Message { role: Role::User, content: (*content).to_owned() }).collect();
        ChatTemplate::new(source, BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]))?.render(&messages, true)
    }

    #[test]
    fn a_template_says_in_its_own_words_what_it_refuses() {
        let message = rendered("{{ bos_token }}\n{{ raise_exception('no such turn') }}", &["a"]).unwrap_err();
        assert_eq!(message.to_string(), "the chat template: no such turn (line 2)");
        let message = rendered("{% for m in messages %}", &[]).unwrap_err().to_string();
        assert!(message.starts_with("the chat template is broken: ") && message.contains("(line 1)"), "{message}");
    }

    #[test]
    fn text_is_never_escaped_and_json_is_pythons() {
        assert_eq!(rendered("{{ messages[0].content }}", &["<a href='x'>&"]).unwrap(), "<a href='x'>&");
        let json = rendered("{{ messages[0] | tojson }}", &["<é>\n"]).unwrap();
        assert_eq!(json, r#"{"role": "user", "content": "<é>\n"}"#);
    }

    #[test]
    fn the_year_is_told() {
        let year = rendered("{{ strftime_now('%Y') }}", &[]).unwrap();
        assert!(year.len() == 4 && year.parse::<u32>().is_ok_and(|year| year > 2024), "{year}");
    }
}
