use proptest::prelude::*;

use super::*;

fn json(text: &str) -> String {
    serde_json::to_string(&markdown(text)).unwrap()
}

/// Everything in the tree, flat.
fn all(nodes: &[Node]) -> Vec<&Element> {
    let mut found = Vec::new();
    for node in nodes {
        if let Node::Element(element) = node {
            found.push(element);
            found.extend(all(&element.children));
        }
    }
    found
}

fn text_of(nodes: &[Node]) -> String {
    let one = |node: &Node| match node {
        Node::Text(text) => text.clone(),
        Node::Element(Element { name: Name::Br, .. }) => "\n".to_owned(),
        Node::Element(element) => text_of(&element.children),
    };
    nodes.iter().map(one).collect()
}

#[test]
fn markdown_becomes_elements() {
    assert_eq!(
        json("a **b** `c`\nd"),
        r#"[{"name":"p","children":["a ",{"name":"strong","children":["b"]}," ",{"name":"code","children":["c"]},{"name":"br"},"d"]}]"#
    );
    assert_eq!(
        json("| a |\n|---|\n| b |"),
        r#"[{"name":"table","children":[{"name":"thead","children":[{"name":"tr","children":[{"name":"th","children":["a"]}]}]},{"name":"tr","children":[{"name":"td","children":["b"]}]}]}]"#
    );
    assert!(json("```rust\nlet x = 1;\n```").contains(r#"{"name":"pre","children":["let x = 1;\n"]}"#));
    assert!(json("$x^2$").contains(r#"{"name":"math","children":["$x^2$"]}"#));
    assert_eq!(json("# a"), r#"[{"name":"h3","children":["a"]}]"#, "the page's own headings stand above");
}

#[test]
fn html_is_shown_and_never_an_element() {
    for payload in [
        "<script>alert(1)</script>",
        "a <img src=x onerror=alert(1)> b",
        "<svg onload=alert(1)>",
        "<iframe src=\"javascript:alert(1)\"></iframe>",
        "</div><style>*{display:none}</style>",
    ] {
        let nodes = markdown(payload);
        assert_eq!(text_of(&nodes).trim(), payload, "shown as it is written");
        assert!(all(&nodes).iter().all(|element| element.name == Name::P), "{nodes:?}");
    }
}

#[test]
fn links_lead_to_http_and_https_alone() {
    let href = |text: &str| all(&markdown(text)).iter().find_map(|element| element.href.clone());
    assert_eq!(href("[x](https://example.org/a?b#c)").unwrap(), "https://example.org/a?b#c");
    assert_eq!(href("<http://example.org>").unwrap(), "http://example.org");
    for address in [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java&#x0A;script:alert(1)",
        "&#1;javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "file:///etc/passwd",
        "//evil.example",
        "/api/undo",
        "https://",
        "https://bank.example@evil.example/",
        "https://a\u{202e}b.example",
    ] {
        assert_eq!(href(&format!("[x](<{address}>)")), None, "{address}");
        assert!(text_of(&markdown(&format!("[x](<{address}>)"))).contains('x'));
    }
}

#[test]
fn an_image_is_named_and_not_loaded() {
    let nodes = markdown("![a **cat**](https://evil.example/track.png)");
    assert_eq!(text_of(&nodes), "a cat (https://evil.example/track.png)");
    assert!(all(&nodes).iter().all(|element| element.href.is_none()));
}

#[test]
fn what_can_not_be_seen_is_shown_by_its_number() {
    let marked = |text: &str| -> Vec<String> {
        let nodes = markdown(text);
        let marks = all(&nodes).into_iter().filter(|element| element.name == Name::Mark);
        marks.map(|element| text_of(&element.children)).collect()
    };
    assert_eq!(marked("a\u{200b}b \u{202e}c `d\u{2066}`"), ["U+200B", "U+202E", "U+2066"]);
    assert_eq!(marked("ad\u{200d}min"), ["U+200D"]);
    assert_eq!(marked("می\u{200c}خواهم 👩\u{200d}💻"), Vec::<String>::new(), "joiners where they belong");
    assert_eq!(marked("a\u{e0041}b\u{7}"), ["U+E0041", "U+0007"]);
}

#[test]
fn very_deep_nesting_is_flattened() {
    let deep = ">".repeat(5_000) + " a";
    let nodes = markdown(&deep);
    fn depth(nodes: &[Node]) -> usize {
        let of = |node: &Node| if let Node::Element(element) = node { 1 + depth(&element.children) } else { 0 };
        nodes.iter().map(of).max().unwrap_or(0)
    }
    assert!(depth(&nodes) <= DEEPEST + 1);
    assert!(text_of(&nodes).contains('a'));
}

proptest! {
    /// Whatever is written, only elements of the list come out, none with an address but links, and those are safe.
    #[test]
    fn no_text_makes_anything_live(text in "(<|>|\\[|\\]|\\(|\\)|!|`|javascript:|https://|on|=|\"|'|\\*|_|\n| |[a-z]|\u{202e}|&#106;){0,60}") {
        for element in all(&markdown(&text)) {
            if let Some(href) = &element.href {
                prop_assert_eq!(element.name, Name::A);
                prop_assert!(href.to_lowercase().starts_with("http"), "{}", href);
            }
        }
    }
}
