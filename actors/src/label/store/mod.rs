//! What lasts: tasks, labelers, and every revision of every answer, in one SQLite file.
//!
//! One thread writes. It takes whatever requests are waiting into one transaction, and tells nobody that theirs is done
//! before the disk has it: an answer that was acknowledged outlives `kill -9` and a loss of power. Reading goes on beside
//! it (write-ahead log).
//!
//! - [`tasks`]: what is asked. [`labelers`]: who is asked.
//! - [`next`]: which task a labeler gets. [`work`]: drafts, answers, skips, undo.
//! - [`places`]: in which order tasks come.
//! - [`settled`]: rankings that the admin settles tasks by.
//! - [`answers`]: answers as files bring them and take them. [`stats`]: how it is going.

pub mod answers;
pub mod labelers;
pub mod next;
pub mod places;
pub mod settled;
pub mod stats;
pub mod tasks;
pub mod work;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::oneshot;

/// Milliseconds since 1970, UTC.
pub type Millis = i64;

/// "CLMT": says in the file's header whose it is.
const APPLICATION_ID: i32 = 0x434c_4d54;
const SCHEMA_VERSION: i32 = 3;
const SCHEMA: &str = include_str!("schema.sql");
/// What makes tables of each later version of those before it: the first of them of version 1.
const UPGRADES: [&str; 2] = [include_str!("from_1_to_2.sql"), include_str!("from_2_to_3.sql")];
/// How long one process waits for another's transaction: an import of many tasks takes some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests that share a transaction. More would keep the first of them waiting.
const LARGEST_GROUP: usize = 128;

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file can't be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// What is asked for is not there, or is somebody else's.
    #[error("{0}")]
    NotFound(String),
    /// It can't be done any more.
    #[error("{0}")]
    Conflict(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// SQLite failed: the disk is full, or the file is damaged.
    #[error("the database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The transaction was not committed, so nothing is kept of the request.
    #[error("nothing was stored: {0}")]
    NotCommitted(String),
    /// The thread that writes has ended.
    #[error("the database is closed")]
    Closed,
}

/// The store's result.
pub type Result<T> = std::result::Result<T, StoreError>;

type Tell = Box<dyn FnOnce(Option<&str>) + Send>;
type Job = Box<dyn FnOnce(std::result::Result<&Connection, &str>) -> Tell + Send>;

/// The database of one labelling project. Its clones share the thread that writes.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
    jobs: Sender<Job>,
}

impl Store {
    /// Opens the file, which is made if it is absent.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = connect(path, OpenFlags::default())?;
        prepare(&connection).map_err(|problem| StoreError::File { path: path.to_owned(), problem })?;
        let (jobs, waiting) = crossbeam_channel::unbounded();
        let thread = std::thread::Builder::new().name("label-store".to_owned());
        thread
            .spawn(move || write_until_closed(connection, &waiting))
            .map_err(|error| StoreError::File { path: path.to_owned(), problem: error.to_string() })?;
        Ok(Self { path: path.to_owned(), jobs })
    }

    /// Opens a file that is there.
    pub fn existing(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(StoreError::File { path: path.to_owned(), problem: "there is no such file".to_owned() });
        }
        Self::open(path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes something. The answer comes when the disk has it.
    pub async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.send(change)?.await.map_err(|_| StoreError::Closed)?
    }

    /// The same, for callers outside of a runtime.
    pub fn write_now<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.send(change)?.blocking_recv().map_err(|_| StoreError::Closed)?
    }

    /// Reads, from a state that nobody changes meanwhile.
    pub fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut connection = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        read(&*connection.transaction()?)
    }

    fn send<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (tell, told) = oneshot::channel();
        let job = move |connection: std::result::Result<&Connection, &str>| -> Tell {
            let result = match connection {
                Ok(connection) => whole_or_not_at_all(connection, change),
                Err(problem) => Err(StoreError::NotCommitted(problem.to_owned())),
            };
            Box::new(move |failure| {
                let result = match failure {
                    Some(problem) => Err(StoreError::NotCommitted(problem.to_owned())),
                    None => result,
                };
                // Who asked may have gone: that it is stored remains true.
                let _ = tell.send(result);
            })
        };
        self.jobs.send(Box::new(job)).map_err(|_| StoreError::Closed)?;
        Ok(told)
    }
}

/// The time.
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let file = |error: rusqlite::Error| StoreError::File { path: path.to_owned(), problem: error.to_string() };
    let connection = Connection::open_with_flags(path, flags).map_err(file)?;
    connection.busy_timeout(PATIENCE).map_err(file)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(connection)
}

/// Makes the tables, or sees that they are this version's.
fn prepare(connection: &Connection) -> std::result::Result<(), String> {
    let in_words = |error: rusqlite::Error| error.to_string();
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(in_words);
    let (application, version) = (number("application_id")?, number("user_version")?);
    let n_tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(in_words)?;
    match (n_tables, application, version) {
        (0, ..) => {}
        (_, APPLICATION_ID, 1..=SCHEMA_VERSION) => {}
        (_, APPLICATION_ID, version) => {
            return Err(format!(
                "was written by another version of Collimate (its tables are of version {version}, expected \
                 {SCHEMA_VERSION})"
            ));
        }
        _ => return Err("is another program's database, not one that `collimate label` made".to_owned()),
    }
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(in_words)?;
    let change = match (n_tables, version) {
        (0, _) => SCHEMA.to_owned(),
        (_, SCHEMA_VERSION) => return Ok(()),
        (_, version) => UPGRADES[version as usize - 1..].concat(),
    };
    let tables = format!(
        "BEGIN IMMEDIATE; {change}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; \
         COMMIT;"
    );
    connection.execute_batch(&tables).map_err(in_words)
}

/// Takes what is waiting into one transaction, commits, and then tells those who wait.
fn write_until_closed(mut connection: Connection, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = match transaction {
            Ok(transaction) => transaction,
            Err(error) => {
                first(Err(&error.to_string()))(None);
                continue;
            }
        };
        let mut tells = vec![first(Ok(&transaction))];
        tells.extend(waiting.try_iter().take(LARGEST_GROUP).map(|job| job(Ok(&transaction))));
        let failure = transaction.commit().err().map(|error| error.to_string());
        for tell in tells {
            tell(failure.as_deref());
        }
    }
}

/// A request that fails half-way leaves nothing in the transaction that it shares with others.
fn whole_or_not_at_all<T>(connection: &Connection, change: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    connection.execute_batch("SAVEPOINT request")?;
    let result = change(connection);
    if result.is_err() {
        connection.execute_batch("ROLLBACK TO request")?;
    }
    connection.execute_batch("RELEASE request")?;
    result
}

#[cfg(test)]
mod tests;
