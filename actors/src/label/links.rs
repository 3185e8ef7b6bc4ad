//! The links that labelers and the admin come by.

use std::path::Path;

use super::store::labelers::{ADMIN, has_token, renew_token};
use super::store::{Result, Store};
use crate::web::Token;

/// A line for each of these labelers and for the admin: a new link, or how to get one where there was one before.
pub fn of(store: &Store, labelers: &[String], url: &str) -> Result<Vec<String>> {
    let one = |name: &str| {
        let own = name.to_owned();
        Ok(match store.read(move |connection| has_token(connection, &own))? {
            true => has_one(name, store.path()),
            false => link(name, url, &new_token(store, name)?),
        })
    };
    labelers.iter().map(String::as_str).chain([ADMIN]).map(one).collect()
}

/// A new token; the labeler's older one is then good for nothing.
pub fn new_token(store: &Store, name: &str) -> Result<Token> {
    let own = name.to_owned();
    store.write_now(move |connection| renew_token(connection, &own))
}

/// The token stands behind `#`, where no server and no proxy sees it.
pub fn link(name: &str, url: &str, token: &Token) -> String {
    format!("  {name}: {url}/login#{}", token.reveal())
}

fn has_one(name: &str, db: &Path) -> String {
    format!("  {name}: has a link already; a new one: collimate label link {} {name}", db.display())
}
