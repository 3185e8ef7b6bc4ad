//! Who asks: a token in a cookie, as browsers have it, or in an `Authorization` header, as programs do.

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, SameSite};

use super::token::Token;

/// How long a browser keeps a session.
const SESSION_DAYS: i64 = 90;

/// The cookie of one server's sessions. Cookies know hosts and no ports, so the name holds the port: two servers on one
/// machine have sessions of their own.
#[derive(Clone, Debug)]
pub struct SessionCookie {
    name: String,
    is_secure: bool,
}

impl SessionCookie {
    /// Of a server for this purpose (`label`) at this port. `is_secure`: browsers reach it by HTTPS alone.
    pub fn new(purpose: &str, port: u16, is_secure: bool) -> Self {
        Self { name: format!("collimate-{purpose}-{port}"), is_secure }
    }

    /// `Set-Cookie` for this token: no script reads it, and no other site's request carries it.
    pub fn set(&self, token: &Token) -> HeaderValue {
        self.header(token.reveal(), cookie::time::Duration::days(SESSION_DAYS))
    }

    /// `Set-Cookie` that ends the session.
    pub fn clear(&self) -> HeaderValue {
        self.header(String::new(), cookie::time::Duration::ZERO)
    }

    fn header(&self, value: String, max_age: cookie::time::Duration) -> HeaderValue {
        let cookie = Cookie::build((self.name.as_str(), value))
            .http_only(true)
            .same_site(SameSite::Strict)
            .secure(self.is_secure)
            .path("/")
            .max_age(max_age);
        let mut value = HeaderValue::from_str(&cookie.to_string()).expect("names and tokens are plain letters");
        value.set_sensitive(true);
        value
    }

    /// The token that a request carries: `Authorization: Bearer TOKEN`, or this cookie.
    pub fn token(&self, headers: &HeaderMap) -> Option<Token> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            return Token::parse(value.to_str().ok()?.strip_prefix("Bearer ")?);
        }
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = cookies.flat_map(|line| Cookie::split_parse(line.to_owned())).filter_map(Result::ok);
        let cookie = cookies.find(|cookie| cookie.name() == self.name)?;
        Token::parse(cookie.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_strict_and_out_of_reach_for_scripts() {
        let (token, cookie) = (Token::random(), SessionCookie::new("label", 9470, false));
        let set = cookie.set(&token);
        let expected = format!(
            "collimate-label-9470={}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}",
            token.reveal(),
            90 * 24 * 3600
        );
        assert_eq!(set.to_str().unwrap(), expected);
        assert!(set.is_sensitive(), "it is never logged");
        assert!(SessionCookie::new("label", 1, true).set(&token).to_str().unwrap().contains("; Secure"));
        assert!(cookie.clear().to_str().unwrap().contains("collimate-label-9470=; "));
    }

    #[test]
    fn a_token_comes_from_its_own_cookie_or_from_a_bearer_header() {
        let (token, other) = (Token::random(), Token::random());
        let cookie = SessionCookie::new("label", 9470, false);
        let found = |name: header::HeaderName, value: String| {
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_str(&value).unwrap())]);
            cookie.token(&headers).map(|token| token.reveal())
        };
        let both = format!("collimate-label-1={}; collimate-label-9470={}", other.reveal(), token.reveal());
        assert_eq!(found(header::COOKIE, both), Some(token.reveal()));
        assert_eq!(found(header::COOKIE, format!("collimate-view-9470={}", token.reveal())), None);
        assert_eq!(found(header::AUTHORIZATION, format!("Bearer {}", token.reveal())), Some(token.reveal()));
        assert_eq!(found(header::AUTHORIZATION, format!("Basic {}", token.reveal())), None);
        assert_eq!(found(header::COOKIE, "collimate-label-9470=guess".to_owned()), None);
    }
}
