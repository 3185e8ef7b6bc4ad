//! Formulas between `\(` and `\)`, or `\[` and `\]`, which Markdown knows nothing of: it would take them for brackets, and
//! what is in them for emphasis and lists.

use std::ops::Range;

use pulldown_cmark::{Event, Options, Parser, Tag};

/// Stands where a formula is while Markdown is read: letters mean nothing there.
const FILL: &str = "x";

/// A formula, with its brackets.
#[derive(Debug, PartialEq, Eq)]
pub struct Formula {
    /// Where it stands in the text.
    pub range: Range<usize>,
    /// Whether it is between `\[` and `\]`.
    pub is_display: bool,
}

/// The formulas of a text in their order. None is in code, none is empty, and none goes on after an empty line.
pub fn formulas(text: &str, options: Options) -> Vec<Formula> {
    let mut found = Vec::new();
    if !text.contains("\\(") && !text.contains("\\[") {
        return found;
    }
    let mut verbatim = verbatim(text, options).into_iter().peekable();
    let bytes = text.as_bytes();
    let (mut at, mut begun) = (0, None);
    while at < bytes.len() {
        while verbatim.next_if(|range| range.end <= at).is_some() {}
        if let Some(range) = verbatim.next_if(|range| range.start <= at) {
            (at, begun) = (range.end, None);
            continue;
        }
        match (bytes[at], bytes.get(at + 1)) {
            (b'\\', Some(bracket @ (b'(' | b'['))) => {
                begun = Some((at, *bracket == b'['));
                at += 2;
            }
            (b'\\', Some(bracket @ (b')' | b']'))) => {
                if let Some((start, is_display)) = begun.take()
                    && is_display == (*bracket == b']')
                    && start + 2 < at
                {
                    found.push(Formula { range: start..at + 2, is_display });
                }
                at += 2;
            }
            // `\\` ends a line of a formula: its second one begins nothing.
            (b'\\', Some(b'\\')) => at += 2,
            (b'\n', _) => {
                at += 1;
                if ends_paragraph(&text[at..]) {
                    begun = None;
                }
            }
            _ => at += 1,
        }
    }
    found
}

/// The text with its formulas filled, each by as many bytes: a place in it is a place in the text.
pub fn fill(text: &str, formulas: &[Formula]) -> String {
    let mut filled = String::with_capacity(text.len());
    for Formula { range, .. } in formulas {
        filled.push_str(&text[filled.len()..range.start]);
        filled.push_str(&FILL.repeat(range.len()));
    }
    filled.push_str(&text[filled.len()..]);
    filled
}

/// Code, and what is between `$`.
fn verbatim(text: &str, options: Options) -> Vec<Range<usize>> {
    let events = Parser::new_ext(text, options).into_offset_iter();
    let is_verbatim = |event: &Event<'_>| {
        matches!(event, Event::Code(_) | Event::Start(Tag::CodeBlock(_)) | Event::InlineMath(_) | Event::DisplayMath(_))
    };
    events.filter(|(event, _)| is_verbatim(event)).map(|(_, range)| range).collect()
}

/// Whether a new line is empty, or one of a quotation, whose sign would become a part of the formula.
fn ends_paragraph(rest: &str) -> bool {
    let line = rest.trim_start_matches([' ', '\t']);
    line.is_empty() || line.starts_with(['\n', '\r', '>'])
}
