//! Low-rank pairs beside a base of each format, against naive loops in f64.

use std::path::Path;
use std::sync::Arc;

use crate::common::{Weights, bits, cpu, loss, model, rounded, shapes, tokens};
use petaflop_kernel::{Cpu, Isa};
use petaflop_model::inference::{Chunk, InferenceModel, Logits};
use petaflop_model::rng::Philox;
use petaflop_model::training::{AdamwStep, NO_TARGET, TrainingModel};
use petaflop_model::weights::{WeightsFolder, save};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::linear::{ADAPTABLE, Adapters};
use petaflop_plan::shape::{ModelShape, TensorRole};
use petaflop_plan::training::TrainingOptions;

const SEQUENCE: usize = 9;
const FORMATS: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::Q8_0];
const RANK: usize = 3;
const SCALE: f64 = 5.0 / 3.0;

/// Every form, in rows of whole q8_0 blocks.
fn forms() -> Vec<(&'static str, ModelShape)> {
    let wide = |shape| ModelShape { hidden: 32, intermediate: 64, ..shape };
    shapes().into_iter().map(|(name, shape)| (name, wide(shape))).collect()
}

/// A base in a folder, and its numbers.
struct Base {
    folder: tempfile::TempDir,
    shape: ModelShape,
    tensors: Vec<(String, TensorRole, Vec<f32>)>,
}

impl Base {
    fn new(shape: &ModelShape) -> Self {
        let model = model(shape, &TrainingOptions::new(1, 4));
        let folder = tempfile::tempdir().expect("a folder can be made");
        let tensors = model.tensors().map(|(t, v)| (t.name.as_str(), &t.shape[..], v));
        save(folder.path(), shape, tensors).expect("it can be written");
        let tensors = model.tensors().map(|(t, v)| (t.name.clone(), t.role, v.to_vec())).collect();
        Self { folder, shape: shape.clone(), tensors }
    }

    fn open(&self) -> WeightsFolder {
        WeightsFolder::open(self.folder.path() as &Path).expect("it was just written")
    }

    /// As a frozen base of this format has them.
    fn weights(&self, format: Dtype) -> Weights {
        let numbers = |role: TensorRole, values: &[f32]| match role {
            TensorRole::Matrix => rounded(values, format),
            _ => values.to_vec(),
        };
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        self.tensors.iter().map(|(n, role, v)| (n.clone(), wide(numbers(*role, v)))).collect()
    }

    /// All of it frozen, with pairs on these projections.
    fn frozen(&self, format: Dtype, targets: &[&str]) -> TrainingOptions {
        let mut frozen = vec!["model".to_owned()];
        frozen.extend((!self.shape.tied_embeddings).then(|| "lm_head".to_owned()));
        TrainingOptions { frozen, frozen_weights: format, ..self.trained(targets) }
    }

    /// All of it trained, with pairs on these projections.
    fn trained(&self, targets: &[&str]) -> TrainingOptions {
        let targets: Vec<String> = targets.iter().map(|&target| target.to_owned()).collect();
        let adapters =
            (!targets.is_empty()).then_some(Adapters { rank: RANK as u32, alpha: 5.0, targets });
        TrainingOptions { adapters, ..TrainingOptions::new(2, SEQUENCE as u32) }
    }

    fn model(&self, cpu: Arc<Cpu>, options: &TrainingOptions) -> TrainingModel {
        let mut model = TrainingModel::new(cpu, &self.shape, options).expect("it has a plan");
        model.load(&self.open()).expect("the folder fits");
        model.init_adapters(17);
        model
    }
}

/// Second matrices that are not 0, so that every path matters.
fn stir(model: &mut TrainingModel) {
    for (t, (name, values)) in (0u32..).zip(model.state_mut()) {
        if name.ends_with("lora_B.weight") {
            for (i, value) in (0u32..).zip(values) {
                *value = (0.3 * Philox::new(4).normals([i, t, 0, 9])[0]) as f32;
            }
        }
    }
}

/// `W + s·B·A`, by loops.
fn effective(w: &Weights) -> Weights {
    let mut effective = w.clone();
    for (name, up) in w.iter().filter(|(name, _)| name.ends_with(".lora_B.weight")) {
        let module = name.trim_end_matches(".lora_B.weight");
        let down = &w[&format!("{module}.lora_A.weight")];
        let width = down.len() / RANK;
        let weight = effective.get_mut(&format!("{module}.weight")).expect("pairs are beside one");
        for row in 0..up.len() / RANK {
            for col in 0..width {
                for r in 0..RANK {
                    weight[row * width + col] += SCALE * up[row * RANK + r] * down[r * width + col];
                }
            }
        }
    }
    effective
}

fn batch(vocab: u32) -> (Vec<u32>, Vec<u32>) {
    let mut targets = tokens(2 * SEQUENCE, vocab, 12);
    (targets[4], targets[17]) = (NO_TARGET, NO_TARGET);
    (tokens(2 * SEQUENCE, vocab, 11), targets)
}

/// Loss and every gradient of `model`, whose base is `w`, against differences of the naive loss.
fn check(what: &str, model: &mut TrainingModel, mut w: Weights) {
    let shape = model.shape().clone();
    let (tokens, targets) = batch(shape.vocab);
    for (tensor, values) in model.tensors().filter(|(t, _)| t.role.is_adapter()) {
        w.insert(tensor.name.clone(), values.iter().map(|&v| f64::from(v)).collect());
    }
    model.zero_gradients();
    let found = model.accumulate(&tokens, &targets, 0.5).expect("the batch fits").nats;
    let expected = loss(&shape, &effective(&w), &tokens, &targets, SEQUENCE);
    assert!((found - expected).abs() < 1e-4 * expected, "{what}: {found} {expected}");
    for (tensor, gradient) in model.gradients() {
        let name = &tensor.name;
        let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
        assert!(largest > 0.0, "{what}: {name} has no gradient");
        // The largest element, and two others.
        let at = gradient.iter().position(|g| g.abs() == largest).expect("it is one of them");
        for i in [at, gradient.len() / 3, gradient.len() - 1] {
            let value = w[name][i];
            let mut moved = |by: f64| {
                w.get_mut(name).expect("it is there")[i] = value + by;
                0.5 * loss(&shape, &effective(&w), &tokens, &targets, SEQUENCE)
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            moved(0.0);
            let error = (f64::from(gradient[i]) - expected).abs();
            assert!(
                error < 2e-4 * f64::from(largest) + 1e-6,
                "{what}: {name}[{i}]: {} {expected}",
                gradient[i]
            );
        }
    }
}

#[test]
fn losses_and_gradients_of_pairs_are_those_of_naive_loops_in_every_form_and_format() {
    for (name, shape) in forms() {
        let base = Base::new(&shape);
        for format in FORMATS {
            let mut model = base.model(cpu(2), &base.frozen(format, &ADAPTABLE));
            assert_eq!(model.arena_bytes(), model.plan().arena_bytes());
            assert_eq!(model.gradients().count(), 2 * 7 * 2, "the base has none");
            stir(&mut model);
            check(&format!("{name}, {format}"), &mut model, base.weights(format));
        }
    }
}

#[test]
fn pairs_on_some_projections_and_a_trained_base_have_their_gradients_too() {
    for form in [1, 2, 3] {
        let (name, shape) = forms().remove(form);
        let base = Base::new(&shape);
        let mut all = base.model(cpu(2), &base.trained(&ADAPTABLE));
        assert_eq!(all.gradients().count(), base.tensors.len() + 2 * 7 * 2);
        stir(&mut all);
        check(&format!("{name}, trained"), &mut all, base.weights(Dtype::F32));
        for targets in [&["q_proj", "v_proj"][..], &["gate_proj"], &["up_proj", "down_proj"]] {
            let mut some = base.model(cpu(2), &base.frozen(Dtype::Q8_0, targets));
            assert_eq!(some.gradients().count(), 2 * targets.len() * 2);
            stir(&mut some);
            check(&format!("{name}, {targets:?}"), &mut some, base.weights(Dtype::Q8_0));
        }
    }
}

#[test]
fn a_pair_whose_second_matrix_is_zero_is_the_base_to_the_bit() {
    for (name, shape) in forms() {
        let base = Base::new(&shape);
        let tokens = tokens(2 * SEQUENCE, shape.vocab, 21);
        for format in FORMATS {
            let mut alone = base.model(cpu(2), &base.frozen(format, &[]));
            let expected = bits(alone.logits(&tokens).expect("it fits"));
            for targets in [&ADAPTABLE[..], &["up_proj"]] {
                let mut adapted = base.model(cpu(2), &base.frozen(format, targets));
                let found = bits(adapted.logits(&tokens).expect("it fits"));
                assert_eq!(found, expected, "{name}, {format}, {targets:?}");
                stir(&mut adapted);
                assert_ne!(bits(adapted.logits(&tokens).expect("it fits")), expected);
            }
            // And the base is what serving makes of the same folder in that format.
            let serving =
                ServingOptions { logit_rows: 32, ..ServingOptions::new(format, 2, 32, 16) };
            let mut served =
                InferenceModel::new(cpu(1), &base.open(), &serving).expect("it has a plan");
            let blocks = [[0], [1]];
            let chunks: Vec<Chunk<'_>> = tokens
                .chunks(SEQUENCE)
                .zip(&blocks)
                .map(|(tokens, blocks)| Chunk { tokens, start: 0, blocks, logits: Logits::All })
                .collect();
            assert_eq!(bits(served.forward(&chunks).expect("it fits")), expected, "{format}");
        }
    }
}

fn train(model: &mut TrainingModel, steps: std::ops::Range<u64>) -> Vec<f64> {
    let (tokens, targets) = batch(model.shape().vocab);
    let step = |step| {
        model.zero_gradients();
        let loss = model.accumulate(&tokens, &targets, 1.0 / 16.0).expect("the batch fits").mean();
        model.adamw(&AdamwStep {
            step,
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
        });
        loss
    };
    steps.map(step).collect()
}

#[test]
fn variants_and_threads_give_the_same_bits_and_the_base_stays() {
    let base = Base::new(&forms().remove(1).1);
    let cpus = Isa::available()
        .into_iter()
        .map(|isa| Cpu::new(Some(isa), 1).expect("it is available"))
        .chain([2, 3].map(|threads| Cpu::new(None, threads).expect("the best is available")));
    let cpus: Vec<Arc<Cpu>> = cpus.map(Arc::new).collect();
    let sample = tokens(2 * SEQUENCE, base.shape.vocab, 21);
    for format in FORMATS {
        let options = base.frozen(format, &ADAPTABLE);
        let mut expected = None;
        for cpu in &cpus {
            let mut model = base.model(Arc::clone(cpu), &options);
            let before = bits(model.logits(&sample).expect("it fits"));
            let losses = train(&mut model, 0..6);
            assert!(losses[5] < losses[0] - 0.3, "{format}: {losses:?}");
            let state: Vec<Vec<u32>> = model.state().into_iter().map(|(_, v)| bits(v)).collect();
            // Without what was learnt it is the base again.
            for (name, values) in model.state_mut() {
                if name.ends_with("lora_B.weight") {
                    values.fill(0.0);
                }
            }
            assert_eq!(bits(model.logits(&sample).expect("it fits")), before, "{format}");
            let found = (losses, state, before);
            let expected = expected.get_or_insert_with(|| found.clone());
            assert!(*expected == found, "{format}, {cpu:?}");
        }
    }
}

#[test]
fn a_state_holds_the_pairs_and_goes_on_over_a_base_from_its_folder() {
    let base = Base::new(&forms().remove(2).1);
    let options = base.frozen(Dtype::Q8_0, &["q_proj", "gate_proj"]);
    let mut whole = base.model(cpu(2), &options);
    train(&mut whole, 0..3);
    let kept: Vec<(String, Vec<f32>)> =
        whole.state().into_iter().map(|(n, v)| (n, v.to_vec())).collect();
    let matrices = |name: &str| name.contains("proj.weight") || name.contains("embed");
    assert!(!kept.iter().any(|(name, _)| matrices(name)), "the base's matrices are in its folder");
    assert_eq!(kept.iter().filter(|(name, _)| name.contains("lora_")).count(), 2 * 2 * 2 * 3);
    let losses = train(&mut whole, 3..5);

    let mut resumed = TrainingModel::new(cpu(1), &base.shape, &options).expect("it has a plan");
    resumed.load(&base.open()).expect("the folder fits");
    for ((name, to), (kept_name, from)) in resumed.state_mut().into_iter().zip(&kept) {
        assert_eq!(&name, kept_name);
        to.copy_from_slice(from);
    }
    assert_eq!(train(&mut resumed, 3..5), losses);
    assert_eq!(whole.state(), resumed.state());
}

#[test]
fn a_frozen_base_begun_from_a_seed_is_the_trained_one_rounded() {
    let (_, shape) = forms().remove(0);
    let base = Base::new(&shape);
    let started = |format| {
        let mut model =
            TrainingModel::new(cpu(1), &shape, &base.frozen(format, &[])).expect("it has a plan");
        model.init(5);
        model
    };
    let exact = started(Dtype::F32);
    let spelled_out: Vec<(String, Vec<f32>)> = exact
        .tensors()
        .map(|(t, v)| {
            (
                t.name.clone(),
                if t.role == TensorRole::Matrix { rounded(v, Dtype::Q8_0) } else { v.to_vec() },
            )
        })
        .collect();
    let mut same = started(Dtype::F32);
    for ((_, to), (_, from)) in same.state_mut().into_iter().zip(&spelled_out) {
        to.copy_from_slice(from);
    }
    let tokens = tokens(2 * SEQUENCE, shape.vocab, 21);
    let mut small = started(Dtype::Q8_0);
    assert_eq!(
        bits(small.logits(&tokens).expect("it fits")),
        bits(same.logits(&tokens).expect("it fits"))
    );
}
