//! TensorBoard's event files, written by hand: a few protobuf messages in TFRecord frames.
//!
//! Formats: TensorFlow's `event.proto`, `summary.proto`, `tensor.proto`, and `record_writer.h` for the frames.
//! Only the fields that are written are declared; the tags are theirs.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::rundir::RunDirError;

/// Appends events to one file, which TensorBoard may read meanwhile.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Starts an event file in a folder, making the folder where it is absent.
    pub fn create(dir: &Path) -> Result<Self, RunDirError> {
        std::fs::create_dir_all(dir).map_err(RunDirError::io(dir))?;
        // TensorBoard takes any file whose name holds `tfevents`, in order of name.
        let path = dir.join(format!("events.out.tfevents.{:010}.{}", wall_time() as u64, std::process::id()));
        let file = File::create(&path).map_err(RunDirError::io(&path))?;
        let mut writer = Self { path, file: BufWriter::new(file) };
        // The first event of a file names the format; without it the reader takes an older one.
        let what = Some(event::What::FileVersion("brain.Event:2".into()));
        writer.append(&Event { wall_time: wall_time(), step: 0, what })?;
        Ok(writer)
    }

    /// Makes readers forget what earlier files of the folder have at this step or later: it comes again.
    pub fn forget_from(&mut self, step: u64) -> Result<(), RunDirError> {
        let what = Some(event::What::SessionLog(SessionLog { status: SESSION_START }));
        self.append(&Event { wall_time: wall_time(), step: step as i64, what })
    }

    /// Adds numbers at a step. Not-finite ones too: TensorBoard shows where they were.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), RunDirError> {
        let value = |(tag, number): (&str, f64)| SummaryValue {
            tag: tag.to_owned(),
            simple_value: Some(number as f32),
            ..SummaryValue::default()
        };
        self.summary(step, scalars.into_iter().map(value).collect())
    }

    /// Adds a text, in Markdown, at a step.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<(), RunDirError> {
        let plugin_data = Some(PluginData { plugin_name: "text".into() });
        let tensor =
            Tensor { dtype: DT_STRING, shape: Some(TensorShape {}), string_val: vec![text.as_bytes().to_vec()] };
        let value = SummaryValue {
            tag: tag.to_owned(),
            simple_value: None,
            tensor: Some(tensor),
            metadata: Some(SummaryMetadata { plugin_data }),
        };
        self.summary(step, vec![value])
    }

    fn summary(&mut self, step: u64, values: Vec<SummaryValue>) -> Result<(), RunDirError> {
        let what = Some(event::What::Summary(Summary { value: values }));
        self.append(&Event { wall_time: wall_time(), step: step as i64, what })
    }

    fn append(&mut self, event: &Event) -> Result<(), RunDirError> {
        let written = self.file.write_all(&framed(&event.encode_to_vec())).and_then(|()| self.file.flush());
        written.map_err(RunDirError::io(&self.path))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A TFRecord: length (u64, little endian), its checksum, the bytes, their checksum.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(data.len() + 16);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
    frame.extend_from_slice(data);
    frame.extend_from_slice(&masked_crc(data).to_le_bytes());
    frame
}

/// CRC32C, rotated and shifted, so that the checksum of data that holds checksums stays a good one
/// (TensorFlow, `lib/hash/crc32c.h`).
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `SessionLog.SessionStatus.START`.
const SESSION_START: i32 = 1;

/// `DataType.DT_STRING`.
const DT_STRING: i32 = 7;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "event::What", tags = "3, 5, 7")]
    what: Option<event::What>,
}

mod event {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum What {
        #[prost(string, tag = "3")]
        FileVersion(String),
        #[prost(message, tag = "5")]
        Summary(super::Summary),
        #[prost(message, tag = "7")]
        SessionLog(super::SessionLog),
    }
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    // In TensorFlow's file this is one arm of a `oneof`: written also when it is 0.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<SummaryMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryMetadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

/// No dimensions: a scalar.
#[derive(Clone, Copy, PartialEq, Message)]
struct TensorShape {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_what_tensorflow_writes() {
        // Made by `tensorboard.summary.writer.record_writer.RecordWriter` from b"abc".
        let expected = "0300000000000000b099490e6162636e57f121";
        let hex: String = framed(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn an_event_is_what_tensorflow_writes() {
        // `Event(wall_time=1.5, step=3, summary=Summary(value=[Summary.Value(tag="a/b", simple_value=0.0)]))`
        // serialised by `tensorboard.compat.proto`.
        let expected = "09000000000000f83f10032a0c0a0a0a03612f621500000000";
        let value = SummaryValue { tag: "a/b".into(), simple_value: Some(0.0), ..SummaryValue::default() };
        let what = Some(event::What::Summary(Summary { value: vec![value] }));
        let bytes = Event { wall_time: 1.5, step: 3, what }.encode_to_vec();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn a_file_is_a_row_of_whole_frames_and_grows_as_events_come() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(&dir.path().join("tb")).unwrap();
        writer.scalars(1, [("batch/score", 0.5), ("batch/kl", f64::NAN)]).unwrap();
        writer.text(1, "sample", "**a**").unwrap();
        let bytes = std::fs::read(&writer.path).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let (frame, after) = rest.split_at(length + 16);
            assert_eq!(frame, framed(&frame[12..12 + length]));
            events.push(Event::decode(&frame[12..12 + length]).unwrap());
            rest = after;
        }
        assert_eq!(events.len(), 3);
        assert_eq!(events[0].what, Some(event::What::FileVersion("brain.Event:2".into())));
        assert_eq!(events[1].step, 1);
    }
}
