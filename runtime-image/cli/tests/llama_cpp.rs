//! Our GGUF files in llama.cpp: the same tokens and, within what its rounding of activations
//! moves, the same logits. `make llama-cpp` builds it and sets `PETAFLOP_LLAMA_CPP`.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{Bench, not_run};
use petaflop_kernel::Cpu;
use petaflop_model::gguf::model::GgufModel;
use petaflop_model::gguf::vocabulary;
use petaflop_model::inference::{Chunk, InferenceModel, Logits};
use petaflop_model::weights::Weights as _;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::recipe::{Export, Quantization};
use petaflop_store::blocking::Store;
use serde_json::Value;

/// Tokens that are chosen one after another.
const CHOSEN: usize = 24;

/// What `ask_llama_cpp.py` prints.
struct Theirs {
    logits: Vec<Vec<f32>>,
    choices: Vec<u32>,
    text: Vec<u32>,
}

#[test]
fn llama_cpp_gives_the_same_tokens_and_logits() {
    let Some(python) = std::env::var_os("PETAFLOP_LLAMA_CPP") else {
        return not_run("our GGUF files in llama.cpp", "make llama-cpp builds it, in minutes");
    };
    let mut bench = Bench::new(200);
    // The relative error of all logits that is let pass, and the share of equal first choices.
    for (quantization, worst, agree) in [
        (Quantization::None, 1e-4, 1.0),
        (Quantization::Q8_0, 0.02, 0.95),
        (Quantization::Q4_0, 0.02, 0.95),
    ] {
        bench.job.recipe.output = Export::Gguf(quantization);
        let (artifact, _) = bench.train(&[]).artifact();
        let folder = bench.path(&format!("{quantization:?}"));
        let store = Store::open(&bench.job.store).unwrap();
        store.materialise(artifact.parse().unwrap(), &folder).unwrap();
        let file = folder.join("model.gguf");
        let model = GgufModel::open(&file).unwrap();
        let tokenizer = vocabulary::tokenizer(model.file().contents()).unwrap();
        let tokens = tokenizer.encode("3 plus 4 is 7, and 3 times 4 is 12.\n5 plus").unwrap();
        let theirs = asked(python.as_ref(), &file, &tokens);
        assert_eq!(theirs.text, tokenizer.encode("7 plus 12 is 19, and\n  naïve?").unwrap());

        let (logits, choices) = ours(&model, &tokens);
        let pairs = || theirs.logits.iter().zip(logits.chunks_exact(theirs.logits[0].len()));
        let flat = || pairs().flat_map(|(a, b)| a.iter().zip(b));
        let away: f64 = flat().map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let size: f64 = flat().map(|(_, b)| f64::from(*b).powi(2)).sum();
        let error = (away / size).sqrt();
        let same = pairs().filter(|(a, b)| first(a) == first(b)).count() as f64;
        let same = same / tokens.len() as f64;
        eprintln!("{quantization:?}: logits {error:.2e} apart, first choice equal in {same:.3}");
        assert!(error <= worst, "{quantization:?}: {error}");
        assert!(same >= agree, "{quantization:?}: {same}");
        if quantization == Quantization::None {
            assert_eq!(choices, theirs.choices);
        }
    }
}

fn asked(python: &Path, file: &Path, tokens: &[u32]) -> Theirs {
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ask_llama_cpp.py"))
        .arg(file)
        .arg(serde_json::to_string(tokens).unwrap())
        .arg(CHOSEN.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let numbers = |name: &str| serde_json::from_value(said[name].clone()).unwrap();
    Theirs {
        logits: serde_json::from_value(said["logits"].clone()).unwrap(),
        choices: numbers("choices"),
        text: numbers("text"),
    }
}

/// Logits after each token, and the tokens that are chosen after them.
fn ours(model: &GgufModel, tokens: &[u32]) -> (Vec<f32>, Vec<u32>) {
    let cpu = Arc::new(Cpu::new(None, 1).unwrap());
    let context = (tokens.len() + CHOSEN) as u32;
    let options = ServingOptions {
        logit_rows: context,
        ..ServingOptions::new(model.serving_format(), 1, context, context)
    };
    let mut served = InferenceModel::new(cpu, model, &options).unwrap();
    let blocks: Vec<u32> = (0..options.kv_blocks).collect();
    let mut forward = |tokens: &[u32], start, logits| {
        served.forward(&[Chunk { tokens, start, blocks: &blocks, logits }]).unwrap().to_vec()
    };
    let logits = forward(tokens, 0, Logits::All);
    let vocab = model.shape().vocab as usize;
    let mut choices = vec![first(&logits[logits.len() - vocab..])];
    while choices.len() < CHOSEN {
        let start = tokens.len() + choices.len() - 1;
        let row = forward(&choices[choices.len() - 1..], start, Logits::Last);
        choices.push(first(&row));
    }
    (logits, choices)
}

/// The token of the largest logit.
fn first(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}
