use std::io::Write;
use std::time::Instant;

use collimate_protocol::{FinishReason, PolicyVersion, PromptId};

use super::*;
use crate::rundir::rollout_query::SortKey;

fn record(version: u64, prompt_id: u64, score: f32, response: &str) -> RolloutRecord {
    RolloutRecord {
        version: PolicyVersion(version),
        prompt_id: PromptId(prompt_id),
        sample_idx: 0,
        prompt: format!("prompt number {prompt_id}"),
        prompt_tokens: vec![1, 2],
        response: response.to_owned(),
        response_tokens: vec![1; response.len()],
        logprobs: vec![-1.0; response.len()],
        versions: vec![PolicyVersion(version); response.len()],
        finish: FinishReason::End,
        score,
        gold: Some(-score),
        kl: 0.5,
        kl_penalty: 0.0,
        reward: score,
        tokens: None,
    }
}

fn line(record: &RolloutRecord) -> String {
    format!("{}\n", serde_json::to_string(record).unwrap())
}

struct Log {
    dir: tempfile::TempDir,
}

impl Log {
    fn of(records: &[RolloutRecord]) -> Self {
        let log = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(log.path(), "").unwrap();
        log.add(&records.iter().map(line).collect::<String>());
        log
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("rollouts.jsonl")
    }

    fn add(&self, text: &str) {
        File::options().append(true).open(self.path()).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn index(&self) -> RolloutIndex {
        let mut index = RolloutIndex::open(&self.path()).unwrap();
        index.catch_up().unwrap();
        index
    }
}

fn ids(index: &RolloutIndex, query: RolloutQuery) -> Vec<i64> {
    index.page(&query).unwrap().rows.iter().map(|row| row.id).collect()
}

#[test]
fn rollouts_are_sorted_filtered_and_searched() {
    let log = Log::of(&[
        record(0, 1, 0.5, "A happy day."),
        record(0, 2, 2.0, "Un día \"feliz\" % _"),
        record(1, 1, -1.0, "今天天气很好"),
        record(2, 3, 1.0, "SADNESS"),
    ]);
    let index = log.index();
    let all = RolloutQuery::default;
    assert_eq!(ids(&index, all()), [4, 3, 2, 1]);
    assert_eq!(ids(&index, RolloutQuery { sort: SortKey::Score, ..all() }), [2, 4, 1, 3]);
    assert_eq!(ids(&index, RolloutQuery { sort: SortKey::Gold, limit: Some(1), ..all() }), [3]);
    assert_eq!(
        ids(&index, RolloutQuery { sort: SortKey::Score, ascending: true, offset: 1, limit: Some(2), ..all() }),
        [1, 4]
    );
    assert_eq!(ids(&index, RolloutQuery { prompt_id: Some(1), ..all() }), [3, 1]);
    assert_eq!(ids(&index, RolloutQuery { from_version: Some(1), to_version: Some(1), ..all() }), [3]);
    assert_eq!(ids(&index, RolloutQuery { after_id: Some(2), ascending: true, ..all() }), [3, 4]);
    let search = |text: &str| ids(&index, RolloutQuery { search: text.to_owned(), ..all() });
    assert_eq!(search("sadness"), [4]);
    assert_eq!(search("number 1"), [3, 1]);
    assert_eq!(search("天气很"), [3]);
    // Two characters are a word in Chinese.
    assert_eq!(search("天气"), [3]);
    assert_eq!(search("\"feliz\" % _"), [2]);
    assert!(search("' OR 1 = 1 --").is_empty());
    assert!(search("nothing like it").is_empty());
    let page = index.page(&RolloutQuery { prompt_id: Some(1), limit: Some(1), ..all() }).unwrap();
    assert_eq!((page.total, page.rows.len()), (2, 1));
    assert_eq!(index.record(2).unwrap().unwrap().score, 2.0);
    assert_eq!(index.record(9).unwrap(), None);
}

#[test]
fn it_takes_in_whole_lines_alone_and_is_made_again_where_the_file_is_another() {
    let log = Log::of(&[record(0, 1, 1.0, "one"), record(1, 2, 2.0, "two")]);
    let mut index = log.index();
    let third = line(&record(2, 3, 3.0, "three"));
    let (begun, rest) = third.split_at(20);
    log.add(begun);
    assert_eq!(index.catch_up().unwrap(), 2);
    log.add(rest);
    assert_eq!(index.catch_up().unwrap(), 3);
    // Another index sees the same, without reading the file again.
    assert_eq!(RolloutIndex::open(&log.path()).unwrap().n_rollouts().unwrap(), 3);
    // The run goes on from before the second update, and comes to other rollouts, longer ones at last.
    let text: String =
        [record(0, 1, 1.0, "one"), record(1, 7, 5.0, "another and much longer one"), record(2, 8, 6.0, "more")]
            .iter()
            .map(line)
            .collect();
    std::fs::write(log.path(), text).unwrap();
    assert_eq!(index.catch_up().unwrap(), 3);
    assert_eq!(ids(&index, RolloutQuery { search: "longer".into(), ..RolloutQuery::default() }), [2]);
    assert!(ids(&index, RolloutQuery { search: "three".into(), ..RolloutQuery::default() }).is_empty());
    std::fs::write(log.path(), line(&record(0, 1, 1.0, "one"))).unwrap();
    assert_eq!(index.catch_up().unwrap(), 1);
}

#[test]
fn a_broken_line_is_named_and_a_damaged_index_is_made_again() {
    let log = Log::of(&[record(0, 1, 1.0, "one")]);
    drop(log.index());
    for suffix in ["sqlite", "sqlite-wal", "sqlite-shm"] {
        let _ = std::fs::write(
            log.path().with_extension(suffix),
            "no database at all, but long enough to be one ".repeat(99),
        );
    }
    assert_eq!(log.index().n_rollouts().unwrap(), 1);
    log.add("{\"version\": 3}\n");
    let error = log.index_error();
    assert!(error.contains("rollouts.jsonl: line 2: missing field"), "{error}");
}

impl Log {
    fn index_error(&self) -> String {
        RolloutIndex::open(&self.path()).unwrap().catch_up().unwrap_err().to_string()
    }
}

/// As many as a long run records. To make them takes a minute or two:
/// `cargo test --release -p collimate million -- --ignored --nocapture`.
#[test]
#[ignore = "makes a million rollouts"]
fn a_million_rollouts_are_listed_within_a_fifth_of_a_second() {
    let log = Log::of(&[]);
    let mut file = std::io::BufWriter::new(File::create(log.path()).unwrap());
    for n in 0..1_000_000u64 {
        let score = ((n * 2_654_435_761) % 100_003) as f32 / 1e4;
        let text = format!("a response of number {n}");
        file.write_all(line(&record(n / 512, n % 5_000, score, &text)).as_bytes()).unwrap();
    }
    drop(file.into_inner().unwrap());
    let index = log.index();
    let all = RolloutQuery::default;
    for (name, query) in [
        ("newest", all()),
        ("best", RolloutQuery { sort: SortKey::Score, ..all() }),
        ("deep in the list", RolloutQuery { sort: SortKey::Score, offset: 500_000, limit: Some(100), ..all() }),
        ("of a prompt", RolloutQuery { prompt_id: Some(77), sort: SortKey::Score, ..all() }),
        (
            "of a version",
            RolloutQuery { from_version: Some(900), to_version: Some(900), sort: SortKey::Score, ..all() },
        ),
        ("with a text", RolloutQuery { search: "number 65432".into(), ..all() }),
    ] {
        let since = Instant::now();
        let page = index.page(&RolloutQuery { limit: Some(100), ..query }).unwrap();
        let took = since.elapsed();
        println!("{name}: {took:?}, {} of {}", page.rows.len(), page.total);
        assert!(took < Duration::from_millis(200), "{name} took {took:?}");
    }
}
