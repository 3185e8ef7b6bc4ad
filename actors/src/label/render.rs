//! Hostile text as a tree of harmless elements.
//!
//! Markdown never becomes HTML here. It becomes a tree of elements from a short list, which the page makes one by one from
//! their names: there is no text anywhere that a browser would parse. HTML in the text is shown as text; images are not
//! loaded but named with their address; links lead to http and https alone; characters that can't be seen, or that turn
//! the direction of what follows, are shown by their numbers. LaTeX becomes elements of MathML by the same rule.

mod brackets;
mod math;
mod visible;

use std::collections::BTreeMap;
use std::ops::Range;
use std::thread;

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use serde::Serialize;

use brackets::Formula;
use math::Converter;
use visible::{is_invisible, visible};

/// Deeper nesting than this is nobody's writing; it is flattened.
const DEEPEST: usize = 24;

const OPTIONS: Options = Options::ENABLE_TABLES.union(Options::ENABLE_STRIKETHROUGH).union(Options::ENABLE_MATH);

/// An element, or text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Node {
    /// Text.
    Text(String),
    /// An element.
    Element(Element),
}

/// An element of [`Name`]'s list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Element {
    /// Which.
    pub name: Name,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub href: Option<String>,
    /// Attributes of MathML.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<&'static str, String>,
    /// What is in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Node>,
}

impl Element {
    fn new(name: Name, children: Vec<Node>) -> Self {
        Self { name, href: None, attributes: BTreeMap::new(), children }
    }
}

/// All elements that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the element of that name of HTML or MathML")]
pub enum Name {
    P,
    H3,
    H4,
    H5,
    Em,
    Strong,
    Del,
    Code,
    Pre,
    Blockquote,
    Ul,
    Ol,
    Li,
    A,
    Br,
    Hr,
    Table,
    Thead,
    Tbody,
    Tr,
    Th,
    Td,
    /// A character that can't be seen, by its number.
    Mark,
    /// Mathematics, as it is written.
    Latex,
    /// Where an image would be.
    Image,
    Math,
    Mfrac,
    Mi,
    Mmultiscripts,
    Mn,
    Mo,
    Mover,
    Mpadded,
    Mprescripts,
    Mroot,
    Mrow,
    Mspace,
    Msqrt,
    Msub,
    Msubsup,
    Msup,
    Mtable,
    Mtd,
    Mtext,
    Mtr,
    Munder,
    Munderover,
}

/// Renders Markdown, with LaTeX between `$`, `$$`, `\(` and `\)`, or `\[` and `\]`.
pub fn markdown(text: &str) -> Vec<Node> {
    if !text.contains(['$', '\\']) {
        return rendered(text, None);
    }
    // Where no thread is to be had, or the converter has a fault, LaTeX is shown as it is written.
    let converted = thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(math::STACK_BYTES);
        let thread = thread.spawn_scoped(scope, || rendered(text, Some(&Converter::new()))).ok()?;
        thread.join().ok()
    });
    converted.unwrap_or_else(|| rendered(text, None))
}

/// Renders Markdown. LaTeX is shown as it is written where there is no converter.
fn rendered(text: &str, converter: Option<&Converter>) -> Vec<Node> {
    let formulas = brackets::formulas(text, OPTIONS);
    let filled = brackets::fill(text, &formulas);
    // A formula in an address or in the title of a link is no formula: what is around it is read again without any.
    tree(&filled, text, &formulas, converter)
        .unwrap_or_else(|| tree(text, text, &[], converter).expect("there are no formulas to miss"))
}

/// The tree of a text whose formulas are filled; none if one of them is in no place where it can be shown.
fn tree(filled: &str, text: &str, formulas: &[Formula], converter: Option<&Converter>) -> Option<Vec<Node>> {
    let mut tree =
        Tree { text, formulas, converter, open: Vec::new(), done: Vec::new(), depth_flattened: 0, is_in_head: false };
    for (event, range) in Parser::new_ext(filled, OPTIONS).into_offset_iter() {
        tree.take(event, range);
    }
    tree.formulas.is_empty().then(|| tree.finish())
}

/// Text as it is, a paragraph for each blank line, with what can't be seen made visible.
pub fn plain(text: &str) -> Vec<Node> {
    visible(text)
}

/// An element that is not complete yet.
struct Open {
    name: Name,
    href: Option<String>,
    children: Vec<Node>,
}

struct Tree<'a> {
    text: &'a str,
    /// Those that are still to come.
    formulas: &'a [Formula],
    converter: Option<&'a Converter>,
    open: Vec<Open>,
    done: Vec<Node>,
    /// Tags that made no element, whose ends make none either.
    depth_flattened: usize,
    is_in_head: bool,
}

impl Tree<'_> {
    fn take(&mut self, event: Event<'_>, range: Range<usize>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(end) => self.end(end),
            Event::Text(text) => self.add_written(&text, range.end),
            Event::Code(text) => self.add(Name::Code, visible(&text)),
            // Shown as it is written: it is text that somebody reads, not a part of this page.
            Event::Html(html) | Event::InlineHtml(html) => self.add_written(&html, range.end),
            // `$5-$10` is money.
            Event::InlineMath(latex) if self.text[range.end..].starts_with(|c: char| c.is_ascii_digit()) => {
                self.add_text(&format!("${latex}$"));
            }
            Event::InlineMath(latex) => self.add_formula(&latex, &format!("${latex}$"), false),
            Event::DisplayMath(latex) => self.add_formula(&latex, &format!("$${latex}$$"), true),
            // As people type: a new line is a new line.
            Event::SoftBreak | Event::HardBreak => self.add(Name::Br, Vec::new()),
            Event::Rule => self.add(Name::Hr, Vec::new()),
            Event::FootnoteReference(name) => self.add_text(&format!("[^{name}]")),
            Event::TaskListMarker(is_done) => self.add_text(if is_done { "[x] " } else { "[ ] " }),
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        let (name, href) = match tag {
            Tag::Paragraph | Tag::HtmlBlock => (Name::P, None),
            Tag::Heading { level, .. } => (heading(*level), None),
            Tag::BlockQuote(_) => (Name::Blockquote, None),
            Tag::CodeBlock(kind) => {
                let language = match kind {
                    CodeBlockKind::Fenced(language) if !language.is_empty() => Some(language),
                    _ => None,
                };
                // What is said of the code is a part of the text.
                if let Some(language) = language {
                    let children = visible(language);
                    self.push(Node::Element(Element::new(Name::Code, children)));
                }
                (Name::Pre, None)
            }
            Tag::List(None) => (Name::Ul, None),
            Tag::List(Some(_)) => (Name::Ol, None),
            Tag::Item => (Name::Li, None),
            Tag::Table(_) => (Name::Table, None),
            Tag::TableHead => {
                self.is_in_head = true;
                self.open(Name::Thead, None);
                (Name::Tr, None)
            }
            Tag::TableRow => (Name::Tr, None),
            Tag::TableCell => (if self.is_in_head { Name::Th } else { Name::Td }, None),
            Tag::Emphasis => (Name::Em, None),
            Tag::Strong => (Name::Strong, None),
            Tag::Strikethrough => (Name::Del, None),
            Tag::Link { dest_url, .. } => (Name::A, safe_link(dest_url)),
            Tag::Image { dest_url, .. } => (Name::Image, Some(dest_url.to_string())),
            _ => (Name::P, None),
        };
        self.open(name, href);
    }

    fn end(&mut self, end: TagEnd) {
        self.close();
        if end == TagEnd::TableHead {
            self.is_in_head = false;
            self.close();
        }
    }

    fn open(&mut self, name: Name, href: Option<String>) {
        if self.open.len() >= DEEPEST {
            self.depth_flattened += 1;
            return;
        }
        self.open.push(Open { name, href, children: Vec::new() });
    }

    fn close(&mut self) {
        if self.depth_flattened > 0 {
            self.depth_flattened -= 1;
            return;
        }
        let Some(Open { name, href, mut children }) = self.open.pop() else { return };
        match name {
            // The address is shown, and nothing is loaded from it.
            Name::Image => {
                children.extend(visible(&format!(" ({})", href.unwrap_or_default())));
                self.push(Node::Element(Element::new(name, children)));
            }
            // A link that leads nowhere safe is its text.
            Name::A if href.is_none() => children.into_iter().for_each(|child| self.push(child)),
            _ => self.push(Node::Element(Element { href, ..Element::new(name, children) })),
        }
    }

    fn add(&mut self, name: Name, children: Vec<Node>) {
        self.push(Node::Element(Element::new(name, children)));
    }

    /// Adds text that ends at that byte, and the formulas in it.
    fn add_written(&mut self, text: &str, end: usize) {
        // A backslash before it belongs to its range, and not to it: they agree at the end.
        let Some(start) = end.checked_sub(text.len()) else { return self.add_text(text) };
        let mut from = 0;
        while let [Formula { range, is_display }, rest @ ..] = self.formulas
            && start + from <= range.start
            && range.end <= end
        {
            self.add_text(&text[from..range.start - start]);
            let source = &self.text[range.clone()];
            self.add_formula(&source[2..source.len() - 2], source, *is_display);
            from = range.end - start;
            self.formulas = rest;
        }
        self.add_text(&text[from..]);
    }

    fn add_formula(&mut self, latex: &str, source: &str, is_display: bool) {
        match self.converter.and_then(|converter| converter.math(latex, source, is_display)) {
            Some(math) => self.push(Node::Element(math)),
            None => self.add(Name::Latex, visible(source)),
        }
    }

    fn add_text(&mut self, text: &str) {
        visible(text).into_iter().for_each(|node| self.push(node));
    }

    fn push(&mut self, node: Node) {
        let siblings = self.open.last_mut().map_or(&mut self.done, |open| &mut open.children);
        match (siblings.last_mut(), node) {
            (Some(Node::Text(before)), Node::Text(text)) => before.push_str(&text),
            (_, node) => siblings.push(node),
        }
    }

    fn finish(mut self) -> Vec<Node> {
        while !self.open.is_empty() {
            self.depth_flattened = 0;
            self.close();
        }
        self.done
    }
}

fn heading(level: HeadingLevel) -> Name {
    match level {
        HeadingLevel::H1 => Name::H3,
        HeadingLevel::H2 => Name::H4,
        _ => Name::H5,
    }
}

/// The address, if a browser may go there: http or https, with a host, without what can't be seen.
fn safe_link(address: &str) -> Option<String> {
    let lower = address.to_ascii_lowercase();
    let rest = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://"))?;
    let is_plain = !address.chars().any(|c| c.is_control() || c.is_whitespace() || is_invisible(c));
    // `user@host` makes an address look like another one's.
    let host = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    (is_plain && !host.is_empty() && !host.contains('@')).then(|| address.to_owned())
}

#[cfg(test)]
mod tests;
