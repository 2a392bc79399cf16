//! What models take, held against what was published of them.

use petaflop_arbiter::memory::{
    Anatomy, Format, Loss, Method, Optimizer, Recompute, Serving, Training, Use, ladder,
};
use petaflop_arbiter::workload::Precision;
use petaflop_plan::shape::{ModelShape, ShapeError};
use proptest::prelude::*;
use serde_json::{Value, json};

const GIB: f64 = (1u64 << 30) as f64;

fn read(config: &Value) -> Anatomy {
    Anatomy::from_hf_config(config).expect("a published config.json")
}

fn llama(hidden: u32, layers: u32, heads: u32, inner: u32, tied: bool) -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "intermediate_size": inner, "vocab_size": 128_256,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "tie_word_embeddings": tied,
    })
}

fn llama_8b() -> Anatomy {
    read(&llama(4096, 32, 32, 14_336, false))
}

fn mistral(window: Value) -> Value {
    json!({
        "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336,
        "vocab_size": 32_000, "max_position_embeddings": 32_768, "sliding_window": window,
        "tie_word_embeddings": false,
    })
}

fn mixtral() -> Value {
    json!({
        "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336,
        "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32_000,
        "max_position_embeddings": 32_768, "sliding_window": null, "tie_word_embeddings": false,
    })
}

fn qwen3_moe() -> Value {
    json!({
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151_936,
        "max_position_embeddings": 40_960, "sliding_window": null, "use_sliding_window": false,
        "tie_word_embeddings": false,
    })
}

fn qwen2_moe() -> Value {
    json!({
        "model_type": "qwen2_moe", "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 5632,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_experts": 60, "num_experts_per_tok": 4, "decoder_sparse_step": 1,
        "vocab_size": 151_936, "max_position_embeddings": 8192, "sliding_window": 32_768,
        "use_sliding_window": false, "max_window_layers": 21, "tie_word_embeddings": false,
    })
}

fn deepseek_v3() -> Value {
    json!({
        "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61,
        "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "intermediate_size": 18_432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
        "moe_layer_freq": 1, "vocab_size": 129_280, "max_position_embeddings": 163_840,
        "tie_word_embeddings": false,
    })
}

fn deepseek_v2_lite() -> Value {
    json!({
        "model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27,
        "num_attention_heads": 16, "q_lora_rank": null, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "intermediate_size": 10_944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "vocab_size": 102_400, "max_position_embeddings": 163_840,
        "tie_word_embeddings": false,
    })
}

#[test]
fn parameters_are_the_published_ones() {
    // All to the last one. Those that a token meets, in thousand millions, with the embeddings: 12.9,
    // 3.3, 2.7, 2.4 and 37 are published, some without them.
    let published = [
        ("Llama 3.1 8B", llama(4096, 32, 32, 14_336, false), 8_030_261_248, 8.0),
        ("Llama 3.2 1B", llama(2048, 16, 32, 8192, true), 1_235_814_400, 1.2),
        ("Mistral 7B v0.1", mistral(json!(4096)), 7_241_732_096, 7.2),
        ("Mixtral 8x7B", mixtral(), 46_702_792_704, 12.9),
        ("Qwen3 30B A3B", qwen3_moe(), 30_532_122_624, 3.4),
        ("Qwen1.5 MoE A2.7B", qwen2_moe(), 14_315_784_192, 2.7),
        ("DeepSeek V2 Lite", deepseek_v2_lite(), 15_706_484_224, 2.7),
        ("DeepSeek V3", deepseek_v3(), 671_026_419_200, 37.6),
    ];
    let found = published.clone().map(|(name, config, ..)| {
        let model = read(&config);
        let active = (model.active_parameters() as f64 / 1e8).round() / 10.0;
        (name, model.parameters(), active)
    });
    assert_eq!(found, published.map(|(name, _, all, active)| (name, all, active)));
}

#[test]
fn models_that_the_runtime_plans_have_the_same_numbers_here() {
    for (hidden, layers, heads, inner, tied) in
        [(4096, 32, 32, 14_336, false), (2048, 16, 32, 8192, true), (3072, 28, 24, 8192, true)]
    {
        let config = llama(hidden, layers, heads, inner, tied);
        let (model, shape) = (read(&config), ModelShape::from_hf_config(&config).expect("a shape"));
        assert_eq!(model.parameters(), shape.parameters());
        let cached = shape.kv_bytes_per_token(petaflop_plan::dtype::Dtype::Bf16);
        assert_eq!(model.cache_per_token(Format::Bf16), cached);
    }
}

#[test]
fn caches_are_the_published_ones() {
    // Llama 3.1 8B: 128 KiB a token.
    assert_eq!(llama_8b().cache_per_token(Format::Bf16), 128 << 10);
    // Qwen3 30B A3B, 4,096 tokens in f16: llama.cpp takes 384 MiB.
    assert_eq!(read(&qwen3_moe()).cache(4096, Format::Bf16), 384 << 20);
    // DeepSeek V3: 70.272 KB a token (arXiv 2505.09343, table 1).
    assert_eq!(read(&deepseek_v3()).cache_per_token(Format::Bf16), 70_272);
    // A window bounds it, a model without one goes on.
    let windowed = read(&mistral(json!(4096)));
    assert_eq!(windowed.cache(32_768, Format::Bf16), 512 << 20);
    assert_eq!(windowed.cache(1000, Format::Bf16), 1000 * (128 << 10));
    assert_eq!(read(&mistral(Value::Null)).cache(32_768, Format::Bf16), 4 << 30);
}

#[test]
fn layers_that_alternate_are_counted() {
    let mut config = mistral(json!(1024));
    let kind =
        |layer: u32| if layer.is_multiple_of(4) { "full_attention" } else { "sliding_attention" };
    config["layer_types"] = (0..32).map(kind).collect();
    // 8 whole layers, 24 with a window; 4 KiB a token and layer.
    assert_eq!(read(&config).cache(8192, Format::Bf16), (8 * 8192 + 24 * 1024) * 4096);
}

fn training(method: Method, recompute: Recompute, loss: Loss, tokens: (u32, u32)) -> Training {
    Training {
        method,
        optimizer: Optimizer::Adam,
        recompute,
        loss,
        sequences: tokens.0,
        passes: 1,
        context: tokens.1,
        precision: Precision::Bf16,
    }
}

fn near(found: u64, gib: f64, within: f64) {
    let found = found as f64 / GIB;
    assert!((found - gib).abs() <= within, "{found} GiB, expected {gib}");
}

#[test]
fn training_takes_what_was_worked_out_and_measured_for_llama_8b() {
    let model = llama_8b();
    // What one token leaves: 4.25 MiB, 2.88 MiB with selective recomputation.
    for (recompute, mib) in [(Recompute::Nothing, 4.25), (Recompute::Selective, 2.88)] {
        let needs = training(Method::Full, recompute, Loss::InPlace, (1, 1)).needs(&model);
        assert!((needs.activations as f64 / (1 << 20) as f64 - mib).abs() < 0.01, "{needs:?}");
    }
    // torchtitan, 8 devices that share the states, two sequences of 8,192 on each, selective: 15.0 and
    // 46.1 GiB of what was measured as 82.4 in all.
    let whole = training(Method::Full, Recompute::Selective, Loss::InPlace, (2, 8192));
    near(whole.needs(&model).states / 8, 14.96, 0.01);
    near(whole.needs(&model).activations, 46.1, 0.1);
    // QLoRA of rank 16, 2,048 tokens: 5.31 GiB of model, 0.62 of pairs; a loss in five copies is 4.9.
    let method = Method::Qlora { rank: 16 };
    let small = training(method, Recompute::Blocks, Loss::Copies, (1, 2048)).needs(&model);
    near(small.weights, 5.31, 0.01);
    near(small.states, 0.62, 0.01);
    near(small.logits, 4.9, 0.02);
    // 256 KiB a token for what goes into the blocks: half a GiB; and one block whole.
    near(small.activations, 0.77, 0.01);
}

#[test]
fn formats_take_the_bits_that_they_are_known_for() {
    let bits = |format: Format| format.bytes(1 << 20) as f64 * 8.0 / (1u64 << 20) as f64;
    for (format, expected) in [
        (Format::F32, 32.0),
        (Format::Bf16, 16.0),
        (Format::Q8_0, 8.5),
        (Format::Q6K, 6.5625),
        (Format::Q5K, 5.5),
        (Format::Q4K, 4.5),
        (Format::Q4_0, 4.5),
        (Format::Nf4, 4.127),
    ] {
        assert!((bits(format) - expected).abs() < 0.001, "{format}: {}", bits(format));
    }
    assert_eq!(Format::Q8_0.bytes(33), 68);
}

fn served(weights: Format) -> Serving {
    Serving { weights, cache: Format::Bf16, sequences: 8, context: 32_768, step_tokens: 512 }
}

#[test]
fn the_ladder_goes_from_what_only_waits_to_what_answers_otherwise() {
    let rungs = ladder(&read(&mixtral()), Use::Serve(served(Format::Bf16)));
    let changes: Vec<&str> = rungs.iter().map(|rung| rung.change.as_str()).collect();
    assert_eq!(
        changes,
        [
            "256 tokens in a pass: longer until the first one",
            "4 sequences at once: others wait",
            "2 sequences at once: others wait",
            "1 sequences at once: others wait",
            "keys and values in q8_0: rounded",
            "weights in q8_0: rounded",
            "16384 tokens of context: longer ones are refused",
            "8192 tokens of context: longer ones are refused",
            "4096 tokens of context: longer ones are refused",
            "weights in q4_0: other answers",
        ]
    );
    let whole = training(Method::Full, Recompute::Nothing, Loss::InPlace, (4, 8192));
    let rungs = ladder(&llama_8b(), Use::Train(whole));
    let changes: Vec<&str> = rungs.iter().map(|rung| rung.change.as_str()).collect();
    assert_eq!(
        changes,
        [
            "the loss of 1024 tokens at a time",
            "2 sequences a pass, 2 passes a step: slower",
            "1 sequences a pass, 4 passes a step: slower",
            "norms and gates made again on the way back: slower",
            "whole blocks made again on the way back: a third slower",
            "moments of one byte, no master copy: rounded",
            "pairs of rank 16 instead of all: another result",
            "the model in 4 bits beside them: another result",
            "4096 tokens of context: longer ones are cut",
        ]
    );
}

#[test]
fn work_counts_what_a_token_meets() {
    // Prefill and decode of a mixture read and multiply the active experts alone.
    let (all, active) = (read(&mixtral()), 12_879_925_248_u64);
    let work = served(Format::Bf16).work(&all);
    // Each layer looks back at half of 32,768 tokens, twice 4,096 wide.
    assert_eq!(work.flops_per_token, 2 * (active + 32 * 8192 * 16_384));
    let read = work.weight_bytes_per_step as f64 / 2.0 / active as f64;
    assert!((0.999..1.001).contains(&read), "{read}");
    let whole = training(Method::Full, Recompute::Nothing, Loss::InPlace, (1, 1000));
    assert_eq!(whole.work(&all).flops_per_step, 6 * active * 1000);
}

/// A config, a change of it, and what is then said.
type Case = (Value, fn(&mut Value), &'static str);

#[test]
fn a_config_that_says_nothing_of_use_is_refused_by_the_name_of_its_field() {
    let refused = |change: fn(&mut Value), of: &Value| {
        let mut config = of.clone();
        change(&mut config);
        Anatomy::from_hf_config(&config).expect_err("it must be refused").to_string()
    };
    let cases: [Case; 16] = [
        (mixtral(), |c| c["model_type"] = json!("mamba"), "model_type: mamba is not supported"),
        (mixtral(), |c| c["model_type"] = Value::Null, "model_type: missing"),
        (mixtral(), |c| c["hidden_size"] = json!("wide"), "hidden_size: expected a whole number"),
        (mixtral(), |c| c["hidden_size"] = json!(0), "hidden_size: expected a whole number from 1"),
        (mixtral(), |c| c["hidden_size"] = json!(1e30), "hidden_size: expected a whole number"),
        (mixtral(), |c| c["num_experts_per_tok"] = json!(9), "cannot take 9 of 8 experts"),
        (mixtral(), |c| c["num_local_experts"] = Value::Null, "num_local_experts: missing"),
        (mixtral(), |c| c["num_key_value_heads"] = json!(5), "32 must be a multiple of 5"),
        (mixtral(), |c| c["tie_word_embeddings"] = json!("no"), "expected true or false"),
        (mistral(json!(-1)), |_| {}, "sliding_window: expected a whole number"),
        (mistral(json!(64)), |c| c["layer_types"] = json!(["full_attention"]), "1 types for 32"),
        (mistral(json!(64)), |c| c["layer_types"] = json!(7), "layer_types: expected a list"),
        (deepseek_v3(), |c| c["kv_lora_rank"] = Value::Null, "kv_lora_rank: missing"),
        (deepseek_v3(), |c| c["moe_layer_freq"] = json!(2), "moe_layer_freq: 2 is not supported"),
        (deepseek_v3(), |c| c["n_shared_experts"] = json!(4096), "is wider than"),
        (qwen2_moe(), |c| c["mlp_only_layers"] = json!(["one"]), "expected a list of numbers"),
    ];
    for (config, change, expected) in cases {
        let said = refused(change, &config);
        assert!(said.contains(expected), "{said:?} says nothing of {expected:?}");
    }
    assert!(matches!(Anatomy::from_hf_config(&json!([])), Err(ShapeError::Invalid { .. })));
    let huge = json!({
        "model_type": "qwen3_moe", "hidden_size": 262_144, "num_hidden_layers": 1024,
        "num_attention_heads": 4096, "head_dim": 1024, "moe_intermediate_size": 1_048_576,
        "num_experts": 4096, "num_experts_per_tok": 4096, "vocab_size": 4_194_304,
        "max_position_embeddings": 1_073_741_824,
    });
    let said = Anatomy::from_hf_config(&huge).expect_err("no model is so large").to_string();
    assert!(said.contains("which no model has"), "{said}");
}

proptest! {
    /// Whatever the numbers, no sum wraps, and each rung takes less than the one before.
    #[test]
    fn no_size_wraps_and_each_rung_takes_less(
        sizes in (1u32..1 << 14, 1u32..256, 1u32..64, 1u32..1 << 16, 1u32..4096),
        many in (1u32..=u32::MAX, 1u32..=u32::MAX, 1u32..=u32::MAX),
        experts in 0usize..3,
    ) {
        let (hidden, layers, heads, inner, count) = sizes;
        let mut config = [mistral(json!(4096)), mixtral(), deepseek_v3()][experts].clone();
        config["hidden_size"] = json!(hidden * heads);
        config["num_hidden_layers"] = json!(layers);
        config["num_attention_heads"] = json!(heads);
        config["num_key_value_heads"] = json!(heads);
        config["intermediate_size"] = json!(inner);
        config["num_local_experts"] = json!(count);
        config["num_experts_per_tok"] = json!(1 + count / 2);
        config["n_routed_experts"] = json!(count);
        let Ok(model) = Anatomy::from_hf_config(&config) else { return Ok(()) };
        let (sequences, context, step_tokens) = many;
        let serve = Serving {
            weights: Format::F32, cache: Format::F32, sequences, context, step_tokens,
        };
        let train = Training {
            sequences, context, ..training(Method::Full, Recompute::Nothing, Loss::Copies, (1, 1))
        };
        for used in [Use::Serve(serve), Use::Train(train)] {
            let mut before = used.needs(&model).total();
            prop_assert!(before >= model.bytes(Format::Bf16));
            for rung in ladder(&model, used) {
                prop_assert!(rung.needs.total() < before, "{}", rung.change);
                before = rung.needs.total();
            }
        }
        prop_assert!(serve.work(&model).flops_per_token >= model.active_parameters());
        prop_assert!(train.work(&model).tokens_per_step >= u64::from(context));
    }
}
