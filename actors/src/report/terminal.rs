//! What a run prints at its end.

use std::path::Path;

use collimate_protocol::records::{SampleRecord, Summary};

use super::table;

/// Samples that are printed; the page has all.
const N_SAMPLES: usize = 3;
/// Columns of a response beside the other one.
const COLUMN: usize = 54;

/// The stages' results, the table before/after, samples side by side, and where everything lies.
pub fn text(summary: &Summary, dir: &Path) -> String {
    let mut lines = table::stages(summary);
    if let Some(ppo) = &summary.ppo {
        lines.push(String::new());
        let n = ppo.after.score.n;
        let header = [format!("on {n} held-out prompts"), "SFT policy".into(), "after PPO".into()];
        let rows = table::before_after(ppo).into_iter().map(|row| [row.label, row.before, row.after]);
        lines.extend(aligned(std::iter::once(header).chain(rows).collect()));
        for sample in ppo.samples.iter().take(N_SAMPLES) {
            lines.push(String::new());
            lines.extend(side_by_side(sample));
        }
    }
    if !summary.rounds.is_empty() {
        let rows = table::rounds(&summary.rounds);
        lines.push(String::new());
        lines.extend(aligned(std::iter::once(table::OF_ROUNDS.map(str::to_owned)).chain(rows).collect()));
    }
    lines.push(String::new());
    lines.push(format!("report   {}", dir.join("report.html").display()));
    lines.push(format!("summary  {}", dir.join("summary.json").display()));
    if summary.ppo.is_some() {
        lines.push(format!("policy   {}", dir.join("ppo/model").display()));
    }
    if let Some(last) = summary.rounds.iter().rposition(|round| round.ppo.is_some()) {
        lines.push(format!("policy   {}", dir.join(format!("round-{}/ppo/model", last + 1)).display()));
    }
    lines.join("\n") + "\n"
}

/// Columns as wide as their widest cell; the first is a label, the others are numbers.
pub(crate) fn aligned<const N: usize>(rows: Vec<[String; N]>) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let cell = |column: usize, text: &str| match column {
        0 => format!("{text:<0$}", widths[0]),
        _ => format!("  {text:>0$}", widths[column]),
    };
    rows.iter().map(|row| row.iter().enumerate().map(|(column, text)| cell(column, text)).collect()).collect()
}

fn side_by_side(sample: &SampleRecord) -> Vec<String> {
    let mut lines = vec![format!("> {}", one_line(&sample.prompt))];
    let heading = |name: &str, score: f64| format!("{name} ({score:.2})");
    let (before, after) = (wrapped(&sample.before), wrapped(&sample.after));
    let before = std::iter::once(heading("SFT", sample.before_score)).chain(before);
    let after = std::iter::once(heading("PPO", sample.after_score)).chain(after);
    let (mut before, mut after) = (before.fuse(), after.fuse());
    loop {
        match (before.next(), after.next()) {
            (None, None) => return lines,
            (left, right) => {
                let line = format!("  {:<COLUMN$} | {}", left.unwrap_or_default(), right.unwrap_or_default());
                lines.push(line.trim_end().to_owned());
            }
        }
    }
}

/// Control characters in a sample must not reach the terminal.
fn one_line(text: &str) -> String {
    let visible: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in one_line(text).split(' ') {
        let mut word = word;
        loop {
            let line = lines.last_mut().expect("there is always a line");
            let used = line.chars().count();
            let room = COLUMN.saturating_sub(used + usize::from(used > 0));
            if word.chars().count() <= room {
                if used > 0 {
                    line.push(' ');
                }
                line.push_str(word);
                break;
            }
            if used > 0 {
                lines.push(String::new());
                continue;
            }
            // A word longer than a line is cut.
            let cut = word.char_indices().nth(COLUMN).map_or(word.len(), |(idx, _)| idx);
            line.push_str(&word[..cut]);
            word = &word[cut..];
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::table::tests::summary;

    #[test]
    fn the_end_of_a_run_shows_table_samples_and_places() {
        let text = text(&summary(), Path::new("runs/x"));
        assert!(text.contains("on 256 held-out prompts"), "{text}");
        assert!(text.contains("> It was <b>\n"), "{text}");
        assert!(text.contains("  SFT (-0.50)                                            | PPO (1.25)\n"), "{text}");
        assert!(text.contains("  a sad day & long                                       | a happy day\n"), "{text}");
        assert!(text.contains("runs/x/report.html"), "{text}");
    }

    #[test]
    fn the_end_of_rounds_shows_them_and_the_last_policy() {
        let shown = text(&table::tests::of_rounds(), Path::new("runs/x"));
        assert!(shown.contains("round  comparisons    RM accuracy    gold score"), "{shown}");
        assert!(shown.contains("\n2              160  0.670 ± 0.010   0.90 ± 0.05"), "{shown}");
        assert!(shown.contains("policy   runs/x/round-2/ppo/model\n"), "{shown}");
    }

    #[test]
    fn long_text_wraps_and_control_characters_are_left_out() {
        let lines = wrapped(&format!("one two\n\u{1b}[2J{} {}", "x".repeat(120), "word ".repeat(20)));
        assert!(lines.iter().all(|line| line.chars().count() <= COLUMN && !line.contains('\u{1b}')), "{lines:?}");
        assert_eq!(wrapped(""), [""]);
    }
}
