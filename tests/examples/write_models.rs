//! Writes tiny models of every kind, and adapters, with what they compute, for `tests/scripts/check_transformers_loads.py`
//! and `tests/scripts/check_peft_loads.py`:
//!
//! ```text
//! cargo run -p collimate-tests --example write_models -- FOLDER
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use collimate_models::Device;
use collimate_models::arch::{
    HeadKind, LanguageModel, LoraConfig, ModelConfig, PackedSequences, SCORE_BIAS, ScalarModel, Weights, head_kind_of,
    load_model, save_adapter, save_model, scalar_from_language,
};
use collimate_models::kernels::{self, WeightLayout};
use collimate_models::rng;
use collimate_models::tokenizer::Tokenizer;
use collimate_tests::fixture;
use serde_json::{Value, json};

const TEXTS: [&str; 5] = [
    "The prompt is what is given, the response is what is sampled.",
    "  Spaces, tabs\tand\n\nlines; it's said that they're kept.",
    "Grüße aus Zürich, 你好, 🙂!",
    "12345 6.78e-9",
    "one<|endoftext|>two",
];

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("which folder?"))?);
    let tokenizer = Tokenizer::train_byte_level_bpe(TEXTS, 280, &["<|labeler|>"])?;
    let vocab_size = tokenizer.vocab_size();
    let gpt2 = json!({
        "model_type": "gpt2", "vocab_size": vocab_size, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32,
        "bos_token_id": 0, "eos_token_id": 0,
    });
    let llama = |tied: bool| {
        json!({
            "model_type": "llama", "vocab_size": 24, "hidden_size": 16, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 6, "num_hidden_layers": 2, "intermediate_size": 24,
            "max_position_embeddings": 32, "rope_theta": 300.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
            "bos_token_id": 1, "eos_token_id": [0, 2],
        })
    };
    for (name, config, head) in [
        ("gpt2", &gpt2, HeadKind::Language),
        ("gpt2_score", &gpt2, HeadKind::Scalar),
        ("llama", &llama(false), HeadKind::Language),
        ("llama_tied", &llama(true), HeadKind::Language),
        ("llama_score", &llama(false), HeadKind::Scalar),
    ] {
        write_model(&folder.join(name), config, head)?;
    }
    write_tokenizer(&folder.join("gpt2"), &tokenizer)?;
    for entry in fs::read_dir(fixture::path("hf"))? {
        let dir = entry?.path();
        save_again(&dir, &folder)?;
        write_adapter(&dir, &folder.join("adapters"))?;
    }
    Ok(())
}

/// Loads a model that transformers wrote, and saves it with what transformers expects of it.
fn save_again(dir: &Path, folder: &Path) -> anyhow::Result<()> {
    let head = head_kind_of(dir)?;
    let (config, weights) = load_model(dir, head, &Device::Cpu)?;
    let name = dir.file_name().ok_or_else(|| anyhow::anyhow!("{} has no name", dir.display()))?;
    let saved = folder.join("again").join(name);
    save_model(&saved, &config, head, &weights)?;
    fs::copy(dir.join("expected.json"), saved.join("expected.json"))?;
    Ok(())
}

fn write_model(dir: &Path, config: &Value, head: HeadKind) -> anyhow::Result<()> {
    let config = std::sync::Arc::new(ModelConfig::from_hf(Path::new("config.json"), config.clone())?);
    let mut rng = rng::for_purpose(0, "models for transformers");
    let mut weights = Weights::initialise(&config, head, &mut rng, &Device::Cpu)?;
    // Gains and biases leave their initial ones and zeros, so that none can be left out unseen.
    for (name, tensor) in weights.clone().iter() {
        weights.insert(name, (tensor + rng::normal(&mut rng, tensor.dims(), 0.2, &Device::Cpu)?)?);
    }
    save_model(dir, &config, head, &weights)?;
    write_expected(dir, &config, head, &weights)
}

/// Adapters on a model that transformers wrote: as a language model, and as a reward model with a head of its own.
fn write_adapter(base: &Path, folder: &Path) -> anyhow::Result<()> {
    if head_kind_of(base)? == HeadKind::Scalar {
        return Ok(());
    }
    let (config, weights) = load_model(base, HeadKind::Language, &Device::Cpu)?;
    let mut rng = rng::for_purpose(0, "adapters for PEFT");
    let scalar = scalar_from_language(&config, &weights, &mut rng)?;
    let name = base.file_name().ok_or_else(|| anyhow::anyhow!("{} has no name", base.display()))?;
    for (head, weights) in [(HeadKind::Language, weights), (HeadKind::Scalar, scalar)] {
        let lora = LoraConfig { r: 3, lora_alpha: 5.0, use_rslora: head == HeadKind::Scalar, ..LoraConfig::default() };
        let fresh = weights.into_base(&config)?.adapted(&config, head, &lora, &mut rng)?;
        let filled = fresh
            .iter()
            .map(|(name, tensor)| Ok((name.to_owned(), rng::normal(&mut rng, tensor.dims(), 0.3, &Device::Cpu)?)));
        let adapted = fresh.with_tensors(filled.collect::<anyhow::Result<_>>()?);
        let dir = folder.join(format!("{}{}", name.display(), if head == HeadKind::Scalar { "_score" } else { "" }));
        save_adapter(&dir, &config, head, &adapted, &lora, &base.canonicalize()?.display().to_string())?;
        write_expected(&dir, &config, head, &adapted)?;
    }
    Ok(())
}

/// What a model computes.
fn write_expected(
    dir: &Path,
    config: &std::sync::Arc<ModelConfig>,
    head: HeadKind,
    weights: &Weights,
) -> anyhow::Result<()> {
    let sequences = vec![vec![5, 11, 3], vec![2, 9, 9, 17, 0, 23, 4], vec![1, 4, 8, 15, 16, 23, 4, 2, 19, 7, 7, 0]];
    let packed = PackedSequences::new(&sequences);
    let expected = match head {
        HeadKind::Language => {
            let model = LanguageModel::frozen(config, weights)?;
            let hidden = model.decoder().forward_packed(&packed)?;
            let rows = kernels::linear(&hidden, model.unembedding(), WeightLayout::OutIn, None)?.to_vec2::<f32>()?;
            let logits: Vec<_> = packed.offsets.windows(2).map(|bounds| &rows[bounds[0]..bounds[1]]).collect();
            json!({"sequences": sequences, "logits": logits})
        }
        HeadKind::Scalar => {
            assert!(weights.get(SCORE_BIAS)?.to_vec1::<f32>()? != [0.0]);
            let last_rows: Vec<u32> = packed.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
            let scores = ScalarModel::frozen(config, weights)?.scalars_at(&packed, &last_rows)?;
            let bias = weights.get(SCORE_BIAS)?.to_vec1::<f32>()?[0];
            json!({"sequences": sequences, "scores": scores.to_vec1::<f32>()?, "score_bias": bias})
        }
    };
    fs::write(dir.join("expected.json"), format!("{expected}\n"))?;
    Ok(())
}

fn write_tokenizer(dir: &Path, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    tokenizer.save(dir)?;
    let expected: Vec<Value> = TEXTS
        .iter()
        .chain(&["", " ", "unseen wörds\u{200b}", "<|labeler|> <|endoftext|>"])
        .map(|text| Ok(json!({"text": text, "ids": tokenizer.encode(text)?})))
        .collect::<anyhow::Result<_>>()?;
    fs::write(dir.join("expected_tokens.json"), serde_json::to_string_pretty(&expected)? + "\n")?;
    Ok(())
}
