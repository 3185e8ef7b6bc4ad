//! The server of a run's page, and the secret that opens it.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use collimate_models::tokenizer::Tokenizer;
use tokio::sync::Semaphore;

use super::hub::Hub;
use super::live::Watched;
use super::{directory, routes, token_texts};
use crate::label::store::Store;
use crate::rundir::{RolloutIndex, RunDirError, Stage, StageDir};
use crate::web::bind::{listen, parse_address, serve_on_a_thread};
use crate::web::{BindError, BindRule, Guard, Hosts, SessionCookie, Token, TokenHash, local_url, secured};

/// The port, where none is named.
pub const DEFAULT_PORT: &str = "9480";
/// The largest request: a few numbers.
const MOST_BYTES: usize = 16 << 10;
/// Browsers that listen at once.
const N_STREAMS: usize = 64;

/// Why a run can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Where.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No thread for it.
    #[error("the page can't be served: {0}")]
    Thread(#[from] std::io::Error),
    /// What is to be shown.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
}

/// What every request sees.
pub struct Shared {
    /// The run.
    pub watched: Arc<Watched>,
    /// The rollouts of this file; `None` until somebody asks for some.
    index: Mutex<Option<(PathBuf, RolloutIndex)>>,
    /// Rounds that are complete, as they were last, by their directories.
    past: Mutex<HashMap<PathBuf, Arc<Hub>>>,
    /// The tokenizer of the run in this directory; `None` until somebody reads tokens that have no text.
    tokenizer: Mutex<Option<(PathBuf, Tokenizer)>>,
    /// The project in which people are asked about its rollouts, if one was named.
    pub labels: Option<Store>,
    /// Of the run's token.
    pub secret: TokenHash,
    /// The cookie that carries it.
    pub session: SessionCookie,
    /// One for each browser that listens.
    pub streams: Arc<Semaphore>,
}

impl Shared {
    /// Does something with the index of the rollouts in this file, once it has all of them.
    pub fn with_rollouts<R>(
        &self,
        log: &Path,
        read: impl FnOnce(&RolloutIndex) -> Result<R, RunDirError>,
    ) -> Result<R, RunDirError> {
        let mut slot = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = match slot.take() {
            Some((of, index)) if of == log => index,
            _ => RolloutIndex::open(log)?,
        };
        // After an error it is opened anew.
        index.catch_up()?;
        let result = read(&index)?;
        *slot = Some((log.to_owned(), index));
        Ok(result)
    }

    /// What is known of a run that is not followed. One that is complete changes no more, and is read once.
    pub fn past(&self, root: &Path) -> Arc<Hub> {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = past.get(root) {
            return hub.clone();
        }
        let ppo = StageDir::at(&root.join(Stage::Ppo.name()));
        let (is_complete, hub) = (ppo.marker().exists(), Arc::new(Hub::default()));
        directory::load_as_it_was(&ppo, &hub);
        if is_complete {
            past.insert(root.to_owned(), hub.clone());
        }
        hub
    }

    /// Does something with the tokenizer of the run in this directory; `None` where there is none any more.
    pub fn with_tokenizer<R>(&self, root: &Path, read: impl FnOnce(&Tokenizer) -> Option<R>) -> Option<R> {
        let mut slot = self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|(of, _)| of != root) {
            *slot = Some((root.to_owned(), token_texts::tokenizer_of(root)?));
        }
        read(&slot.as_ref()?.1)
    }
}

/// A server that has its address, and does not serve yet.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
}

impl Door {
    /// Takes an address: a port of the loopback interface, or ADDRESS:PORT; 0 is any free port.
    ///
    /// # Errors
    /// It is none, or taken.
    pub fn open(address: &str) -> Result<Self, ViewError> {
        let listener = listen(parse_address(address, DEFAULT_PORT)?, BindRule::TokenHolders)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Serves a run until the process ends, on a thread of its own; the link that opens its page. The link holds the
    /// run's token, which is nowhere else. Rollouts can be made tasks in the project `labels`.
    ///
    /// # Errors
    /// There is no thread.
    pub fn serve(self, watched: Arc<Watched>, labels: Option<Store>) -> Result<String, ViewError> {
        let token = Token::random();
        let shared = Shared {
            watched,
            index: Mutex::default(),
            past: Mutex::default(),
            tokenizer: Mutex::default(),
            labels,
            secret: token.hash(),
            session: SessionCookie::new("view", self.address.port(), false),
            streams: Arc::new(Semaphore::new(N_STREAMS)),
        };
        let router = secured(routes::router(Arc::new(shared)), Guard::new(Hosts::local(), MOST_BYTES));
        serve_on_a_thread("view", self.listener, router)?;
        // Behind the `#`: a browser sends that to nobody.
        Ok(format!("{}/#token={}", local_url(self.address), token.reveal()))
    }
}
