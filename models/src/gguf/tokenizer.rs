//! The vocabulary of a GGUF file to a `tokenizer.json`.
//!
//! A GGUF file holds tokens, and either merges or scores; how text is cut before that, it only names. What the names
//! mean is written out here, since a wrong guess gives other tokens than the model was trained on.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: usize = 1;
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;

/// How GPT-4's tokenizer cuts text, with runs of digits of this many at most: Llama 3 has 3, Qwen 2 has 1.
fn gpt_4_pattern(n_digits: usize) -> String {
    let digits = if n_digits == 1 { r"\p{N}".to_owned() } else { format!(r"\p{{N}}{{1,{n_digits}}}") };
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// The tokenizer, with its special tokens and its chat template.
pub fn read(metadata: &Metadata<'_>) -> Result<Tokenizer> {
    let tokens = metadata.texts("tokenizer.ggml.tokens")?;
    let token = |id: usize| {
        tokens.get(id).ok_or_else(|| metadata.bad(format!("token id {id} is outside of the {} tokens", tokens.len())))
    };
    let kinds = metadata.optional_counts("tokenizer.ggml.token_type")?.unwrap_or_default();
    let model = metadata.text("tokenizer.ggml.model")?;
    let mut tokenizer = match model.as_str() {
        "gpt2" => byte_level(metadata, &tokens)?,
        "llama" => sentence_piece(metadata, &tokens, &kinds)?,
        other => {
            let problem =
                format!("`tokenizer.ggml.model` is `{other}`, which is not supported (supported: gpt2, llama)");
            return Err(metadata.bad(problem));
        }
    };
    let special = |(id, kind): (usize, &usize)| {
        let is_special = *kind == CONTROL;
        (is_special || *kind == USER_DEFINED).then(|| {
            Ok(json!({
                "id": id, "content": token(id)?, "special": is_special, "normalized": false, "single_word": false,
                "lstrip": false, "rstrip": false,
            }))
        })
    };
    let added: Vec<Value> = kinds.iter().enumerate().filter_map(special).collect::<Result<_>>()?;
    tokenizer["version"] = json!("1.0");
    tokenizer["added_tokens"] = json!(added);

    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    for (name, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ] {
        if let Some(id) = metadata.optional_count(key)? {
            config.insert(name.into(), json!(token(id)?));
        }
    }
    // SentencePiece models begin with their token unless they say otherwise.
    let adds_bos = metadata.optional_flag("tokenizer.ggml.add_bos_token")?.unwrap_or(model == "llama");
    config.insert("add_bos_token".into(), json!(adds_bos));
    if adds_bos && let Some(id) = metadata.optional_count("tokenizer.ggml.bos_token_id")? {
        tokenizer["post_processor"] = bos_processor(token(id)?, id);
    }
    if let Some(template) = metadata.optional_text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), json!(template));
    }
    Tokenizer::from_json(&tokenizer, config).map_err(|error| metadata.bad(error.to_string()))
}

/// Puts the beginning token before every text, for those who encode with special tokens.
fn bos_processor(bos: &str, id: usize) -> Value {
    let special = json!({"SpecialToken": {"id": bos, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({
        "type": "TemplateProcessing", "single": [special, sequence("A")],
        "pair": [special, sequence("A"), special, sequence("B")],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    })
}

/// A byte-level BPE (Radford et al. 2019).
fn byte_level(metadata: &Metadata<'_>, tokens: &[String]) -> Result<Value> {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |pattern: String| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, bytes(false),
        ]})
    };
    let key = "tokenizer.ggml.pre";
    let cut = metadata.text(key)?;
    let mut normalizer = Value::Null;
    let mut ignores_merges = false;
    let pre_tokenizer = match cut.as_str() {
        "gpt-2" => bytes(true),
        "smollm" => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, bytes(true),
        ]}),
        "qwen2" => {
            normalizer = json!({"type": "NFC"});
            split(gpt_4_pattern(1))
        }
        "llama-bpe" => {
            ignores_merges = true;
            split(gpt_4_pattern(3))
        }
        other => {
            return Err(metadata.bad(format!(
                "`{key}` is `{other}`, which is not supported (supported: gpt-2, smollm, qwen2, llama-bpe)"
            )));
        }
    };
    let merges = metadata.texts("tokenizer.ggml.merges")?;
    let pair = |merge: &String| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(metadata.bad(format!("`tokenizer.ggml.merges` holds `{merge}`, expected two tokens"))),
    };
    let merges: Vec<Value> = merges.iter().map(pair).collect::<Result<_>>()?;
    Ok(json!({
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": bytes(true),
        "model": {
            "type": "BPE", "vocab": vocabulary(tokens), "merges": merges, "ignore_merges": ignores_merges,
            "dropout": null, "unk_token": null, "byte_fallback": false, "fuse_unk": false,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
        },
    }))
}

/// A BPE of SentencePiece (Kudo and Richardson 2018), as Llama 1 and 2 have it: spaces are a letter, what is not in the
/// vocabulary is spelled in bytes.
fn sentence_piece(metadata: &Metadata<'_>, tokens: &[String], kinds: &[usize]) -> Result<Value> {
    let scores = metadata.numbers("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        return Err(metadata.bad(format!("{} tokens have {} `tokenizer.ggml.scores`", tokens.len(), scores.len())));
    }
    let has_prefix = metadata.optional_flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if has_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = metadata.optional_count("tokenizer.ggml.unknown_token_id")?.and_then(|id| tokens.get(id));
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": vocabulary(tokens), "merges": merges_by_score(tokens, &scores, kinds),
            "ignore_merges": false, "dropout": null, "unk_token": unknown, "byte_fallback": true, "fuse_unk": true,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
        },
    }))
}

/// SentencePiece joins the two neighbours whose union scores best. As merges: every way to make a token of two others,
/// the best score first, ties in the order of the tokens and then of their parts.
fn merges_by_score(tokens: &[String], scores: &[f64], kinds: &[usize]) -> Vec<[String; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| kinds.get(*id).is_none_or(|kind| *kind == NORMAL)) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[id], id, left_id, right_id));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    merges.into_iter().map(|(_, _, left, right)| [tokens[left].clone(), tokens[right].clone()]).collect()
}

fn vocabulary(tokens: &[String]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
}
