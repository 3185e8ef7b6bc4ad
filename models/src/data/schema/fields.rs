//! Columns of a row, each read as what it should be.

use collimate_protocol::records::{Message, PromptText, Role};
use serde_json::{Map, Value};

use super::super::dialogue::{Problem, message, messages, shown, split_answer, transcript};

pub fn is_given(row: &Map<String, Value>, key: &str) -> bool {
    row.get(key).is_some_and(|value| !value.is_null())
}

/// The first of these names that is there; one is.
pub fn first(row: &Map<String, Value>, names: &[&'static str]) -> &'static str {
    names.iter().copied().find(|name| is_given(row, name)).unwrap_or(names[0])
}

pub fn text(row: &Map<String, Value>, key: &str) -> Problem<String> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("key `{key}` is {}, expected a text", shown(other))),
        None => Err(format!("key `{key}` is missing")),
    }
}

pub fn texts(row: &Map<String, Value>, key: &str) -> Problem<Vec<String>> {
    parsed(row, key, "a list of texts")
}

pub fn parsed<T: serde::de::DeserializeOwned>(row: &Map<String, Value>, key: &str, expected: &str) -> Problem<T> {
    serde_json::from_value(row[key].clone())
        .map_err(|error| format!("key `{key}` is {}, expected {expected} ({error})", shown(&row[key])))
}

/// A prompt: text, or a dialogue.
pub fn prompt(row: &Map<String, Value>, key: &str) -> Problem<PromptText> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(PromptText::Text(text.clone())),
        Some(value @ Value::Array(_)) => messages(key, value).map(PromptText::Messages),
        Some(other) => Err(format!("key `{key}` is {}, expected a text or a list of messages", shown(other))),
        None => Err(format!("key `{key}` is missing")),
    }
}

/// Instruction and input as one turn, after the turns of `history`.
pub fn alpaca(row: &Map<String, Value>) -> Problem<Vec<Message>> {
    let optional = |key: &str| if is_given(row, key) { text(row, key) } else { Ok(String::new()) };
    let mut turns = Vec::new();
    let mut add = |role, content: String| turns.push(Message { role, content });
    let system = optional("system")?;
    if !system.is_empty() {
        add(Role::System, system);
    }
    if is_given(row, "history") {
        let history: Vec<[String; 2]> = parsed(row, "history", "a list of pairs of texts")?;
        for [asked, answered] in history {
            add(Role::User, asked);
            add(Role::Assistant, answered);
        }
    }
    let (instruction, input) = (text(row, "instruction")?, optional("input")?);
    add(Role::User, if input.is_empty() { instruction } else { format!("{instruction}\n{input}") });
    Ok(turns)
}

/// Prompt and response of one side of a preference.
pub fn answer(row: &Map<String, Value>, side: &str) -> Problem<(PromptText, String)> {
    let prompt_key = ["prompt", "conversations", "messages", "question"].into_iter().find(|key| is_given(row, key));
    let given = prompt_key.map(|key| prompt(row, key)).transpose()?;
    let turns = match row.get(side) {
        Some(Value::String(response)) => {
            return match given {
                Some(prompt) => Ok((with_system(row, prompt)?, response.clone())),
                None => {
                    let (turns, response) = split_answer(side, transcript(side, response)?)?;
                    Ok((PromptText::Messages(turns), response))
                }
            };
        }
        Some(value @ Value::Array(_)) => messages(side, value)?,
        Some(value @ Value::Object(_)) => vec![message(side, value)?],
        other => {
            return Err(format!(
                "key `{side}` is {}, expected a text or messages",
                other.map_or("missing".into(), shown)
            ));
        }
    };
    // The turns may repeat the prompt or only answer it.
    let before = match given {
        Some(PromptText::Messages(asked)) if turns.starts_with(&asked) => Vec::new(),
        Some(PromptText::Messages(asked)) => asked,
        Some(PromptText::Text(content)) if turns.len() == 1 => vec![Message { role: Role::User, content }],
        Some(PromptText::Text(_)) | None => Vec::new(),
    };
    let (turns, response) = split_answer(side, [before, turns].concat())?;
    Ok((with_system(row, PromptText::Messages(turns))?, response))
}

/// The prompt, after what `system` says.
pub fn with_system(row: &Map<String, Value>, prompt: PromptText) -> Problem<PromptText> {
    if !is_given(row, "system") || row["system"] == "" {
        return Ok(prompt);
    }
    let mut turns = vec![Message { role: Role::System, content: text(row, "system")? }];
    match prompt {
        PromptText::Text(content) => turns.push(Message { role: Role::User, content }),
        PromptText::Messages(messages) => turns.extend(messages),
    }
    Ok(PromptText::Messages(turns))
}

/// The response and the score of each of UltraFeedback's completions.
pub fn completions(row: &Map<String, Value>) -> Problem<(Vec<String>, Vec<f64>)> {
    let Some(items) = row["completions"].as_array() else {
        return Err(format!("key `completions` is {}, expected a list", shown(&row["completions"])));
    };
    let one = |(i, item): (usize, &Value)| {
        let at = |names: &[&'static str]| {
            let found = names.iter().find_map(|name| item.get(name).map(|value| (*name, value)));
            found.ok_or_else(|| format!("key `completions[{i}].{}` is missing", names[0]))
        };
        let wrong = |name: &str, value: &Value, expected: &str| {
            format!("key `completions[{i}].{name}` is {}, expected {expected}", shown(value))
        };
        let (name, response) = at(&["response", "text"])?;
        let response = response.as_str().ok_or_else(|| wrong(name, response, "a text"))?;
        let (name, score) = at(&["overall_score", "score", "rating"])?;
        let score = score.as_f64().ok_or_else(|| wrong(name, score, "a number"))?;
        Ok((response.to_owned(), score))
    };
    items.iter().enumerate().map(one).collect()
}
