//! Files of JSON objects, one a line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::nearest;
use crate::error::{Error, Result};

/// What a line may hold.
pub(super) trait Record: DeserializeOwned {
    /// What one is called in an error.
    const NAME: &'static str;
    /// Every key.
    const KEYS: &'static [&'static str];

    /// What is wrong with it beyond its form, if something is.
    fn problem(&self) -> Option<String>;
}

/// The records of a JSON-lines file, with the line that each stands in. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Lines<T> {
    path: PathBuf,
    records: Vec<(usize, T)>,
}

impl<T> Lines<T> {
    /// The records, in the file's order.
    pub fn records(&self) -> impl ExactSizeIterator<Item = &T> {
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

/// Reads a file of JSON lines. Lines of white space are passed over.
pub(super) fn read_lines<T: Record>(path: &Path) -> Result<Lines<T>> {
    let mut reader = BufReader::new(File::open(path).map_err(|source| Error::io(path, source))?);
    let mut records = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(|source| Error::io(path, source))? == 0 {
            break;
        }
        let bad = |problem| Error::bad_line(path, line, problem);
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| bad(format!("is not UTF-8 from byte {} of the line on", error.valid_up_to() + 1)))?;
        // Some editors put a byte-order mark before the first line.
        let text = text.trim_start_matches('\u{feff}').trim();
        if !text.is_empty() {
            let record: T = parse(text).map_err(bad)?;
            record.problem().map_or(Ok(()), |problem| Err(bad(problem)))?;
            records.push((line, record));
        }
    }
    if records.is_empty() {
        return Err(Error::bad_file(path, format!("holds no {}, expected one JSON object a line", T::NAME)));
    }
    Ok(Lines { path: path.to_owned(), records })
}

fn parse<T: Record>(text: &str) -> std::result::Result<T, String> {
    serde_json::from_str(text).map_err(|error| {
        // What parses as an object fails for its keys or their values: say which, by name.
        let map: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
        if let Some(key) = map.keys().find(|key| !T::KEYS.contains(&key.as_str())) {
            let meant = nearest(key, T::KEYS.iter().copied())
                .map_or_else(|| format!("known are {}", T::KEYS.join(", ")), |name| format!("did you mean `{name}`?"));
            return format!("unknown key `{key}` in a {}: {meant}", T::NAME);
        }
        let (column, text) = (error.column(), error.to_string());
        let problem = text.rsplit_once(" at line ").map_or(text.as_str(), |(problem, _)| problem);
        format!("is no {}: {problem} (column {column})", T::NAME)
    })
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
        let error = read_lines::<PromptRecord>(file.path()).unwrap_err().to_string();
        let name = file.path().display().to_string();
        error.strip_prefix(&name).unwrap_or_else(|| panic!("no file in: {error}")).to_owned()
    }

    #[test]
    fn lines_keep_their_order_and_blank_ones_are_passed_over() {
        let file = file("\u{feff}{\"prompt\": \"a\"}\r\n\n  \n{\"prompt\": \"b\"}");
        let lines: Lines<PromptRecord> = read_lines(file.path()).unwrap();
        assert_eq!(lines.records().map(|record| record.prompt.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let refused = lines.try_map(|record| match record.prompt.as_str() {
            "b" => Err(Error::invalid("no b, please")),
            _ => Ok(()),
        });
        assert_eq!(refused.unwrap_err().to_string(), format!("{}:4: no b, please", file.path().display()));
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        let good = r#"{"prompt": "a"}"#;
        let truncated = error(format!("{good}\n{{\"prompt\": \"b"));
        assert_eq!(truncated, ":2: is no prompt: EOF while parsing a string (column 13)");
        let number = error(r#"{"prompt": 3}"#);
        assert_eq!(number, ":1: is no prompt: invalid type: integer `3`, expected a string (column 12)");
        assert_eq!(error(r#"{"promt": "a"}"#), ":1: unknown key `promt` in a prompt: did you mean `prompt`?");
        assert_eq!(error(r#"{"prompt": "a", "id": 1}"#), ":1: unknown key `id` in a prompt: known are prompt");
        assert_eq!(error("{}"), ":1: is no prompt: missing field `prompt` (column 2)");
        assert!(error("[1]\n").starts_with(":1: is no prompt: invalid type"), "{}", error("[1]\n"));
        assert_eq!(error(b"\n{\"prompt\": \"\xff\"}\n"), ":2: is not UTF-8 from byte 13 of the line on");
    }

    #[test]
    fn a_file_that_is_absent_or_without_records_is_named() {
        assert_eq!(error("\n \n"), ": holds no prompt, expected one JSON object a line");
        let missing = Path::new("/nonexistent/prompts.jsonl");
        let message = read_lines::<PromptRecord>(missing).unwrap_err().to_string();
        assert!(message.starts_with("/nonexistent/prompts.jsonl: "), "{message}");
    }
}
