//! Who is asked.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::web::{Token, TokenHash};

use super::{Result, StoreError};

/// The name of who looks at everything.
pub const ADMIN: &str = "admin";
/// The longest name, in characters.
const LONGEST_NAME: usize = 64;

/// One who may ask this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labeler {
    /// The number.
    pub id: i64,
    /// The name.
    pub name: String,
    /// Sees the overview, and labels nothing.
    pub is_admin: bool,
}

/// Adds a labeler by name unless there is one. Returns the number.
pub fn add(connection: &Connection, name: &str) -> Result<i64> {
    let n_chars = name.chars().count();
    if n_chars == 0 || n_chars > LONGEST_NAME || name.trim() != name || name.chars().any(char::is_control) {
        return Err(StoreError::Invalid(format!(
            "{name:?} is no labeler's name: expected 1 to {LONGEST_NAME} characters on one line"
        )));
    }
    let mut statement = connection.prepare_cached("SELECT id FROM labelers WHERE name = ?1")?;
    if let Some(id) = statement.query_row([name], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    connection.execute("INSERT INTO labelers (name, is_admin) VALUES (?1, ?2)", params![name, name == ADMIN])?;
    Ok(connection.last_insert_rowid())
}

/// Gives a labeler, who may be new, a new token; an older one is then good for nothing.
pub fn renew_token(connection: &Connection, name: &str) -> Result<Token> {
    let id = add(connection, name)?;
    let token = Token::random();
    connection.execute("UPDATE labelers SET token = ?1 WHERE id = ?2", params![token.hash().as_bytes(), id])?;
    Ok(token)
}

/// Whether this labeler has a token already.
pub fn has_token(connection: &Connection, name: &str) -> Result<bool> {
    let mut statement =
        connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM labelers WHERE name = ?1 AND token IS NOT NULL)")?;
    Ok(statement.query_row([name], |row| row.get(0))?)
}

/// Whose token it is.
pub fn by_token(connection: &Connection, token: &Token) -> Result<Option<Labeler>> {
    let mut statement = connection.prepare_cached("SELECT id, name, is_admin, token FROM labelers WHERE token = ?1")?;
    let found = statement.query_row([token.hash().as_bytes()], |row| {
        let labeler = Labeler { id: row.get(0)?, name: row.get(1)?, is_admin: row.get(2)? };
        Ok((labeler, row.get::<_, Vec<u8>>(3)?))
    });
    // The index compares hashes as it likes, which tells nothing of the token; that it is the one is compared again.
    let is_it = |hash: &[u8]| TokenHash::from_bytes(hash).is_some_and(|hash| hash.is_of(token));
    Ok(found.optional()?.filter(|(_, hash)| is_it(hash)).map(|(labeler, _)| labeler))
}

/// The names of all, by number, whether they can log in or not.
pub fn names(connection: &Connection) -> Result<BTreeMap<u64, String>> {
    let mut statement = connection.prepare("SELECT id, name FROM labelers")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// All who can log in, by name.
pub fn all(connection: &Connection) -> Result<Vec<Labeler>> {
    let mut statement =
        connection.prepare("SELECT id, name, is_admin FROM labelers WHERE token IS NOT NULL ORDER BY name")?;
    let rows =
        statement.query_map([], |row| Ok(Labeler { id: row.get(0)?, name: row.get(1)?, is_admin: row.get(2)? }))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
