//! Training against an independent forward pass in f64.

use crate::common::{cpu, loss, model, shapes, tokens, weights};
use petaflop_model::error::ModelError;
use petaflop_model::training::{AdamwStep, NO_TARGET, TrainingModel};
use petaflop_plan::training::TrainingOptions;

const SEQUENCE: usize = 9;

fn step(step: u64) -> AdamwStep {
    AdamwStep { step, learning_rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
}

fn batch(vocab: u32) -> (Vec<u32>, Vec<u32>) {
    let mut targets = tokens(2 * SEQUENCE, vocab, 12);
    (targets[4], targets[17]) = (NO_TARGET, NO_TARGET);
    (tokens(2 * SEQUENCE, vocab, 11), targets)
}

#[test]
fn losses_and_gradients_are_those_of_an_independent_model_in_every_form() {
    for (name, shape) in shapes() {
        let mut model = model(&shape, &TrainingOptions::new(2, SEQUENCE as u32));
        let (tokens, targets) = batch(shape.vocab);
        model.zero_gradients();
        let found = model.accumulate(&tokens, &targets, 0.5).expect("the batch fits");
        let mut w = weights(&model);
        let expected = loss(&shape, &w, &tokens, &targets, SEQUENCE);
        assert_eq!(found.tokens, 16);
        assert!(
            (found.nats - expected).abs() < 1e-4 * expected,
            "{name}: {} {expected}",
            found.nats
        );
        assert_eq!(model.evaluate(&tokens, &targets).expect("the batch fits"), found);

        let gradients: Vec<(String, Vec<f32>)> =
            model.gradients().map(|(t, g)| (t.name.clone(), g.to_vec())).collect();
        assert_eq!(gradients.len(), model.plan().tensors.len());
        for (tensor, gradient) in gradients {
            let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
            assert!(largest > 0.0, "{name}: {tensor} has no gradient");
            // The largest element, and some others.
            let at = gradient.iter().position(|g| g.abs() == largest).expect("it is one of them");
            for i in [at, 0, gradient.len() / 3, gradient.len() - 1] {
                let value = w[&tensor][i];
                let mut moved = |by: f64| {
                    w.get_mut(&tensor).expect("it is there")[i] = value + by;
                    0.5 * loss(&shape, &w, &tokens, &targets, SEQUENCE)
                };
                let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                moved(0.0);
                let error = (f64::from(gradient[i]) - expected).abs();
                assert!(
                    error < 2e-4 * f64::from(largest) + 1e-6,
                    "{name}: {tensor}[{i}]: {} {expected}",
                    gradient[i]
                );
            }
        }
    }
}

#[test]
fn gradients_add_up_over_passes() {
    let (_, shape) = shapes().remove(1);
    let mut model = model(&shape, &TrainingOptions::new(2, SEQUENCE as u32));
    let (tokens, targets) = batch(shape.vocab);
    let gradients =
        |m: &TrainingModel| m.gradients().flat_map(|(_, g)| g.to_vec()).collect::<Vec<f32>>();
    model.zero_gradients();
    model.accumulate(&tokens, &targets, 1.0).expect("the batch fits");
    let once = gradients(&model);
    model.accumulate(&tokens, &targets, 1.0).expect("the batch fits");
    for (a, b) in once.iter().zip(gradients(&model)) {
        assert!((2.0 * a - b).abs() <= 1e-5 * b.abs() + 1e-6);
    }
    let norm = once.iter().map(|&g| f64::from(2.0 * g).powi(2)).sum::<f64>().sqrt();
    assert!((model.clip(0.0) / norm - 1.0).abs() < 1e-5);
    model.clip(0.25);
    assert!((model.clip(0.0) / 0.25 - 1.0).abs() < 1e-5);
    model.zero_gradients();
    assert_eq!(model.clip(1.0), 0.0);
}

#[test]
fn the_arena_is_exactly_what_was_planned() {
    for (name, shape) in shapes() {
        let model =
            TrainingModel::new(cpu(1), &shape, &TrainingOptions::new(3, 7)).expect("it has a plan");
        assert_eq!(model.arena_bytes(), model.plan().arena_bytes(), "{name}");
    }
}

#[test]
fn ten_steps_reduce_the_loss_with_the_same_bits_on_any_number_of_threads() {
    let run = |threads: usize| {
        let (_, shape) = shapes().remove(1);
        let mut model =
            TrainingModel::new(cpu(threads), &shape, &TrainingOptions::new(2, SEQUENCE as u32))
                .expect("it has a plan");
        model.init(5);
        let (tokens, targets) = batch(shape.vocab);
        let mut losses = Vec::new();
        for i in 0..10 {
            model.zero_gradients();
            losses.push(
                model.accumulate(&tokens, &targets, 1.0 / 16.0).expect("the batch fits").mean(),
            );
            model.clip(1.0);
            model.adamw(&step(i));
        }
        (
            losses,
            model
                .state()
                .into_iter()
                .flat_map(|(_, v)| v.to_vec())
                .map(f32::to_bits)
                .collect::<Vec<u32>>(),
        )
    };
    let (losses, state) = run(1);
    assert!((losses[0] - 37f64.ln()).abs() < 0.05, "{losses:?}");
    assert!(losses[9] < losses[0] - 0.5, "{losses:?}");
    assert_eq!((losses, state), run(3));
}

#[test]
fn a_run_that_takes_up_a_state_goes_on_as_if_never_stopped() {
    let (_, shape) = shapes().remove(3);
    let options = TrainingOptions::new(2, SEQUENCE as u32);
    let (tokens, targets) = batch(shape.vocab);
    let train = |model: &mut TrainingModel, steps: std::ops::Range<u64>| {
        for i in steps {
            model.zero_gradients();
            model.accumulate(&tokens, &targets, 1.0 / 16.0).expect("the batch fits");
            model.adamw(&step(i));
        }
    };
    let mut whole = model(&shape, &options);
    train(&mut whole, 0..3);
    let kept: Vec<(String, Vec<f32>)> =
        whole.state().into_iter().map(|(n, v)| (n, v.to_vec())).collect();
    train(&mut whole, 3..5);
    let mut resumed = TrainingModel::new(cpu(1), &shape, &options).expect("it has a plan");
    for ((name, to), (kept_name, from)) in resumed.state_mut().into_iter().zip(&kept) {
        assert_eq!(&name, kept_name);
        to.copy_from_slice(from);
    }
    train(&mut resumed, 3..5);
    assert_eq!(whole.state(), resumed.state());
}

#[test]
fn what_is_frozen_stays_and_costs_nothing_below() {
    let (_, shape) = shapes().remove(2);
    let all = TrainingOptions::new(2, SEQUENCE as u32);
    let mut options = all.clone();
    options.frozen = vec![
        "model.embed_tokens".to_owned(),
        "model.layers.0".to_owned(),
        "model.layers.1.mlp.up_proj".to_owned(),
    ];
    let mut frozen = model(&shape, &options);
    let mut free = model(&shape, &all);
    let (tokens, targets) = batch(shape.vocab);
    for m in [&mut frozen, &mut free] {
        m.zero_gradients();
        m.accumulate(&tokens, &targets, 1.0).expect("the batch fits");
    }
    let free_gradients: Vec<(String, Vec<f32>)> =
        free.gradients().map(|(t, g)| (t.name.clone(), g.to_vec())).collect();
    assert_eq!(frozen.gradients().count(), 13);
    for (tensor, gradient) in frozen.gradients() {
        assert!(!tensor.name.contains("layers.0") && !tensor.name.contains("up_proj"));
        let (_, expected) = free_gradients
            .iter()
            .find(|(name, _)| *name == tensor.name)
            .expect("all are trained there");
        assert_eq!(gradient, &expected[..], "{}", tensor.name);
    }
    assert!(frozen.plan().backward_flops() < free.plan().backward_flops() * 6 / 10);
    assert!(frozen.plan().arena_bytes() < free.plan().arena_bytes());
    let before = weights(&frozen);
    frozen.adamw(&step(0));
    for (name, values) in weights(&frozen) {
        let trained = frozen.gradients().any(|(t, _)| t.name == name);
        assert_eq!(values != before[&name], trained, "{name}");
    }
    options.frozen = vec!["model.layers.7".to_owned()];
    assert!(TrainingModel::new(cpu(1), &shape, &options).is_err());
}

#[test]
fn weight_decay_leaves_gains_and_biases_alone() {
    let (_, shape) = shapes().remove(2);
    let mut model = model(&shape, &TrainingOptions::new(1, 4));
    let before = weights(&model);
    model.zero_gradients();
    model.adamw(&AdamwStep { weight_decay: 0.5, ..step(0) });
    for (name, values) in weights(&model) {
        let decays = !(name.ends_with("norm.weight") || name.ends_with("bias"));
        let factor = if decays { 1.0 - 1e-2 * 0.5 } else { 1.0 };
        for (after, before) in values.iter().zip(&before[&name]) {
            assert!((after - factor * before).abs() <= 1e-6, "{name}");
        }
    }
}

#[test]
fn a_number_that_is_not_finite_is_traced_to_its_tensor() {
    let (_, shape) = shapes().remove(0);
    let mut model = model(&shape, &TrainingOptions::new(2, SEQUENCE as u32));
    let (tokens, targets) = batch(shape.vocab);
    let huge = "model.layers.0.mlp.gate_proj.weight".to_owned();
    for (n, values) in model.state_mut() {
        if n == huge {
            values.fill(1e38);
        }
    }
    let error = model.accumulate(&tokens, &targets, 1.0).expect_err("the loss is not finite");
    let ModelError::NotFinite { tensor } = &error else { panic!("{error}") };
    assert!(tensor.starts_with("layers.0"), "{tensor}");
    for (n, values) in model.state_mut() {
        if n == huge {
            values[3] = f32::NAN;
        }
    }
    let error = model.accumulate(&tokens, &targets, 1.0).expect_err("the loss is not finite");
    assert!(matches!(&error, ModelError::NotFinite { tensor } if *tensor == huge), "{error}");
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let (_, shape) = shapes().remove(0);
    let mut model = model(&shape, &TrainingOptions::new(2, SEQUENCE as u32));
    let (tokens, targets) = batch(shape.vocab);
    assert!(matches!(
        model.evaluate(&tokens[1..], &targets),
        Err(ModelError::Input { what: "tokens", .. })
    ));
    assert!(matches!(
        model.evaluate(&tokens, &targets[1..]),
        Err(ModelError::Input { what: "targets", .. })
    ));
    let mut beyond = tokens.clone();
    beyond[3] = shape.vocab;
    assert!(matches!(
        model.evaluate(&beyond, &targets),
        Err(ModelError::Input { what: "tokens", .. })
    ));
    assert!(matches!(
        model.evaluate(&tokens, &beyond),
        Err(ModelError::Input { what: "targets", .. })
    ));
}
