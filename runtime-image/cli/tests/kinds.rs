//! What can be trained on and from: conversations, questions with answers, and a
//! model that was trained before.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use std::fs;

use common::{Bench, Ended};
use petaflop_plan::recipe::{
    Dataset, DatasetKind, Input, ModelSource, TokenizerSource, TrainingLength,
};
use petaflop_store::{blocking::Store, report::Progress};
use serde_json::{Value, json};

fn summary(ended: &Ended) -> &Value {
    match ended.progress.last() {
        Some(Progress::Finished { summary, .. }) => summary,
        other => panic!("{other:?}"),
    }
}

fn number(summary: &Value, path: &str) -> f64 {
    summary.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {summary}"))
}

/// Lines of JSON, one for each of so many sums.
fn lines(bench: &Bench, name: &str, line: impl Fn(u32, u32) -> Value) -> String {
    let text: String = (0..200).map(|i| format!("{}\n", line(i % 20, i / 20))).collect();
    let path = bench.path(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_finished_model_is_trained_further_on_conversations_and_questions() {
    let mut bench = Bench::new(30);
    let (base, _) = bench.train(&[]).artifact();
    let chat = lines(&bench, "chat.jsonl", |a, b| {
        json!({ "messages": [
            { "role": "system", "content": "Add." },
            { "role": "user", "content": format!("{a} plus {b}? <|im_end|>") },
            { "role": "assistant", "content": format!("It is {}.", a + b) },
        ] })
    });
    let alpaca = lines(
        &bench,
        "alpaca.jsonl",
        |a, b| json!({ "instruction": "Multiply.", "input": format!("{a} and {b}"), "output": format!("{}", a * b) }),
    );

    bench.job.inputs = vec![
        Input {
            name: "base".into(),
            uri: format!("artifact:{base}"),
            digest: Some(format!("blake3:{base}")),
        },
        Input { name: "chat".into(), uri: chat, digest: None },
        Input { name: "alpaca".into(), uri: alpaca, digest: None },
    ];
    bench.job.recipe.model = ModelSource::Base { input: "base".into() };
    bench.job.recipe.tokenizer = TokenizerSource::Base;
    bench.job.recipe.datasets = vec![
        Dataset { input: "chat".into(), kind: DatasetKind::ChatTemplate },
        Dataset { input: "alpaca".into(), kind: DatasetKind::Alpaca },
    ];
    let tuned = bench.train(&[]);
    let (artifact, cached) = tuned.artifact();
    assert!(!cached && artifact != base);
    let facts = summary(&tuned);
    assert!(
        number(facts, "/validation_end/loss") < number(facts, "/validation_start/loss") - 0.5,
        "{facts}"
    );
    // Only answers are targets: far fewer bytes than the lines have.
    let documents = &facts["documents"];
    assert_eq!(
        documents["train"].as_u64().unwrap() + documents["validation"].as_u64().unwrap(),
        400,
        "{facts}"
    );
    assert!(
        number(documents, "/validation_bytes") < 15.0 * number(documents, "/validation"),
        "{facts}"
    );

    let store = Store::open(&bench.job.store).unwrap();
    let files: Vec<String> = store
        .manifest(artifact.parse().unwrap())
        .unwrap()
        .files
        .into_iter()
        .map(|file| file.path)
        .collect();
    assert_eq!(
        files,
        [
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "recipe.json",
            "tokenizer.json",
            "training.json"
        ]
    );
    for (file, same) in
        [("tokenizer.json", true), ("config.json", true), ("model.safetensors", false)]
    {
        let of = |hash: &str| store.read_file(hash.parse().unwrap(), file).unwrap();
        assert_eq!(of(&base) == of(&artifact), same, "{file}");
    }
}

#[test]
fn an_epoch_is_as_many_steps_as_the_data_has() {
    let mut bench = Bench::new(1);
    bench.job.recipe.length = TrainingLength::Epochs(3);
    let ended = bench.train(&[]);
    ended.artifact();
    let facts = summary(&ended);
    let (tokens, trained) = (number(facts, "/documents/train_tokens"), number(facts, "/tokens"));
    // Whole samples, whole steps.
    assert!(trained >= 3.0 * tokens && trained < 3.0 * (tokens + 32.0) + 128.0, "{facts}");
}

#[test]
fn copies_of_a_file_are_counted_and_not_trained_on_twice() {
    let mut bench = Bench::new(5);
    let once = bench.train(&[]);
    fs::copy(bench.path("data/03.txt"), bench.path("data/zz-copy.txt")).unwrap();
    bench.fresh("copies");
    let twice = bench.train(&[]);
    assert_eq!(summary(&once)["documents"]["duplicates_removed"], 0);
    assert_eq!(summary(&twice)["documents"]["duplicates_removed"], 1);
    assert_eq!(
        summary(&once)["loss_end"],
        summary(&twice)["loss_end"],
        "the same text in the same order"
    );
}

#[test]
fn numbers_that_run_away_stop_the_job_by_name() {
    let mut bench = Bench::new(30);
    let (base, _) = bench.train(&[]).artifact();
    // A base model with one weight that is not a number.
    let folder = bench.path("broken");
    Store::open(&bench.job.store).unwrap().materialise(base.parse().unwrap(), &folder).unwrap();
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, bytes).unwrap();
    bench.job.inputs.push(Input {
        name: "base".into(),
        uri: folder.display().to_string(),
        digest: None,
    });
    bench.job.recipe.model = ModelSource::Base { input: "base".into() };
    bench.job.recipe.tokenizer = TokenizerSource::Base;
    let stopped = bench.train(&[]);
    let message = stopped.failure(2);
    assert!(message.contains("is not finite") && message.contains("model."), "{message}");
    assert_eq!(bench.artifacts(), 1);
}
