//! GGUF out of a training, and into another.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Bench, Ended, runtime};
use petaflop_harness::tools;
use petaflop_model::weights;
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

        // A model that is there is planned in the format of its matrices.
        let planned =
            runtime(&["plan", "--serve", "--json", "--model"]).arg(&gguf).output().unwrap();
        let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
        let served = ["f32", "q8_0", "q4_0"][quantization as usize];
        assert_eq!(
            (&planned["weights"], &planned["config"]["hidden_size"]),
            (&json!(served), &json!(32))
        );

        // What was measured on the way: f32 is exact here, fewer bits are not.
        let facts = exported(&ended);
        let error = facts["logits_error"].as_f64().unwrap();
        assert_eq!(error == 0.0, quantization == Quantization::None, "{name}: {facts}");
        assert_eq!(facts["rows"], 32);
        assert!(facts["same_choice"].as_f64().unwrap() > 0.5, "{name}: {facts}");
    }
}

/// A model whose layers say much through small numbers that share their blocks with huge ones,
/// which multiply nothing: as f32 the huge ones do not matter, in blocks they are all that is left.
fn that_bears_no_blocks(from: &Path, to: &Path) {
    let source = weights::open(from).unwrap();
    let shape = source.shape();
    let tensors: Vec<_> = shape
        .tensors()
        .into_iter()
        .map(|info| {
            let width = *info.shape.last().unwrap() as usize;
            let mut values = vec![0.0; info.shape.iter().product::<u64>() as usize];
            source.read_f32(&info.name, &mut values).unwrap();
            for (row, values) in values.chunks_mut(width).enumerate() {
                let of = |name: &str| info.name.ends_with(name);
                if of("down_proj.weight") || of("o_proj.weight") {
                    values.iter_mut().for_each(|value| *value *= 50.0);
                    values.iter_mut().step_by(32).for_each(|value| *value = 1e6);
                } else if (of("up_proj.weight") || of("v_proj.weight")) && row % 32 == 0 {
                    values.fill(0.0);
                }
            }
            (info, values)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(info, values)| (info.name.as_str(), info.shape.as_slice(), values.as_slice()));
    weights::save(to, shape, views).unwrap();
}

#[test]
fn weights_whose_export_is_too_far_off_are_kept_as_they_were_trained() {
    let mut bench = Bench::new(2);
    let (_, _, folder) = trained(&mut bench, Export::Safetensors, "plain");
    that_bears_no_blocks(&folder, &folder);
    bench.job.inputs.push(Input {
        name: "base".into(),
        uri: folder.display().to_string(),
        digest: None,
    });
    bench.job.recipe.model = ModelSource::Base { input: "base".into() };
    bench.job.recipe.tokenizer = TokenizerSource::Base;
    bench.job.recipe.learning_rate = 1e-12;
    let (ended, artifact, kept) = trained(&mut bench, Export::Gguf(Quantization::Q8_0), "kept");
    assert!(kept.join("model.safetensors").is_file() && !kept.join("model.gguf").exists());
    let facts = exported(&ended);
    assert_eq!(facts["missed"], 0.05);
    assert!(facts["logits_error"].as_f64().unwrap() > 0.5, "{facts}");
    let caveat = |ended: &Ended| match ended.progress.last() {
        Some(Progress::Finished { caveat: Some(caveat), .. }) => caveat.clone(),
        other => panic!("{other:?}"),
    };
    let said = caveat(&ended);
    assert!(said.contains("at most 0.05") && ended.stderr.contains(&said), "{ended:?}");
    // It is this key's result: asked for again, nothing is trained, and the same is said.
    let again = bench.train(&[]);
    assert_eq!((again.artifact(), caveat(&again)), ((artifact, true), said));
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
