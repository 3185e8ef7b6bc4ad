//! Who asks.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::Site;
use crate::label::store::labelers::{Labeler, by_token};
use crate::web::{ApiError, ApiJson, Token};

/// A request of a labeler's.
pub struct AsLabeler(pub Labeler);

/// A request of the admin's.
pub struct AsAdmin(pub Labeler);

impl FromRequestParts<Site> for AsLabeler {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, site: &Site) -> Result<Self, ApiError> {
        let who = who(site, &parts.headers).await?;
        match who.is_admin {
            false => Ok(Self(who)),
            true => Err(ApiError::new(StatusCode::FORBIDDEN, "the admin labels nothing")),
        }
    }
}

impl FromRequestParts<Site> for AsAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, site: &Site) -> Result<Self, ApiError> {
        let who = who(site, &parts.headers).await?;
        match who.is_admin {
            true => Ok(Self(who)),
            false => Err(ApiError::new(StatusCode::FORBIDDEN, "this is for the admin")),
        }
    }
}

/// Who has the request's token.
pub async fn who(site: &Site, headers: &HeaderMap) -> Result<Labeler, ApiError> {
    let token = site.0.cookie.token(headers);
    let token = token.ok_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, "open your own link first"))?;
    of_token(site, token).await
}

async fn of_token(site: &Site, token: Token) -> Result<Labeler, ApiError> {
    let store = site.0.store.clone();
    let found = blocking(move || Ok(store.read(|connection| by_token(connection, &token))?)).await?;
    found.ok_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, "that link is not good any more: ask for a new one"))
}

/// Reads the database away from the threads that answer requests.
pub async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(read).await;
    done.unwrap_or_else(|error| Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))
}

/// What the page of a link sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    token: String,
}

/// Makes a session of a link's token.
pub async fn login(State(site): State<Site>, ApiJson(Login { token }): ApiJson<Login>) -> Result<Response, ApiError> {
    let no = || ApiError::new(StatusCode::UNAUTHORIZED, "that is no link of this project's: was all of it copied?");
    let token = Token::parse(&token).ok_or_else(no)?;
    let who = of_token(&site, token.clone()).await?;
    let body = Json(json!({ "name": who.name, "is_admin": who.is_admin }));
    Ok(([(header::SET_COOKIE, site.0.cookie.set(&token))], body).into_response())
}

/// Ends the session.
pub async fn logout(State(site): State<Site>) -> Response {
    ([(header::SET_COOKIE, site.0.cookie.clear())], Json(json!({}))).into_response()
}
