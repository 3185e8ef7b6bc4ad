//! Requests that no handler sees: of foreign hosts, of foreign origins, and too large ones.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::json::ApiError;

/// The names under which a server may be asked. Any address is one: a page of another site that has its own name led to
/// this machine (DNS rebinding) asks under that name.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Names beside `localhost`, in lower case, each with its port where it has one.
    names: Vec<Authority>,
}

impl Hosts {
    /// `localhost`, and every address.
    pub fn local() -> Self {
        Self { names: Vec::new() }
    }

    /// These too, and the host of `url`, under which a proxy is reached.
    ///
    /// # Errors
    /// What is no URL with a host.
    pub fn and_url(mut self, url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("`{url}` is no URL: {error}"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(authority)) if matches!(uri.path(), "" | "/") && uri.query().is_none() => {
                self.names.push(lower_case(authority));
                Ok(self)
            }
            _ => Err(format!("`{url}` is no address of a site; expected https://NAME or http://NAME:PORT")),
        }
    }

    fn has(&self, host: &Authority) -> bool {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.names.contains(&lower_case(host))
    }
}

fn lower_case(authority: &Authority) -> Authority {
    authority.as_str().to_ascii_lowercase().parse().expect("lower case keeps an authority one")
}

/// What is refused before any handler.
#[derive(Clone, Debug)]
pub struct Guard {
    hosts: Arc<Hosts>,
    max_body_bytes: usize,
}

impl Guard {
    /// Of these hosts, with bodies of at most so many bytes.
    pub fn new(hosts: Hosts, max_body_bytes: usize) -> Self {
        Self { hosts: Arc::new(hosts), max_body_bytes }
    }

    /// The largest body of a request.
    pub fn max_body_bytes(&self) -> usize {
        self.max_body_bytes
    }

    /// Why this request is refused, if it is.
    fn refusal(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<ApiError> {
        let refuse = |status, problem: &str| Some(ApiError::new(status, problem));
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // HTTP/2 has it in the URI.
        let host = text(header::HOST).and_then(|host| host.parse().ok()).or_else(|| uri.authority().cloned());
        let Some(host) = host.filter(|host| self.hosts.has(host)) else {
            return refuse(StatusCode::MISDIRECTED_REQUEST, "nothing is served under that host's name");
        };
        if text(header::CONTENT_LENGTH)
            .and_then(|length| length.parse::<u64>().ok())
            .is_some_and(|length| length > self.max_body_bytes as u64)
        {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large");
        }
        if method.is_safe() || is_same_origin(headers, &host) {
            return None;
        }
        refuse(StatusCode::FORBIDDEN, "the request comes from another site's page")
    }
}

/// Whether a page of this very server asks, or a program. Browsers send `Sec-Fetch-Site`, and older ones `Origin` with
/// every request that changes something; what sends neither is no browser, and carries no one else's cookies.
fn is_same_origin(headers: &HeaderMap, host: &Authority) -> bool {
    if let Some(site) = headers.get("sec-fetch-site")
        && site != "same-origin"
    {
        return false;
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let uri: Option<Uri> = origin.to_str().ok().and_then(|origin| origin.parse().ok());
    let authority = uri.as_ref().and_then(|uri| uri.authority());
    // The scheme may differ: a proxy may speak TLS for this server.
    authority.is_some_and(|authority| authority.as_str().eq_ignore_ascii_case(host.as_str()))
}

/// The middleware.
pub async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.refusal(request.method(), request.uri(), request.headers()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

/// The address that people of this machine open: that of a server that listens everywhere is on loopback.
pub fn local_url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}
