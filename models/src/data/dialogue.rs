//! Dialogues as people store them.

use collimate_protocol::records::{Message, Role};
use serde_json::{Map, Value};

/// What is wrong with a value, said with its key.
pub(super) type Problem<T> = Result<T, String>;

/// A value in a message, cut short.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The messages of a list: OpenAI's `role` and `content`, or ShareGPT's `from` and `value`.
pub(super) fn messages(key: &str, value: &Value) -> Problem<Vec<Message>> {
    let Some(items) = value.as_array() else {
        return Err(format!("key `{key}` is {}, expected a list of messages", shown(value)));
    };
    items.iter().enumerate().map(|(i, item)| message(&format!("{key}[{i}]"), item)).collect()
}

/// One message.
pub(super) fn message(key: &str, value: &Value) -> Problem<Message> {
    let Some(map) = value.as_object() else {
        return Err(format!("key `{key}` is {}, expected a message", shown(value)));
    };
    if let Some(name) = ["tool_calls", "function_call", "images"].into_iter().find(|name| is_given(map, name)) {
        return Err(format!("key `{key}.{name}` is not supported: dialogues are text"));
    }
    let (role_key, content_key) = if map.contains_key("from") { ("from", "value") } else { ("role", "content") };
    let field = |name: &str| map.get(name).ok_or_else(|| format!("key `{key}.{name}` is missing"));
    let role = match field(role_key)?.as_str() {
        Some("system" | "developer") => Role::System,
        Some("user" | "human" | "prompter") => Role::User,
        Some("assistant" | "gpt" | "chatgpt" | "bot" | "model") => Role::Assistant,
        _ => {
            let found = shown(&map[role_key]);
            return Err(format!("key `{key}.{role_key}` is {found}, expected system, user (human) or assistant (gpt)"));
        }
    };
    Ok(Message { role, content: content(&format!("{key}.{content_key}"), field(content_key)?)? })
}

fn is_given(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name).is_some_and(|value| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()))
}

/// A text, or a list of parts that are all texts.
fn content(key: &str, value: &Value) -> Problem<String> {
    let part = |part: &Value| (part.get("type")? == "text").then(|| part.get("text")?.as_str().map(str::to_owned))?;
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect::<Option<String>>(),
        _ => None,
    }
    .ok_or_else(|| format!("key `{key}` is {}, expected a text", shown(value)))
}

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// A transcript as hh-rlhf has it (Bai et al. 2022): turns begin with "Human:" and "Assistant:" after a blank line.
pub(super) fn transcript(key: &str, text: &str) -> Problem<Vec<Message>> {
    let mut rest = text;
    let mut messages = Vec::new();
    loop {
        let (role, after) = match (rest.strip_prefix(HUMAN), rest.strip_prefix(ASSISTANT)) {
            (Some(after), _) => (Role::User, after),
            (_, Some(after)) => (Role::Assistant, after),
            _ => {
                let start: String = rest.chars().take(30).collect();
                return Err(format!("key `{key}` begins with {start:?}, expected a transcript: {HUMAN:?}"));
            }
        };
        let end = [HUMAN, ASSISTANT].iter().filter_map(|marker| after.find(marker)).min().unwrap_or(after.len());
        messages.push(Message { role, content: after[..end].trim().to_owned() });
        rest = &after[end..];
        if rest.is_empty() {
            return Ok(messages);
        }
    }
}

/// The turns up to the assistant's last answer, and the answer.
pub(super) fn split_answer(key: &str, mut messages: Vec<Message>) -> Problem<(Vec<Message>, String)> {
    match messages.pop() {
        Some(last) if last.role == Role::Assistant && messages.iter().any(|turn| turn.role == Role::User) => {
            Ok((messages, last.content))
        }
        Some(_) => Err(format!("key `{key}` does not end with an answer of the assistant's to the user")),
        None => Err(format!("key `{key}` holds no message")),
    }
}
