//! Operations taken apart: more launches and more memory, the same bits.

use petaflop_model::inference::{Chunk, InferenceModel, Logits};
use petaflop_model::training::TrainingModel;
use petaflop_model::weights;
use petaflop_plan::apart::Fusion;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::plan::Plan;
use petaflop_plan::training::TrainingOptions;

use crate::common::{bits, cpu, model, shapes, tokens};

const LENGTH: usize = 9;

/// Taken apart it is more of both.
fn is_apart(apart: &Plan, fused: &Plan) {
    let written = |plan: &Plan| plan.steps.iter().map(|step| step.bytes_written).sum::<u64>();
    assert!(apart.steps.len() > fused.steps.len());
    assert!(written(apart) > written(fused));
}

#[test]
fn a_step_of_training_has_the_same_losses_and_gradients() {
    for (name, shape) in shapes() {
        let options = TrainingOptions::new(1, LENGTH as u32);
        let apart = TrainingOptions { fusion: Fusion::Apart, ..options.clone() };
        let text = tokens(LENGTH, shape.vocab, 5);
        let targets = tokens(LENGTH, shape.vocab, 6);
        let step = |mut model: TrainingModel| {
            let loss = model.accumulate(&text, &targets, 0.5).expect("it fits");
            (loss, model)
        };
        let (fused, fused_model) = step(model(&shape, &options));
        let (apart, apart_model) = step(model(&shape, &apart));
        is_apart(apart_model.plan(), fused_model.plan());
        assert_eq!(apart, fused, "{name}");
        for ((tensor, found), (_, expected)) in apart_model.gradients().zip(fused_model.gradients())
        {
            assert_eq!(bits(found), bits(expected), "{name}: gradient of {}", tensor.name);
        }
    }
}

#[test]
fn a_prompt_has_the_same_logits() {
    for (name, shape) in shapes() {
        let trained = model(&shape, &TrainingOptions::new(1, 1));
        let folder = tempfile::tempdir().expect("a folder can be made");
        let tensors = trained.tensors().map(|(t, v)| (t.name.as_str(), &t.shape[..], v));
        weights::save(folder.path(), &shape, tensors).expect("it can be written");
        let saved = weights::open(folder.path()).expect("it was just written");
        let text = tokens(LENGTH, shape.vocab, 7);
        let logits = |fusion| {
            let options = ServingOptions {
                fusion,
                logit_rows: LENGTH as u32,
                ..ServingOptions::new(Dtype::F32, 1, 16, 16)
            };
            let mut model = InferenceModel::new(cpu(2), &*saved, &options).expect("it fits");
            let chunk = Chunk { tokens: &text, start: 0, blocks: &[0], logits: Logits::All };
            let found = model.forward(&[chunk]).expect("it fits").to_vec();
            (found, model.plan().clone())
        };
        let (fused, plan) = logits(Fusion::Fused);
        let (apart, apart_plan) = logits(Fusion::Apart);
        is_apart(&apart_plan, &plan);
        assert_eq!(bits(&apart), bits(&fused), "{name}");
    }
}
