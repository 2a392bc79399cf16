//! A small model from end to end on a device behind Vulkan: lavapipe, where there is no other.
//!
//! `make kernels` runs it (`--features wgpu`, and a Vulkan driver).

#![allow(clippy::print_stdout)] // which device, and how near it came

#[path = "model/common.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod common;

use common::{model, tokens};
use petaflop_device::device::Device;
use petaflop_device::webgpu::WebGpu;
use petaflop_model::on_device::DeviceModel;
use petaflop_model::place::Training;
use petaflop_model::training::{AdamwStep, TrainingModel};
use petaflop_model::weights;
use petaflop_plan::shape::{ModelShape, Rope, RopeScaling};
use petaflop_plan::training::TrainingOptions;

/// Tokens that are decoded, and what they follow.
const DECODED: usize = 50;
const PROMPT: usize = 8;
/// Steps of training.
const STEPS: u64 = 20;
/// |found − processor's| ÷ (1 + |processor's|) of a logit, at most.
const LOGITS: f32 = 2e-4;
/// The same of a step's mean loss. AdamW's first steps are little more than the signs of gradients,
/// which rounding turns where they are near 0.
const LOSS: f64 = 2e-3;

fn shape() -> ModelShape {
    ModelShape {
        layers: 2,
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        intermediate: 96,
        vocab: 300,
        max_positions: 64,
        norm_eps: 1e-5,
        rope: Rope { theta: 10000.0, scaling: RopeScaling::None },
        tied_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    }
}

fn both(options: &TrainingOptions) -> (TrainingModel, DeviceModel<WebGpu>) {
    let device = WebGpu::open(true, |_, _| None)
        .expect("a Vulkan driver: apt-get install mesa-vulkan-drivers");
    println!("on {}", device.name());
    let (shape, folder) = (shape(), tempfile::tempdir().expect("a folder can be made"));
    let cpu = model(&shape, options);
    let tensors = cpu.tensors().map(|(t, values)| (t.name.as_str(), t.shape.as_slice(), values));
    weights::save(folder.path(), &shape, tensors).expect("it can be written");
    let mut device = DeviceModel::new(device, &shape, options).expect("it fits");
    let saved = weights::open(folder.path()).expect("it was just written");
    device.load(&*saved).expect("its shape is the same");
    (cpu, device)
}

/// The largest, and how far the next is below it.
fn choice(logits: &[f32]) -> (u32, f32) {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    (order[0], logits[order[0] as usize] - logits[order[1] as usize])
}

#[test]
fn fifty_tokens_are_decoded_as_on_the_processor() {
    let length = PROMPT + DECODED;
    let (mut cpu, mut device) = both(&TrainingOptions::new(1, length as u32));
    let vocab = shape().vocab;
    let mut text = tokens(length, vocab, 4);
    // What follows is not seen: attention is causal.
    text[PROMPT..].fill(0);
    let (mut worst, mut close) = (0f32, 0);
    for at in PROMPT..length {
        let row = (at - 1) * vocab as usize..at * vocab as usize;
        let found = device.logits(&text).expect("the device is there")[row.clone()].to_vec();
        let expected = &cpu.logits(&text).expect("it fits")[row];
        for (found, expected) in found.iter().zip(expected) {
            worst = worst.max((found - expected).abs() / (1.0 + expected.abs()));
        }
        let (token, margin) = choice(expected);
        if margin > 2.0 * LOGITS * (1.0 + expected[token as usize].abs()) {
            assert_eq!(choice(&found).0, token, "token {at}");
        } else {
            close += 1;
        }
        text[at] = token;
    }
    println!("{DECODED} tokens: logits at most {worst:.1e} apart, {close} too close to tell");
    assert!(worst <= LOGITS, "{worst}");
    assert!(close < DECODED / 5, "{close}");
}

#[test]
fn twenty_steps_have_the_processors_losses() {
    let (mut cpu, mut device) = both(&TrainingOptions::new(4, 16));
    let text = tokens(64, shape().vocab, 8);
    let targets: Vec<u32> = text.iter().map(|t| (t * 7 + 1) % shape().vocab).collect();
    let (mut worst, mut first, mut last) = (0f64, None, 0.0);
    for step in 0..STEPS {
        let adamw = AdamwStep {
            step,
            learning_rate: 3e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
        };
        cpu.zero_gradients();
        let expected = cpu.accumulate(&text, &targets, 1.0 / 64.0).expect("it fits").mean();
        cpu.clip(1.0);
        cpu.adamw(&adamw);
        device.zero_gradients().expect("the device is there");
        let found = device.accumulate(&text, &targets, 1.0 / 64.0).expect("it fits").mean();
        device.clip(1.0).expect("the device is there");
        device.adamw(&adamw).expect("the device is there");
        worst = worst.max((found - expected).abs() / (1.0 + expected));
        (first, last) = (first.or(Some(found)), found);
    }
    println!("{STEPS} steps: {first:?} to {last}, losses at most {worst:.1e} apart");
    assert!(worst <= LOSS, "{worst}");
    assert!(first.is_some_and(|first| last < 0.8 * first), "{first:?} {last}");
}
