//! Files of one JSON object a line.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{RunDirError, atomic};

/// Writes records, each on its line. A line that has been written outlives the process.
#[derive(Debug)]
pub struct JsonlWriter<T> {
    path: PathBuf,
    file: BufWriter<File>,
    records: PhantomData<fn(&T)>,
}

impl<T: Serialize> JsonlWriter<T> {
    /// Starts the file anew.
    pub fn create(path: &Path) -> Result<Self, RunDirError> {
        let file = File::create(path).map_err(RunDirError::io(path))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), records: PhantomData })
    }

    /// Adds to a file as it is, which may be absent.
    pub fn append(path: &Path) -> Result<Self, RunDirError> {
        let file = File::options().create(true).append(true).open(path).map_err(RunDirError::io(path))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), records: PhantomData })
    }

    /// Goes on with a file, after those of its lines that `keep` wants. A line without an end is not kept.
    pub fn resume(path: &Path, keep: impl Fn(&Value) -> bool) -> Result<Self, RunDirError> {
        let text = text_if_there(path)?;
        let mut kept = String::with_capacity(text.len());
        for line in whole_lines(path, &text) {
            let (line, record) = line?;
            if keep(&record) {
                kept.push_str(line);
            }
        }
        atomic::write(path, kept.as_bytes())?;
        Self::append(path)
    }

    /// Adds records and hands them to the operating system, so that a killed process loses none of them.
    pub fn write_all<'a>(&mut self, records: impl IntoIterator<Item = &'a T>) -> Result<(), RunDirError>
    where
        T: 'a,
    {
        for record in records {
            let mut line =
                serde_json::to_vec(record).map_err(|error| RunDirError::bad(&self.path, error.to_string()))?;
            line.push(b'\n');
            self.file.write_all(&line).map_err(RunDirError::io(&self.path))?;
        }
        self.file.flush().map_err(RunDirError::io(&self.path))
    }

    /// Adds one record.
    pub fn write(&mut self, record: &T) -> Result<(), RunDirError> {
        self.write_all([record])
    }
}

/// What the file holds; nothing where it is absent.
pub(super) fn text_if_there(path: &Path) -> Result<String, RunDirError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(RunDirError::io(path)(error)),
    }
}

/// The lines of the file's text, with their ends and what they say. A line without an end is none: it was being written
/// when the process died.
pub(super) fn whole_lines<'a>(
    path: &'a Path,
    text: &'a str,
) -> impl Iterator<Item = Result<(&'a str, Value), RunDirError>> {
    let whole = text.split_inclusive('\n').enumerate().filter(|(_, line)| line.ends_with('\n'));
    whole.map(move |(idx, line)| match serde_json::from_str(line) {
        Ok(record) => Ok((line, record)),
        Err(error) => Err(RunDirError::bad(path, format!("line {}: {error}", idx + 1))),
    })
}

/// Reads every record. A broken line is an error that names it, unless it is the last one and has no end: that one
/// was being written when the process died.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RunDirError> {
    let text = std::fs::read_to_string(path).map_err(RunDirError::io(path))?;
    let mut records = Vec::new();
    for (idx, line) in text.split_inclusive('\n').enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(_) if !line.ends_with('\n') => break,
            Err(error) => return Err(RunDirError::bad(path, format!("line {}: {error}", idx + 1))),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_on_after_the_lines_that_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"version\":1}\n{\"version\":2,\"x\":null}\n{\"version\":3}\n{\"vers").unwrap();
        let keep = |record: &Value| record["version"].as_u64().is_some_and(|version| version <= 2);
        let mut writer = JsonlWriter::<Value>::resume(&path, keep).unwrap();
        writer.write(&serde_json::json!({"version": 3, "again": true})).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"version\":1}\n{\"version\":2,\"x\":null}\n{\"again\":true,\"version\":3}\n");
        // Nothing there yet is as good as an empty file.
        JsonlWriter::<Value>::resume(&dir.path().join("none.jsonl"), keep).unwrap();
    }

    #[test]
    fn records_come_back_and_each_is_there_once_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = JsonlWriter::<Vec<u32>>::create(&path).unwrap();
        writer.write(&vec![1, 2]).unwrap();
        assert_eq!(read_jsonl::<Vec<u32>>(&path).unwrap(), [vec![1, 2]]);
        writer.write_all(&[vec![], vec![3]]).unwrap();
        assert_eq!(read_jsonl::<Vec<u32>>(&path).unwrap(), [vec![1, 2], vec![], vec![3]]);
    }

    #[test]
    fn a_half_written_last_line_is_left_out_and_any_other_broken_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "1\n2\n{\"ver").unwrap();
        assert_eq!(read_jsonl::<u32>(&path).unwrap(), [1, 2]);
        std::fs::write(&path, "1\nx\n3\n").unwrap();
        let error = read_jsonl::<u32>(&path).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl: line 2: "), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_with_path_and_cause() {
        let mut writer = JsonlWriter::<u32>::create(Path::new("/dev/full")).unwrap();
        let error = writer.write(&1).unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: No space left on device"), "{error}");
    }
}
