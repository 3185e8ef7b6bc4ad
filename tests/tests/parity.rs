//! The same models in transformers and here: `tests/fixtures/hf` was written by transformers
//! (`tests/scripts/hf_parity.py`), `tests/fixtures/collimate` by this project (`tests/examples/write_models.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use collimate_models::arch::{
    GenerationModel, HeadKind, LanguageModel, PackedSequences, Parameters, ScalarModel, load_model, save_model,
};
use collimate_models::generate::{Engine, SamplingParams};
use collimate_models::kernels::{self, WeightLayout};
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_protocol::PolicyVersion;
use collimate_tests::fixture;
use serde::Deserialize;

/// Two layers in f32, summed in other orders.
const TOLERANCE: f64 = 2e-5;

/// Language models that transformers wrote: every family, and every setting that changes what is computed.
const LANGUAGE_MODELS: [&str; 13] = [
    "gpt1",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gpt_neox_serial",
    "llama",
    "llama_tied",
    "llama_3",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma_3",
];

/// Models with one score that transformers wrote.
const SCORE_MODELS: [&str; 10] = [
    "gpt1_score",
    "gpt2_score",
    "gpt_neo_score",
    "gpt_neox_score",
    "llama_score",
    "mistral_score",
    "qwen2_score",
    "qwen3_score",
    "gemma_score",
    "gemma_3_score",
];

fn hf(name: &str) -> PathBuf {
    fixture::path("hf").join(name)
}

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
    let ours = ["gpt2", "llama", "llama_tied"].map(|name| fixture::path("collimate").join(name));
    for dir in LANGUAGE_MODELS.map(hf).into_iter().chain(ours) {
        let expected: ExpectedLogits = expected(&dir);
        let (config, weights) = load_model(&dir, HeadKind::Language, &fixture::device()).unwrap();
        let as_stored = logits(&LanguageModel::new(&config, &weights).unwrap(), &expected.sequences);
        let laid_out = {
            let model = GenerationModel::new(&config, &weights).unwrap();
            let hidden = model.decoder().forward_packed(&PackedSequences::new(&expected.sequences)).unwrap();
            model.logits(&hidden).unwrap().to_vec2().unwrap()
        };
        for rows in [as_stored, laid_out] {
            for (row, expected) in rows.iter().zip(expected.logits.concat()) {
                fixture::assert_close(row.iter().copied(), expected, TOLERANCE, &dir.display().to_string());
            }
        }
    }
}

/// Each parameter has a gradient, of the size that PyTorch finds.
#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    #[derive(Deserialize)]
    struct Expected {
        sequences: Vec<Vec<u32>>,
        loss: f64,
        /// By parameter.
        gradient_norms: BTreeMap<String, f64>,
    }
    for name in LANGUAGE_MODELS {
        let Expected { sequences, loss, gradient_norms } = expected(&hf(name));
        let (config, weights) = load_model(&hf(name), HeadKind::Language, &fixture::device()).unwrap();
        let parameters = Parameters::from_weights(&weights).unwrap();
        let model = LanguageModel::new(&config, &parameters.weights()).unwrap();
        let packed = PackedSequences::new(&sequences);
        let is_last = |row: usize| packed.offsets.contains(&(row + 1));
        let rows: Vec<u32> = (0..packed.n_tokens()).filter(|row| !is_last(*row)).map(|row| row as u32).collect();
        let targets: Vec<u32> = rows.iter().map(|row| packed.ids[*row as usize + 1]).collect();
        let logprobs = model.logprobs_at(&packed, &rows, &targets, 1.0).unwrap().logprobs;
        let mean = logprobs.mean_all().unwrap().neg().unwrap();
        fixture::assert_close([mean.to_scalar::<f32>().unwrap()], [loss], 1e-5, name);
        let gradients = mean.backward().unwrap();
        assert_eq!(parameters.iter().count(), gradient_norms.len(), "{name}");
        for (parameter, var) in parameters.iter() {
            // In memory transformers names GPT-NeoX's unembedding as all others'.
            let expected = gradient_norms[if parameter == "embed_out.weight" { "lm_head.weight" } else { parameter }];
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name}: `{parameter}` has no gradient"));
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(
                (f64::from(norm) - expected).abs() <= 1e-3 * expected + 1e-7,
                "{name}: the gradient of `{parameter}` is {norm} long, expected {expected}"
            );
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for name in LANGUAGE_MODELS {
        let dir = hf(name);
        let expected: ExpectedLogits = expected(&dir);
        let (config, weights) = load_model(&dir, HeadKind::Language, &fixture::device()).unwrap();
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
    let ours = ["gpt2_score", "llama_score"].map(|name| fixture::path("collimate").join(name));
    for dir in SCORE_MODELS.map(hf).into_iter().chain(ours) {
        let expected: ExpectedScores = expected(&dir);
        let (config, weights) = load_model(&dir, HeadKind::Scalar, &fixture::device()).unwrap();
        let packed = PackedSequences::new(&expected.sequences);
        let last_rows: Vec<u32> = packed.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
        let model = ScalarModel::frozen(&config, &weights).unwrap();
        let scores = model.scalars_at(&packed, &last_rows).unwrap().to_vec1::<f32>().unwrap();
        fixture::assert_close(scores, expected.scores.iter().copied(), TOLERANCE, &dir.display().to_string());
    }
}

/// `check_transformers_loads.py` has seen transformers load such saves and compute the same from them; this holds for
/// today's too where their configs are the committed ones and their tensors those that transformers wrote.
#[test]
fn a_model_of_transformers_is_saved_with_its_own_names_and_a_config_that_transformers_was_seen_to_load() {
    let language = LANGUAGE_MODELS.map(|name| (name, HeadKind::Language));
    let score = SCORE_MODELS.map(|name| (name, HeadKind::Scalar));
    for (name, head) in language.into_iter().chain(score) {
        let written = tempfile::tempdir().unwrap();
        let (config, weights) = load_model(&hf(name), head, &fixture::device()).unwrap();
        save_model(written.path(), &config, head, &weights).unwrap();
        let committed = fixture::path("collimate/configs").join(format!("{name}.json"));
        let same = fs::read(&committed).unwrap() == fs::read(written.path().join("config.json")).unwrap();
        assert!(same, "{name}: config.json has changed: run the script again");
        let (again_config, again) = load_model(written.path(), head, &fixture::device()).unwrap();
        assert_eq!(again_config, config, "{name}");
        assert_eq!(tensors_in(written.path()), tensors_in(&hf(name)), "{name}");
        for ((name, a), (_, b)) in again.iter().zip(weights.iter()) {
            assert_eq!(flat(a), flat(b), "{name}");
        }
    }
}

/// Names and shapes of the tensors in a model's files.
fn tensors_in(dir: &Path) -> BTreeMap<String, Vec<usize>> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    let shapes = files.flat_map(|path| {
        let tensors = candle_core::safetensors::load(path, &fixture::device()).unwrap();
        tensors.into_iter().map(|(name, tensor)| (name, tensor.dims().to_vec()))
    });
    shapes.collect()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
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
        let (config, weights) = load_model(&dir, head, &fixture::device()).unwrap();
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
