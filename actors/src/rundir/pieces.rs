//! The text of each token of a sequence.

use collimate_protocol::RoleError;
use collimate_protocol::roles::Detokenizer;

/// What a decoder makes of bytes that are no whole character.
const INCOMPLETE: char = '\u{FFFD}';

/// The text of each token. Joined, they are the text of the whole, whatever the tokenizer does between tokens (spaces
/// before words, characters cut in two): a token that completes nothing yet has no text.
///
/// # Errors
/// The detokenizer's.
pub fn pieces(tokens: &[u32], detokenizer: &dyn Detokenizer) -> Result<Vec<String>, RoleError> {
    let whole = detokenizer.decode(tokens)?;
    let mut pieces = Vec::with_capacity(tokens.len());
    // What is decoded again with each token begins one piece earlier: how a token reads may depend on the one before it.
    let (mut window, mut read, mut prefix) = (0, 0, String::new());
    for end in 1..=tokens.len() {
        let text = detokenizer.decode(&tokens[window..end])?;
        match text.strip_prefix(prefix.as_str()) {
            Some(piece) if !piece.ends_with(INCOMPLETE) => {
                pieces.push(piece.to_owned());
                (window, read) = (read, end);
                prefix = detokenizer.decode(&tokens[window..read])?;
            }
            _ => pieces.push(String::new()),
        }
    }
    let joined: String = pieces.concat();
    match (whole.strip_prefix(joined.as_str()), pieces.last_mut()) {
        (Some(rest), Some(last)) => last.push_str(rest),
        // A tokenizer whose parts do not add up: the whole text is better than a wrong cut.
        (None, Some(_)) => {
            pieces.iter_mut().for_each(String::clear);
            pieces[0] = whole;
        }
        (_, None) => {}
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A token is a byte of UTF-8; 0 is special and has no text.
    struct Bytes;

    impl Detokenizer for Bytes {
        fn decode(&self, tokens: &[u32]) -> Result<String, RoleError> {
            let bytes: Vec<u8> = tokens.iter().filter(|token| **token != 0).map(|token| *token as u8).collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }

    /// A token is a word; a text does not begin with a space (as SentencePiece decodes).
    struct Words;

    impl Detokenizer for Words {
        fn decode(&self, tokens: &[u32]) -> Result<String, RoleError> {
            Ok(tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
        }
    }

    fn of(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn a_character_stands_where_it_is_complete_and_an_end_token_has_no_text() {
        let mut tokens = of("aé好");
        tokens.push(0);
        assert_eq!(pieces(&tokens, &Bytes).unwrap(), ["a", "", "é", "", "", "好", ""]);
        assert_eq!(pieces(&[7, 8, 9], &Words).unwrap(), ["7", " 8", " 9"]);
        assert!(pieces(&[], &Bytes).unwrap().is_empty());
    }

    #[test]
    fn what_never_becomes_a_character_is_shown_at_the_end() {
        assert_eq!(pieces(&[0x61, 0xe5], &Bytes).unwrap(), ["a", "\u{FFFD}"]);
    }

    proptest! {
        #[test]
        fn joined_they_are_the_text(tokens in proptest::collection::vec(0u32..256, 0..40), text in ".{0,12}") {
            for tokens in [tokens, of(&text)] {
                for detokenizer in [&Bytes as &dyn Detokenizer, &Words] {
                    let pieces = pieces(&tokens, detokenizer).unwrap();
                    prop_assert_eq!(pieces.len(), tokens.len());
                    prop_assert_eq!(pieces.concat(), detokenizer.decode(&tokens).unwrap());
                }
            }
        }
    }
}
