//! Characters that can't be seen. The pages that show text without this module do as it does, in `web/page/visible.js`.

use super::{Element, Name, Node};

/// The text, with a mark for each character that can't be seen.
pub fn visible(text: &str) -> Vec<Node> {
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
            nodes.push(Node::Element(Element::new(Name::Mark, number)));
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
pub fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
        || (c.is_control() && !matches!(c, '\n' | '\t' | '\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_the_browser_hold_the_same_characters_invisible() {
        let script = include_str!("../../web/page/visible.js");
        let numbers: Vec<u32> = script
            .split("0x")
            .skip(1)
            .map(|rest| {
                let n_digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
                u32::from_str_radix(&rest[..n_digits], 16).unwrap()
            })
            .collect();
        let (ranges, rest) = numbers.as_chunks::<2>();
        assert!(rest.is_empty() && !ranges.is_empty());
        for c in char::MIN..=char::MAX {
            let is_there = ranges.iter().any(|[first, last]| (*first..=*last).contains(&u32::from(c)));
            assert_eq!(is_there, is_invisible(c), "U+{:04X}", u32::from(c));
        }
    }
}
