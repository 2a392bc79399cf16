//! Serving: the same tokens get the same bits, however they come.

use std::path::Path;

use crate::common::{bits, cpu, logits, model, rounded, shapes, tokens, weights};
use petaflop_model::error::ModelError;
use petaflop_model::inference::{Chunk, InferenceModel, Logits};
use petaflop_model::weights::{WeightsFolder, save};
use petaflop_plan::Numerics;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::shape::{ModelShape, TensorRole};
use petaflop_plan::training::TrainingOptions;

const LENGTH: usize = 37;

fn saved(shape: &ModelShape) -> (tempfile::TempDir, Vec<f32>, Vec<u32>) {
    let mut model = model(shape, &TrainingOptions::new(1, LENGTH as u32));
    let tokens = tokens(LENGTH, shape.vocab, 21);
    let expected = model.logits(&tokens).expect("it fits").to_vec();
    let folder = tempfile::tempdir().expect("a folder can be made");
    save(folder.path(), shape, model.tensors().map(|(t, v)| (t.name.as_str(), &t.shape[..], v)))
        .expect("it can be written");
    (folder, expected, tokens)
}

fn options(weights: Dtype) -> ServingOptions {
    ServingOptions { logit_rows: 64, ..ServingOptions::new(weights, 4, 64, 48) }
}

fn open(folder: &Path, weights: Dtype) -> InferenceModel {
    let folder = WeightsFolder::open(folder).expect("it was just written");
    InferenceModel::new(cpu(2), &folder, &options(weights)).expect("it has a plan")
}

#[test]
fn serving_gives_the_bits_of_the_training_forward_pass_in_every_form() {
    for (name, shape) in shapes() {
        let (folder, expected, tokens) = saved(&shape);
        let mut model = open(folder.path(), Dtype::F32);
        assert_eq!(model.arena_bytes(), model.plan().arena_bytes());
        let chunk = Chunk { tokens: &tokens, start: 0, blocks: &[7, 2, 5], logits: Logits::All };
        let found = model.forward(&[chunk]).expect("it fits");
        assert_eq!(bits(found), bits(&expected), "{name}");
    }
}

#[test]
fn logits_are_those_of_an_independent_model() {
    for (name, shape) in shapes() {
        let mut model = model(&shape, &TrainingOptions::new(1, LENGTH as u32));
        let tokens = tokens(LENGTH, shape.vocab, 21);
        let expected = logits(&shape, &weights(&model), &tokens);
        let found = model.logits(&tokens).expect("it fits");
        let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (f64::from(*found) - expected).abs() < 2e-5 * largest,
                "{name}: {found} {expected}"
            );
        }
    }
}

#[test]
fn chunks_and_company_change_no_bit() {
    let (_, shape) = shapes().remove(1);
    let (folder, expected, tokens) = saved(&shape);
    let vocab = shape.vocab as usize;
    for cuts in [vec![1, 2, 3, 20, 21, 37], vec![16, 32, 37], vec![5, 36, 37], (1..=37).collect()] {
        let mut model = open(folder.path(), Dtype::F32);
        let other: Vec<u32> = tokens.iter().rev().copied().collect();
        let (mut start, mut found) = (0, Vec::new());
        for &end in &cuts {
            // Another sequence, before it in the batch, at another pace.
            let company = Chunk {
                tokens: &other[..(end % 5) + 1],
                start: 0,
                blocks: &[0],
                logits: Logits::Last,
            };
            let chunk = Chunk {
                tokens: &tokens[start..end],
                start,
                blocks: &[9, 1, 4],
                logits: Logits::All,
            };
            let logits = model.forward(&[company, chunk]).expect("it fits");
            assert_eq!(logits.len(), (1 + end - start) * vocab);
            found.extend_from_slice(&logits[vocab..]);
            start = end;
        }
        assert_eq!(bits(&found), bits(&expected), "{cuts:?}");
    }
}

#[test]
fn only_the_wanted_logits_come_back_in_the_order_of_chunks() {
    let (_, shape) = shapes().remove(0);
    let (folder, expected, tokens) = saved(&shape);
    let vocab = shape.vocab as usize;
    let mut model = open(folder.path(), Dtype::F32);
    let chunk = |len: usize, blocks: &'static [u32], logits| Chunk {
        tokens: &tokens[..len],
        start: 0,
        blocks,
        logits,
    };
    let chunks = [
        chunk(3, &[0], Logits::None),
        chunk(9, &[1], Logits::Last),
        chunk(17, &[2, 3], Logits::Last),
    ];
    let found = model.forward(&chunks).expect("it fits");
    assert_eq!(
        bits(found),
        bits(&[&expected[8 * vocab..9 * vocab], &expected[16 * vocab..17 * vocab]].concat())
    );
    assert!(model.forward(&chunks[..1]).expect("it fits").is_empty());
}

#[test]
fn smaller_weights_compute_with_their_own_values_bit_for_bit() {
    let wide = ModelShape { hidden: 64, intermediate: 96, ..shapes().remove(1).1 };
    let (folder, expected, tokens) = saved(&wide);
    let chunk = Chunk { tokens: &tokens, start: 0, blocks: &[0, 1, 2], logits: Logits::All };
    let mut exact = open(folder.path(), Dtype::F32);
    assert_eq!(bits(exact.forward(&[chunk]).expect("it fits")), bits(&expected));
    for (dtype, shrinks) in [(Dtype::Bf16, 0.52), (Dtype::Q8_0, 0.30)] {
        let mut small = open(folder.path(), dtype);
        assert_eq!(small.arena_bytes(), small.plan().arena_bytes());
        let ratio =
            small.plan().segments.parameters as f64 / exact.plan().segments.parameters as f64;
        assert!(ratio < shrinks, "{dtype}: {ratio}");
        let found = small.forward(&[chunk]).expect("it fits").to_vec();

        let trained = model(&wide, &TrainingOptions::new(1, 4));
        let values: Vec<Vec<f32>> = trained
            .tensors()
            .map(|(t, v)| if t.role == TensorRole::Matrix { rounded(v, dtype) } else { v.to_vec() })
            .collect();
        let spelled_out = tempfile::tempdir().expect("a folder can be made");
        let tensors = trained
            .tensors()
            .zip(&values)
            .map(|((t, _), v)| (t.name.as_str(), &t.shape[..], &v[..]));
        save(spelled_out.path(), &wide, tensors).expect("it can be written");
        let mut same = open(spelled_out.path(), Dtype::F32);
        assert_eq!(bits(&found), bits(same.forward(&[chunk]).expect("it fits")), "{dtype}");
        assert_ne!(bits(&found), bits(&expected));

        // One token at a time gives the same bits with these weights too.
        let mut again = open(folder.path(), dtype);
        let mut single = Vec::new();
        for (start, token) in tokens.iter().enumerate() {
            let chunk = Chunk {
                tokens: std::slice::from_ref(token),
                start,
                blocks: &[2, 1, 0],
                logits: Logits::Last,
            };
            single.extend_from_slice(again.forward(&[chunk]).expect("it fits"));
        }
        assert_eq!(bits(&single), bits(&found), "{dtype}");
    }
}

/// ‖a − b‖ ÷ ‖b‖.
fn away(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    (norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())).sqrt()
}

#[test]
fn int8_activations_change_logits_little_and_the_same_in_any_batch() {
    let (mut same, mut rows) = (0, 0);
    for (name, shape) in shapes() {
        let shape = ModelShape { hidden: 64, intermediate: 96, ..shape };
        let (folder, _, tokens) = saved(&shape);
        let mut exact = open(folder.path(), Dtype::Q8_0);
        let weights = WeightsFolder::open(folder.path()).expect("it was just written");
        let int8 = ServingOptions { numerics: Numerics::Int8Activations, ..options(Dtype::Q8_0) };
        let mut int8 = InferenceModel::new(cpu(2), &weights, &int8).expect("it has a plan");
        assert_eq!(int8.arena_bytes(), exact.arena_bytes());

        let chunk = Chunk { tokens: &tokens, start: 0, blocks: &[0, 1, 2], logits: Logits::All };
        let expected = exact.forward(&[chunk]).expect("it fits").to_vec();
        let found = int8.forward(&[chunk]).expect("it fits").to_vec();
        assert_ne!(bits(&found), bits(&expected), "{name}: a mode of its own");
        // Rounding activations costs less than rounding weights did.
        let unrounded =
            open(folder.path(), Dtype::F32).forward(&[chunk]).expect("it fits").to_vec();
        let (of_activations, of_weights) = (away(&found, &expected), away(&expected, &unrounded));
        assert!(
            of_activations < of_weights && of_activations < 0.07,
            "{name}: {of_activations} {of_weights}"
        );
        let vocab = shape.vocab as usize;
        let choice = |row: &[f32]| {
            row.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
        };
        for (found, expected) in found.chunks(vocab).zip(expected.chunks(vocab)) {
            same += usize::from(choice(found) == choice(expected));
            rows += 1;
        }

        let mut single = Vec::new();
        for (start, token) in tokens.iter().enumerate() {
            let tokens = std::slice::from_ref(token);
            let chunk = Chunk { tokens, start, blocks: &[2, 1, 0], logits: Logits::Last };
            single.extend_from_slice(int8.forward(&[chunk]).expect("it fits"));
        }
        assert_eq!(bits(&single), bits(&found), "{name}");
    }
    // Of random weights, whose best logits lie close together.
    assert!(same * 10 >= rows * 9, "the same choice in {same} of {rows} rows");
}

#[test]
fn int8_activations_are_for_q8_0_alone() {
    let (folder, _, _) = saved(&shapes().remove(0).1);
    let folder = WeightsFolder::open(folder.path()).expect("it was just written");
    for (weights, numerics, expected) in [
        (
            Dtype::F32,
            Numerics::Int8Activations,
            "numerics: expected exact, for the matrices are computed with in f32, not q8_0, found int8-activations",
        ),
        (Dtype::F32, Numerics::Wgsl, "numerics: expected exact or int8-activations, found wgsl"),
    ] {
        let options = ServingOptions { numerics, ..options(weights) };
        let refused = InferenceModel::new(cpu(1), &folder, &options).err().expect("refused");
        assert_eq!(refused.to_string(), expected);
    }
}

#[test]
fn blocks_that_do_not_divide_the_rows_are_refused() {
    let (folder, _, _) = saved(&shapes().remove(0).1);
    let folder = WeightsFolder::open(folder.path()).expect("it was just written");
    let refused = InferenceModel::new(cpu(1), &folder, &options(Dtype::Q8_0))
        .err()
        .expect("24 is no multiple of 32");
    assert!(
        refused.to_string().starts_with("weights: expected a format whose blocks divide"),
        "{refused}"
    );
}

#[test]
fn a_pass_that_does_not_fit_is_refused_and_harms_nothing() {
    let (_, shape) = shapes().remove(0);
    let (folder, expected, tokens) = saved(&shape);
    let mut model = open(folder.path(), Dtype::F32);
    let good = Chunk { tokens: &tokens, start: 0, blocks: &[0, 1, 2], logits: Logits::All };
    let bad = [
        Chunk { tokens: &[], ..good },
        Chunk { start: 12, ..good },
        Chunk { start: usize::MAX, ..good },
        Chunk { blocks: &[0, 1], ..good },
        Chunk { blocks: &[0, 1, 12], ..good },
        Chunk { tokens: &[37], ..good },
    ];
    for chunk in bad {
        assert!(matches!(model.forward(&[chunk]), Err(ModelError::Input { .. })), "{chunk:?}");
    }
    assert!(model.forward(&[]).is_err());
    assert!(model.forward(&[good, good]).is_err(), "more rows than planned");
    assert_eq!(bits(model.forward(&[good]).expect("it fits")), bits(&expected));
}
