//! A model on a device: the interpreter has every bit of the processor's.

use petaflop_device::interpreted::Interpreter;
use petaflop_model::on_device::DeviceModel;
use petaflop_model::training::{AdamwStep, NO_TARGET, TrainingModel};
use petaflop_model::{ModelError, weights};
use petaflop_plan::dtype::Dtype;
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
