//! The recipe is resolved once: every choice fixed, every path made absolute, nothing in it that
//! names or places could change.

use std::path::Path;

use petaflop_crds::recipe::Recipe;
use petaflop_crds::training_job::{JobInput, Output, Quantization, WeightFormat};
use petaflop_plan::recipe::{
    Decay, Export, Input, ModelSource, Optimizer, ResolvedRecipe, Schedule, TrainingLength,
};
use serde_json::{Value, json};

/// A recipe with these fields set or, by null, taken away.
fn recipe(changes: Value) -> Recipe {
    let mut fields = json!({
        "model": { "dim": 128, "layers": 4, "heads": 4, "vocab": 512 },
        "datasets": [{ "path": "builtin:petaflop" }],
        "learning_rate": 0.001
    });
    for (field, value) in changes.as_object().expect("a map of changes") {
        fields[field] = value.clone();
    }
    fields.as_object_mut().expect("a map").retain(|_, value| !value.is_null());
    serde_json::from_value(fields).expect("a recipe")
}

fn inputs() -> Vec<JobInput> {
    let digest = Some(format!("blake3:{}", "0".repeat(64)));
    vec![
        JobInput {
            name: "corpus".into(),
            uri: "file:///srv/corpus/".into(),
            digest: None,
            secret_ref: None,
        },
        JobInput {
            name: "pinned".into(),
            uri: "file:///srv/pinned".into(),
            digest,
            secret_ref: None,
        },
        JobInput {
            name: "bucket".into(),
            uri: "s3://bucket/data".into(),
            digest: None,
            secret_ref: None,
        },
        JobInput {
            name: "earlier".into(),
            uri: format!("artifact:{}", "a".repeat(64)),
            digest: None,
            secret_ref: None,
        },
    ]
}

fn resolve(changes: Value) -> Result<(ResolvedRecipe, Vec<Input>), String> {
    let lines = |errors: Vec<petaflop_crds::FieldError>| {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    recipe(changes)
        .resolve(&inputs(), &Output::default(), Some(Path::new("/manifests")))
        .map_err(lines)
}

fn resolved(changes: Value) -> ResolvedRecipe {
    resolve(changes).unwrap_or_else(|errors| panic!("{errors}")).0
}

#[test]
fn the_form_of_the_result_is_part_of_the_recipe() {
    use petaflop_plan::recipe::Quantization as Q;
    let resolve = |format, quantization| {
        let output = Output { format, quantization, ..Output::default() };
        let directory = Some(Path::new("/manifests"));
        recipe(json!({})).resolve(&inputs(), &output, directory).map(|(recipe, _)| recipe)
    };
    for (quantization, expected) in [
        (Quantization::None, Q::None),
        (Quantization::Q8_0, Q::Q8_0),
        (Quantization::Q4_0, Q::Q4_0),
    ] {
        let recipe = resolve(WeightFormat::Gguf, quantization).expect("it resolves");
        assert_eq!(recipe.output, Export::Gguf(expected));
        let text = serde_json::to_string(&recipe).expect("recipes are plain data");
        assert_eq!(serde_json::from_str::<ResolvedRecipe>(&text).expect("just written"), recipe);
    }
    // Recipes of before there was a choice keep their keys.
    let plain = resolve(WeightFormat::Safetensors, Quantization::None).expect("it resolves");
    assert_eq!(serde_json::to_value(plain).expect("plain data").get("output"), None);
    let refused = resolve(WeightFormat::Safetensors, Quantization::Q8_0).expect_err("no such form");
    assert_eq!(refused[0].path, "spec.output.quantization");
}

#[test]
fn what_is_left_out_has_the_documented_defaults() {
    let recipe = resolved(json!({}));
    assert_eq!(
        (recipe.sequence_len, recipe.micro_batch_size, recipe.gradient_accumulation_steps),
        (512, 1, 1)
    );
    assert_eq!(
        (recipe.length, recipe.seed, recipe.val_set_size),
        (TrainingLength::Epochs(1), 42, 0.0)
    );
    assert_eq!(
        recipe.optimizer,
        Optimizer::Adamw { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    );
    assert_eq!(
        recipe.schedule,
        Schedule { warmup_steps: 20, decay: Decay::Cosine, min_ratio: 0.0 }
    );
    assert_eq!(recipe.max_grad_norm, 1.0);
    let ModelSource::Scratch(shape) = recipe.model else { panic!("from scratch") };
    assert_eq!(
        (shape.kv_heads, shape.head_dim, shape.intermediate, shape.max_positions),
        (4, 32, 352, 512)
    );
    assert_eq!((shape.rope.theta, shape.norm_eps, shape.tied_embeddings), (10_000.0, 1e-5, true));
}

#[test]
fn warm_up_is_three_percent_of_the_steps_within_bounds() {
    let warmup = |changes| resolved(changes).schedule.warmup_steps;
    assert_eq!(warmup(json!({ "max_steps": 1000 })), 30);
    assert_eq!(warmup(json!({ "max_steps": 10 })), 1);
    assert_eq!(warmup(json!({ "max_steps": 1_000_000 })), 100);
    assert_eq!(warmup(json!({ "max_steps": 1000, "warmup_ratio": 0.1 })), 100);
    assert_eq!(warmup(json!({ "max_steps": 1000, "warmup_steps": 0 })), 0);
    assert_eq!(warmup(json!({ "num_epochs": 3 })), 20);
}

#[test]
fn every_kind_of_path_is_found_or_refused_with_what_would_do() {
    let found = |path: &str| {
        resolve(json!({ "datasets": [{ "path": path }] })).map(|(_, inputs)| inputs[0].uri.clone())
    };
    let artifact = format!("artifact:{}", "b".repeat(64));
    for (path, uri) in [
        ("builtin:petaflop", "builtin:petaflop"),
        ("./notes", "/manifests/./notes"),
        ("../LICENSE", "/manifests/../LICENSE"),
        ("corpus.txt", "/manifests/corpus.txt"),
        ("data/corpus.txt", "/manifests/data/corpus.txt"),
        ("data/", "/manifests/data/"),
        ("/srv/text", "/srv/text"),
        ("file:///srv/text", "file:///srv/text"),
        ("/inputs/corpus", "file:///srv/corpus/"),
        ("/inputs/corpus/part/one.txt", "file:///srv/corpus/part/one.txt"),
        ("s3://bucket/data", "s3://bucket/data"),
        ("/inputs/bucket", "s3://bucket/data"),
        ("/inputs/bucket/part", "s3://bucket/data/part"),
        (artifact.as_str(), artifact.as_str()),
    ] {
        assert_eq!(found(path), Ok(uri.to_owned()), "{path}");
    }
    for (path, words) in [
        ("builtin:other", "the only one is builtin:petaflop"),
        ("tatsu-lab/alpaca", "for a folder beside the manifest write ./tatsu-lab/alpaca"),
        (
            "https://example.com/text",
            "https:// is not built yet; use builtin:petaflop, a path beside the manifest",
        ),
        ("/inputs/corpsu", "did you mean /inputs/corpus?"),
        ("/inputs/unheard-of", "spec.inputs has corpus, pinned, bucket, earlier"),
        ("/inputs/corpus/../../etc", "expected a path below /inputs/corpus"),
        ("/inputs/pinned/part", "give the part an input of its own"),
        ("/inputs/earlier/part", "write /inputs/earlier"),
        ("artifact:123", "64 lower-case hex digits"),
        ("file://relative", "an absolute path"),
    ] {
        let error = found(path).expect_err(path);
        assert!(
            error.starts_with("spec.recipe.datasets[0].path: ") && error.contains(words),
            "{path}: {error}"
        );
    }
}

#[test]
fn a_digest_travels_with_its_input() {
    let (_, inputs) = resolve(json!({ "datasets": [{ "path": "/inputs/pinned" }] }))
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(inputs[0].digest, Some(format!("blake3:{}", "0".repeat(64))));
}

#[test]
fn a_base_model_is_an_input_called_model() {
    let (recipe, inputs) = resolve(json!({ "model": null, "base_model": "./llama" }))
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(recipe.model, ModelSource::Base { input: "model".into() });
    let names: Vec<_> =
        inputs.iter().map(|input| (input.name.as_str(), input.uri.as_str())).collect();
    assert_eq!(names, [("data0", "builtin:petaflop"), ("model", "/manifests/./llama")]);
    let hub = resolve(json!({ "model": null, "base_model": "meta-llama/Llama-3.1-8B" }))
        .expect_err("a hub name");
    assert!(hub.contains("Hugging Face hub"), "{hub}");
    let text = resolve(json!({ "model": null, "base_model": "builtin:petaflop" }))
        .expect_err("not a model");
    assert!(text.contains("is text, not a model"), "{text}");
}

#[test]
fn renaming_or_moving_data_does_not_change_the_recipe() {
    let one = resolved(json!({ "datasets": [{ "path": "/inputs/corpus" }, { "path": "./a" }] }));
    let two = resolved(
        json!({ "datasets": [{ "path": "/srv/elsewhere" }, { "path": "/inputs/pinned" }] }),
    );
    assert_eq!(one, two);
}

#[test]
fn three_names_of_one_optimiser_are_one_recipe() {
    let one = resolved(json!({ "optimizer": "adamw" }));
    for name in ["adamw_torch", "adamw_torch_fused"] {
        assert_eq!(resolved(json!({ "optimizer": name })), one);
    }
}

#[test]
fn minus_zero_is_zero() {
    let recipe =
        resolved(json!({ "val_set_size": -0.0, "weight_decay": -0.0, "max_grad_norm": -0.0 }));
    let text = serde_json::to_string(&recipe).expect("plain JSON");
    assert!(!text.contains("-0.0"), "{text}");
}

#[test]
fn relative_paths_are_refused_where_there_is_no_folder() {
    let errors =
        recipe(json!({ "datasets": [{ "path": "./notes" }, { "path": "builtin:petaflop" }] }))
            .resolve(&[], &Output::default(), None);
    let errors = errors.expect_err("there is no folder");
    assert_eq!(errors.len(), 1);
    assert!(errors[0].message.contains("relative to a manifest's folder"), "{}", errors[0]);
}

#[test]
fn what_is_not_built_is_refused_here_too_and_all_at_once() {
    let errors = resolve(
        json!({ "adapter": "lora", "lora_r": 8, "gradient_checkpointing": true, "saves_per_epoch": 2, "datasets": [{ "path": "https://b.example/c" }] }),
    );
    let errors = errors.expect_err("not built");
    for field in
        ["adapter", "lora_r", "gradient_checkpointing", "saves_per_epoch", "datasets[0].path"]
    {
        assert!(errors.contains(&format!("spec.recipe.{field}: ")), "{field}: {errors}");
    }
}

#[test]
fn axolotls_false_is_the_same_as_leaving_it_out() {
    assert_eq!(resolved(json!({ "gradient_checkpointing": false })), resolved(json!({})));
}
