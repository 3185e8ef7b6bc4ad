//! A file much larger than the memory that reading it takes. Alone in its process, since it looks at the process's memory.

use std::io::Write;

use collimate_models::data::passes::{Items, Pass, Source};
use collimate_models::data::stream;
use collimate_models::rng;
use collimate_protocol::records::Demonstration;

const N_BYTES: usize = 1 << 30;
const RESPONSE_BYTES: usize = 64 << 10;
const BUFFER: usize = 64;

/// The most memory that the process has had, in bytes.
#[cfg(target_os = "linux")]
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[test]
fn a_gigabyte_of_json_lines_streams_in_constant_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.jsonl.zst");
    let n_records = N_BYTES / RESPONSE_BYTES;
    let mut encoder = zstd::Encoder::new(std::fs::File::create(&path).unwrap(), 1).unwrap();
    let response = "all work and no play ".repeat(RESPONSE_BYTES / 21);
    for idx in 0..n_records {
        writeln!(encoder, r#"{{"prompt": "{idx}", "response": "{response}"}}"#).unwrap();
    }
    encoder.finish().unwrap();

    let before = peak();
    let open = |path: &std::path::Path| -> collimate_models::Result<Items<Demonstration>> {
        Ok(Box::new(stream::<Demonstration>(path)?.map(|record| Ok(record?.1))))
    };
    let sources = [Source { path, weight: 1.0 }];
    let pass = Pass::new(&sources, open, BUFFER, rng::for_purpose(1, "pass")).unwrap();
    assert_eq!(pass.map(Result::unwrap).count(), n_records);
    let grown = peak() - before;
    assert!(grown < 64 << 20, "reading took {} MiB more", grown >> 20);
}
