//! GGUF out of a training, and into another.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{Bench, Ended};
use petaflop_harness::tools;
use petaflop_plan::recipe::{Export, Input, ModelSource, Quantization, TokenizerSource};
use petaflop_store::{blocking::Store, report::Progress};
use serde_json::{Value, json};

/// Trains, with the result in this form; the artifact's hash and its files in a folder.
fn trained(bench: &mut Bench, output: Export, name: &str) -> (Ended, String, PathBuf) {
    bench.job.recipe.output = output;
    let ended = bench.train(&[]);
    let (artifact, _) = ended.artifact();
    let folder = bench.path(name);
    let store = Store::open(&bench.job.store).unwrap();
    store.materialise(artifact.parse().unwrap(), &folder).unwrap();
    (ended, artifact, folder)
}

fn exported(ended: &Ended) -> Value {
    match ended.progress.last() {
        Some(Progress::Finished { summary, .. }) => summary["exported"].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ggmls_own_package_agrees_on_every_tensor_and_key() {
    let python = tools::gguf().unwrap();
    let mut bench = Bench::new(20);
    let (plain, _, folder) = trained(&mut bench, Export::Safetensors, "plain");
    assert_eq!(exported(&plain), Value::Null);
    for (quantization, types, file_type) in [
        (Quantization::None, json!({ "F32": 20 }), "ALL_F32"),
        (Quantization::Q8_0, json!({ "Q8_0": 15, "F32": 5 }), "MOSTLY_Q8_0"),
        (Quantization::Q4_0, json!({ "Q8_0": 1, "Q4_0": 14, "F32": 5 }), "MOSTLY_Q4_0"),
    ] {
        let name = format!("{quantization:?}");
        let (ended, _, gguf) = trained(&mut bench, Export::Gguf(quantization), &name);
        let output = Command::new(&python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gguf_reads.py"))
            .args([gguf.join("model.gguf"), folder.clone()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let read: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&read["types"], &read["file_type"]), (&types, &json!(file_type)), "{name}");

        // What was measured on the way: f32 is exact here, fewer bits are not.
        let facts = exported(&ended);
        let error = facts["logits_error"].as_f64().unwrap();
        assert_eq!(error == 0.0, quantization == Quantization::None, "{name}: {facts}");
        assert_eq!(facts["rows"], 32);
        assert!(facts["same_choice"].as_f64().unwrap() > 0.5, "{name}: {facts}");
    }
}

#[test]
fn an_exported_model_is_trained_further() {
    let mut bench = Bench::new(20);
    let (first, artifact, _) = trained(&mut bench, Export::Gguf(Quantization::Q8_0), "first");
    assert!(exported(&first)["logits_error"].as_f64().unwrap() > 0.0);
    bench.job.inputs.push(Input {
        name: "base".into(),
        uri: format!("artifact:{artifact}"),
        digest: None,
    });
    bench.job.recipe.model = ModelSource::Base { input: "base".into() };
    bench.job.recipe.tokenizer = TokenizerSource::Base;
    let (second, other, folder) = trained(&mut bench, Export::Safetensors, "second");
    assert_ne!(other, artifact);
    assert!(folder.join("model.safetensors").is_file() && !folder.join("model.gguf").exists());
    let start = |ended: &Ended| {
        let Some(Progress::Finished { summary, .. }) = ended.progress.last() else { panic!() };
        (summary["validation_start"]["loss"].as_f64(), summary["validation_end"]["loss"].as_f64())
    };
    let ((_, Some(ended_at)), (Some(began_at), _)) = (start(&first), start(&second)) else {
        panic!("{first:?} {second:?}");
    };
    // It goes on where the first ended, but for what eight bits lost.
    assert!((began_at - ended_at).abs() < 0.01, "{ended_at} {began_at}");
}
