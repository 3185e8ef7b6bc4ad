//! Secrets that say who asks.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const N_BYTES: usize = 32;

/// A secret of 256 bits from the operating system. Printed or logged, it shows nothing: [`Token::reveal`] is the only way
/// to its text.
#[derive(Clone)]
pub struct Token([u8; N_BYTES]);

impl Token {
    /// A new one.
    ///
    /// # Panics
    /// Where the operating system has no randomness: then there can be no secret.
    pub fn random() -> Self {
        let mut bytes = [0; N_BYTES];
        OsRng.try_fill_bytes(&mut bytes).expect("the operating system has randomness");
        Self(bytes)
    }

    /// Of its text, as [`Token::reveal`] wrote it; `None` if that is no token.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// Its text: 43 letters, digits, `-` and `_`. For a link or a cookie alone.
    pub fn reveal(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// What is stored of it. The token has all of its 256 bits, so that a plain hash can't be guessed from.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What is stored of a token: it tells whether a token is the one, and not which one it is.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; N_BYTES]);

impl TokenHash {
    /// Of stored bytes; `None` if they are no hash.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// To be stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is this token's, in a time that does not depend on where they differ.
    pub fn is_of(&self, token: &Token) -> bool {
        self.0.ct_eq(&token.hash().0).into()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_from_its_text_and_known_by_its_hash_alone() {
        let (token, other) = (Token::random(), Token::random());
        let text = token.reveal();
        assert_eq!(text.len(), 43);
        let read = Token::parse(&text).unwrap();
        let stored = TokenHash::from_bytes(token.hash().as_bytes()).unwrap();
        assert!(stored.is_of(&read) && !stored.is_of(&other));
        assert!(TokenHash::from_bytes(b"short").is_none());
        for text in ["", "abc", &text[1..], &format!("{text}A"), &text.replace(&text[..1], "!")] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn neither_token_nor_hash_is_shown_when_printed() {
        let token = Token::random();
        assert_eq!(format!("{token:?} {:?}", token.hash()), "Token(…) TokenHash(…)");
    }
}
