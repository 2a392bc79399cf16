//! A model on a device: the interpreter has every bit of the processor's.

use petaflop_device::device::DeviceError;
use petaflop_device::failing::{Failing, Fault};
use petaflop_device::interpreted::Interpreter;
use petaflop_model::inference::{Chunk, Logits};
use petaflop_model::on_device::{DeviceModel, serving::DeviceServing};
use petaflop_model::place::{Serving, Training};
use petaflop_model::training::{AdamwStep, NO_TARGET, TrainingModel};
use petaflop_model::{ModelError, weights};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::TrainingOptions;

use crate::common::{bits, model, shapes, tokens};

const SEQUENCES: u32 = 2;
const LENGTH: u32 = 5;

/// The model of this shape on the processor, and the same weights on the interpreter.
fn both(shape: &ModelShape) -> (TrainingModel, DeviceModel<Interpreter>) {
    let options = TrainingOptions::new(SEQUENCES, LENGTH);
    let cpu = model(shape, &options);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let tensors = cpu.tensors().map(|(t, values)| (t.name.as_str(), t.shape.as_slice(), values));
    weights::save(folder.path(), shape, tensors).expect("it can be written");
    let mut device = DeviceModel::new(Interpreter, shape, &options).expect("it has a plan");
    let saved = weights::open(folder.path()).expect("it was just written");
    device.load(&*saved).expect("its shape is the same");
    (cpu, device)
}

#[test]
fn every_form_of_model_trains_on_a_device_with_the_processors_bits() {
    for (name, shape) in shapes() {
        let (mut cpu, mut device) = both(&shape);
        let rows = (SEQUENCES * LENGTH) as usize;
        let text = tokens(rows, shape.vocab, 5);
        let mut targets = tokens(rows, shape.vocab, 6);
        targets[3] = NO_TARGET;
        let found = device.logits(&text).expect("it fits");
        assert_eq!(bits(&found), bits(cpu.logits(&text).expect("it fits")), "{name}: logits");
        for step in 0..2 {
            cpu.zero_gradients();
            device.zero_gradients().expect("the device is there");
            let expected = cpu.accumulate(&text, &targets, 0.125).expect("it fits");
            let found = device.accumulate(&text, &targets, 0.125).expect("it fits");
            assert_eq!(found, expected, "{name}: loss of step {step}");
            let gradients = device.gradients().expect("the device is there");
            for ((tensor, found), (_, expected)) in gradients.iter().zip(cpu.gradients()) {
                assert_eq!(bits(found), bits(expected), "{name}: gradient of {}", tensor.name);
            }
            let norm = device.clip(0.5).expect("the device is there");
            assert_eq!(norm.to_bits(), cpu.clip(0.5).to_bits(), "{name}: norm of step {step}");
            let adamw = AdamwStep {
                step,
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
            };
            cpu.adamw(&adamw);
            device.adamw(&adamw).expect("the device is there");
        }
        let tensors = device.tensors().expect("the device is there");
        for ((tensor, found), (_, expected)) in tensors.iter().zip(cpu.tensors()) {
            assert_eq!(bits(found), bits(expected), "{name}: {}", tensor.name);
        }
    }
}

#[test]
fn what_a_device_cannot_do_is_refused_before_it_starts() {
    let shape = shapes().remove(0).1;
    let frozen = TrainingOptions {
        frozen: vec!["model.embed_tokens.weight".to_owned()],
        frozen_weights: Dtype::Bf16,
        ..TrainingOptions::new(1, 2)
    };
    let refused = DeviceModel::new(Interpreter, &shape, &frozen).err();
    assert!(
        matches!(&refused, Some(ModelError::Input { what: "frozen_weights", found, .. }) if found.contains("bf16")),
        "{refused:?}"
    );
    let (_, mut device) = both(&shape);
    assert!(matches!(device.logits(&[0; 3]), Err(ModelError::Input { what: "tokens", .. })));
}

/// A model's folder, and the logits of a text of so many tokens on the processor.
fn saved(shape: &ModelShape, length: usize) -> (tempfile::TempDir, Vec<u32>, Vec<f32>) {
    let mut cpu = model(shape, &TrainingOptions::new(1, length as u32));
    let text = tokens(length, shape.vocab, 21);
    let logits = cpu.logits(&text).expect("it fits").to_vec();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let tensors = cpu.tensors().map(|(t, values)| (t.name.as_str(), t.shape.as_slice(), values));
    weights::save(folder.path(), shape, tensors).expect("it can be written");
    (folder, text, logits)
}

#[test]
fn a_device_answers_with_the_processors_bits_however_a_text_is_cut() {
    const LENGTH: usize = 20;
    for (name, shape) in shapes() {
        let (folder, text, expected) = saved(&shape, LENGTH);
        let (vocab, saved) = (shape.vocab as usize, weights::open(folder.path()).expect("a model"));
        let options = ServingOptions::new(Dtype::F32, 2, 32, LENGTH as u32);
        let mut device = DeviceServing::new(Interpreter, &*saved, &options).expect("it fits");
        // Beside another sequence, in blocks of no order.
        let other = Chunk { tokens: &[1, 2], start: 0, blocks: &[0], logits: Logits::None };
        let chunk = |range: std::ops::Range<usize>, logits| Chunk {
            tokens: &text[range.clone()],
            start: range.start,
            blocks: &[3, 1],
            logits,
        };
        assert!(device.forward(&[chunk(0..7, Logits::None), other]).expect("fits").is_empty());
        for (range, logits, rows) in [
            (7..17, Logits::Last, 16..17),
            (17..18, Logits::Last, 17..18),
            (18..20, Logits::All, 18..20),
        ] {
            let found = device.forward(&[chunk(range, logits)]).expect("it fits");
            let expected = &expected[rows.start * vocab..rows.end * vocab];
            assert_eq!(bits(found), bits(expected), "{name}: rows {rows:?}");
        }
    }
}

#[test]
fn too_little_memory_of_the_device_is_refused_with_the_bytes_before_any_is_taken() {
    let (shape, options) = (shapes().remove(0).1, TrainingOptions::new(2, 3));
    let with = |bytes| {
        // The memory is asked about first: a device that is gone would say so.
        let gone = Failing::new(Interpreter, Fault::Lost { after: 0 });
        DeviceModel::new(Failing::new(gone, Fault::Memory(bytes)), &shape, &options).err()
    };
    let Some(ModelError::Device(DeviceError::DoesNotFit { needed, available: 0, .. })) = with(0)
    else {
        panic!("expected a refusal with the bytes");
    };
    assert!(matches!(
        with(needed - 1),
        Some(ModelError::Device(DeviceError::DoesNotFit { available, .. })) if available == needed - 1
    ));
    let enough = Failing::new(Interpreter, Fault::Memory(needed));
    assert!(DeviceModel::new(enough, &shape, &options).is_ok());
    // What is taken is what was asked for: plan, tokens, targets, sums.
    let plan = petaflop_plan::training::plan_training(&shape, &options).expect("it has a plan");
    assert!(needed > plan.arena_bytes(), "{needed}");
}

#[test]
fn a_device_that_disappears_or_refuses_a_kernel_ends_the_pass_with_its_reason() {
    let shape = shapes().remove(0).1;
    let options = TrainingOptions::new(1, 4);
    for (fault, why) in [
        (Fault::Lost { after: 10 }, "the device was lost"),
        (Fault::Compile("rms_norm"), "kernel rms_norm does not compile on this driver"),
    ] {
        let device = Failing::new(Interpreter, fault);
        let mut device = DeviceModel::new(device, &shape, &options).expect("it fits");
        device.init(1).expect("nothing was launched yet");
        let error = device.accumulate(&[1, 2, 3, 4], &[2, 3, 4, 5], 1.0).expect_err("a fault");
        assert!(error.to_string().starts_with(why), "{error}");
    }
}
