//! Files of llama.cpp: `tests/fixtures/gguf` was written by the gguf package (`tests/scripts/gguf_models.py`), with what
//! transformers computes from the same weights and the ids of the tokenizers that the vocabularies came from.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content};
use candle_core::quantized::{GgmlDType, QTensor};
use collimate_models::Device;
use collimate_models::arch::{HeadKind, LanguageModel, PackedSequences, load_model};
use collimate_models::gguf::import;
use collimate_models::kernels::{self, WeightLayout};
use collimate_models::tokenizer::Tokenizer;
use collimate_tests::fixture;
use serde::Deserialize;

const FILES: [&str; 5] = ["llama_smollm", "llama_sentence_piece", "llama_3", "qwen2", "gpt_2_vocabulary"];

#[derive(Deserialize)]
struct Expected {
    sequences: Vec<Vec<u32>>,
    /// After each sequence's last token: `(sequences, V)`.
    logits: Vec<Vec<f32>>,
    texts: Vec<ExpectedIds>,
}

#[derive(Deserialize)]
struct ExpectedIds {
    text: String,
    ids: Vec<u32>,
}

fn file(name: &str) -> PathBuf {
    fixture::path("gguf").join(format!("{name}.gguf"))
}

fn expected(name: &str) -> Expected {
    serde_json::from_slice(&fs::read(fixture::path("gguf").join(format!("{name}.json"))).unwrap()).unwrap()
}

/// Mixed types, rows of queries and keys in llama.cpp's order, Llama 3's stretched positions, Qwen 2's biases.
#[test]
fn logits_are_those_of_transformers_with_the_dequantised_weights() {
    for name in FILES {
        let out = tempfile::tempdir().unwrap();
        import(&file(name), out.path()).unwrap();
        let (config, weights) = load_model(out.path(), HeadKind::Language, &Device::Cpu).unwrap();
        let Expected { sequences, logits, .. } = expected(name);
        let model = LanguageModel::frozen(&config, &weights).unwrap();
        for (sequence, expected) in sequences.into_iter().zip(logits) {
            let hidden = model.decoder().forward_packed(&PackedSequences::new(&[&sequence])).unwrap();
            let last = hidden.narrow(0, sequence.len() - 1, 1).unwrap();
            let logits = kernels::linear(&last, model.unembedding(), WeightLayout::OutIn, None).unwrap();
            fixture::assert_close(logits.squeeze(0).unwrap().to_vec1::<f32>().unwrap(), expected, 2e-5, name);
        }
    }
}

#[test]
fn token_ids_are_those_of_the_tokenizer_that_the_vocabulary_came_from() {
    for name in FILES {
        let out = tempfile::tempdir().unwrap();
        import(&file(name), out.path()).unwrap();
        let tokenizer = Tokenizer::load(out.path()).unwrap();
        for ExpectedIds { text, ids } in expected(name).texts {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
            // Qwen's normalisation joins a letter and its accent; all others give back what they took.
            if name != "qwen2" {
                assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{name}");
            }
        }
    }
}

#[test]
fn special_tokens_and_the_chat_template_come_along() {
    let out = tempfile::tempdir().unwrap();
    let imported = import(&file("llama_3"), out.path()).unwrap();
    assert_eq!((imported.model_type, imported.name.as_deref()), ("llama", Some("llama_3")));
    assert!(imported.has_chat_template);
    let tokenizer = Tokenizer::load(out.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), 2));
    assert!(tokenizer.chat_template().unwrap().source().contains("message['content']"));
    assert_eq!(tokenizer.encode("</s>").unwrap(), [2]);
    assert_eq!(tokenizer.decode(&[1, 2]).unwrap(), "");

    // The file says that no beginning token is to be put before a text.
    import(&file("llama_smollm"), out.path()).unwrap();
    assert_eq!(Tokenizer::load(out.path()).unwrap().bos(), None);
}

/// A file whose settings are those of `name`, changed, with its tensors as they are.
fn changed(name: &str, dir: &Path, change: impl Fn(&mut Content)) -> PathBuf {
    let mut reader = fs::File::open(file(name)).unwrap();
    let mut content = Content::read(&mut reader).unwrap();
    let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
    let mut tensors: Vec<(String, QTensor)> = names
        .into_iter()
        .map(|name| {
            let tensor = content.tensor(&mut reader, &name, &Device::Cpu).unwrap();
            (name, tensor)
        })
        .collect();
    change(&mut content);
    // A tensor taken out of the table is taken out of the file.
    tensors.retain(|(name, _)| content.tensor_infos.contains_key(name));
    if content.metadata.remove("as_q5_0").is_some() {
        let (_, tensor) = &mut tensors.iter_mut().find(|(name, _)| name == "blk.0.attn_q.weight").unwrap();
        *tensor = QTensor::quantize(&tensor.dequantize(&Device::Cpu).unwrap(), GgmlDType::Q5_0).unwrap();
    }
    let path = dir.join("changed.gguf");
    let metadata: Vec<(&str, &gguf_file::Value)> = content.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
    path
}

#[test]
fn what_can_not_be_taken_is_named_and_nothing_is_written() {
    use gguf_file::Value::{Bool, F32, String, U32};
    type Change = fn(&mut Content);
    let cases: [(Change, &str); 11] = [
        (|c| _ = c.metadata.insert("general.architecture".into(), String("bert".into())), "architecture `bert`"),
        (|c| _ = c.metadata.insert("llama.expert_count".into(), U32(8)), "`llama.expert_count` tells of a mixture"),
        (
            |c| _ = c.metadata.insert("llama.rope.scaling.type".into(), String("yarn".into())),
            "`llama.rope.scaling.type` is `yarn`",
        ),
        (|c| _ = c.metadata.insert("llama.rope.dimension_count".into(), U32(4)), "`llama.rope.dimension_count` is 4"),
        (
            |c| _ = c.metadata.insert("llama.block_count".into(), F32(2.0)),
            "`llama.block_count` is F32(2.0), expected a count",
        ),
        (|c| _ = c.metadata.remove("llama.block_count"), "key `llama.block_count` is missing"),
        (
            |c| _ = c.metadata.insert("tokenizer.ggml.pre".into(), String("new-bpe".into())),
            "`tokenizer.ggml.pre` is `new-bpe`",
        ),
        (
            |c| _ = c.metadata.insert("tokenizer.ggml.model".into(), String("t5".into())),
            "`tokenizer.ggml.model` is `t5`",
        ),
        (|c| _ = c.metadata.insert("tokenizer.ggml.eos_token_id".into(), U32(9999)), "token id 9999 is outside"),
        (|c| _ = c.tensor_infos.remove("blk.1.ffn_up.weight"), "`model.layers.1.mlp.up_proj.weight` is missing"),
        (|c| _ = c.metadata.insert("as_q5_0".into(), Bool(true)), "tensor `blk.0.attn_q.weight` is of type Q5_0"),
    ];
    for (change, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = changed("llama_smollm", dir.path(), change);
        let out = dir.path().join("out");
        let message = import(&path, &out).unwrap_err().to_string();
        assert!(message.contains("changed.gguf") && message.contains(expected), "{message}\nexpected {expected}");
        assert!(!out.exists(), "{expected}: something was written");
    }
}

#[test]
fn a_file_cut_short_is_refused_wherever_the_cut_is() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(file("qwen2")).unwrap();
    for length in [0, 3, 100, whole.len() / 2, whole.len() - 40] {
        let path = dir.path().join("cut.gguf");
        fs::write(&path, &whole[..length]).unwrap();
        let message = import(&path, &dir.path().join("out")).unwrap_err().to_string();
        assert!(message.contains("cut.gguf"), "{message}");
    }
}
