//! Texts as pages get them.

use collimate_protocol::records::{PromptText, Role};
use serde::Serialize;

use crate::label::render::{Node, markdown, plain};

/// A text, as it is and as it is shown.
#[derive(Serialize)]
pub struct Shown {
    raw: String,
    nodes: Vec<Node>,
}

impl Shown {
    /// Of Markdown.
    pub fn markdown(raw: &str) -> Self {
        Self { raw: raw.to_owned(), nodes: markdown(raw) }
    }
}

/// One turn of a prompt.
#[derive(Serialize)]
pub struct Turn {
    /// `text` where the prompt is text to go on from.
    role: &'static str,
    #[serde(flatten)]
    shown: Shown,
}

/// All turns of a prompt.
pub fn turns(prompt: &PromptText) -> Vec<Turn> {
    let messages = match prompt {
        PromptText::Text(text) => {
            return vec![Turn { role: "text", shown: Shown { raw: text.clone(), nodes: plain(text) } }];
        }
        PromptText::Messages(messages) => messages,
    };
    let turn = |role: Role, content: &str| {
        let role = match role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        Turn { role, shown: Shown::markdown(content) }
    };
    messages.iter().map(|message| turn(message.role, &message.content)).collect()
}
