//! Low-rank pairs beside weights: what they cost, to the byte and the operation.

use petaflop_plan::dtype::Dtype;
use petaflop_plan::linear::{ADAPTABLE, Adapters};
use petaflop_plan::ops::Op;
use petaflop_plan::plan::{Plan, PlanError, Segment};
use petaflop_plan::shape::{ModelShape, Rope, RopeScaling};
use petaflop_plan::training::{TrainingOptions, plan_training};

/// SmolLM2-135M, whose every tensor is a multiple of the alignment in every format.
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

const RANK: u64 = 16;
/// Numbers of a pair for each row of its rank: in and out of q, k, v, o, gate, up, down.
const IN_AND_OUT: [u64; 7] =
    [576 + 576, 576 + 192, 576 + 192, 576 + 576, 576 + 1536, 576 + 1536, 1536 + 576];
const GAINS: u64 = 576 * (2 * 30 + 1);

fn adapters(targets: &[&str]) -> Adapters {
    let targets = targets.iter().map(|&target| target.to_owned()).collect();
    Adapters { rank: RANK as u32, alpha: 32.0, targets }
}

/// The whole model frozen in a format, with pairs on some projections.
fn frozen(format: Dtype, targets: &[&str]) -> TrainingOptions {
    TrainingOptions {
        frozen: vec!["model".to_owned()],
        frozen_weights: format,
        adapters: (!targets.is_empty()).then(|| adapters(targets)),
        ..TrainingOptions::new(2, 256)
    }
}

fn plan(options: &TrainingOptions) -> Plan {
    plan_training(&smollm(), options).expect("it has a plan")
}

fn is_pairs_own(op: &Op) -> bool {
    matches!(op, Op::Scale { .. } | Op::SwiGlu { .. })
}

#[test]
fn a_frozen_base_of_each_format_takes_its_own_bytes_and_the_pairs_sixteen_a_number() {
    let parameters = smollm().parameters();
    let pairs = 30 * RANK * IN_AND_OUT.iter().sum::<u64>();
    for (format, matrices) in [
        (Dtype::F32, (parameters - GAINS) * 4),
        (Dtype::Bf16, (parameters - GAINS) * 2),
        (Dtype::Q8_0, (parameters - GAINS) / 32 * 34),
    ] {
        let plan = plan(&frozen(format, &ADAPTABLE));
        assert_eq!(plan.trained_parameters(), pairs);
        assert_eq!(plan.segments.parameters, matrices + 4 * GAINS + 4 * pairs, "{format}");
        assert_eq!(plan.segments.gradients, 4 * pairs, "the base has no gradient");
        assert_eq!(plan.segments.moments, 8 * pairs, "nor moments");
        assert_eq!(plan.update_bytes(), 32 * pairs);
    }
}

#[test]
fn a_trained_base_keeps_its_gradient_beside_the_pairs() {
    let options = TrainingOptions {
        adapters: Some(adapters(&["q_proj", "v_proj"])),
        ..TrainingOptions::new(2, 256)
    };
    let pairs = 30 * RANK * (IN_AND_OUT[0] + IN_AND_OUT[2]);
    let plan = plan(&options);
    assert_eq!(plan.trained_parameters(), smollm().parameters() + pairs);
    assert_eq!(plan.segments.gradients, 4 * (smollm().parameters() + pairs));
    assert_eq!(plan.segments.moments, 8 * (smollm().parameters() + pairs));
}

#[test]
fn a_model_without_pairs_has_no_operation_of_theirs() {
    let plan = plan(&TrainingOptions::new(2, 256));
    assert!(!plan.steps.iter().any(|step| is_pairs_own(&step.op)));
    // Pairs on other projections leave the fused products of gate and up as they are.
    let plan = self::plan(&frozen(Dtype::F32, &["q_proj", "down_proj"]));
    let count = |of: fn(&Op) -> bool| plan.steps.iter().filter(|step| of(&step.op)).count();
    assert_eq!(count(|op| matches!(op, Op::LinearSwiGlu { .. })), 30);
    assert_eq!(count(|op| matches!(op, Op::SwiGlu { .. })), 0);
    assert_eq!(count(|op| matches!(op, Op::Scale { .. })), 4 * 30);
}

#[test]
fn arithmetic_of_a_pair_is_twice_its_numbers_a_token_forward_and_twice_that_backward() {
    let rows = 2 * 256;
    let base = plan(&frozen(Dtype::Bf16, &[]));
    assert_eq!(base.backward_flops(), 0, "nothing is trained");
    for targets in [&ADAPTABLE[..], &["k_proj"], &["gate_proj"]] {
        let adapted = plan(&frozen(Dtype::Bf16, targets));
        let numbers = ADAPTABLE
            .iter()
            .zip(IN_AND_OUT)
            .filter(|(name, _)| targets.contains(name))
            .map(|(_, n)| n);
        let pairs = 30 * 2 * rows * RANK * numbers.sum::<u64>();
        assert_eq!(adapted.forward_flops(), base.forward_flops() + pairs, "{targets:?}");
        // Inputs' gradients of the base, none of its weights; both of the pairs.
        let products = 2 * rows * (smollm().parameters() - GAINS);
        let attention = 30 * 4 * (2 * 256 * 257 / 2) * 576 / 2 * 5;
        assert_eq!(adapted.backward_flops(), products + attention + 2 * pairs, "{targets:?}");
        assert!(!adapted.steps.iter().any(|step| match step.op {
            Op::LinearDw { dweight, .. } => !adapted.buffer(dweight).name.contains("lora_"),
            _ => false,
        }));
    }
}

#[test]
fn what_a_pair_keeps_is_its_rank_and_the_input_of_its_layer() {
    let kept = |options: &TrainingOptions| -> u64 {
        let plan = plan(options);
        let forward = plan.forward_steps as u32;
        let in_layer = plan.buffers.iter().filter(|b| {
            b.segment == Segment::Activations
                && b.first < forward
                && b.last >= forward
                && b.name.starts_with("layers.7.")
        });
        in_layer.map(|b| b.bytes).sum()
    };
    let rows = 512;
    let (down, all) = (
        kept(&frozen(Dtype::F32, &["down_proj"])),
        kept(&frozen(Dtype::F32, &["down_proj", "v_proj"])),
    );
    // The keys' and queries' input is the values'; it was of no use before.
    assert_eq!(all - down, rows * 4 * (RANK + 576));
    assert!(kept(&TrainingOptions::new(2, 256)) > down);
}

#[test]
fn what_has_no_plan_is_refused_by_name() {
    let good = frozen(Dtype::F32, &["q_proj"]);
    let with = |change: fn(&mut Adapters)| {
        let mut adapters = adapters(&["q_proj"]);
        change(&mut adapters);
        TrainingOptions { adapters: Some(adapters), ..good.clone() }
    };
    let odd = ModelShape { hidden: 24, ..smollm() };
    for (shape, options, expected) in [
        (smollm(), with(|a| a.rank = 0), "adapters.rank"),
        (smollm(), with(|a| a.rank = 4097), "adapters.rank"),
        (smollm(), with(|a| a.alpha = f64::NAN), "adapters.alpha"),
        (smollm(), with(|a| a.alpha = 1e300), "adapters.alpha"),
        (smollm(), with(|a| a.targets = vec!["lm_head".to_owned()]), "adapters.targets"),
        (smollm(), with(|a| a.targets.clear()), "adapters.targets"),
        (smollm(), frozen(Dtype::Q4_0, &["q_proj"]), "frozen_weights"),
        (odd, frozen(Dtype::Q8_0, &["q_proj"]), "frozen_weights"),
    ] {
        match plan_training(&shape, &options).expect_err(expected) {
            PlanError::Option { option, .. } => assert_eq!(option, expected),
            other => panic!("{other}"),
        }
    }
}
