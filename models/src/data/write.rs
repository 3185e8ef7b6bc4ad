//! Records to files: JSON lines or Parquet, by the file's name. The file is whole or absent.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow_json::ReaderBuilder;
use arrow_json::reader::Decoder;
use arrow_schema::{DataType, Field, Fields, Schema as ArrowSchema};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde::Serialize;

use super::rows::Layout;
use crate::durable::replace_file;
use crate::error::{Error, Result};

/// Rows that are turned into columns at once.
const BATCH: usize = 1024;

/// What a prompt is in all rows of a file. A Parquet column has one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptColumn {
    /// Text.
    Text,
    /// Messages.
    Messages,
}

/// Records that labelers made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Of [`LabeledComparison`](collimate_protocol::records::LabeledComparison).
    Comparisons(PromptColumn),
    /// Of [`LabeledDemonstration`](collimate_protocol::records::LabeledDemonstration).
    Demonstrations(PromptColumn),
    /// Of [`LabeledPreference`](collimate_protocol::records::LabeledPreference).
    Preferences(PromptColumn),
}

impl Columns {
    fn schema(self) -> ArrowSchema {
        let (prompt, own) = match self {
            Self::Comparisons(prompt) => {
                let tokens = vec![
                    Field::new("prompt", list(DataType::UInt32), false),
                    Field::new("responses", list(list(DataType::UInt32)), false),
                ];
                let own = vec![
                    Field::new("responses", list(DataType::Utf8), false),
                    Field::new("ranks", list(DataType::UInt32), false),
                    Field::new("tokens", DataType::Struct(tokens.into()), true),
                    Field::new("kind", DataType::Utf8, false),
                    Field::new("all_bad", DataType::Boolean, false),
                    Field::new("flags", list(list(DataType::Utf8)), false),
                    Field::new("scores", DataType::List(Arc::new(Field::new("element", DataType::UInt8, true))), false),
                    Field::new("notes", DataType::Utf8, false),
                ];
                (prompt, own)
            }
            Self::Demonstrations(prompt) => {
                let own = ["response", "notes"].map(|name| Field::new(name, DataType::Utf8, false));
                (prompt, own.to_vec())
            }
            Self::Preferences(prompt) => {
                let own = ["chosen", "rejected"].map(|name| Field::new(name, DataType::Utf8, false));
                (prompt, own.to_vec())
            }
        };
        let first = Field::new("prompt", prompt.data_type(), false);
        ArrowSchema::new([vec![first], own, provenance()].concat())
    }
}

impl PromptColumn {
    fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Messages => {
                let message = ["role", "content"].map(|name| Field::new(name, DataType::Utf8, false));
                list(DataType::Struct(Fields::from(message.to_vec())))
            }
        }
    }
}

fn provenance() -> Vec<Field> {
    let origin = vec![
        Field::new("run", DataType::Utf8, true),
        Field::new("model", DataType::Utf8, true),
        Field::new("policy_version", DataType::UInt64, true),
        Field::new("seed", DataType::UInt64, true),
        Field::new("reward_model", DataType::Utf8, true),
        Field::new("scores", list(DataType::Float32), true),
        Field::new("versions", list(DataType::UInt64), true),
    ];
    vec![
        Field::new("labeler", DataType::Utf8, false),
        Field::new("time", DataType::Utf8, false),
        Field::new("revision", DataType::UInt32, false),
        Field::new("seconds", DataType::Float64, false),
        Field::new("shown", list(DataType::UInt64), false),
        Field::new("is_repeat", DataType::Boolean, false),
        Field::new("known_ranks", list(DataType::UInt32), true),
        Field::new("origin", DataType::Struct(origin.into()), false),
        Field::new("task", DataType::Utf8, false),
        Field::new("arm", DataType::Utf8, true),
        Field::new("settled", DataType::Boolean, false),
    ]
}

fn list(of: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", of, false)))
}

/// Takes records, one after another.
pub struct Sink(Form);

enum Form {
    JsonLines(BufWriter<File>),
    Parquet { decoder: Box<Decoder>, writer: Box<ArrowWriter<File>>, n_pending: usize },
}

impl Sink {
    /// Adds one.
    pub fn write(&mut self, record: &impl Serialize) -> io::Result<()> {
        match &mut self.0 {
            Form::JsonLines(file) => {
                serde_json::to_writer(&mut *file, record)?;
                file.write_all(b"\n")
            }
            Form::Parquet { decoder, writer, n_pending } => {
                decoder.serialize(std::slice::from_ref(record)).map_err(io::Error::other)?;
                *n_pending += 1;
                if *n_pending == BATCH {
                    *n_pending = 0;
                    flush(decoder, writer)?;
                }
                Ok(())
            }
        }
    }

    fn finish(self) -> io::Result<()> {
        match self.0 {
            Form::JsonLines(mut file) => file.flush(),
            Form::Parquet { mut decoder, mut writer, .. } => {
                flush(&mut decoder, &mut writer)?;
                writer.close().map(drop).map_err(io::Error::other)
            }
        }
    }
}

fn flush(decoder: &mut Decoder, writer: &mut ArrowWriter<File>) -> io::Result<()> {
    match decoder.flush().map_err(io::Error::other)? {
        Some(batch) => writer.write(&batch).map_err(io::Error::other),
        None => Ok(()),
    }
}

/// Writes a file of records: `fill` gives them to the sink. After a crash the old file is there or the new one.
///
/// # Errors
/// A name that is of no layout that can be written, or what `fill` says.
pub fn write_records(path: &Path, columns: Columns, fill: impl FnOnce(&mut Sink) -> io::Result<()>) -> Result<()> {
    let layout = layout(path)?;
    replace_file(path, |temporary| {
        let file = File::create(temporary)?;
        let mut sink = Sink(match layout {
            Layout::Parquet => {
                let schema = Arc::new(columns.schema());
                let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
                let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(io::Error::other)?;
                let decoder = ReaderBuilder::new(schema).with_batch_size(BATCH).build_decoder();
                let (decoder, writer) = (Box::new(decoder.map_err(io::Error::other)?), Box::new(writer));
                Form::Parquet { decoder, writer, n_pending: 0 }
            }
            _ => Form::JsonLines(BufWriter::new(file)),
        });
        fill(&mut sink)?;
        sink.finish()
    })
}

/// In which layout a file of this name is written.
pub fn layout(path: &Path) -> Result<Layout> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "ndjson") => Ok(Layout::JsonLines),
        Some("parquet") => Ok(Layout::Parquet),
        _ => Err(Error::bad_file(path, "can't be written as that; expected a name that ends in .jsonl or .parquet")),
    }
}
