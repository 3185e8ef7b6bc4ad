//! `collimate data check`: what a file of records holds, before anything is trained on it.

use std::fmt::Write as _;
use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

use collimate_models::arch::ModelConfig;
use collimate_models::data::check::{CheckOptions, CheckReport, Segment, check};
use collimate_models::tokenizer::Tokenizer;

use super::args::DataCheckArgs;
use super::print;
use crate::hub;

/// Longer examples are cut for the eye.
const N_SHOWN: usize = 1200;

/// Checks each file, and prints what was found. Fails where a row makes no record.
pub fn run(args: &DataCheckArgs) -> anyhow::Result<()> {
    let mut max_len = args.max_tokens;
    let tokenizer = match &args.model {
        None => None,
        Some(dir) => {
            let dir = &hub::model_dir(dir)?;
            let tokenizer = Tokenizer::load(dir)?;
            // A directory may hold a tokenizer alone.
            match ModelConfig::load(dir) {
                Ok(config) => {
                    max_len = max_len.or(Some(config.context_len));
                    Some(tokenizer.with_end_tokens(&config.eos_token_ids))
                }
                Err(_) if !dir.join("config.json").exists() => Some(tokenizer),
                Err(error) => return Err(error.into()),
            }
        }
    };
    let mut n_bad = 0;
    for file in &args.files {
        let options = CheckOptions {
            max_len,
            heldout_share: args.heldout_share,
            heldout: args.heldout.clone(),
            n_examples: args.examples,
        };
        let report = check(file, tokenizer.as_ref(), &options)?;
        n_bad += report.n_bad;
        if args.json {
            print(&format!("{}\n", serde_json::to_string(&report)?))?;
        } else {
            print(&in_words(&report, max_len, std::io::stdout().is_terminal()))?;
        }
    }
    match n_bad {
        0 => Ok(()),
        n => anyhow::bail!("{n} rows make no record; the stages would refuse the file at the first of them"),
    }
}

fn in_words(report: &CheckReport, max_len: Option<usize>, is_coloured: bool) -> String {
    let mut text = String::new();
    let share = |n: usize, of: usize| 100.0 * n as f64 / of.max(1) as f64;
    let mut line = |name: &str, value: String| _ = writeln!(text, "  {name:<12} {value}");
    line("holds", format!("{}, {}", report.schema, report.layout));
    line(
        "records",
        format!(
            "{}{}",
            report.n_records,
            if report.n_bad > 0 { format!(", and {} bad rows", report.n_bad) } else { String::new() }
        ),
    );
    let lengths = &report.lengths;
    let [min, median, p95, p99, max] = lengths.quantiles;
    line(
        "lengths",
        format!(
            "{} {} in {} sequences: least {min}, median {median}, 95 % {p95}, 99 % {p99}, most {max}",
            lengths.total, lengths.unit, lengths.n
        ),
    );
    if let Some(max_len) = max_len {
        let n = report.n_too_long;
        line("too long", format!("{n} ({:.1} %) have over {max_len} {}", share(n, lengths.n), lengths.unit));
    }
    let n = report.n_duplicates;
    line("duplicates", format!("{n} ({:.1} %)", share(n, report.n_records)));
    if report.n_heldout > 0 {
        let (n, of) = (report.n_leaks, report.n_heldout);
        line("leaks", format!("{n} of {of} held-out prompts ({:.1} %) are trained on too", share(n, of)));
    }
    if !report.unread.is_empty() {
        let unread: Vec<String> = report.unread.iter().map(|(column, n)| format!("{column} ({n})")).collect();
        line("not read", unread.join(", "));
    }
    for problem in &report.problems {
        line("bad row", problem.clone());
    }
    for (idx, example) in report.examples.iter().enumerate() {
        let _ = writeln!(
            text,
            "\n  example {} ({}):",
            idx + 1,
            if is_coloured { "green is learnt" } else { "«…» is learnt" }
        );
        text.push_str(&rendered(example, is_coloured));
        text.push('\n');
    }
    format!("{}\n{text}", report.path.display())
}

/// The example, with what is learnt in green, or in guillemets where there is no colour.
fn rendered(example: &[Segment], is_coloured: bool) -> String {
    let (learnt, read) = (Style::new().fg_color(Some(AnsiColor::Green.into())), Style::new().dimmed());
    let mut rendered = String::new();
    let mut left = N_SHOWN;
    for segment in example {
        let part: String = segment.text.chars().take(left).map(|c| if c == '\u{1b}' { '�' } else { c }).collect();
        left -= part.chars().count();
        let _ = match (is_coloured, segment.is_learnt) {
            (true, true) => write!(rendered, "{learnt}{part}{learnt:#}"),
            (true, false) => write!(rendered, "{read}{part}{read:#}"),
            (false, true) => write!(rendered, "«{part}»"),
            (false, false) => write!(rendered, "{part}"),
        };
        if left == 0 {
            rendered.push_str(" …");
            break;
        }
    }
    rendered
}
