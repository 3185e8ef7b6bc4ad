//! Records of a file, each with the line that it stands in.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::dialogue::Problem;
use super::rows::{Row, rows};
use super::schema::Schema;
use crate::error::{Error, Result};

/// What a row may hold.
pub trait Record: Sized {
    /// What one is called in an error.
    const NAME: &'static str;

    /// Makes one of a row of this schema.
    fn read(schema: Schema, row: &Map<String, Value>) -> Problem<Self>;
}

/// The records of a file, with the line that each stands in. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Records<T> {
    path: PathBuf,
    records: Vec<(usize, T)>,
}

impl<T: Record> Records<T> {
    /// Reads a file in any of the layouts of [`rows`](super::rows::rows).
    ///
    /// # Errors
    /// Names the file, the line, and what is wrong; the first row says what kind of record all others must be.
    pub fn read(path: &Path) -> Result<Self> {
        let records: Vec<(usize, T)> = stream(path)?.collect::<Result<_>>()?;
        if records.is_empty() {
            return Err(Error::bad_file(path, format!("holds no {}", T::NAME)));
        }
        Ok(Self { path: path.to_owned(), records })
    }
}

impl<T> Records<T> {
    /// The records, in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &T> {
        self.records.iter().map(|(_, record)| record)
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Always false: a file without records is refused.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records without their lines.
    pub fn into_records(self) -> Vec<T> {
        self.records.into_iter().map(|(_, record)| record).collect()
    }

    /// Makes one thing of each record. A problem becomes an error that names file and line.
    pub(super) fn try_map<U>(&self, make: impl Fn(&T) -> Result<U>) -> Result<Vec<U>> {
        let located = |(line, record): &(usize, T)| {
            make(record).map_err(|error| Error::bad_line(&self.path, *line, error.to_string()))
        };
        self.records.iter().map(located).collect()
    }
}

/// The records of a file one by one, with their lines; no more than one is held at a time.
pub fn stream<T: Record>(path: &Path) -> Result<impl Iterator<Item = Result<(usize, T)>> + use<T>> {
    let (path, mut schema) = (path.to_owned(), None);
    Ok(rows(&path)?.map(move |row| {
        let Row { line, columns } = row?;
        let bad = |problem| Error::bad_line(&path, line, problem);
        let schema = match schema {
            Some(schema) => schema,
            None => *schema.insert(Schema::of(&columns).map_err(bad)?),
        };
        Ok((line, T::read(schema, &columns).map_err(bad)?))
    }))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use collimate_protocol::records::PromptRecord;
    use tempfile::NamedTempFile;

    use super::*;

    /// A file with this content.
    pub(in super::super) fn file(content: impl AsRef<[u8]>) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(content.as_ref()).unwrap();
        file
    }

    fn error(content: impl AsRef<[u8]>) -> String {
        let file = file(content);
        let error = Records::<PromptRecord>::read(file.path()).unwrap_err().to_string();
        let name = file.path().display().to_string();
        error.strip_prefix(&name).unwrap_or_else(|| panic!("no file in: {error}")).to_owned()
    }

    #[test]
    fn lines_keep_their_order_and_blank_ones_are_passed_over() {
        let file = file("\u{feff}{\"prompt\": \"a\"}\r\n\n  \n{\"prompt\": \"b\"}");
        let records: Records<PromptRecord> = Records::read(file.path()).unwrap();
        assert_eq!(records.iter().map(|record| record.prompt.clone()).collect::<Vec<_>>(), ["a".into(), "b".into()]);
        let refused = records.try_map(|record| match record.prompt == "b".into() {
            true => Err(Error::invalid("no b, please")),
            false => Ok(()),
        });
        assert_eq!(refused.unwrap_err().to_string(), format!("{}:4: no b, please", file.path().display()));
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        let good = r#"{"prompt": "a"}"#;
        let truncated = error(format!("{good}\n{{\"prompt\": \"b"));
        assert_eq!(truncated, ":2: is no JSON object: EOF while parsing a string (column 13)");
        assert_eq!(error(r#"{"prompt": 3}"#), ":1: key `prompt` is 3, expected a text or a list of messages");
        let misspelt = error(r#"{"promt": "a"}"#);
        assert!(
            misspelt.starts_with(":1: has the keys `promt`, which make no known record; did you mean `prompt`"),
            "{misspelt}"
        );
        let later = error(format!("{good}\n{}", r#"{"promt": "a"}"#));
        assert_eq!(later, ":2: key `prompt` is missing; is it meant by `promt`?");
        assert!(error("{}").starts_with(":1: has the keys {}, which make no known record"), "{}", error("{}"));
        assert!(error("[1]\n").starts_with(":1: is no JSON object: invalid type"), "{}", error("[1]\n"));
        assert_eq!(error(b"\n{\"prompt\": \"\xff\"}\n"), ":2: is not UTF-8 from byte 13 of the line on");
    }

    #[test]
    fn a_file_that_is_absent_or_without_records_is_named() {
        assert_eq!(error("\n \n"), ": holds no prompt");
        let missing = Path::new("/nonexistent/prompts.jsonl");
        let message = Records::<PromptRecord>::read(missing).unwrap_err().to_string();
        assert!(message.starts_with("/nonexistent/prompts.jsonl: "), "{message}");
    }
}
