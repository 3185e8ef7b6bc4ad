//! What a file of records holds, for people who are about to train on it.

mod content;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::corpus::is_heldout;
use super::records::{Record, stream};
use super::rows::{Layout, Row, rows};
use super::schema::Schema;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use content::{Content, segments, tokenized, untokenized};

pub use content::Segment;

/// Problems that are told one by one; the others are counted.
const N_PROBLEMS: usize = 10;

/// What to look for.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckOptions {
    /// Longer sequences are counted: tokens with a tokenizer, else characters.
    pub max_len: Option<usize>,
    /// Share of the records that is held out, as the stages take it.
    pub heldout_share: f64,
    /// A file that is held out; then none of the records are.
    pub heldout: Option<PathBuf>,
    /// Records to show.
    pub n_examples: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckReport {
    /// The file.
    pub path: PathBuf,
    /// How it is laid out.
    pub layout: &'static str,
    /// What its rows are.
    pub schema: &'static str,
    /// Rows that make a record.
    pub n_records: usize,
    /// Rows that make none.
    pub n_bad: usize,
    /// What is wrong with the first of them.
    pub problems: Vec<String>,
    /// Columns that are not read, with how many rows have them.
    pub unread: BTreeMap<String, usize>,
    /// Lengths of the sequences: of a comparison each response with its prompt.
    pub lengths: Lengths,
    /// Sequences longer than `max_len`.
    pub n_too_long: usize,
    /// Records that stood there before.
    pub n_duplicates: usize,
    /// Held-out records.
    pub n_heldout: usize,
    /// Held-out records whose prompt (of text: the whole) is trained on too.
    pub n_leaks: usize,
    /// The first records as the model reads them.
    pub examples: Vec<Vec<Segment>>,
}

/// How long sequences are.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// "tokens" or "characters".
    pub unit: &'static str,
    /// How many sequences.
    pub n: usize,
    /// All together.
    pub total: usize,
    /// The shortest, the median, the 95th and 99th percentile, the longest.
    pub quantiles: [usize; 5],
}

/// Reads a whole file, and tells what it holds. Rows that make no record are counted and told, and reading goes on.
///
/// # Errors
/// The file can't be read at all, or its first row makes no known record.
pub fn check(path: &Path, tokenizer: Option<&Tokenizer>, options: &CheckOptions) -> Result<CheckReport> {
    let heldout_prompts = match &options.heldout {
        Some(heldout) => Some(prompts_of(heldout)?),
        None => None,
    };
    let layout = Layout::of(path)?;
    let mut schema = None;
    let mut found = Found {
        tokenizer,
        n_examples: options.n_examples,
        n_records: 0,
        n_bad: 0,
        problems: Vec::new(),
        unread: BTreeMap::new(),
        lengths: Vec::new(),
        examples: Vec::new(),
    };
    let mut seen = Seen::default();
    for row in rows(path)? {
        let row = match row {
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => {
                found.bad(error.to_string());
                continue;
            }
            Ok(row) => row,
        };
        let bad = |problem| Error::bad_line(path, row.line, problem);
        let schema = match schema {
            Some(schema) => schema,
            None => *schema.insert(Schema::of(&row.columns).map_err(bad)?),
        };
        match Content::read(schema, &row.columns).map(|content| found.add(schema, &row, &content).map(|()| content)) {
            Err(problem) => found.bad(bad(problem).to_string()),
            Ok(Err(error)) => found.bad(bad(error.to_string()).to_string()),
            Ok(Ok(content)) => seen.add(&content, options.heldout_share, heldout_prompts.as_ref()),
        }
    }
    let Some(schema) = schema else { return Err(Error::bad_file(path, "holds no record")) };
    let unit = if tokenizer.is_some() { "tokens" } else { "characters" };
    Ok(CheckReport {
        path: path.to_owned(),
        layout: layout.name(),
        schema: schema.name(),
        n_records: found.n_records,
        n_bad: found.n_bad,
        problems: found.problems,
        unread: found.unread,
        n_too_long: options.max_len.map_or(0, |max| found.lengths.iter().filter(|len| **len > max).count()),
        lengths: Lengths::of(found.lengths, unit),
        n_duplicates: seen.n_duplicates,
        n_heldout: heldout_prompts.as_ref().map_or(seen.heldout.len(), HashSet::len),
        n_leaks: seen.n_leaks(heldout_prompts.as_ref()),
        examples: found.examples,
    })
}

impl Lengths {
    fn of(mut lengths: Vec<usize>, unit: &'static str) -> Self {
        lengths.sort_unstable();
        let Some(last) = lengths.len().checked_sub(1) else { return Self { unit, ..Self::default() } };
        let at = |share: f64| lengths[(share * last as f64).round() as usize];
        Self {
            unit,
            n: lengths.len(),
            total: lengths.iter().sum(),
            quantiles: [lengths[0], at(0.5), at(0.95), at(0.99), lengths[last]],
        }
    }
}

fn prompts_of(path: &Path) -> Result<HashSet<u64>> {
    stream::<Content>(path)?.map(|content| Ok(content?.1.prompt_hash())).collect()
}

/// Which records and prompts have been seen.
#[derive(Default)]
struct Seen {
    records: HashSet<u64>,
    n_records: usize,
    n_duplicates: usize,
    /// The prompts of comparisons, each with its number.
    compared: HashMap<u64, usize>,
    trained: HashSet<u64>,
    heldout: Vec<u64>,
}

impl Seen {
    fn add(&mut self, content: &Content, heldout_share: f64, other_file: Option<&HashSet<u64>>) {
        let idx = match content {
            // As the reward stage holds them out: all of a prompt's together.
            Content::Comparison(_) => {
                let next = self.compared.len();
                *self.compared.entry(content.prompt_hash()).or_insert(next)
            }
            _ => self.n_records,
        };
        self.n_records += 1;
        if !self.records.insert(content.whole_hash()) {
            self.n_duplicates += 1;
        }
        if is_heldout(idx, heldout_share) && other_file.is_none() {
            self.heldout.push(content.prompt_hash());
        } else {
            self.trained.insert(content.prompt_hash());
        }
    }

    fn n_leaks(&self, other_file: Option<&HashSet<u64>>) -> usize {
        match other_file {
            Some(heldout) => heldout.intersection(&self.trained).count(),
            None => self.heldout.iter().filter(|prompt| self.trained.contains(*prompt)).count(),
        }
    }
}

/// What the rows so far have shown.
struct Found<'a> {
    tokenizer: Option<&'a Tokenizer>,
    n_examples: usize,
    n_records: usize,
    n_bad: usize,
    problems: Vec<String>,
    unread: BTreeMap<String, usize>,
    lengths: Vec<usize>,
    examples: Vec<Vec<Segment>>,
}

impl Found<'_> {
    fn bad(&mut self, problem: String) {
        self.n_bad += 1;
        if self.problems.len() < N_PROBLEMS {
            self.problems.push(problem);
        }
    }

    fn add(&mut self, schema: Schema, row: &Row, content: &Content) -> Result<()> {
        let is_shown = self.examples.len() < self.n_examples;
        let mut example = Vec::new();
        match self.tokenizer {
            Some(tokenizer) => {
                for sequence in tokenized(tokenizer, content)? {
                    self.lengths.push(sequence.tokens.len());
                    if is_shown {
                        example.extend(segments(tokenizer, &sequence)?);
                    }
                }
            }
            None => {
                for sequence in untokenized(content) {
                    self.lengths.push(sequence.iter().map(|part| part.text.chars().count()).sum());
                    example.extend(sequence);
                }
            }
        }
        self.n_records += 1;
        for column in schema.unread(&row.columns) {
            *self.unread.entry(column.to_owned()).or_default() += 1;
        }
        if is_shown {
            self.examples.push(example);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::framing::tests::bytes;
    use super::*;

    fn checked(name: &str, content: &str, options: &CheckOptions, tokenizer: Option<&Tokenizer>) -> CheckReport {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        check(&path, tokenizer, options).unwrap()
    }

    #[test]
    fn counts_lengths_duplicates_leaks_and_bad_rows_are_told_and_reading_goes_on() {
        let lines = [
            r#"{"prompt": "a", "response": "bc", "id": 1}"#,
            r#"{"prompt": "a", "response": "d", "id": 2}"#,
            r#"{"prompt": "a", "response": "bc", "id": 3}"#,
            r#"{"prompt": "a"}"#,
            "{",
            r#"{"prompt": "efg", "response": "hijk"}"#,
        ];
        let options = CheckOptions { max_len: Some(5), heldout_share: 0.5, heldout: None, n_examples: 1 };
        let report = checked("data.jsonl", &lines.join("\n"), &options, Some(&bytes()));
        assert_eq!((report.n_records, report.n_bad, report.n_duplicates), (4, 2, 1));
        assert!(report.problems[0].ends_with(":4: key `response` is missing"), "{:?}", report.problems);
        assert!(report.problems[1].contains(":5: is no JSON object"), "{:?}", report.problems);
        // Each with its end token; records 2 and 4 are held out, and record 2 asks what 1 and 3 ask.
        assert_eq!(report.lengths, Lengths { unit: "tokens", n: 4, total: 19, quantiles: [3, 4, 8, 8, 8] });
        assert_eq!((report.n_too_long, report.n_heldout, report.n_leaks), (1, 2, 1));
        assert_eq!(report.unread, BTreeMap::from([("id".to_owned(), 3)]));
        let segment = |text: &str, is_learnt| Segment { text: text.into(), is_learnt };
        assert_eq!(report.examples, [vec![segment("a", false), segment("bc<|endoftext|>", true)]]);
    }

    #[test]
    fn comparisons_of_one_prompt_are_held_out_together_as_the_reward_stage_has_it() {
        let line = |prompt: &str| format!(r#"{{"prompt": "{prompt}", "chosen": "b", "rejected": "c"}}"#);
        let options = CheckOptions { max_len: None, heldout_share: 0.5, heldout: None, n_examples: 0 };
        let lines = ["a", "b", "a", "b", "b"].map(line).join("\n");
        let report = checked("data.jsonl", &lines, &options, None);
        assert_eq!((report.n_records, report.n_heldout, report.n_leaks), (5, 3, 0));
    }

    #[test]
    fn without_a_model_characters_are_counted_and_every_response_of_a_comparison() {
        let options = CheckOptions { max_len: None, heldout_share: 0.0, heldout: None, n_examples: 1 };
        let line = r#"[{"prompt": "é", "chosen": "yes", "rejected": "no"}]"#;
        let report = checked("data.json", line, &options, None);
        assert_eq!((report.layout, report.n_records), ("a JSON array", 1));
        assert_eq!(report.lengths, Lengths { unit: "characters", n: 2, total: 7, quantiles: [3, 4, 4, 4, 4] });
        assert_eq!(report.examples[0].iter().filter(|segment| segment.is_learnt).count(), 2);
    }
}
