//! `petaflop fit` as a user meets it: by the plan, by formulas, and up the ladder.

mod harness;

use harness::{Sandbox, json, text};
use serde_json::{Value, json};

/// Mixtral 8x7B.
fn mixtral() -> Value {
    json!({
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14_336, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32_000, "max_position_embeddings": 32_768, "sliding_window": null,
        "tie_word_embeddings": false,
    })
}

#[test]
fn a_model_that_the_runtime_plans_is_planned_and_any_other_is_estimated() {
    let sandbox = Sandbox::new();
    let planned = json(&sandbox.run(&["fit", "--model", "8b", "--json"]));
    assert_eq!(planned["parameters"], 8_030_261_248_u64);
    assert!(planned["estimate"].is_null(), "{planned}");
    let fitting = planned["fitting"].as_u64().expect("a count");
    assert!(fitting > 0, "{planned}");

    let file = sandbox.file("config.json", &mixtral().to_string());
    let model = file.display().to_string();
    let asked = ["fit", "--model", &model, "--precision", "bf16", "--json"];
    let estimated = json(&sandbox.run(&asked));
    assert_eq!(estimated["parameters"], 46_702_792_704_u64);
    assert_eq!(estimated["estimate"]["needs"]["weights"], 2 * 46_702_792_704_u64);
    let because = estimated["estimate"]["because"].as_str().expect("a reason");
    assert!(because.contains("does not run this model"), "{because}");
    let offers = estimated["offers"].as_array().expect("offers");
    let fits = |offer: &&Value| offer["fits"] == true;
    assert!(offers.iter().any(|offer| fits(&offer)), "a machine has so much host memory");
    assert_eq!(
        offers.iter().filter(fits).count() as u64,
        estimated["fitting"].as_u64().expect("a count")
    );
}

#[test]
fn what_fits_nowhere_gets_the_changes_that_make_it_fit() {
    let sandbox = Sandbox::new();
    let asked = ["fit", "--model", "405b", "--train", "--precision", "bf16", "--sequences", "4"];
    let output = sandbox.run(&[&asked[..], &["--json"]].concat());
    let said = json(&output);
    assert_eq!((output.status.code(), &said["fitting"]), (Some(3), &json!(0)), "{said}");
    let ladder = said["ladder"].as_array().expect("a ladder");
    let takes = |step: &Value| step["arena_bytes"].as_u64().expect("bytes");
    assert!(ladder.is_sorted_by(|a, b| takes(a) > takes(b)), "{ladder:?}");
    let (last, before) = ladder.split_last().expect("at least one change");
    assert!(before.iter().all(|step| step["fitting"] == 0), "{ladder:?}");
    assert!(last["fitting"].as_u64().is_some_and(|offers| offers > 0), "{last}");
    assert!(last["cheapest"].is_string(), "{last}");

    let output = sandbox.run(&asked);
    let shown = text(&output.stdout);
    assert!(shown.contains("what would make it fit"), "{shown}");
    assert!(shown.contains(last["change"].as_str().expect("words")), "{shown}");
}

/// Llama 405B with twice its context, served from a folder; of that only the form is there, which is all that is asked for.
#[test]
fn what_a_manifest_asks_for_gets_the_changes_too_and_is_counted_by_its_own_model() {
    let sandbox = Sandbox::new();
    let llama = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": 16_384, "num_hidden_layers": 126, "num_attention_heads": 128,
        "num_key_value_heads": 8, "intermediate_size": 53_248, "vocab_size": 128_256,
        "max_position_embeddings": 262_144, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "tie_word_embeddings": false,
    });
    sandbox.file("config.json", &llama.to_string());
    let service = json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "InferenceService",
        "metadata": { "name": "llama" }, "spec": { "model": { "uri": "." } },
    });
    let manifest = sandbox.file("service.yaml", &service.to_string()).display().to_string();
    let output = sandbox.run(&["fit", "-f", &manifest, "--json"]);
    let said = json(&output);
    assert_eq!(said["parameters"], 405_853_388_800_u64);
    assert_eq!((output.status.code(), &said["fitting"]), (Some(3), &json!(0)));
    let ladder = said["ladder"].as_array().expect("a ladder");
    assert!(ladder[0]["change"].as_str().expect("words").starts_with("8 sequences"), "{ladder:?}");
    let (last, before) = ladder.split_last().expect("at least one change");
    assert!(before.iter().all(|step| step["fitting"] == 0), "{ladder:?}");
    assert!(last["fitting"].as_u64().is_some_and(|offers| offers > 0), "{last}");

    // And what is trained.
    let job = include_str!("../../examples/tiny.yaml").replace("../LICENSE", "builtin:petaflop");
    let job = job.replace("micro_batch_size: 16", "micro_batch_size: 65536");
    let wide = job.replace("layers: 4", "layers: 1000");
    assert!(wide.contains("65536") && wide.contains("1000"), "another example: {wide}");
    let manifest = sandbox.file("job.yaml", &wide).display().to_string();
    let said = json(&sandbox.run(&["fit", "-f", &manifest, "--json"]));
    assert_eq!(said["fitting"], 0);
    let ladder = said["ladder"].as_array().expect("a ladder");
    assert!(ladder.last().is_some_and(|last| last["fitting"] != 0), "{ladder:?}");
}

#[test]
fn a_model_that_nobody_knows_is_refused_by_name() {
    let sandbox = Sandbox::new();
    let mut config = mixtral();
    config["num_experts_per_tok"] = json!(9);
    let file = sandbox.file("config.json", &config.to_string()).display().to_string();
    let output = sandbox.run(&["fit", "--model", &file]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("config.json") && said.contains("9 of 8 experts"), "{said}");
    let output = sandbox.run(&["fit", "--model", "9b"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("config.json"), "{}", text(&output.stderr));
}
