//! `rollouts.sqlite`: an index of `rollouts.jsonl`, for whoever lists, sorts and searches its lines. It holds nothing that
//! the file does not: where it is missing, behind or of another format, it is made again from the file.
//!
//! Several processes may hold it open: the run that writes the file, and those who look at it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use collimate_protocol::records::RolloutRecord;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;

use super::RunDirError;
use super::rollout_query::RolloutQuery;

/// Raised whenever the tables change: an index of another format is thrown away.
const FORMAT: i32 = 1;
/// How long one process waits for another that is writing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Characters of prompt and response that a list shows.
pub(crate) const N_HEAD: usize = 200;
/// Characters of prompt and response that are searched.
const N_SEARCHED: usize = 20_000;
/// Bytes of the file that one transaction takes in: readers see the index grow, and memory stays bounded.
const N_BYTES_AT_ONCE: u64 = 16 << 20;

const TABLES: &str = "
    CREATE TABLE rollouts (
        id INTEGER PRIMARY KEY, offset INTEGER NOT NULL, n_bytes INTEGER NOT NULL, crc INTEGER NOT NULL, version INTEGER NOT NULL,
        prompt_id INTEGER NOT NULL, sample_idx INTEGER NOT NULL, n_tokens INTEGER NOT NULL, finish TEXT NOT NULL,
        score REAL NOT NULL, gold REAL, kl REAL NOT NULL, has_detail INTEGER NOT NULL,
        prompt TEXT NOT NULL, response TEXT NOT NULL);
    CREATE INDEX by_score ON rollouts (score);
    CREATE INDEX by_gold ON rollouts (gold);
    CREATE INDEX by_kl ON rollouts (kl);
    CREATE INDEX by_n_tokens ON rollouts (n_tokens);
    CREATE INDEX by_version ON rollouts (version);
    CREATE INDEX by_prompt ON rollouts (prompt_id, version);
    CREATE VIRTUAL TABLE texts USING fts5 (
        text, content = '', contentless_delete = 1, tokenize = 'trigram', detail = 'full');";

/// What a list shows of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RolloutRow {
    /// The number of its line, from 1.
    pub id: i64,
    /// The version that the update which trained on it started from.
    pub version: u64,
    /// Its prompt.
    pub prompt_id: u64,
    /// Which sample of the prompt.
    pub sample_idx: u32,
    /// Tokens of the response.
    pub n_tokens: u64,
    /// Why it ended.
    pub finish: String,
    /// Its score.
    pub score: f64,
    /// Its gold score, where there is one.
    pub gold: Option<f64>,
    /// Its summed k1 estimate of the KL to the reference (nats).
    pub kl: f64,
    /// Whether its tokens were recorded one by one.
    pub has_detail: bool,
    /// The last characters of the prompt.
    pub prompt: String,
    /// The first characters of the response.
    pub response: String,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RolloutPage {
    /// How many rollouts the whole list has.
    pub total: u64,
    /// Those of the part.
    pub rows: Vec<RolloutRow>,
}

/// The index, open.
pub struct RolloutIndex {
    log: PathBuf,
    path: PathBuf,
    db: Connection,
}

impl RolloutIndex {
    /// The index beside the file `log`, or a new one. In a folder that can't be written to it is in memory.
    ///
    /// # Errors
    /// It can't be opened, or not be made.
    pub fn open(log: &Path) -> Result<Self, RunDirError> {
        let path = log.with_extension("sqlite");
        let db = on_disk(&path).or_else(|_| in_memory()).map_err(|error| RunDirError::bad(&path, error.to_string()))?;
        Ok(Self { log: log.to_owned(), path, db })
    }

    /// Takes in what the file has more than before, and forgets what it has no longer; how many rollouts there are. A
    /// last line without an end is left for later.
    ///
    /// # Errors
    /// The file can't be read, or a line of it is no rollout, or the index can't be written.
    pub fn catch_up(&mut self) -> Result<u64, RunDirError> {
        loop {
            let mut log = match File::open(&self.log) {
                Ok(log) => log,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return self.n_rollouts(),
                Err(error) => return Err(RunDirError::io(&self.log)(error)),
            };
            let size = log.metadata().map_err(RunDirError::io(&self.log))?.len();
            // Whether there is anything to do is asked without a lock: mostly there is not.
            if self.end()? == size {
                return self.n_rollouts();
            }
            let path = &self.path;
            let bad = |error: rusqlite::Error| RunDirError::bad(path, error.to_string());
            let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(bad)?;
            let from = forget(&tx, &mut log).map_err(bad)?;
            let taken = take_in(&tx, log, from, &self.log, path)?;
            tx.commit().map_err(bad)?;
            if taken < N_BYTES_AT_ONCE {
                return self.n_rollouts();
            }
        }
    }

    /// How many rollouts there are.
    ///
    /// # Errors
    /// The index can't be read.
    pub fn n_rollouts(&self) -> Result<u64, RunDirError> {
        // Ids have no gaps.
        last_id(&self.db).map(i64::cast_unsigned).map_err(|error| self.bad(error))
    }

    /// A part of the list that a query asks for.
    ///
    /// # Errors
    /// The index can't be read.
    pub fn page(&self, query: &RolloutQuery) -> Result<RolloutPage, RunDirError> {
        let (filter, values) = query.filter();
        let values = || rusqlite::params_from_iter(values.iter());
        let total = match filter.is_empty() {
            true => self.n_rollouts()?,
            false => {
                let text = format!("SELECT count(*) FROM rollouts {filter}");
                let count =
                    self.db.prepare_cached(&text).and_then(|mut s| s.query_row(values(), |row| row.get::<_, i64>(0)));
                count.map(i64::cast_unsigned).map_err(|error| self.bad(error))?
            }
        };
        let text = format!(
            "SELECT id, version, prompt_id, sample_idx, n_tokens, finish, score, gold, kl, has_detail, prompt, response \
             FROM rollouts {filter} {}",
            query.order()
        );
        let rows = self.db.prepare_cached(&text).and_then(|mut statement| {
            let rows = statement.query_map(values(), |row| {
                Ok(RolloutRow {
                    id: row.get(0)?,
                    version: row.get::<_, i64>(1)?.cast_unsigned(),
                    prompt_id: row.get::<_, i64>(2)?.cast_unsigned(),
                    sample_idx: row.get(3)?,
                    n_tokens: row.get::<_, i64>(4)?.cast_unsigned(),
                    finish: row.get(5)?,
                    score: row.get(6)?,
                    gold: row.get(7)?,
                    kl: row.get(8)?,
                    has_detail: row.get(9)?,
                    prompt: row.get(10)?,
                    response: row.get(11)?,
                })
            })?;
            rows.collect()
        });
        Ok(RolloutPage { total, rows: rows.map_err(|error| self.bad(error))? })
    }

    /// A rollout with all that was recorded of it; `None` where there is none of that number.
    ///
    /// # Errors
    /// Index or file can't be read, or the line is no rollout.
    pub fn record(&self, id: i64) -> Result<Option<RolloutRecord>, RunDirError> {
        let place = self.db.query_row("SELECT offset, n_bytes FROM rollouts WHERE id = ?1", [id], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()))
        });
        let Some((offset, n_bytes)) = place.optional().map_err(|error| self.bad(error))? else { return Ok(None) };
        let io = || RunDirError::io(&self.log);
        let mut file = File::open(&self.log).map_err(io())?;
        file.seek(SeekFrom::Start(offset)).map_err(io())?;
        let mut line = Vec::new();
        file.take(n_bytes).read_to_end(&mut line).map_err(io())?;
        let record = serde_json::from_slice(&line);
        record.map(Some).map_err(|error| RunDirError::bad(&self.log, format!("line {id}: {error}")))
    }

    fn end(&self) -> Result<u64, RunDirError> {
        let end = "SELECT coalesce(max(offset + n_bytes), 0) FROM rollouts WHERE id = (SELECT max(id) FROM rollouts)";
        let end = self.db.query_row(end, [], |row| row.get::<_, i64>(0));
        end.map(i64::cast_unsigned).map_err(|error| self.bad(error))
    }

    fn bad(&self, error: rusqlite::Error) -> RunDirError {
        RunDirError::bad(&self.path, error.to_string())
    }
}

/// The number of the last rollout; 0 where there is none.
fn last_id(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(id), 0) FROM rollouts", [], |row| row.get(0))
}

fn on_disk(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    prepared(db).or_else(|error| {
        // Damaged, or of another format.
        if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) {
            return Err(error);
        }
        for suffix in ["", "-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            let _ = std::fs::remove_file(name);
        }
        prepared(Connection::open(path)?)
    })
}

fn in_memory() -> rusqlite::Result<Connection> {
    prepared(Connection::open_in_memory()?)
}

/// With its tables, made where there are none.
fn prepared(mut db: Connection) -> rusqlite::Result<Connection> {
    db.busy_timeout(PATIENCE)?;
    // Readers don't wait for the writer; what a power failure takes is made again from the file.
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "OFF")?;
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match tx.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))? {
        FORMAT => {}
        0 => {
            tx.execute_batch(TABLES)?;
            tx.pragma_update(None, "user_version", FORMAT)?;
        }
        _ => return Err(rusqlite::Error::InvalidQuery),
    }
    tx.commit()?;
    Ok(db)
}

/// Forgets the rollouts that the file does not have any more, as where a run goes on from an earlier checkpoint; where the
/// file is to be read on. What was cut off may have been replaced by other lines already: up to there all lines are the
/// same, and after it none is.
fn forget(tx: &Transaction<'_>, log: &mut File) -> rusqlite::Result<u64> {
    let mut place = tx.prepare_cached("SELECT offset, n_bytes, crc FROM rollouts WHERE id = ?1")?;
    let mut end_if_same = |id: i64| -> rusqlite::Result<Option<u64>> {
        let (offset, n_bytes, crc): (i64, i64, i64) =
            place.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let mut line = Vec::new();
        let there = log.seek(SeekFrom::Start(offset.cast_unsigned()));
        let there = there.and_then(|_| log.take(n_bytes.cast_unsigned()).read_to_end(&mut line));
        let is_same = there.is_ok() && line.len() as i64 == n_bytes && i64::from(crc32c::crc32c(&line)) == crc;
        Ok(is_same.then_some((offset + n_bytes).cast_unsigned()))
    };
    let n = last_id(tx)?;
    let (mut kept, mut end, mut first_other) = (0, 0, n + 1);
    let mut candidate = n;
    while kept + 1 < first_other {
        match end_if_same(candidate)? {
            Some(its_end) => (kept, end) = (candidate, its_end),
            None => first_other = candidate,
        }
        candidate = kept + (first_other - kept) / 2;
    }
    if kept < n {
        tx.execute("DELETE FROM rollouts WHERE id > ?1", [kept])?;
        tx.execute("DELETE FROM texts WHERE rowid > ?1", [kept])?;
    }
    Ok(end)
}

/// Takes in whole lines from `from` on, up to about [`N_BYTES_AT_ONCE`]; how many bytes it took.
fn take_in(tx: &Transaction<'_>, mut log: File, from: u64, log_path: &Path, path: &Path) -> Result<u64, RunDirError> {
    let bad = |error: rusqlite::Error| RunDirError::bad(path, error.to_string());
    let io = || RunDirError::io(log_path);
    log.seek(SeekFrom::Start(from)).map_err(io())?;
    let mut log = BufReader::new(log);
    let mut add = tx
        .prepare_cached(
            "INSERT INTO rollouts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )
        .map_err(bad)?;
    let mut add_text = tx.prepare_cached("INSERT INTO texts (rowid, text) VALUES (?1, ?2)").map_err(bad)?;
    let mut id = last_id(tx).map_err(bad)?;
    let (mut end, mut line) = (from, Vec::new());
    while end - from < N_BYTES_AT_ONCE {
        line.clear();
        let n_bytes = log.read_until(b'\n', &mut line).map_err(io())?;
        if !line.ends_with(b"\n") {
            break;
        }
        id += 1;
        let record: RolloutRecord =
            serde_json::from_slice(&line).map_err(|error| RunDirError::bad(log_path, format!("line {id}: {error}")))?;
        let finish = serde_json::to_value(record.finish).ok();
        add.execute(params![
            id,
            end.cast_signed(),
            n_bytes as i64,
            i64::from(crc32c::crc32c(&line)),
            record.version.0.cast_signed(),
            record.prompt_id.0.cast_signed(),
            record.sample_idx,
            record.response_tokens.len() as i64,
            finish.as_ref().and_then(|finish| finish.as_str()),
            f64::from(record.score),
            record.gold.map(f64::from),
            f64::from(record.kl),
            record.tokens.is_some(),
            last_characters(&record.prompt, N_HEAD),
            first_characters(&record.response, N_HEAD),
        ])
        .map_err(bad)?;
        let text = format!(
            "{}\n{}",
            last_characters(&record.prompt, N_SEARCHED),
            first_characters(&record.response, N_SEARCHED)
        );
        add_text.execute(params![id, text]).map_err(bad)?;
        end += n_bytes as u64;
    }
    Ok(end - from)
}

pub(crate) fn first_characters(text: &str, n: usize) -> &str {
    text.char_indices().nth(n).map_or(text, |(end, _)| &text[..end])
}

pub(crate) fn last_characters(text: &str, n: usize) -> &str {
    text.char_indices().rev().nth(n - 1).map_or(text, |(start, _)| &text[start..])
}

#[cfg(test)]
mod tests;
