//! What every page that is served shares: who may ask, what is refused, and how it is answered.
//!
//! - [`bind`]: where a server may listen: on loopback, and elsewhere with tokens alone.
//! - [`token`]: secrets of 256 bits, compared in constant time, never shown by accident, stored as hashes.
//! - [`session`]: a token in a cookie or an `Authorization` header.
//! - [`guard`]: hosts, origins and sizes that are refused.
//! - [`headers`]: what a browser is told not to do.
//! - [`json`]: bodies in and out, and errors as JSON.
//! - [`assets`]: the files of a page, embedded in the binary.
//! - [`secured`]: all of these around a router.
//!
//! Not here: TLS, which a proxy in front adds, and what is behind a page.

pub mod assets;
pub mod bind;
pub mod guard;
pub mod headers;
pub mod json;
pub mod session;
pub mod token;

pub use assets::{Asset, Assets, SHARED};
pub use bind::{BindError, BindRule};
pub use guard::{Guard, Hosts, local_url};
pub use json::{ApiError, ApiJson, ApiQuery};
pub use session::SessionCookie;
pub use token::{Token, TokenHash};

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::{Router, middleware};

/// Puts a router behind the guard: its answers carry the security headers, its refusals are JSON, and a request that the
/// guard refuses reaches none of its handlers.
pub fn secured(router: Router, guard: Guard) -> Router {
    let max_body_bytes = guard.max_body_bytes();
    router
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing here") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this is not asked for by that method")
        })
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .layer(middleware::map_response(headers::add))
}

#[cfg(test)]
mod tests;
