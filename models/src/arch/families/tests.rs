use std::path::Path;

use serde_json::{Value, json};

use super::super::config::{ModelConfig, Positions, Rope, RopeScaling};

/// A small config of a family, with these keys more, or others in their place.
fn config(model_type: &str, more: Value) -> Result<ModelConfig, String> {
    let mut value = match model_type {
        "gpt2" | "openai-gpt" => json!({"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16}),
        "gpt_neo" => json!({"hidden_size": 8, "num_heads": 2, "num_layers": 4, "max_position_embeddings": 16}),
        _ => json!({
            "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 12,
            "max_position_embeddings": 16,
        }),
    };
    let map = value.as_object_mut().unwrap();
    map.insert("model_type".into(), json!(model_type));
    map.insert("vocab_size".into(), json!(11));
    map.extend(more.as_object().unwrap().clone());
    ModelConfig::from_hf(Path::new("config.json"), value).map_err(|error| error.to_string())
}

fn rope(model_type: &str, more: Value) -> Rope {
    let Positions::Rotary { rope, .. } = config(model_type, more).unwrap().positions else { panic!("not rotary") };
    rope
}

#[test]
fn what_changes_the_computation_and_is_not_known_is_refused_by_name() {
    for (model_type, more, expected) in [
        ("mamba", json!({}), "model_type `mamba` is not supported (supported: openai-gpt, gpt2, gpt_neo, gpt_neox,"),
        (
            "llama",
            json!({"quantization_config": {"bits": 4}}),
            "key `quantization_config` (= {\"bits\":4}) is not known",
        ),
        ("llama", json!({"hidden_act": "relu"}), "`hidden_act` is \"relu\", which is not supported"),
        ("llama", json!({"sliding_window": 4}), "key `sliding_window` (= 4) is not known for this model type"),
        ("gpt2", json!({"scale_attn_by_inverse_layer_idx": true}), "`scale_attn_by_inverse_layer_idx` is true"),
        ("gpt2", json!({"activation_function": "quick_gelu"}), "`activation_function` is \"quick_gelu\""),
        ("openai-gpt", json!({"afn": "relu"}), "`afn` is \"relu\""),
        ("gpt_neo", json!({"attention_types": [[["global"], 3]]}), "tells of 3 layers, `num_layers` of 4"),
        ("gpt_neo", json!({"attention_types": [[["sparse"], 4]]}), "`attention_types` is \"sparse\""),
        ("qwen2", json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "`rope_scaling.rope_type` is \"yarn\""),
        ("llama", json!({"rope_scaling": {"type": "linear"}}), "key `rope_scaling.factor` is missing"),
        ("llama", json!({"rope_parameters": {"rope_theta": 1e4, "beta": 2}}), "key `rope_parameters.beta` (= 2)"),
        ("qwen3", json!({"layer_types": ["full_attention"]}), "`layer_types` tells of 1 layers"),
        ("gemma3_text", json!({"final_logit_softcapping": 30.0}), "`final_logit_softcapping` is 30.0"),
        ("gemma", json!({"hidden_act": "silu"}), "`hidden_act` is \"silu\""),
        ("llama", json!({"architectures": ["LlamaForTokenClassification"]}), "names `LlamaForTokenClassification`"),
        ("gpt2", json!({"architectures": ["GPT2DoubleHeadsModel"]}), "names `GPT2DoubleHeadsModel`"),
        ("llama", json!({"head_dim": 3}), "3 of the 3 numbers of each head are to be rotated"),
        ("llama", json!({"num_key_value_heads": 3}), "2 heads over 3 key heads"),
        ("gpt2", json!({"n_head": 3}), "the width 8 is not a multiple of the number of heads 3"),
        ("gpt_neox", json!({"rotary_pct": 1.5}), "rotary_pct is 1.5, expected a share"),
    ] {
        let message = config(model_type, more).unwrap_err();
        assert!(message.starts_with("config.json: ") && message.contains(expected), "{message}\nexpected {expected}");
    }
}

#[test]
fn older_and_newer_spellings_say_the_same() {
    let newer = json!({"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"}});
    let older = json!({"rotary_emb_base": 500, "rotary_pct": 0.5});
    assert_eq!(rope("gpt_neox", newer), rope("gpt_neox", older.clone()));
    assert_eq!(rope("gpt_neox", older), Rope { theta: 500.0, rotary_dim: 2, scaling: RopeScaling::None });

    let older = json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
    let newer = json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}});
    assert_eq!(rope("llama", older), rope("llama", newer));

    let newer = json!({
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 4, "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    });
    let older = json!({
        "sliding_window_pattern": 2, "sliding_window": 4, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    });
    assert_eq!(config("gemma3_text", newer), config("gemma3_text", older));

    let counted = json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 2});
    assert_eq!(config("qwen2", counted).unwrap().attention.windows, [None, None, Some(4), Some(4)]);
    let unused = json!({"use_sliding_window": false, "sliding_window": 4, "max_window_layers": 2});
    assert_eq!(config("qwen2", unused).unwrap().attention.windows, [None; 4]);
    assert_eq!(config("mistral", json!({"sliding_window": 4})).unwrap().attention.windows, [Some(4); 4]);
    assert_eq!(config("gpt_neo", json!({})).unwrap().attention.windows, [None, Some(256), None, Some(256)]);
}

/// By hand: with factor 8, short waves (over 4 in the original context of 8192) keep their frequency, long ones
/// (under 1) get an eighth, and one of 2.5 waves lies half way between.
#[test]
fn llama_3_stretches_long_waves_alone() {
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context_len: 8192 };
    let stretched = |n_waves: f64| {
        // The second of two frequencies is theta^(−1/2).
        let frequency = n_waves * std::f64::consts::TAU / 8192.0;
        let rope = Rope { theta: frequency.powi(-2), rotary_dim: 4, scaling };
        rope.frequencies()[1] / frequency
    };
    for (n_waves, expected) in [(0.5, 0.125), (1.0, 0.125), (2.5, 0.5 + 0.5 / 8.0), (4.0, 1.0), (100.0, 1.0)] {
        assert!((stretched(n_waves) - expected).abs() < 1e-12, "{n_waves} waves: {}", stretched(n_waves));
    }
}
