//! Files of records, row by row: JSON lines, a JSON array, Parquet, plain text; also compressed by gzip or Zstandard.
//! No more of a file than one row is held at a time, but for a JSON array, which is read whole.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use parquet::file::reader::SerializedFileReader;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// One record as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its line, or in a Parquet file its row; from 1.
    pub line: usize,
    /// Its columns.
    pub columns: Map<String, Value>,
}

/// The rows of a file, in its order.
pub type Rows = Box<dyn Iterator<Item = Result<Row>> + Send>;

/// How a file is laid out, by its name. What has none of these names is taken for JSON lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `.jsonl`, `.ndjson`, and `.json` that does not begin with a bracket: an object a line.
    JsonLines,
    /// `.json`: an array of objects.
    JsonArray,
    /// `.parquet`.
    Parquet,
    /// `.txt`: paragraphs, which blank lines separate, each a record with its `text`.
    Text,
}

impl Layout {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::JsonLines => "JSON lines",
            Self::JsonArray => "a JSON array",
            Self::Parquet => "Parquet",
            Self::Text => "plain text",
        }
    }

    /// Of this file.
    pub fn of(path: &Path) -> Result<Self> {
        match extension(path).as_deref() {
            Some("parquet") => Ok(Self::Parquet),
            Some("txt") => Ok(Self::Text),
            Some("json") => Ok(if begins_with_bracket(path)? { Self::JsonArray } else { Self::JsonLines }),
            _ => Ok(Self::JsonLines),
        }
    }
}

/// The last part of the name that is not about compression, in lower case.
fn extension(path: &Path) -> Option<String> {
    let of = |path: &Path| Some(path.extension()?.to_str()?.to_lowercase());
    match of(path)?.as_str() {
        "gz" | "zst" => of(Path::new(path.file_stem()?)),
        other => Some(other.to_owned()),
    }
}

fn begins_with_bracket(path: &Path) -> Result<bool> {
    let mut reader = open(path)?;
    loop {
        let bytes = reader.fill_buf().map_err(|source| Error::io(path, source))?;
        match bytes.iter().find(|byte| !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(byte)) {
            Some(byte) => return Ok(*byte == b'['),
            None if bytes.is_empty() => return Ok(false),
            None => {
                let n = bytes.len();
                reader.consume(n);
            }
        }
    }
}

/// The file's bytes, unpacked.
fn open(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    let is = |name: &str| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(name));
    if is("gz") {
        return Ok(Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file))));
    }
    if is("zst") {
        let decoder = zstd::Decoder::new(file).map_err(|source| Error::io(path, source))?;
        return Ok(Box::new(BufReader::new(decoder)));
    }
    Ok(Box::new(BufReader::new(file)))
}

/// Opens a file.
///
/// # Errors
/// A file that can't be opened. What is wrong with a row comes when the row is read, with its line.
pub fn rows(path: &Path) -> Result<Rows> {
    match Layout::of(path)? {
        Layout::JsonLines => {
            Ok(Box::new(JsonLines { path: path.to_owned(), reader: open(path)?, line: 0, bytes: Vec::new() }))
        }
        Layout::JsonArray => json_array(path),
        Layout::Parquet => parquet(path),
        Layout::Text => Ok(Box::new(Paragraphs { path: path.to_owned(), reader: open(path)?, line: 0 })),
    }
}

struct JsonLines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    line: usize,
    bytes: Vec<u8>,
}

impl Iterator for JsonLines {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        loop {
            self.bytes.clear();
            match self.reader.read_until(b'\n', &mut self.bytes) {
                Ok(0) => return None,
                Ok(_) => self.line += 1,
                Err(source) => return Some(Err(Error::io(&self.path, source))),
            }
            let text = match std::str::from_utf8(&self.bytes) {
                // Some editors put a byte-order mark before the first line.
                Ok(text) => text.trim_start_matches('\u{feff}').trim(),
                Err(error) => {
                    let problem = format!("is not UTF-8 from byte {} of the line on", error.valid_up_to() + 1);
                    return Some(Err(Error::bad_line(&self.path, self.line, problem)));
                }
            };
            if !text.is_empty() {
                let columns = object(text).map_err(|problem| Error::bad_line(&self.path, self.line, problem));
                return Some(columns.map(|columns| Row { line: self.line, columns }));
            }
        }
    }
}

fn object(text: &str) -> std::result::Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| {
        let (column, text) = (error.column(), error.to_string());
        let problem = text.rsplit_once(" at line ").map_or(text.as_str(), |(problem, _)| problem);
        format!("is no JSON object: {problem} (column {column})")
    })
}

fn json_array(path: &Path) -> Result<Rows> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text).map_err(|source| Error::io(path, source))?;
    let items: Vec<&RawValue> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|error| Error::bad_line(path, error.line().max(1), format!("is no JSON array: {error}")))?;
    let (mut line, mut seen) = (1, 0);
    let mut rows = Vec::with_capacity(items.len());
    for item in items {
        let at = item.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text.as_bytes()[seen..at].iter().filter(|byte| **byte == b'\n').count();
        seen = at;
        rows.push(match object(item.get()) {
            Ok(columns) => Ok(Row { line, columns }),
            Err(problem) => Err(Error::bad_line(path, line, problem)),
        });
    }
    Ok(Box::new(rows.into_iter()))
}

fn parquet(path: &Path) -> Result<Rows> {
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    let reader = SerializedFileReader::new(file)
        .map_err(|error| Error::bad_file(path, format!("is no whole Parquet file: {error}")))?;
    let path = path.to_owned();
    let rows = reader.into_iter().enumerate().map(move |(idx, row)| {
        let bad = |problem: String| Error::bad_line(&path, idx + 1, problem);
        let row = row.map_err(|error| bad(format!("can't be read: {error}")))?;
        match row.to_json_value() {
            Value::Object(columns) => Ok(Row { line: idx + 1, columns }),
            other => Err(bad(format!("is {other}, expected columns"))),
        }
    });
    Ok(Box::new(rows))
}

struct Paragraphs {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    line: usize,
}

impl Iterator for Paragraphs {
    type Item = Result<Row>;

    /// Lines of a paragraph are joined by a space.
    fn next(&mut self) -> Option<Result<Row>> {
        let mut words = String::new();
        let mut first_line = 0;
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) if words.is_empty() => return None,
                Ok(0) => break,
                Ok(_) => self.line += 1,
                Err(source) => return Some(Err(Error::bad_line(&self.path, self.line + 1, source.to_string()))),
            }
            let before = words.len();
            for word in line.split_whitespace() {
                if !words.is_empty() {
                    words.push(' ');
                }
                words.push_str(word);
            }
            match (before, words.len()) {
                (0, 0) => {}
                (0, _) => first_line = self.line,
                (before, after) if before == after => break,
                _ => {}
            }
        }
        let columns = Map::from_iter([("text".to_owned(), json!(words))]);
        Some(Ok(Row { line: first_line, columns }))
    }
}
