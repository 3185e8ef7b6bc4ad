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
    assert!(json("$x^2$").contains(
        r#"{"name":"math","attributes":{"alttext":"$x^2$"},"children":[{"name":"msup","children":[{"name":"mi","children":["x"]},{"name":"mn","children":["2"]}]}]}"#
    ));
    assert_eq!(json("# a"), r#"[{"name":"h3","children":["a"]}]"#, "the page's own headings stand above");
}

/// The formulas of a text as they are written, and whether each is converted.
fn formulas(text: &str) -> Vec<(bool, String)> {
    let nodes = markdown(text);
    let of = |element: &Element| match element.name {
        Name::Math => Some((true, element.attributes["alttext"].clone())),
        Name::Latex => Some((false, text_of(&element.children))),
        _ => None,
    };
    all(&nodes).into_iter().filter_map(of).collect()
}

/// What is read in the only formula of a text.
fn read(text: &str) -> String {
    let nodes = markdown(text);
    let math: Vec<&Element> = all(&nodes).into_iter().filter(|element| element.name == Name::Math).collect();
    assert_eq!(math.len(), 1, "{nodes:?}");
    text_of(&math[0].children)
}

#[test]
fn latex_is_rendered_between_all_delimiters_and_says_how_it_is_written() {
    for (text, source, is_display) in [
        ("a $x^2$ b", "$x^2$", false),
        ("a $$\\frac{a}{b}$$ b", "$$\\frac{a}{b}$$", true),
        (r"so \(x_1 * y_1 * z\), then", r"\(x_1 * y_1 * z\)", false),
        ("so\n\\[\na\n= b\n- c\n\\]\nthen", "\\[\na\n= b\n- c\n\\]", true),
        ("| a |\n|---|\n| \\(|x|\\) |", r"\(|x|\)", false),
    ] {
        assert_eq!(formulas(text), [(true, source.to_owned())], "{text}");
        let nodes = markdown(text);
        let math = all(&nodes).into_iter().find(|element| element.name == Name::Math).unwrap();
        assert_eq!(math.attributes.get("display").map(String::as_str), is_display.then_some("block"), "{text}");
    }
    let both = [r"\(a_1\)", r"\(b_1\)"].map(|source| (true, source.to_owned()));
    assert_eq!(formulas(r"**\(a_1\)** and \(b_1\)"), both);
    assert_eq!(text_of(&markdown(r"**an \(a\)** and *more*")), "an a and more");
    let nodes = markdown(r"\[\begin{aligned} a &= b \\ c &= d \end{aligned}\]");
    let classes = all(&nodes).into_iter().filter_map(|element| element.attributes.get("class"));
    assert_eq!(
        classes.collect::<Vec<_>>(),
        ["right flush-right", "left flush-left"].repeat(2).iter().collect::<Vec<_>>()
    );
}

#[test]
fn money_and_code_are_no_formulas() {
    for text in ["$5 and $10", "$5-$10", "US$5 and CA$10", "it costs $20,000 (or $30,000)", "$5/item, total=$20"] {
        assert_eq!(formulas(text), [], "{text}");
        assert_eq!(text_of(&markdown(text)), text);
    }
    let code = "`$x$` and `\\(y\\)`\n\n```\n\\[z\\] $w$\n```\n\n    \\(v\\)";
    assert_eq!(formulas(code), []);
    for shown in ["$x$", r"\(y\)", r"\[z\] $w$", r"\(v\)"] {
        assert!(text_of(&markdown(code)).contains(shown), "{shown}");
    }
    assert_eq!(text_of(&markdown(r"\\(x\\)")), r"\(x\)", "the backslash is escaped");
    assert_eq!(formulas("\\(a\n\nb\\)"), [], "a formula has no empty line");
    let link = markdown(r"[x](https://example.org/\(a\))");
    assert_eq!(all(&link)[1].href.as_deref(), Some("https://example.org/(a)"), "nor is it in an address");
}

#[test]
fn latex_that_makes_no_formula_is_shown_as_it_is_written() {
    for source in [
        r"$\href{javascript:alert(1)}{x}$",
        r"$\url{javascript:alert(1)}$",
        r"$\class{x}{y}$",
        r"$\unknown{x}$",
        r"\(\frac{a}\)",
        r"\({a\)",
        r"\(a}\)",
        r"\(\eqref{a}\)",
        r"\(\operatorname{<img src=x onerror=alert(1)>}\)",
        r"\(\operatorname{<b>x</b>}\)",
        r"\(\operatorname{<script>alert(1)</script>}\)",
        // What nobody would see, or what pushes away everything else.
        r"\(\phantom{x}\)",
        r"\(50% of x\)",
        r"\(\hspace{9999em}\)",
    ] {
        assert_eq!(formulas(source), [(false, source.to_owned())]);
    }
    let long = format!("${}$", "x+".repeat(2_000) + "x");
    assert_eq!(formulas(&long), [(false, long)]);
}

#[test]
fn html_in_latex_is_text() {
    assert_eq!(read("$<script>alert(1)</script>$"), "<script>alert(1)</script>");
    let text = read(r"$\text{<img src=x onerror=alert(1)>}$");
    assert_eq!(text.replace('\u{a0}', " "), "<img src=x onerror=alert(1)>");
    assert_eq!(read(r"\(a < b \& c\)"), "a<b&c");
}

#[test]
fn very_deep_latex_is_shown_as_it_is_written() {
    for n in [1_900, 10_000] {
        let source = format!("\\({}x{}\\)", "{".repeat(n), "}".repeat(n));
        assert_eq!(formulas(&source), [(n == 1_900, source)], "groups alone make nothing deep");
    }
    for part in ["\\sqrt", "\\hat", "\\frac1", "\\text\\sqrt", "\\sqrt[", "\\left(", "x^{", "_{", "\\begin{matrix}"] {
        let source = format!("\\({} x\\)", part.repeat(3_900 / part.len()));
        assert_eq!(formulas(&source), [(false, source)]);
    }
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
    assert_eq!(marked("$a\u{202e}b$ \\(c\u{200b}\\) $\\text{\u{2066}}$"), ["U+202E", "U+200B", "U+2066"]);
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
    fn no_text_makes_anything_live(text in "(<|>|\\[|\\]|\\(|\\)|!|`|javascript:|https://|on|=|\"|'|\\*|_|\n| |[a-z]|\u{202e}|&#106;|\\$|\\\\|\\{|\\}|\\^|&|text|operatorname|frac){0,60}") {
        for element in all(&markdown(&text)) {
            if let Some(href) = &element.href {
                prop_assert_eq!(element.name, Name::A);
                prop_assert!(href.to_lowercase().starts_with("http"), "{}", href);
            }
        }
    }
}
