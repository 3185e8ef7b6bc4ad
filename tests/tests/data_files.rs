//! Data as people have it, in files as people have them: every schema as a whole file and as a broken one, every layout.

use std::io::Write;
use std::path::{Path, PathBuf};

use collimate_models::data::Records;
use collimate_models::data::check::{CheckOptions, check};
use collimate_protocol::records::{Comparison, Demonstration, PromptRecord, PromptText, Role};
use collimate_tests::fixture;

/// What a file is read as.
enum Kind {
    Demonstrations,
    Comparisons,
    Prompts,
}

fn read(kind: &Kind, path: &Path) -> Result<usize, String> {
    let n = match kind {
        Kind::Demonstrations => Records::<Demonstration>::read(path).map(|records| records.len()),
        Kind::Comparisons => Records::<Comparison>::read(path).map(|records| records.len()),
        Kind::Prompts => Records::<PromptRecord>::read(path).map(|records| records.len()),
    };
    n.map_err(|error| error.to_string())
}

/// A schema's name; how it is read; two good lines; a bad one, and what is said of it.
const SCHEMAS: [(&str, Kind, [&str; 2], &str, &str); 11] = [
    (
        "prompt_response",
        Kind::Demonstrations,
        [
            r#"{"prompt": "Translate to French: good morning", "response": "Bonjour", "source": "handwritten"}"#,
            r#"{"prompt": "2 + 2 =", "response": " 4", "source": "handwritten"}"#,
        ],
        r#"{"prompt": "2 + 2 =", "response": 4}"#,
        "key `response` is 4, expected a text",
    ),
    (
        "alpaca",
        Kind::Demonstrations,
        [
            r#"{"instruction": "Give three tips for staying healthy.", "input": "", "output": "Eat, move, sleep."}"#,
            r#"{"instruction": "Sort the numbers.", "input": "3 1 2", "output": "1 2 3"}"#,
        ],
        r#"{"instruction": "Sort the numbers.", "input": ["3", "1"], "output": "1 3"}"#,
        "key `input` is [\"3\",\"1\"], expected a text",
    ),
    (
        "messages",
        Kind::Demonstrations,
        [
            r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}"#,
            r#"{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}, {"role": "user", "content": "Oh"}, {"role": "assistant", "content": "Yes."}]}"#,
        ],
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]}"#,
        "key `messages[1].content` is missing",
    ),
    (
        "sharegpt",
        Kind::Demonstrations,
        [
            r#"{"id": "a1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}"#,
            r#"{"id": "a2", "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}"#,
        ],
        r#"{"id": "a3", "conversations": [{"from": "human", "value": "Hi"}, {"from": "tool", "value": "{}"}]}"#,
        "key `conversations[1].from` is \"tool\"",
    ),
    (
        "hh_rlhf",
        Kind::Comparisons,
        [
            r#"{"chosen": "\n\nHuman: Who wrote Emma?\n\nAssistant: Jane Austen.", "rejected": "\n\nHuman: Who wrote Emma?\n\nAssistant: I don't know."}"#,
            r#"{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sing\n\nAssistant: La la.", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sing\n\nAssistant: No."}"#,
        ],
        r#"{"chosen": "Jane Austen.", "rejected": "\n\nHuman: Who wrote Emma?\n\nAssistant: I don't know."}"#,
        "key `chosen` begins with \"Jane Austen.\", expected a transcript",
    ),
    (
        "preferences_text",
        Kind::Comparisons,
        [
            r#"{"prompt": "Who wrote Emma?", "chosen": "Jane Austen.", "rejected": "Nobody."}"#,
            r#"{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}"#,
        ],
        r#"{"prompt": "2 + 2?", "chosen": "4", "rejects": "5"}"#,
        "key `rejected` is missing; is it meant by `rejects`?",
    ),
    (
        "preferences_messages",
        Kind::Comparisons,
        [
            r#"{"prompt": [{"role": "user", "content": "2 + 2?"}], "chosen": [{"role": "assistant", "content": "4"}], "rejected": [{"role": "assistant", "content": "5"}]}"#,
            r#"{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello"}], "rejected": [{"role": "assistant", "content": "No"}]}"#,
        ],
        r#"{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "user", "content": "Hello"}], "rejected": [{"role": "assistant", "content": "No"}]}"#,
        "key `chosen` does not end with an answer of the assistant's",
    ),
    (
        "rankings",
        Kind::Comparisons,
        [
            r#"{"prompt": "Tell a joke.", "responses": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 4]}"#,
            r#"{"prompt": "Tell a story.", "responses": ["a", "b"], "ranks": [2, 1]}"#,
        ],
        r#"{"prompt": "Tell a story.", "responses": ["a", "b"], "ranks": ["best", "worst"]}"#,
        "key `ranks` is [\"best\",\"worst\"], expected a list of ranks",
    ),
    (
        "ultrafeedback",
        Kind::Comparisons,
        [
            r#"{"source": "evol_instruct", "instruction": "Explain rain.", "models": ["a", "b"], "completions": [{"model": "a", "response": "Water falls.", "overall_score": 7.5}, {"model": "b", "response": "No.", "overall_score": 1.0}]}"#,
            r#"{"source": "flan", "instruction": "Count.", "models": ["a", "b"], "completions": [{"model": "a", "response": "1 2 3", "overall_score": 8}, {"model": "b", "response": "3 2 1", "overall_score": 8}]}"#,
        ],
        r#"{"instruction": "Count.", "completions": [{"response": "1", "overall_score": "N/A"}]}"#,
        "key `completions[0].overall_score` is \"N/A\", expected a number",
    ),
    (
        "scored",
        Kind::Comparisons,
        [
            r#"{"prompt": "Count.", "responses": ["1 2 3", "3 2 1"], "scores": [0.9, 0.1]}"#,
            r#"{"prompt": "Sing.", "responses": ["la", "lo"], "scores": [0.5, 0.5]}"#,
        ],
        r#"{"prompt": "Sing.", "responses": ["la", "lo"], "scores": [0.5]}"#,
        "has 2 responses and 1 numbers under `scores`",
    ),
    (
        "prompts",
        Kind::Prompts,
        [
            r#"{"prompt": "Tell me about rain."}"#,
            r#"{"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Sing"}]}"#,
        ],
        r#"{"prompt": null}"#,
        "key `prompt` is missing",
    ),
];

#[test]
fn every_schema_is_read_and_what_is_broken_in_one_is_named_by_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    for (name, kind, good, bad, expected) in &SCHEMAS {
        let path = dir.path().join(format!("{name}.jsonl"));
        std::fs::write(&path, good.join("\n")).unwrap();
        assert_eq!(read(kind, &path), Ok(2), "{name}");

        let broken = dir.path().join(format!("{name}_broken.jsonl"));
        std::fs::write(&broken, format!("{}\n\n{bad}\n", good[0])).unwrap();
        let message = read(kind, &broken).unwrap_err();
        let named = format!("{}:3: ", broken.display());
        assert!(message.starts_with(&named) && message.contains(expected), "{message}\nexpected {expected}");
    }
}

#[test]
fn every_schema_is_recognised_by_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let options = CheckOptions { max_len: None, heldout_share: 0.0, heldout: None, n_examples: 2 };
    for (name, _, good, bad, expected) in &SCHEMAS {
        let path = dir.path().join(format!("{name}.jsonl"));
        std::fs::write(&path, format!("{}\n{bad}\n", good.join("\n"))).unwrap();
        let report = check(&path, None, &options).unwrap();
        assert_eq!((report.n_records, report.n_bad, report.examples.len()), (2, 1, 2), "{name}");
        assert!(report.problems[0].contains(":3: ") && report.problems[0].contains(expected), "{:?}", report.problems);
    }
}

/// The three records of every file below.
fn assert_is_the_data(path: &Path) {
    let records = Records::<Demonstration>::read(path).unwrap_or_else(|error| panic!("{error}"));
    let found: Vec<(String, String)> = records
        .iter()
        .map(|record| match record {
            Demonstration::Response { prompt: PromptText::Text(prompt), response } => {
                (prompt.clone(), response.clone())
            }
            other => panic!("{}: {other:?}", path.display()),
        })
        .collect();
    let expected = [("a", "One."), ("é 你好", "Two\nlines."), ("c", "Three.")];
    assert_eq!(
        found,
        expected.map(|(prompt, response)| (prompt.to_owned(), response.to_owned())),
        "{}",
        path.display()
    );
}

#[test]
fn json_lines_arrays_and_packed_files_hold_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        r#"{"prompt": "a", "response": "One."}"#,
        r#"{"prompt": "é 你好", "response": "Two\nlines."}"#,
        r#"{"prompt": "c", "response": "Three."}"#,
    ];
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let plain = lines.join("\n");
    let array = format!("\u{feff} [\n{}\n]\n", lines.join(",\n"));
    let gzipped = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    // Two members one after another are one file, as `cat a.gz b.gz` makes it.
    let members = [gzipped(&format!("{}\n", lines[0])), gzipped(&lines[1..].join("\n"))].concat();
    for path in [
        write("a.jsonl", plain.as_bytes()),
        write("b.json", plain.as_bytes()),
        write("c.json", array.as_bytes()),
        write("d.jsonl.gz", &members),
        write("e.jsonl.zst", &zstd::encode_all(plain.as_bytes(), 3).unwrap()),
        write("f.json.zst", &zstd::encode_all(array.as_bytes(), 3).unwrap()),
        write("g.data", plain.as_bytes()),
    ] {
        assert_is_the_data(&path);
    }
    let broken = write("h.json", array.replace("Three.\"", "Three.\", \"response\": ").as_bytes());
    let message = Records::<Demonstration>::read(&broken).unwrap_err().to_string();
    assert!(message.contains("h.json:4: is no JSON array"), "{message}");
    let mut cut = gzipped(&plain);
    cut.truncate(cut.len() / 2);
    let message = Records::<Demonstration>::read(&write("i.jsonl.gz", &cut)).unwrap_err().to_string();
    assert!(message.contains("i.jsonl.gz"), "{message}");
}

/// `tests/scripts/parquet_files.py` wrote them with pyarrow.
#[test]
fn parquet_files_of_pyarrow_are_read_whatever_their_compression() {
    for name in ["plain", "snappy", "gzip", "zstd", "lz4"] {
        assert_is_the_data(&fixture::path("parquet").join(format!("{name}.parquet")));
    }
    let dialogues = Records::<Demonstration>::read(&fixture::path("parquet/messages.parquet")).unwrap();
    let Some(Demonstration::Dialogue { messages }) = dialogues.iter().next() else { panic!("{dialogues:?}") };
    let turns: Vec<(Role, &str)> = messages.iter().map(|turn| (turn.role, turn.content.as_str())).collect();
    assert_eq!(turns, [(Role::User, "Hi"), (Role::Assistant, "Hello.")]);
    let wrong = fixture::path("parquet/wrong_column.parquet");
    let message = Records::<Demonstration>::read(&wrong).unwrap_err().to_string();
    assert!(message.contains("wrong_column.parquet:1: key `response` is 1, expected a text"), "{message}");
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.parquet");
    let whole = std::fs::read(fixture::path("parquet/plain.parquet")).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let message = Records::<Demonstration>::read(&cut).unwrap_err().to_string();
    assert!(message.contains("cut.parquet: is no whole Parquet file"), "{message}");
}
