//! Hostile text as a tree of harmless elements.
//!
//! Markdown never becomes HTML here. It becomes a tree of elements from a short list, which the page makes one by one from
//! their names: there is no text anywhere that a browser would parse. HTML in the text is shown as text; images are not
//! loaded but named with their address; links lead to http and https alone; characters that can't be seen, or that turn
//! the direction of what follows, are shown by their numbers.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use serde::Serialize;

/// Deeper nesting than this is nobody's writing; it is flattened.
const DEEPEST: usize = 24;

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
    /// What is in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Node>,
}

/// All elements that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is HTML's element of that name")]
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
    Math,
    /// Where an image would be.
    Image,
}

/// Renders Markdown.
pub fn markdown(text: &str) -> Vec<Node> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_MATH;
    let mut tree = Tree::default();
    for event in Parser::new_ext(text, options) {
        tree.take(event);
    }
    tree.finish()
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

#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    done: Vec<Node>,
    /// Tags that made no element, whose ends make none either.
    depth_flattened: usize,
    is_in_head: bool,
}

impl Tree {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(end) => self.end(end),
            Event::Text(text) => self.add_text(&text),
            Event::Code(text) => self.add(Name::Code, visible(&text)),
            // Shown as it is written: it is text that somebody reads, not a part of this page.
            Event::Html(html) | Event::InlineHtml(html) => self.add_text(&html),
            Event::InlineMath(text) => self.add(Name::Math, visible(&format!("${text}$"))),
            Event::DisplayMath(text) => self.add(Name::Math, visible(&format!("$${text}$$"))),
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
                    self.push(Node::Element(Element { name: Name::Code, href: None, children }));
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
                self.push(Node::Element(Element { name, href: None, children }));
            }
            // A link that leads nowhere safe is its text.
            Name::A if href.is_none() => children.into_iter().for_each(|child| self.push(child)),
            _ => self.push(Node::Element(Element { name, href, children })),
        }
    }

    fn add(&mut self, name: Name, children: Vec<Node>) {
        self.push(Node::Element(Element { name, href: None, children }));
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

/// The text, with a mark for each character that can't be seen.
fn visible(text: &str) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut run = String::new();
    let mut before = ' ';
    for c in text.chars() {
        // Joiners belong to the writing of Persian, Hindi and others, and to emoji: after a letter of those they stay.
        let is_joiner = matches!(c, '\u{200c}' | '\u{200d}') && !before.is_ascii() && !is_invisible(before);
        if is_invisible(c) && !is_joiner {
            if !run.is_empty() {
                nodes.push(Node::Text(std::mem::take(&mut run)));
            }
            let number = vec![Node::Text(format!("U+{:04X}", c as u32))];
            nodes.push(Node::Element(Element { name: Name::Mark, href: None, children: number }));
        } else {
            run.push(c);
        }
        before = c;
    }
    if !run.is_empty() {
        nodes.push(Node::Text(run));
    }
    nodes
}

/// Zero-width characters, directional controls, other controls than line ends and tabs, and tags.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
        || (c.is_control() && !matches!(c, '\n' | '\t' | '\r'))
}

#[cfg(test)]
mod tests;
