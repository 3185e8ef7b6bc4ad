//! The same models in transformers and here: `tests/fixtures/hf` was written by transformers
//! (`tests/scripts/hf_parity.py`), `tests/fixtures/collimate` by this project (`tests/examples/write_models.rs`).

use std::fs;
use std::path::Path;

use collimate_models::Device;
use collimate_models::arch::{HeadKind, LanguageModel, PackedSequences, ScalarModel, load_model, save_model};
use collimate_models::generate::{Engine, SamplingParams};
use collimate_models::kernels::{self, WeightLayout};
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::PolicyVersion;
use collimate_tests::fixture;
use serde::Deserialize;

/// Two layers in f32, summed in other orders.
const TOLERANCE: f64 = 2e-5;

/// `expected.json` of a language model.
#[derive(Deserialize)]
struct ExpectedLogits {
    sequences: Vec<Vec<u32>>,
    /// `(sequences, T, V)`.
    logits: Vec<Vec<Vec<f32>>>,
    #[serde(default)]
    greedy: Vec<Vec<u32>>,
}

/// `expected.json` of a model with a scalar head.
#[derive(Deserialize)]
struct ExpectedScores {
    sequences: Vec<Vec<u32>>,
    scores: Vec<f32>,
}

fn expected<T: for<'a> Deserialize<'a>>(dir: &Path) -> T {
    serde_json::from_slice(&fs::read(dir.join("expected.json")).unwrap()).unwrap()
}

/// Logits `(N, V)` of all sequences at once.
fn logits(model: &LanguageModel, sequences: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let hidden = model.decoder().forward_packed(&PackedSequences::new(sequences)).unwrap();
    kernels::linear(&hidden, model.unembedding(), WeightLayout::OutIn, None).unwrap().to_vec2().unwrap()
}

#[test]
fn logits_are_those_of_transformers() {
    for name in ["hf/gpt2", "hf/llama", "hf/llama_tied", "collimate/gpt2", "collimate/llama", "collimate/llama_tied"] {
        let dir = fixture::path(name);
        let expected: ExpectedLogits = expected(&dir);
        let (config, weights) = load_model(&dir, HeadKind::Language, &Device::Cpu).unwrap();
        for model in [LanguageModel::new(&config, &weights), LanguageModel::frozen(&config, &weights)] {
            let rows = logits(&model.unwrap(), &expected.sequences);
            for (row, expected) in rows.iter().zip(expected.logits.concat()) {
                fixture::assert_close(row.iter().copied(), expected, TOLERANCE, name);
            }
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for name in ["hf/gpt2", "hf/llama", "hf/llama_tied"] {
        let dir = fixture::path(name);
        let expected: ExpectedLogits = expected(&dir);
        let (config, weights) = load_model(&dir, HeadKind::Language, &Device::Cpu).unwrap();
        let mut engine = Engine::new(&config, &weights, PolicyVersion(0), expected.sequences.len()).unwrap();
        let max_new_tokens = expected.greedy.iter().map(Vec::len).max().unwrap();
        let greedy = SamplingParams { temperature: 0.0, max_new_tokens, ..SamplingParams::default() };
        for (i, sequence) in expected.sequences.iter().enumerate() {
            engine.admit(i, sequence, rng::for_purpose(0, "unused"), greedy).unwrap();
        }
        while engine.n_running() > 0 {
            for response in engine.step().unwrap() {
                assert_eq!(response.tokens, expected.greedy[response.tag], "{name}");
            }
        }
    }
}

#[test]
fn scores_are_those_of_transformers() {
    for name in ["hf/gpt2_score", "hf/llama_score", "collimate/gpt2_score", "collimate/llama_score"] {
        let dir = fixture::path(name);
        let expected: ExpectedScores = expected(&dir);
        let (config, weights) = load_model(&dir, HeadKind::Scalar, &Device::Cpu).unwrap();
        let packed = PackedSequences::new(&expected.sequences);
        let last_rows: Vec<u32> = packed.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
        for model in [ScalarModel::new(&config, &weights), ScalarModel::frozen(&config, &weights)] {
            let scores = model.unwrap().scalars_at(&packed, &last_rows).unwrap().to_vec1::<f32>().unwrap();
            fixture::assert_close(scores, expected.scores.iter().copied(), TOLERANCE, name);
        }
    }
}

/// The committed folder is what `check_transformers_loads.py` has loaded with transformers, so what has the same
/// bytes loads too.
#[test]
fn what_is_written_today_is_what_transformers_was_seen_to_load() {
    for (name, head) in [
        ("gpt2", HeadKind::Language),
        ("llama", HeadKind::Language),
        ("llama_tied", HeadKind::Language),
        ("gpt2_score", HeadKind::Scalar),
        ("llama_score", HeadKind::Scalar),
    ] {
        let (dir, written) = (fixture::path("collimate").join(name), tempfile::tempdir().unwrap());
        let (config, weights) = load_model(&dir, head, &Device::Cpu).unwrap();
        save_model(written.path(), &config, head, &weights).unwrap();
        if dir.join("tokenizer.json").exists() {
            Tokenizer::load(&dir).unwrap().save(written.path()).unwrap();
        }
        for entry in fs::read_dir(&dir).unwrap() {
            let file = entry.unwrap().file_name();
            if file != "expected.json" && file != "expected_tokens.json" {
                let same = fs::read(dir.join(&file)).unwrap() == fs::read(written.path().join(&file)).unwrap();
                assert!(same, "{name}/{} has changed: run the script again", file.display());
            }
        }
    }
}

#[test]
fn token_ids_are_those_transformers_was_seen_to_give() {
    #[derive(Deserialize)]
    struct ExpectedTokens {
        text: String,
        ids: Vec<u32>,
    }
    let dir = fixture::path("collimate/gpt2");
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let expected: Vec<ExpectedTokens> =
        serde_json::from_slice(&fs::read(dir.join("expected_tokens.json")).unwrap()).unwrap();
    for ExpectedTokens { text, ids } in expected {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
        let without_specials = text.replace("<|endoftext|>", "").replace("<|labeler|>", "");
        assert_eq!(tokenizer.decode(&ids).unwrap(), without_specials);
    }
}
