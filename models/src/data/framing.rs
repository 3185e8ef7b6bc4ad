//! From text and dialogues to tokens: one beginning token where the model wants it, one end token after each response.
//!
//! A prompt and its response are encoded each on its own, and joined as token ids: sampling sees the prompt without its
//! response, so training must too.

use std::ops::Range;

use collimate_protocol::records::{Message, PromptText, Role};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::train::LmExample;

/// A prompt's tokens, with exactly one beginning token where the tokenizer has one. A dialogue ends with what the
/// assistant's turn begins with.
///
/// # Errors
/// A prompt without tokens can't be continued; what the chat template refuses.
pub fn prompt_tokens(tokenizer: &Tokenizer, prompt: &PromptText) -> Result<Vec<u32>> {
    let tokens = match prompt {
        PromptText::Text(text) => tokenizer.encode(text)?,
        PromptText::Messages(messages) => tokenizer.encode(&tokenizer.chat_template()?.render(messages, true)?)?,
    };
    let tokens = with_bos(tokenizer, tokens);
    if tokens.is_empty() {
        return Err(Error::invalid("the prompt is empty, and the tokenizer has no beginning token to continue from"));
    }
    Ok(tokens)
}

fn with_bos(tokenizer: &Tokenizer, mut tokens: Vec<u32>) -> Vec<u32> {
    if let Some(bos) = tokenizer.bos()
        && tokens.first() != Some(&bos)
    {
        tokens.insert(0, bos);
    }
    tokens
}

/// A whole response's tokens: exactly one end token behind it, which is trained on like any other. In a dialogue it is
/// the one that the chat template ends the assistant's turn with.
pub fn response_tokens(tokenizer: &Tokenizer, prompt: &PromptText, response: &str) -> Result<Vec<u32>> {
    match prompt {
        PromptText::Text(_) => ended(tokenizer, response),
        PromptText::Messages(messages) => {
            let asked = tokenizer.chat_template()?.render(messages, true)?;
            Ok(answer(tokenizer, messages, response, &asked)?.1)
        }
    }
}

/// Tokens of a text, with one end token behind them.
fn ended(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut tokens = tokenizer.encode(text)?;
    if tokens.last().is_none_or(|last| !tokenizer.end_tokens().contains(last)) {
        tokens.push(tokenizer.eos());
    }
    Ok(tokens)
}

/// What the template writes for the assistant's turn after `asked`, up to its end token, as text and as tokens.
fn answer(tokenizer: &Tokenizer, messages: &[Message], response: &str, asked: &str) -> Result<(String, Vec<u32>)> {
    let turn = Message { role: Role::Assistant, content: response.to_owned() };
    let whole = tokenizer.chat_template()?.render(&[messages, &[turn]].concat(), false)?;
    let Some(written) = whole.strip_prefix(asked) else {
        return Err(Error::invalid(
            "the chat template writes an answer in another way than it asks for one, so there is no telling what to \
             learn",
        ));
    };
    // What follows the end token (a new line in most templates) is never sampled; it belongs to the next prompt.
    let end = tokenizer.end_texts().filter_map(|end| Some(written.find(&end)? + end.len())).min();
    let written = &written[..end.unwrap_or(written.len())];
    Ok((written.to_owned(), ended(tokenizer, written)?))
}

/// What SFT learns of a dialogue: every turn of the assistant's, and nothing else. One example, or several where the
/// template writes earlier turns otherwise once later ones are there, as those do that leave out earlier thoughts:
/// each turn is learnt as it stands when the model is to write it.
pub fn dialogue_examples(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<LmExample>> {
    let mut examples = Vec::new();
    let mut written = String::new();
    let (mut tokens, mut learnt): (Vec<u32>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
    for (idx, turn) in messages.iter().enumerate().filter(|(_, turn)| turn.role == Role::Assistant) {
        let asked = tokenizer.chat_template()?.render(&messages[..idx], true)?;
        if !asked.starts_with(&written) {
            examples.push(LmExample { tokens: std::mem::take(&mut tokens), learnt: std::mem::take(&mut learnt) });
            written.clear();
        }
        tokens.extend(tokenizer.encode(&asked[written.len()..])?);
        if written.is_empty() {
            tokens = with_bos(tokenizer, tokens);
        }
        let (text, answer) = answer(tokenizer, &messages[..idx], &turn.content, &asked)?;
        learnt.push(tokens.len()..tokens.len() + answer.len());
        tokens.extend(answer);
        written = asked + &text;
    }
    examples.push(LmExample { tokens, learnt });
    Ok(examples)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Ids: `<|endoftext|>` 0, then the 256 bytes in the order of GPT-2's alphabet; no merges.
    pub(in super::super) fn bytes() -> Tokenizer {
        Tokenizer::train_byte_level_bpe(["a"], 257, &[]).unwrap()
    }

    /// The same with a chat template: `U:…|` and `A:…<|endoftext|>|`, thoughts before a `;` left out of all answers but
    /// the last.
    fn with_template() -> Tokenizer {
        let template = "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}|{% else %}A:\
            {{ m.content if loop.last else m.content.split(';')[-1] }}<|endoftext|>|{% endif %}{% endfor %}\
            {% if add_generation_prompt %}A:{% endif %}";
        bytes().with_chat_template(template).unwrap()
    }

    fn turns(contents: &[&str]) -> Vec<Message> {
        let role = |i| if i % 2 == 0 { Role::User } else { Role::Assistant };
        contents.iter().enumerate().map(|(i, text)| Message { role: role(i), content: (*text).to_owned() }).collect()
    }

    /// Text of an example's tokens with brackets around what is learnt.
    fn marked(tokenizer: &Tokenizer, example: &LmExample) -> String {
        let text = |range: Range<usize>| {
            let tokens = &example.tokens[range];
            tokens
                .iter()
                .map(|id| if *id == 0 { "$".to_owned() } else { tokenizer.decode(&[*id]).unwrap() })
                .collect::<String>()
        };
        let mut marked = String::new();
        let mut at = 0;
        for learnt in &example.learnt {
            marked += &format!("{}[{}]", text(at..learnt.start), text(learnt.clone()));
            at = learnt.end;
        }
        marked + &text(at..example.tokens.len())
    }

    #[test]
    fn exactly_one_end_token_follows_a_response() {
        let tokenizer = bytes();
        let hi = tokenizer.encode("hi").unwrap();
        let response = |text| response_tokens(&tokenizer, &"".into(), text).unwrap();
        assert_eq!(hi.len(), 2);
        assert_eq!(response("hi"), [hi[0], hi[1], 0]);
        assert_eq!(response("hi<|endoftext|>"), [hi[0], hi[1], 0]);
        assert_eq!(response(""), [0]);
    }

    #[test]
    fn every_turn_of_the_assistant_is_learnt_with_its_end_token_and_nothing_else() {
        let tokenizer = with_template();
        let examples = dialogue_examples(&tokenizer, &turns(&["hi", "yes", "so", "no"])).unwrap();
        let marked: Vec<String> = examples.iter().map(|example| marked(&tokenizer, example)).collect();
        assert_eq!(marked, ["U:hi|A:[yes$]|U:so|A:[no$]"]);
    }

    #[test]
    fn a_turn_that_is_written_otherwise_later_is_learnt_as_it_stood() {
        let tokenizer = with_template();
        let examples = dialogue_examples(&tokenizer, &turns(&["a", "x;b", "c", "y;d"])).unwrap();
        let marked: Vec<String> = examples.iter().map(|example| marked(&tokenizer, example)).collect();
        assert_eq!(marked, ["U:a|A:[x;b$]", "U:a|A:b$|U:c|A:[y;d$]"]);
    }

    #[test]
    fn prompt_and_response_of_a_dialogue_join_to_what_is_learnt_of_it() {
        let tokenizer = with_template();
        let dialogue = turns(&["hi", "yes", "so", "no"]);
        let prompt = PromptText::Messages(dialogue[..3].to_vec());
        let joined =
            [prompt_tokens(&tokenizer, &prompt).unwrap(), response_tokens(&tokenizer, &prompt, "no").unwrap()].concat();
        assert_eq!(joined, dialogue_examples(&tokenizer, &dialogue).unwrap()[0].tokens);
    }

    #[test]
    fn a_prompt_without_tokens_is_refused_where_there_is_no_beginning_token() {
        let message = prompt_tokens(&bytes(), &"".into()).unwrap_err().to_string();
        assert!(message.contains("the prompt is empty"), "{message}");
    }

    #[test]
    fn exactly_one_beginning_token_stands_before_a_prompt_where_the_tokenizer_wants_one() {
        let dir = tempfile::tempdir().unwrap();
        bytes().save(dir.path()).unwrap();
        let config = r#"{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": true,
            "chat_template": "{{ bos_token }}{{ messages[0].content }}"}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let hi = tokenizer.encode("hi").unwrap();
        let prompt = |prompt: PromptText| prompt_tokens(&tokenizer, &prompt).unwrap();
        assert_eq!(prompt("hi".into()), [0, hi[0], hi[1]]);
        assert_eq!(prompt("<|endoftext|>hi".into()), [0, hi[0], hi[1]]);
        assert_eq!(prompt("".into()), [0]);
        assert_eq!(prompt(PromptText::Messages(turns(&["hi"]))), [0, hi[0], hi[1]]);
    }
}
