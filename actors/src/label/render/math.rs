//! LaTeX as MathML.
//!
//! The converter writes text, and does not escape all of it. That text never reaches the page: it is read as XML, into
//! elements and attributes of short lists. What is on neither list (links, addresses, styles), what would not be seen, what
//! is malformed and what the converter refuses makes no formula, and is shown as it is written.

use std::collections::BTreeMap;

use math_core::{LatexToMathML, MathCoreConfig, MathDisplay};

use super::visible::is_invisible;
use super::{Element, Name, Node};

/// Longer formulas than this are shown as they are written.
const LONGEST_BYTES: usize = 4_000;

/// Deeper ones too.
const DEEPEST: usize = 24;

/// Wider spaces and thicker lines than this only push away what is around them.
const LARGEST_LENGTH: f32 = 10.0;

/// What the converter needs: it goes at most one level deeper at a byte, and a level takes less than 16 KiB.
pub const STACK_BYTES: usize = LONGEST_BYTES * 16 * 1024;

/// Attributes whose values are words.
const WORDS: [&str; 11] = [
    "accent",
    "accentunder",
    "display",
    "displaystyle",
    "form",
    "largeop",
    "mathvariant",
    "movablelimits",
    "scriptlevel",
    "stretchy",
    "symmetric",
];

/// Attributes whose values are lengths.
const LENGTHS: [&str; 7] = ["height", "linethickness", "lspace", "maxsize", "minsize", "rspace", "width"];

/// No text may set a style, so the page's own stand for those of a table's cells.
const CLASSES: [(&str, &str); 7] = [
    ("text-align: left;", "left"),
    ("text-align: right;", "right"),
    ("padding-left: 0;", "flush-left"),
    ("padding-right: 0;", "flush-right"),
    ("border-left:", "line-left"),
    ("border-right:", "line-right"),
    ("border-top:", "line-top"),
];

/// Converts LaTeX. It belongs on a stack of [`STACK_BYTES`].
pub struct Converter(LatexToMathML);

impl Converter {
    /// The only one that there is.
    pub fn new() -> Self {
        let config = MathCoreConfig { allow_unreliable_rendering: true, ..MathCoreConfig::default() };
        Self(LatexToMathML::new(config).expect("there are no macros in it that could be wrong"))
    }

    /// The formula, which says how it is written; none if it has to be shown like that.
    pub fn math(&self, latex: &str, source: &str, is_display: bool) -> Option<Element> {
        if source.len() > LONGEST_BYTES || source.chars().any(is_invisible) || has_comment(latex) {
            return None;
        }
        let display = if is_display { MathDisplay::Block } else { MathDisplay::Inline };
        let mathml = self.0.convert_with_local_state(latex, display).ok()?.mathml;
        let document = roxmltree::Document::parse(&mathml).ok()?;
        let mut attributes = attributes(document.root_element())?;
        attributes.insert("alttext", source.to_owned());
        let children = children(document.root_element(), 1)?;
        Some(Element { attributes, ..Element::new(Name::Math, children) })
    }
}

/// Whether something in it is not for readers: what follows a `%` up to the end of the line.
fn has_comment(latex: &str) -> bool {
    let mut is_escaped = false;
    latex.chars().any(|c| {
        let begins = c == '%' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        begins
    })
}

fn children(parent: roxmltree::Node<'_, '_>, depth: usize) -> Option<Vec<Node>> {
    if depth > DEEPEST {
        return None;
    }
    let mut nodes = Vec::new();
    for child in parent.children() {
        if let Some(text) = child.text().filter(|_| child.is_text()) {
            // The invisible operators of MathML come from the converter.
            if text.chars().any(|c| is_invisible(c) && !matches!(c, '\u{2061}'..='\u{2064}')) {
                return None;
            }
            nodes.push(Node::Text(text.to_owned()));
            continue;
        }
        // A number, a word or a sign holds text alone: this is what the converter did not escape.
        if matches!(parent.tag_name().name(), "mi" | "mn" | "mo") {
            return None;
        }
        let inner = children(child, depth + 1)?;
        match child.tag_name().name() {
            // It holds text in a typeface that the page has not.
            "span" => nodes.extend(inner),
            tag => {
                let (name, attributes) = (name(tag)?, attributes(child)?);
                nodes.push(Node::Element(Element { attributes, ..Element::new(name, inner) }));
            }
        }
    }
    Some(nodes)
}

fn name(tag: &str) -> Option<Name> {
    Some(match tag {
        "b" => Name::Strong,
        "code" => Name::Code,
        "em" | "i" => Name::Em,
        "mfrac" => Name::Mfrac,
        "mi" => Name::Mi,
        "mmultiscripts" => Name::Mmultiscripts,
        "mn" => Name::Mn,
        "mo" => Name::Mo,
        "mover" => Name::Mover,
        "mpadded" => Name::Mpadded,
        "mprescripts" => Name::Mprescripts,
        "mroot" => Name::Mroot,
        "mrow" => Name::Mrow,
        "mspace" => Name::Mspace,
        "msqrt" => Name::Msqrt,
        "msub" => Name::Msub,
        "msubsup" => Name::Msubsup,
        "msup" => Name::Msup,
        "mtable" => Name::Mtable,
        "mtd" => Name::Mtd,
        "mtext" => Name::Mtext,
        "mtr" => Name::Mtr,
        "munder" => Name::Munder,
        "munderover" => Name::Munderover,
        "s" => Name::Del,
        _ => return None,
    })
}

/// Those of the lists; the others are left out. None if a length is out of all proportion.
fn attributes(element: roxmltree::Node<'_, '_>) -> Option<BTreeMap<&'static str, String>> {
    let mut found = BTreeMap::new();
    for attribute in element.attributes() {
        let (name, value) = (attribute.name(), attribute.value());
        if let Some(known) = WORDS.into_iter().find(|known| *known == name) {
            found.insert(known, value.to_owned());
        } else if let Some(known) = LENGTHS.into_iter().find(|known| *known == name) {
            let number: f32 = value.trim_end_matches(char::is_alphabetic).parse().ok()?;
            if number.abs() > LARGEST_LENGTH {
                return None;
            }
            found.insert(known, value.to_owned());
        } else if name == "style" {
            let classes: Vec<&str> =
                CLASSES.into_iter().filter(|(style, _)| value.contains(style)).map(|(_, class)| class).collect();
            if !classes.is_empty() {
                found.insert("class", classes.join(" "));
            }
        }
    }
    Some(found)
}
