//! The files of a page, embedded in the binary.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// One file.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Where it is served: `/`, `/app.js`.
    pub path: &'static str,
    /// Its content.
    pub text: &'static str,
}

/// A page's files.
#[derive(Clone, Copy, Debug)]
pub struct Assets(pub &'static [Asset]);

/// What the scripts of all pages import.
pub const SHARED: Assets = Assets(&[
    Asset { path: "/web/elements.js", text: include_str!("page/elements.js") },
    Asset { path: "/web/visible.js", text: include_str!("page/visible.js") },
    Asset { path: "/web/requests.js", text: include_str!("page/requests.js") },
]);

impl Assets {
    /// Serves them all. A browser keeps them and asks whether they are still the same.
    ///
    /// # Panics
    /// Two files at one path, or one whose type is unknown.
    pub fn routes<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        self.0.iter().fold(Router::new(), |router, asset| {
            let (kind, tag) = (content_type(asset.path), tag(asset.text));
            router.route(asset.path, get(move |request: Request| async move { served(asset, kind, tag, &request) }))
        })
    }
}

fn served(asset: &Asset, kind: &'static str, tag: HeaderValue, request: &Request) -> Response {
    let is_known = request.headers().get_all(header::IF_NONE_MATCH).iter().any(|value| value == tag);
    let headers = [(header::ETAG, tag), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if is_known {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, [(header::CONTENT_TYPE, kind)], asset.text).into_response()
}

/// By the name; a path without a dot is a page.
fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        None | Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some(other) => panic!("{path}: `.{other}` has no content type here"),
    }
}

fn tag(text: &str) -> HeaderValue {
    let hash = URL_SAFE_NO_PAD.encode(&Sha256::digest(text)[..12]);
    HeaderValue::from_str(&format!("\"{hash}\"")).expect("base64 is plain letters")
}
