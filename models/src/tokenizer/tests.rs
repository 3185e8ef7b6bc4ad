use super::*;

const TEXTS: [&str; 4] =
    ["the cat sat on the mat.", "the dog sat on the log!", "Grüße, 你好 🙂", "cats and dogs and cats\n\n  again"];

fn trained() -> Tokenizer {
    Tokenizer::train_byte_level_bpe(TEXTS, 300, &[]).unwrap()
}

#[test]
fn training_depends_on_the_texts_alone() {
    let first = trained().as_json().unwrap();
    for _ in 0..5 {
        assert_eq!(trained().as_json().unwrap(), first);
    }
    let mut reversed = TEXTS;
    reversed.reverse();
    assert_eq!(Tokenizer::train_byte_level_bpe(reversed, 300, &[]).unwrap().as_json().unwrap(), first);
}

#[test]
fn the_first_merges_are_the_most_frequent_pairs() {
    // Once words are split, "th" and "he" occur 4 times each (and no pair more often); ties go to the smaller ids,
    // which are in order of bytes: `h` before `t`, so "he" is merged first, then "the" of `t` and `he`.
    let tokenizer = Tokenizer::train_byte_level_bpe(["the the the the"], 259, &[]).unwrap();
    assert_eq!(tokenizer.token_id("he"), Some(257));
    assert_eq!(tokenizer.token_id("the"), Some(258));
    assert_eq!(tokenizer.vocab_size(), 259);
    assert_eq!(tokenizer.encode("the").unwrap(), [258]);
}

#[test]
fn any_text_comes_back_as_it_was() {
    let tokenizer = trained();
    for text in TEXTS.into_iter().chain(["", " leading", "trailing ", "\u{0}\t\r\n", "e\u{301}", "\u{10ffff}"]) {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
}

#[test]
fn special_tokens_come_first_and_are_left_out_of_text() {
    let tokenizer = Tokenizer::train_byte_level_bpe(TEXTS, 300, &["<|labeler|>"]).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.token_id("<|labeler|>")), (0, Some(1)));
    let tokens = tokenizer.encode("a<|endoftext|>b<|labeler|>").unwrap();
    assert_eq!(tokens.iter().filter(|&&token| token <= 1).count(), 2);
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "ab");
    assert_eq!(tokenizer.bos(), None);
}

#[test]
fn a_vocabulary_without_room_for_the_bytes_is_refused() {
    let message = Tokenizer::train_byte_level_bpe(TEXTS, 256, &[]).unwrap_err().to_string();
    assert!(message.contains("at least 257"), "{message}");
}

#[test]
fn a_saved_tokenizer_is_the_same_when_loaded() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), trained());
    tokenizer.save(dir.path()).unwrap();
    let loaded = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(loaded.as_json().unwrap(), tokenizer.as_json().unwrap());
    assert_eq!((loaded.bos(), loaded.eos(), loaded.vocab_size()), (None, 0, tokenizer.vocab_size()));
    loaded.require_same("the policy", &tokenizer, "the reward model").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn missing_and_broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = || Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error().contains("tokenizer.json"), "{}", error());
    fs::write(dir.path().join(TOKENIZER_FILE), "{\"version\": \"1.0\"").unwrap();
    assert!(error().contains("is no tokenizer"), "{}", error());
    trained().save(dir.path()).unwrap();
    fs::write(dir.path().join(CONFIG_FILE), "[]").unwrap();
    assert!(error().contains("tokenizer_config.json"), "{}", error());
    fs::write(dir.path().join(CONFIG_FILE), r#"{"eos_token": {"content": "</s>"}}"#).unwrap();
    assert!(error().contains("`</s>` is not in the vocabulary"), "{}", error());
}

/// A tokenizer of whole words whose post-processor puts `<s>` before a text and `</s>` behind it.
fn with_template(dir: &Path, config: &Value) -> Tokenizer {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, piece("</s>")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]},
            },
        },
        "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "one": 2, "two": 3}, "unk_token": "</s>"},
    });
    fs::write(dir.join(TOKENIZER_FILE), tokenizer.to_string()).unwrap();
    fs::write(dir.join(CONFIG_FILE), config.to_string()).unwrap();
    Tokenizer::load(dir).unwrap()
}

#[test]
fn the_beginning_token_is_there_exactly_where_the_tokenizer_adds_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let tokenizer = with_template(dir.path(), &config);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), 1));
    assert_eq!(tokenizer.encode("one two one").unwrap(), [2, 3, 2], "specials or truncation from the file");
    config["add_bos_token"] = json!(false);
    assert_eq!(with_template(dir.path(), &config).bos(), None);
}

#[test]
fn two_tokenizers_are_told_apart() {
    let tokenizer = trained();
    let other = Tokenizer::train_byte_level_bpe(["quite another text altogether"], 300, &[]).unwrap();
    let message = tokenizer.require_same("the policy", &other, "the reward model").unwrap_err().to_string();
    assert!(message.contains("the policy and the reward model must share one tokenizer"), "{message}");
    assert!(message.contains("token 257 is"), "{message}");

    let mut pre = tokenizer.as_json().unwrap();
    pre["pre_tokenizer"]["add_prefix_space"] = json!(true);
    let inner = pre.to_string().parse().unwrap();
    let prefixed = Tokenizer::new(inner, tokenizer.config.clone()).unwrap();
    let message = tokenizer.require_same("a", &prefixed, "b").unwrap_err().to_string();
    assert!(message.contains("`pre_tokenizer` differs"), "{message}");
}
