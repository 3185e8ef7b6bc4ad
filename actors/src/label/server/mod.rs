//! A labelling project over HTTP.
//!
//! - [`who`]: who asks: a labeler, or the admin.
//! - [`labeling`]: what labelers ask for. [`admin`]: what the admin asks for. [`settling`]: the same, where labelers differ.
//! - [`shown`]: texts as pages get them.
//! - [`page`]: the files of the page.

pub mod admin;
pub mod labeling;
pub mod page;
pub mod settling;
pub mod shown;
pub mod who;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::config::LabelConfig;
use super::render;
use super::store::next::Rules;
use super::store::{Store, StoreError};
use crate::web::{ApiError, BindError, BindRule, Guard, Hosts, SHARED, SessionCookie, bind, local_url, secured};

/// The port, where none is named.
pub const DEFAULT_PORT: &str = "9470";
/// The largest request: a demonstration of the longest length, with every character escaped, is a quarter of it.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What every handler has.
#[derive(Clone)]
pub struct Site(Arc<SiteParts>);

struct SiteParts {
    store: Store,
    rules: Rules,
    flags: Vec<String>,
    overlap: u32,
    /// Directories of the runs that labels are set against.
    runs: Vec<PathBuf>,
    /// The flags and the guidelines, as the page takes them.
    form: Value,
    cookie: SessionCookie,
}

/// A server that listens and does not answer yet.
pub struct LabelServer {
    listener: TcpListener,
    router: Router,
    url: String,
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It can't listen there.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The address for people is none.
    #[error("--url {0}")]
    Url(String),
    /// The system failed.
    #[error("serving failed: {0}")]
    Io(#[from] std::io::Error),
}

impl LabelServer {
    /// Listens. `url` is where people reach it, if that is another address: of a proxy that speaks HTTPS.
    pub fn new(store: Store, config: &LabelConfig, address: SocketAddr, url: Option<&str>) -> Result<Self, ServeError> {
        // Everybody who asks for anything but the page's own files has a token.
        let listener = bind::listen(address, BindRule::TokenHolders)?;
        let address = listener.local_addr()?;
        let hosts = match url {
            Some(url) => Hosts::local().and_url(url).map_err(ServeError::Url)?,
            None => Hosts::local(),
        };
        let is_secure = url.is_some_and(|url| url.starts_with("https:"));
        let form = json!({
            "flags": config.flags,
            "guidelines": render::markdown(&config.guidelines),
        });
        let site = Site(Arc::new(SiteParts {
            store,
            rules: config.rules(),
            flags: config.flag_names(),
            overlap: config.overlap,
            runs: config.runs.clone(),
            form,
            cookie: SessionCookie::new("label", address.port(), is_secure),
        }));
        let url = url.map_or_else(|| local_url(address), |url| url.trim_end_matches('/').to_owned());
        Ok(Self { listener, router: secured(routes(site), Guard::new(hosts, MAX_BODY_BYTES)), url })
    }

    /// Where people reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers until the future is dropped.
    pub async fn serve(self) -> Result<(), ServeError> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        Ok(axum::serve(listener, self.router).await?)
    }
}

fn routes(site: Site) -> Router {
    Router::new()
        .route("/api/login", post(who::login))
        .route("/api/logout", post(who::logout))
        .route("/api/me", get(labeling::me))
        .route("/api/next", post(labeling::next))
        .route("/api/draft", post(labeling::draft))
        .route("/api/answer", post(labeling::answer))
        .route("/api/skip", post(labeling::skip))
        .route("/api/undo", post(labeling::undo))
        .route("/api/resume", post(labeling::resume))
        .route("/api/unfinished", get(labeling::unfinished))
        .route("/api/overview", get(admin::overview))
        .route("/api/tasks", post(admin::add_tasks))
        .route("/api/effects", get(admin::effects))
        .route("/api/effects/{task}", get(admin::effects_of_task))
        .route("/api/disagreements", get(settling::list))
        .route("/api/disagreements/{task}", get(settling::one))
        .route("/api/settle", post(settling::settle))
        .route("/api/take-back", post(settling::take_back))
        .merge(page::FILES.routes())
        .merge(SHARED.routes())
        .with_state(site)
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let status = match &error {
            StoreError::NotFound(_) => StatusCode::NOT_FOUND,
            StoreError::Conflict(_) => StatusCode::CONFLICT,
            StoreError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            StoreError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}
