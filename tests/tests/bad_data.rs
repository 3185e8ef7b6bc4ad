//! Data as people bring it by mistake: each file is refused with its name, the line where it has lines, and the problem.
//! Nothing panics, whatever the bytes.

use std::path::Path;

use collimate_models::data::Records;
use collimate_models::data::comparisons::{read_comparisons, tokenize_comparisons};
use collimate_models::data::corpus::{Corpus, read_paragraphs};
use collimate_models::data::demonstrations::stream_examples;
use collimate_models::data::limit::{LengthLimit, TooLong};
use collimate_models::data::prompts::tokenize_prompts;
use collimate_models::data::windows::PretrainWindows;
use collimate_models::reward::{ExactMatch, Lexicon};
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::records::Demonstration;
use proptest::prelude::*;

type Outcome = Result<(), collimate_models::Error>;
type Reader = fn(&Path) -> Outcome;

/// As a stage reads each kind of file, with a byte tokenizer and a context of 16 tokens.
const READERS: [(&str, Reader); 6] = [
    ("demonstrations", |path| {
        Records::<Demonstration>::read(path)?;
        stream_examples(path, &tokenizer(), LengthLimit::context(16))?.try_for_each(|example| example.map(drop))
    }),
    ("comparisons", |path| {
        tokenize_comparisons(&read_comparisons(path)?, &tokenizer(), LengthLimit::context(16)).map(drop)
    }),
    ("prompts", |path| {
        let limit = LengthLimit::leaving_room(0, 16, 8, TooLong::Refuse)?;
        tokenize_prompts(&Records::read(path)?, &tokenizer(), limit).map(drop)
    }),
    ("text", |path| Corpus::new(&read_paragraphs(&[path.to_owned()])?, &tokenizer(), 0.1).map(drop)),
    ("lexicon", |path| Lexicon::load(path).map(drop)),
    ("answers", |path| ExactMatch::load(path).map(drop)),
];

fn tokenizer() -> Tokenizer {
    Tokenizer::train_byte_level_bpe(["a"], 257, &[]).unwrap()
}

fn reader(kind: &str) -> Reader {
    READERS.iter().find(|(name, _)| *name == kind).unwrap().1
}

#[test]
fn a_bad_file_is_refused_with_its_name_its_line_and_the_problem() {
    let dir = tempfile::tempdir().unwrap();
    let good = r#"{"prompt": "ab", "response": "c"}"#;
    let long_prompt = r#"{"prompt": "a prompt of 24 characters", "response": "c"}"#;
    let three_ranks = r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2, 3]}"#;
    let one_response = r#"{"prompt": "a", "responses": ["b"], "ranks": [1]}"#;
    let cases: [(&str, String, &str); 15] = [
        ("demonstrations", format!("{good}\n{{\"prompt\": \"ab\", \"resp"), ":2: is no JSON object: EOF"),
        ("demonstrations", format!("{good}\n\n{long_prompt}\n"), ":3: the prompt has 25 tokens"),
        (
            "demonstrations",
            good.replace("response", "reponse"),
            ":1: is of prompts, expected demonstrations; did you mean `response` by `reponse`?",
        ),
        ("demonstrations", String::new(), ": holds no demonstration"),
        ("demonstrations", "[]".into(), ":1: is no JSON object"),
        ("comparisons", three_ranks.into(), ":1: has 2 responses and 3 ranks"),
        ("comparisons", one_response.into(), ":1: has 1 responses, expected 2 to 9"),
        ("comparisons", three_ranks.replace("[1, 2, 3]", "[1, 1]"), ": all responses of every comparison are tied"),
        (
            "comparisons",
            three_ranks.replace("[1, 2, 3]", "[1, 1.5]"),
            ":1: key `ranks` is [1,1.5], expected a list of ranks: whole numbers, 1 is best",
        ),
        (
            "prompts",
            r#"{"prompt": "nine byte"}"#.into(),
            ":1: the prompt has 9 tokens, and the model's context holds 16",
        ),
        ("prompts", r#"{"prompt": ""}"#.into(), ":1: the prompt is empty"),
        ("prompts", r#"{"text": "a"}"#.into(), ":1: is of text, expected prompts"),
        ("lexicon", "good\t1\nbad,-1\n".into(), ":2: is \"bad,-1\", expected a word, a tab and its score"),
        ("answers", good.replace("\"c\"", "3"), ":1: key `response` is 3, expected a text"),
        ("text", " \n\n".into(), "a corpus needs at least one paragraph"),
    ];
    for (idx, (kind, content, expected)) in cases.iter().enumerate() {
        let path = dir.path().join(format!("{idx}.data"));
        std::fs::write(&path, content).unwrap();
        let message = reader(kind)(&path).expect_err(kind).to_string();
        let is_named = message.contains(&path.display().to_string());
        assert!(is_named && message.contains(expected), "{kind} {content:?}: {message}");
    }
}

#[test]
fn a_file_that_is_not_there_or_is_a_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, read) in READERS {
        for path in [dir.path().join("absent"), dir.path().to_owned()] {
            let message = read(&path).expect_err(kind).to_string();
            assert!(message.starts_with(&path.display().to_string()), "{kind}: {message}");
        }
    }
}

#[test]
fn a_text_shorter_than_a_window_is_refused_with_both_lengths() {
    let corpus = Corpus::new(&["ab".to_owned(), "cd".to_owned()], &tokenizer(), 0.0).unwrap();
    let stream = corpus.token_stream(collimate_models::data::corpus::Split::Train);
    let message = PretrainWindows::new(stream, 8, 1, 0).unwrap_err().to_string();
    assert_eq!(message, "the text has 6 tokens, fewer than one window of 8");
}

#[test]
fn the_novels_and_the_word_list_that_come_with_the_example_are_readable() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data");
    let paragraphs = read_paragraphs(&[data.join("austen")]).unwrap();
    assert_eq!(paragraphs.len(), 9979);
    assert!(
        paragraphs.iter().all(|paragraph| !paragraph.contains(['\n', '\u{fffd}']) && paragraph.trim() == paragraph)
    );
    Lexicon::load(&data.join("sentiment_lexicon.tsv")).unwrap();
}

/// A line of one of the formats, whole or mutilated.
fn almost_a_line() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop::sample::select(vec![
        r#"{"prompt": "a", "response": "b"}"#,
        r#"{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2], "tokens": {"prompt": [1], "responses": [[2], []]}}"#,
        "{\"prompt\": \"\u{e9}\"}",
        "word\t1.5",
    ]);
    (whole, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(line, place, byte)| {
        let mut bytes = line.as_bytes().to_vec();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_reader_panic(lines in prop::collection::vec(almost_a_line(), 0..3), rest in any::<Vec<u8>>()) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [lines.join(&b'\n'), rest].join(&b'\n')).unwrap();
        for (_, read) in READERS {
            // Either outcome is right here.
            let _ = read(file.path());
        }
    }
}
