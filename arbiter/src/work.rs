//! How much work a job or a service is: the memory plan's figures, in the words
//! of the arbiter. The plan is the one that the runtime executes, so "does it
//! fit" and what is allocated are one number.

use crate::workload::{Precision, ServingWork, TrainingWork};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::{ServingOptions, plan_inference};
use petaflop_plan::plan::PlanError;
use petaflop_plan::recipe::{self, ResolvedRecipe, TrainingLength};
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::{TrainingOptions, plan_training};

/// Host memory that the process itself takes, in bytes.
pub(crate) const PROCESS_BYTES: u64 = 96 << 20;
/// Tokenizer, template and configuration in an artifact, in bytes, at most about this.
const ARTIFACT_EXTRAS: u64 = 4 << 20;
/// Bytes of a number in f32.
const F32: u64 = 4;

/// The work of a training job. `shape` is the recipe's own or the base model's; `data_bytes` is
/// the size of its datasets and `input_bytes` that of everything a fresh machine must fetch.
///
/// Where the recipe counts epochs, the number of steps is an estimate until the data is tokenised.
pub fn training(
    recipe: &ResolvedRecipe,
    shape: &ModelShape,
    data_bytes: u64,
    input_bytes: u64,
    checkpoint_interval_seconds: Option<u32>,
) -> Result<TrainingWork, PlanError> {
    let plan =
        plan_training(shape, &TrainingOptions::new(recipe.micro_batch_size, recipe.sequence_len))?;
    let passes = u64::from(recipe.gradient_accumulation_steps);
    let tokens_per_step =
        u64::from(recipe.sequence_len) * u64::from(recipe.micro_batch_size) * passes;
    let tokens = (data_bytes as f64 / bytes_per_token(shape.vocab)) as u64;
    let steps = match recipe.length {
        TrainingLength::Steps(steps) => steps,
        TrainingLength::Epochs(epochs) => {
            let trained = (tokens as f64 * (1.0 - recipe.val_set_size)) as u64;
            trained.div_ceil(tokens_per_step.max(1)).max(1).saturating_mul(epochs.into())
        }
    };
    let weights = shape.parameters().saturating_mul(F32);
    let checkpoint_bytes = weights.saturating_mul(3);
    Ok(TrainingWork {
        steps,
        tokens_per_step,
        flops_per_step: passes
            .saturating_mul(plan.forward_flops().saturating_add(plan.backward_flops())),
        traffic_bytes_per_step: passes
            .saturating_mul(plan.bytes_moved())
            .saturating_add(plan.update_bytes()),
        arena_bytes: plan.arena_bytes(),
        host_bytes: PROCESS_BYTES
            .saturating_add(data_bytes)
            .saturating_add(tokens.saturating_mul(F32))
            .saturating_add(checkpoint_bytes),
        checkpoint_bytes,
        artifact_bytes: weights.saturating_add(ARTIFACT_EXTRAS),
        input_bytes,
        checkpoint_interval_seconds,
        precision: match recipe.precision {
            recipe::Precision::F32 => Precision::F32,
        },
    })
}

/// Bytes of text that one token of a byte-pair encoding stands for, roughly: it grows with the
/// logarithm of the vocabulary (about 1.9 at 512 entries and 4.2 at 32 thousand, in English).
fn bytes_per_token(vocab: u32) -> f64 {
    (0.38 * f64::from(vocab.max(2)).log2() - 1.5).max(1.0)
}

/// The work of one replica that serves a model with these options of the runtime. The
/// number of replicas is filled in from the spec.
pub fn serving(shape: &ModelShape, options: &ServingOptions) -> Result<ServingWork, PlanError> {
    let plan = plan_inference(shape, options)?;
    let one_token =
        plan_inference(shape, &ServingOptions::new(options.weights, 1, 1, options.context))?;
    let half_full = u64::from(options.context / 2);
    Ok(ServingWork {
        replicas: 1,
        arena_bytes: plan.arena_bytes(),
        host_bytes: PROCESS_BYTES,
        flops_per_token: one_token.forward_flops(),
        weight_bytes_per_step: one_token.segments.parameters,
        cache_bytes_per_sequence: shape.kv_bytes_per_token(Dtype::F32).saturating_mul(half_full),
        max_sequences: options.max_sequences,
        max_millis_per_token: None,
        precision: Precision::F32,
    })
}
