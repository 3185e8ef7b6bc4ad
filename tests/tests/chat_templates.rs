//! Chat templates against transformers: `tests/fixtures/chat_templates.json` was written by
//! `tests/scripts/chat_templates.py`.

use std::collections::BTreeMap;
use std::fs;

use collimate_models::chat::ChatTemplate;
use collimate_protocol::records::Message;
use collimate_tests::fixture;
use serde::Deserialize;

#[derive(Deserialize)]
struct Template {
    name: String,
    template: String,
    special_tokens: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    /// Absent where transformers refuses the dialogue.
    text: Option<String>,
}

/// With and without a system turn, one turn and several, with and without what the assistant's turn begins with.
#[test]
fn dialogues_are_rendered_as_transformers_renders_them() {
    let text = fs::read_to_string(fixture::path("chat_templates.json")).unwrap();
    let templates: Vec<Template> = serde_json::from_str(&text).unwrap();
    assert!(templates.len() >= 12);
    for Template { name, template, special_tokens, cases } in templates {
        let template = ChatTemplate::new(&template, special_tokens).unwrap();
        for Case { messages, add_generation_prompt, text } in cases {
            match (template.render(&messages, add_generation_prompt), text) {
                (Ok(found), Some(expected)) => assert_eq!(found, expected, "{name}: {messages:?}"),
                (Err(_), None) => {}
                (found, expected) => panic!("{name}: {messages:?}\ngives {found:?}\nexpected {expected:?}"),
            }
        }
    }
}
