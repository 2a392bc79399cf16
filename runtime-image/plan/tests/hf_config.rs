//! Shapes from published `config.json` files, and what is refused in them.

use petaflop_plan::dtype::Dtype;
use petaflop_plan::shape::{ModelShape, RopeScaling, ShapeError};
use serde_json::{Value, json};

fn llama_8b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0", "use_cache": true, "vocab_size": 128256
    })
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut config = llama_8b();
    for (field, value) in changes {
        config[*field] = value.clone();
    }
    config
}

fn llama_1b() -> Value {
    with(&[
        ("hidden_size", json!(2048)),
        ("intermediate_size", json!(8192)),
        ("num_hidden_layers", json!(16)),
        ("head_dim", json!(64)),
        ("tie_word_embeddings", json!(true)),
    ])
}

fn qwen_half_b() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "use_sliding_window": false,
        "vocab_size": 151936
    })
}

fn smollm_135m() -> Value {
    with(&[
        ("hidden_size", json!(576)),
        ("intermediate_size", json!(1536)),
        ("num_hidden_layers", json!(30)),
        ("num_attention_heads", json!(9)),
        ("num_key_value_heads", json!(3)),
        ("vocab_size", json!(49152)),
        ("tie_word_embeddings", json!(true)),
        ("rope_scaling", Value::Null),
        ("rope_theta", json!(100000)),
        ("max_position_embeddings", json!(8192)),
        ("rope_interleaved", json!(false)),
        ("is_llama_config", json!(true)),
    ])
}

#[test]
fn published_counts_are_exact() {
    let cases = [
        (llama_8b(), 8_030_261_248, 128 * 1024),
        (llama_1b(), 1_235_814_400, 32 * 1024),
        (qwen_half_b(), 494_032_768, 12 * 1024),
        (smollm_135m(), 134_515_008, 22 * 1024 + 512),
    ];
    for (config, parameters, kv_bytes) in cases {
        let shape = ModelShape::from_hf_config(&config).expect("a published configuration");
        assert_eq!(shape.parameters(), parameters);
        assert_eq!(shape.kv_bytes_per_token(Dtype::Bf16), kv_bytes);
        let again =
            ModelShape::from_hf_config(&shape.to_hf_config()).expect("what we wrote we read");
        assert_eq!(again, shape);
    }
}

#[test]
fn a_qwen3_has_head_norms_and_its_own_head_width() {
    let mut config = qwen_half_b();
    config["architectures"] = json!(["Qwen3ForCausalLM"]);
    config["attention_bias"] = json!(false);
    let without = ModelShape::from_hf_config(&config).expect_err("Qwen3 must say its head width");
    assert!(matches!(without, ShapeError::Missing { field, .. } if field == "head_dim"));
    config["head_dim"] = json!(128);
    let shape = ModelShape::from_hf_config(&config).expect("complete now");
    assert!(shape.qk_norm && !shape.qkv_bias && shape.head_dim == 128);
    assert_eq!(ModelShape::from_hf_config(&shape.to_hf_config()), Ok(shape));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("num_local_experts", json!(8)),
        ("sliding_window", json!(4096)),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("architectures", json!(["MixtralForCausalLM"])),
        ("quantization_config", json!({"bits": 4})),
        ("partial_rotary_factor", json!(0.5)),
        ("logit_scale", json!(0.0625)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
    ];
    for (field, value) in cases {
        let error = ModelShape::from_hf_config(&with(&[(field, value)])).expect_err(field);
        assert!(
            matches!(&error, ShapeError::Unsupported { field: named, .. } if named == field),
            "{error}"
        );
    }
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    let error = ModelShape::from_hf_config(&with(&[("rope_scaling", yarn)])).expect_err("yarn");
    assert_eq!(
        error.to_string(),
        "rope_scaling.rope_type: yarn is not supported; expected default, linear or llama3"
    );
}

#[test]
fn what_is_missing_wrong_or_contradictory_is_refused_by_name() {
    for field in [
        "hidden_size",
        "vocab_size",
        "rms_norm_eps",
        "rope_theta",
        "hidden_act",
        "num_attention_heads",
    ] {
        let error = ModelShape::from_hf_config(&with(&[(field, Value::Null)])).expect_err(field);
        assert!(
            matches!(&error, ShapeError::Missing { field: named, .. } if named == field),
            "{error}"
        );
    }
    for (field, value, named) in [
        ("hidden_size", json!("wide"), "hidden_size"),
        ("hidden_size", json!(-1), "hidden_size"),
        ("vocab_size", json!(0), "vocab"),
        ("num_attention_heads", json!(0), "hidden_size, num_attention_heads"),
        ("num_attention_heads", json!(33), "hidden_size, num_attention_heads"),
        ("num_key_value_heads", json!(5), "heads, kv_heads"),
        ("rms_norm_eps", json!(0), "norm_eps"),
    ] {
        let error =
            ModelShape::from_hf_config(&with(&[(field, value)])).expect_err(field).to_string();
        assert!(error.starts_with(named), "{error}");
    }
    assert!(ModelShape::from_hf_config(&json!([])).is_err());
}

#[test]
fn transformers_5_writes_rope_in_one_place() {
    let mut config = llama_8b();
    config["rope_parameters"] = config["rope_scaling"].clone();
    config["rope_parameters"]["rope_theta"] = json!(500000.0);
    config["rope_scaling"] = Value::Null;
    config["rope_theta"] = Value::Null;
    let shape = ModelShape::from_hf_config(&config).expect("the newer form");
    assert_eq!(Ok(shape), ModelShape::from_hf_config(&llama_8b()));
    let linear = with(&[("rope_scaling", json!({"type": "linear", "factor": 2.0}))]);
    let shape = ModelShape::from_hf_config(&linear).expect("the older name of rope_type");
    assert_eq!(shape.rope.scaling, RopeScaling::Linear { factor: 2.0 });
}
