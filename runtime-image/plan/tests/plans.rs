//! Whole plans: what they add up to, and what holds for every one of them.

use std::collections::BTreeSet;

use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::{ServingOptions, plan_inference};
use petaflop_plan::linear::{ADAPTABLE, Adapters};
use petaflop_plan::mesh::Mesh;
use petaflop_plan::ops::Op;
use petaflop_plan::plan::{ALIGNMENT, Layout, Plan, PlanError, Segment};
use petaflop_plan::shape::{ModelShape, Rope, RopeScaling};
use petaflop_plan::training::{TrainingOptions, plan_training};
use proptest::prelude::*;

/// SmolLM2-135M.
fn smollm() -> ModelShape {
    ModelShape {
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        vocab: 49152,
        max_positions: 8192,
        norm_eps: 1e-5,
        rope: Rope { theta: 100_000.0, scaling: RopeScaling::None },
        tied_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    }
}

#[test]
fn training_states_are_sixteen_bytes_a_parameter() {
    let shape = smollm();
    let plan = plan_training(&shape, &TrainingOptions::new(2, 256)).expect("it has a plan");
    let parameters = shape.parameters();
    assert_eq!(plan.trained_parameters(), parameters);
    // Every tensor of this shape is a multiple of the alignment, so nothing is lost to it.
    assert_eq!(plan.segments.parameters, 4 * parameters);
    assert_eq!(plan.segments.gradients, 4 * parameters);
    assert_eq!(plan.segments.moments, 8 * parameters);
    assert_eq!(plan.update_bytes(), 32 * parameters);
}

#[test]
fn kept_activations_are_those_of_the_published_formula() {
    let shape = smollm();
    let rows = 512;
    let plan = plan_training(&shape, &TrainingOptions::new(2, 256)).expect("it has a plan");
    let forward = plan.forward_steps as u32;
    let kept: u64 = plan
        .buffers
        .iter()
        .filter(|b| {
            b.segment == Segment::Activations
                && b.first < forward
                && b.last >= forward
                && b.name.starts_with("layers.7.")
        })
        .map(|b| b.bytes)
        .sum();
    // "Keep all" for f32 with attention that keeps only the log of its sums; the block's
    // input is the buffer that the block before it calls its output.
    let (d, q, kv, f, h) = (576, 576, 192, 1536, 9);
    assert_eq!(kept, rows * (4 * 4 * d + 4 * (2 * q + 2 * kv) + 3 * 4 * f + 4 * h + 8));
}

#[test]
fn arithmetic_is_two_for_each_weight_and_token_forward_and_twice_that_backward() {
    let shape = smollm();
    let (micro_batch, sequence) = (2, 256);
    let rows = u64::from(micro_batch * sequence);
    let plan =
        plan_training(&shape, &TrainingOptions::new(micro_batch, sequence)).expect("it has a plan");
    let gains = 576 * (2 * 30 + 1);
    let products = 2 * rows * (shape.parameters() - gains);
    let pairs = u64::from(micro_batch) * 256 * 257 / 2;
    let attention = 30 * 4 * pairs * 576;
    assert_eq!(plan.forward_flops(), products + attention);
    assert_eq!(plan.backward_flops(), 2 * products + attention / 2 * 5);
}

#[test]
fn serving_bytes_are_weights_cache_and_a_few_rows() {
    let shape = smollm();
    let options = ServingOptions::new(Dtype::Q8_0, 8, 128, 2048);
    let plan = plan_inference(&shape, &options).expect("it has a plan");
    let gains = 576 * (2 * 30 + 1);
    // Every matrix's rows are a multiple of 48 here, so only scales as f32 (36 bytes a block to the file's 34) are added.
    assert_eq!(plan.segments.parameters, (shape.parameters() - gains) / 32 * 36 + 4 * gains);
    assert_eq!(plan.segments.kv_cache, 8 * 2048 * shape.kv_bytes_per_token(Dtype::F32));
    assert_eq!(plan.segments.constants, 2 * 2048 * 32 * 4);
    assert_eq!((plan.segments.gradients, plan.segments.moments), (0, 0));
    // Residual, norm, queries, keys and values, attended; or residual, norm and the inner layer: never both.
    let row = 4 * (576 * 2 + 1536 + 576);
    assert!(
        plan.segments.activations <= 128 * row + 8 * 4 * (49152 + 2 * 576) + 16 * ALIGNMENT,
        "{}",
        plan.segments.activations
    );
    assert_eq!(plan.backward_flops(), 0);
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let shape = smollm();
    let name = |error: PlanError| match error {
        PlanError::Option { option, .. } => option,
        other => panic!("{other}"),
    };
    for (options, expected) in [
        (TrainingOptions::new(0, 8), "micro_batch × sequence"),
        (TrainingOptions::new(1, 8193), "sequence"),
        (TrainingOptions::new(1 << 20, 1 << 10), "micro_batch × sequence"),
        (
            TrainingOptions {
                frozen: vec!["model.layers.3".into(), "model.layer".into()],
                ..TrainingOptions::new(1, 8)
            },
            "frozen",
        ),
    ] {
        assert_eq!(name(plan_training(&shape, &options).expect_err(expected)), expected);
    }
    let good = ServingOptions::new(Dtype::F32, 4, 64, 100);
    for (options, expected) in [
        (ServingOptions { weights: Dtype::F16, ..good.clone() }, "weights"),
        (ServingOptions { max_sequences: 0, ..good.clone() }, "max_sequences"),
        (ServingOptions { max_batched_tokens: 3, ..good.clone() }, "max_batched_tokens"),
        (ServingOptions { logit_rows: 65, ..good.clone() }, "logit_rows"),
        (ServingOptions { context: 8193, ..good.clone() }, "context"),
        (ServingOptions { kv_blocks: 6, ..good.clone() }, "kv_blocks"),
    ] {
        assert_eq!(name(plan_inference(&shape, &options).expect_err(expected)), expected);
    }
    let two = Mesh { tensor: 2, ..Mesh::ONE };
    let split =
        plan_inference(&shape, &ServingOptions { mesh: two, ..good }).expect_err("one device");
    assert!(
        split.to_string().contains("not built yet, found data 1, tensor 2")
            || split.to_string().contains("tensor 2")
    );
    assert!(
        plan_training(&shape, &TrainingOptions { mesh: two, ..TrainingOptions::new(1, 8) })
            .is_err()
    );
    let odd = ModelShape { head_dim: 7, ..shape };
    assert!(matches!(plan_training(&odd, &TrainingOptions::new(1, 8)), Err(PlanError::Shape(_))));
}

#[test]
fn a_plan_is_one_json_object() {
    let plan = plan_training(&smollm(), &TrainingOptions::new(1, 8)).expect("it has a plan");
    let json = serde_json::to_value(&plan).expect("plain data");
    assert_eq!(json["steps"][0]["op"], "embed");
    assert_eq!(json["segments"]["parameters"], plan.segments.parameters);
}

/// What must hold for any plan.
fn check(plan: &Plan) {
    let mut written: BTreeSet<_> = plan
        .buffers
        .iter()
        .enumerate()
        .filter(|(_, b)| !matches!(b.segment, Segment::Activations | Segment::Workspace))
        .map(|(i, _)| i)
        .collect();
    for (at, step) in plan.steps.iter().enumerate() {
        let access = step.op.access();
        for id in &access.reads {
            assert!(
                written.contains(&id.index()),
                "step {at} reads {} before it is written",
                plan.buffer(*id).name
            );
        }
        for id in access.reads.iter().chain(&access.writes) {
            let buffer = plan.buffer(*id);
            assert!((buffer.first..=buffer.last).contains(&(at as u32)));
        }
        let in_place = |id| matches!(step.op, Op::Linear { residual: Some(r), out, .. } if r == id && out == id);
        for id in &access.writes {
            written.insert(id.index());
            let twice = access.writes.iter().filter(|other| *other == id).count();
            assert!(twice == 1 || in_place(*id));
        }
    }
    for (i, a) in plan.buffers.iter().enumerate() {
        assert_eq!(a.offset % ALIGNMENT, 0);
        if a.layout == Layout::Packed {
            assert_eq!(a.bytes, a.dtype.packed_bytes(a.shape[0], a.shape[1]));
            continue;
        }
        assert_eq!(a.bytes, a.dtype.bytes(a.shape.iter().product()));
        assert!(a.offset + a.bytes <= plan.segments.of(a.segment));
        for b in &plan.buffers[..i] {
            let meet = a.segment == b.segment
                && b.layout == Layout::Rows
                && a.first <= b.last
                && b.first <= a.last;
            let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
            assert!(!meet || apart, "{} and {} overlap", a.name, b.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn in_every_plan_live_buffers_are_apart_and_nothing_is_read_before_it_is_written(
        layers in 1u32..5, groups in 1u32..4, kv_heads in 1u32..4, half_head in 1u32..20, hidden in 1u32..100,
        intermediate in 1u32..200, vocab in 1u32..500, tied: bool, extra in 0..3, micro_batch in 1u32..4, sequence in 1u32..50,
        frozen_layers in 0u32..5, adapted in prop::sample::subsequence(ADAPTABLE.to_vec(), 0..7), rank in 1u32..20, sequences in 1u32..5, more in 0u32..40,
    ) {
        let shape = ModelShape {
            layers, hidden, heads: kv_heads * groups, kv_heads, head_dim: 2 * half_head, intermediate, vocab,
            max_positions: 64, tied_embeddings: tied, qkv_bias: extra == 1, qk_norm: extra == 2, ..smollm()
        };
        let frozen = (0..frozen_layers.min(layers)).map(|l| format!("model.layers.{l}")).collect();
        let targets: Vec<String> = adapted.into_iter().map(str::to_owned).collect();
        let adapters = (!targets.is_empty()).then_some(Adapters { rank, alpha: 16.0, targets });
        let training = plan_training(&shape, &TrainingOptions {
            frozen, frozen_weights: Dtype::Bf16, adapters, ..TrainingOptions::new(micro_batch, sequence)
        });
        let training = training.expect("all of these can be planned");
        check(&training);
        prop_assert!(training.segments.activations < training.buffers.iter()
            .filter(|b| b.segment == Segment::Activations).map(|b| b.bytes.next_multiple_of(ALIGNMENT)).sum::<u64>() || layers == 1);
        let bigger = plan_training(&shape, &TrainingOptions::new(micro_batch + 1, sequence)).expect("so can this");
        prop_assert!(bigger.arena_bytes() >= plan_training(&shape, &TrainingOptions::new(micro_batch, sequence)).expect("and this").arena_bytes());
        let serving = plan_inference(&shape, &ServingOptions::new(Dtype::Bf16, sequences, sequences + more, sequence));
        check(&serving.expect("all of these can be served"));
    }
}
