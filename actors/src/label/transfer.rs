//! Tasks and answers from files and to files.

use std::io;
use std::path::Path;

use clap::ValueEnum;
use collimate_models::data::Record;
use collimate_models::data::rows::{Layout, Row, rows};
use collimate_models::data::schema::Schema;
use collimate_models::data::write::{Columns, PromptColumn, Sink, layout, write_records};
use collimate_models::feedback::competition_ranks;
use collimate_protocol::records::{
    Answer, Arm, Comparison, Demonstration, LabelTask, Origin, PromptText, Provenance, Ranking, TaskKind, Written,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::store::answers::{self, Answered, Which};
use super::store::tasks::{self, Purpose};
use super::store::{Store, StoreError};

/// Rows of a file that are stored at once.
const BATCH: usize = 1000;

/// Why a file was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file is not what it should be.
    #[error(transparent)]
    File(#[from] collimate_models::Error),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing to write.
    #[error("there is nothing to export: no answer is {0}")]
    Nothing(&'static str),
    /// Parquet can't hold it.
    #[error("some prompts are text and some are dialogues, and a Parquet column has one type: export to a .jsonl file")]
    MixedPrompts,
}

/// What became of a file's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Tasks that are new.
    pub n_tasks: usize,
    /// Answers that are new.
    pub n_answers: usize,
    /// Rows that brought nothing new.
    pub n_known: usize,
}

/// What a file's tasks are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportAs {
    /// To be answered by so many labelers.
    Work(u32),
    /// To try labelers with: the file has the ranks that are right.
    Screening,
}

/// What one row brings.
struct Brought {
    line: usize,
    task: LabelTask,
    known: Option<Vec<u32>>,
    answer: Option<(Answer, Provenance)>,
}

/// Adds a file's tasks, and its answers where it names their labelers. What is there already is not added again: the same
/// file twice is the same as once.
///
/// # Errors
/// The first bad row, named by its line; rows before it may be stored.
pub fn import(store: &Store, path: &Path, into: ImportAs) -> Result<Imported, TransferError> {
    let mut imported = Imported::default();
    let mut schema = None;
    let mut batch = Vec::new();
    for row in rows(path)? {
        batch.push(brought(path, row?, &mut schema, into)?);
        if batch.len() == BATCH {
            add(store, path, std::mem::take(&mut batch), into, &mut imported)?;
        }
    }
    add(store, path, batch, into, &mut imported)?;
    Ok(imported)
}

fn brought(path: &Path, row: Row, schema: &mut Option<Schema>, into: ImportAs) -> Result<Brought, TransferError> {
    let Row { line, columns } = row;
    let bad = |problem| collimate_models::Error::bad_line(path, line, problem);
    let schema = match *schema {
        Some(schema) => schema,
        None => *schema.insert(Schema::of(&columns).map_err(bad)?),
    };
    let task = LabelTask::read(schema, &columns).map_err(bad)?;
    let known = match into {
        ImportAs::Work(_) => None,
        ImportAs::Screening => Some(Comparison::read(schema, &columns).map_err(bad)?.ranks),
    };
    let answer = match columns.get("labeler").is_some_and(Value::is_string) && into != ImportAs::Screening {
        true => Some(answer(schema, &columns, &task).map_err(bad)?),
        false => None,
    };
    Ok(Brought { line, task, known, answer })
}

/// The columns of an export beside those that say what was asked.
#[derive(Deserialize)]
struct Extra {
    labeler: String,
    #[serde(default = "epoch")]
    time: String,
    #[serde(default = "first")]
    revision: u32,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    shown: Vec<usize>,
    #[serde(default)]
    is_repeat: bool,
    #[serde(default)]
    known_ranks: Option<Vec<u32>>,
    #[serde(default)]
    all_bad: bool,
    #[serde(default)]
    flags: Vec<Vec<String>>,
    #[serde(default)]
    scores: Vec<Option<u8>>,
    #[serde(default)]
    notes: String,
    #[serde(default)]
    arm: Option<Arm>,
    #[serde(default)]
    settled: bool,
}

/// Files of others don't say when.
fn epoch() -> String {
    "1970-01-01T00:00:00.000Z".to_owned()
}

fn first() -> u32 {
    1
}

fn answer(schema: Schema, row: &Map<String, Value>, task: &LabelTask) -> Result<(Answer, Provenance), String> {
    let given = row.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone()));
    // Scores of another schema are not a labeler's 1 to 7.
    let given = given.filter(|(key, _)| key != "scores" || schema == Schema::Ranking);
    let extra: Extra = serde_path_to_error::deserialize(Value::Object(given.collect()))
        .map_err(|error| format!("key `{}`: {}", error.path(), error.inner()))?;
    let n = task.responses.len();
    let mut order = extra.shown.clone();
    order.sort_unstable();
    let shown = match order.is_empty() {
        true => (0..n).collect(),
        false if order.iter().copied().eq(0..n) => extra.shown,
        false => return Err(format!("key `shown` is {:?}, expected an order of {n} responses", extra.shown)),
    };
    let answer = if task.kind == TaskKind::Write {
        let Demonstration::Response { response, .. } = Demonstration::read(schema, row)? else {
            return Err("is a dialogue with a labeler, expected a prompt with its response".to_owned());
        };
        Answer::Written(Written { response, notes: extra.notes })
    } else {
        let ranks = competition_ranks(&Comparison::read(schema, row)?.ranks);
        let full = |len: usize, name: &str| match len {
            0 => Ok(()),
            len if len == n => Ok(()),
            len => Err(format!("key `{name}` holds {len}, expected one for each of {n} responses")),
        };
        full(extra.flags.len(), "flags")?;
        full(extra.scores.len(), "scores")?;
        let (mut flags, mut scores) = (extra.flags, extra.scores);
        flags.resize(n, Vec::new());
        scores.resize(n, None);
        Answer::Ranking(Ranking { ranks, all_bad: extra.all_bad, flags, scores, notes: extra.notes })
    };
    let provenance = Provenance {
        labeler: extra.labeler,
        time: extra.time,
        revision: extra.revision,
        seconds: extra.seconds,
        shown,
        is_repeat: extra.is_repeat,
        known_ranks: extra.known_ranks,
        origin: Origin::default(),
        task: String::new(),
        arm: extra.arm,
        settled: extra.settled,
    };
    Ok((answer, provenance))
}

fn add(
    store: &Store,
    path: &Path,
    batch: Vec<Brought>,
    into: ImportAs,
    imported: &mut Imported,
) -> Result<(), TransferError> {
    let path = path.to_owned();
    let added = store.write_now(move |connection| {
        let mut added = Imported::default();
        for Brought { line, task, known, answer } in batch {
            let located = |error: StoreError| match error {
                StoreError::Invalid(problem) => StoreError::Invalid(format!("{}:{line}: {problem}", path.display())),
                other => other,
            };
            let of_answer = answer.as_ref().and_then(|(_, provenance)| provenance.known_ranks.clone());
            let purpose = match (into, known.or(of_answer)) {
                (_, Some(known)) => Purpose::Screening { known },
                (ImportAs::Work(wanted), None) => Purpose::Work { wanted },
                (ImportAs::Screening, None) => unreachable!("read with its ranks"),
            };
            let (id, is_new) = tasks::add(connection, &task, &purpose).map_err(located)?;
            let is_new_answer = match &answer {
                Some((answer, provenance)) => answers::add(connection, id, answer, provenance).map_err(located)?,
                None => false,
            };
            added.n_tasks += usize::from(is_new);
            added.n_answers += usize::from(is_new_answer);
            added.n_known += usize::from(!is_new && !is_new_answer);
        }
        Ok(added)
    })?;
    imported.n_tasks += added.n_tasks;
    imported.n_answers += added.n_answers;
    imported.n_known += added.n_known;
    Ok(())
}

/// Which answers are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Export {
    /// `prompt`, `responses`, `ranks`: what the reward stage reads.
    Comparisons,
    /// `prompt`, `response`: what SFT reads.
    Demonstrations,
    /// `prompt`, `chosen`, `rejected`: a line for each pair that is no tie.
    Preferences,
}

/// Writes answers to a file, `.jsonl` or `.parquet`. Returns how many lines.
pub fn export(store: &Store, path: &Path, what: Export, which: Which) -> Result<usize, TransferError> {
    let prompt = match layout(path)? {
        Layout::Parquet => prompt_column(prompts(store, what, which)?)?,
        // Lines hold prompts of either kind.
        _ => PromptColumn::Text,
    };
    let columns = match what {
        Export::Comparisons => Columns::Comparisons(prompt),
        Export::Demonstrations => Columns::Demonstrations(prompt),
        Export::Preferences => Columns::Preferences(prompt),
    };
    let mut n_lines = 0;
    write_records(path, columns, |sink| {
        let write = |answered: Answered| -> Result<(), WriteError> {
            n_lines += write_lines(sink, answered, what)?;
            Ok(())
        };
        let written = store.read(|connection| Ok(answers::each(connection, which, write)));
        match written {
            Ok(Ok(())) if n_lines == 0 => Err(io::Error::other(TransferError::Nothing(missing(what)))),
            Ok(Ok(())) => Ok(()),
            Ok(Err(WriteError::Io(error))) => Err(error),
            Ok(Err(WriteError::Store(error))) | Err(error) => Err(io::Error::other(error)),
        }
    })?;
    Ok(n_lines)
}

/// What there would have to be.
fn missing(what: Export) -> &'static str {
    match what {
        Export::Demonstrations => "a demonstration",
        Export::Comparisons => "a ranking",
        Export::Preferences => "a ranking in which something is better",
    }
}

fn prompt_column(prompts: Prompts) -> Result<PromptColumn, TransferError> {
    match prompts {
        Prompts { n_text: 1.., n_messages: 1.. } => Err(TransferError::MixedPrompts),
        Prompts { n_messages: 0, .. } => Ok(PromptColumn::Text),
        Prompts { .. } => Ok(PromptColumn::Messages),
    }
}

enum WriteError {
    Io(io::Error),
    Store(StoreError),
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn write_lines(sink: &mut Sink, answered: Answered, what: Export) -> io::Result<usize> {
    match what {
        Export::Comparisons => match answered.into_comparison() {
            Some(line) => sink.write(&line).map(|()| 1),
            None => Ok(0),
        },
        Export::Demonstrations => match answered.into_demonstration() {
            Some(line) => sink.write(&line).map(|()| 1),
            None => Ok(0),
        },
        Export::Preferences => {
            let lines = answered.into_preferences();
            lines.iter().try_for_each(|line| sink.write(line))?;
            Ok(lines.len())
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Prompts {
    n_text: usize,
    n_messages: usize,
}

fn prompts(store: &Store, what: Export, which: Which) -> Result<Prompts, TransferError> {
    let mut prompts = Prompts::default();
    store.read(|connection| {
        answers::each(connection, which, |answered| -> Result<(), StoreError> {
            let is_wanted = match (&answered.answer, what) {
                (Answer::Written(_), Export::Demonstrations) | (Answer::Ranking(_), Export::Comparisons) => true,
                (Answer::Ranking(ranking), Export::Preferences) => {
                    ranking.ranks.iter().any(|rank| *rank != ranking.ranks[0])
                }
                _ => false,
            };
            match answered.task.prompt {
                PromptText::Text(_) if is_wanted => prompts.n_text += 1,
                PromptText::Messages(_) if is_wanted => prompts.n_messages += 1,
                _ => {}
            }
            Ok(())
        })
    })?;
    Ok(prompts)
}
