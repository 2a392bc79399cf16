//! The operations that only training has: attention over whole sequences, the
//! loss, and every gradient.

use petaflop_kernel as kernel;
use petaflop_kernel::{AttentionDims, Dims};
use petaflop_plan::ops::{BufferId, Op};
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::TrainingOptions;

use crate::pass::Pass;

/// One forward pass, and a backward pass where it is asked for.
pub(crate) struct TrainingPass<'a> {
    pub(crate) pass: Pass<'a>,
    pub(crate) options: &'a TrainingOptions,
    pub(crate) targets: &'a [u32],
    /// Factor on the gradient, where a backward pass follows.
    pub(crate) backward: Option<f32>,
}

impl TrainingPass<'_> {
    pub(crate) fn execute(&mut self, op: &Op) {
        let pass = &mut self.pass;
        if pass.shared(op) {
            return;
        }
        let (cpu, parameters) = (pass.cpu, pass.parameters);
        match *op {
            Op::Attention { q, k, v, out, log_sum_exp } => {
                let (dims, scale) = (attention_dims(pass.shape, self.options), pass.score_scale());
                let [q, k, v, out, log_sum_exp] = pass.rows([q, k, v, out, log_sum_exp]);
                kernel::attention_forward(cpu, q, k, v, out, log_sum_exp, dims, scale);
            }
            Op::AttentionBackward { q, k, v, out, log_sum_exp, dout, dq, dk, dv, delta } => {
                let (dims, scale) = (attention_dims(pass.shape, self.options), pass.score_scale());
                let [q, k, v, out, lse, dout, dq, dk, dv, delta] =
                    pass.rows([q, k, v, out, log_sum_exp, dout, dq, dk, dv, delta]);
                kernel::attention_backward(
                    cpu, q, k, v, out, lse, dout, dq, dk, dv, delta, dims, scale,
                );
            }
            Op::CrossEntropy { logits, losses } => {
                let [logits, losses] = pass.rows([logits, losses]);
                match self.backward {
                    Some(scale) => kernel::cross_entropy(cpu, logits, self.targets, losses, scale),
                    None => kernel::cross_entropy_loss(cpu, logits, self.targets, losses),
                }
            }
            Op::LinearDx { dy, weight, dx, adds } => {
                let dims = product_dims(pass, dy, dx);
                let [dy, dx] = pass.rows([dy, dx]);
                kernel::linear_dx(cpu, dy, parameters.weight(weight), dx, dims, adds);
            }
            Op::LinearDw { dy, x, dweight } => {
                let dims = product_dims(pass, dy, x);
                let [dy, x, dweight] = pass.work.views([dy, x, dweight]);
                kernel::linear_dw(cpu, dy, x, dweight, dims, true);
            }
            Op::BiasGradient { dy, dbias } => {
                let [dy, dbias] = pass.work.views([dy, dbias]);
                kernel::column_sum(cpu, dy, dbias);
            }
            Op::RmsNormBackward { x, gain, inverse_rms, dy, dx, adds, dgain } => {
                let gain = parameters.f32s(gain);
                match dgain {
                    Some(dgain) => {
                        let [x, inverse, dy, dx, dgain] =
                            pass.work.views([x, inverse_rms, dy, dx, dgain]);
                        kernel::rms_norm_backward(cpu, x, gain, inverse, dy, dx, adds, Some(dgain));
                    }
                    None => {
                        let [x, inverse, dy, dx] = pass.work.views([x, inverse_rms, dy, dx]);
                        kernel::rms_norm_backward(cpu, x, gain, inverse, dy, dx, adds, None);
                    }
                }
            }
            Op::SwiGluBackward { gate, up, dout, dgate, dup } => {
                let [gate, up, dout, dgate, dup] = pass.rows([gate, up, dout, dgate, dup]);
                kernel::swiglu_backward(cpu, gate, up, dout, dgate, dup);
            }
            Op::EmbedBackward { dx, dtable } => {
                let (tokens, width) = (pass.tokens, pass.width(dx));
                let [dx, dtable] = pass.work.views([dx, dtable]);
                kernel::embedding_backward(cpu, tokens, dx, dtable, width);
            }
            Op::WriteKv { .. } | Op::PagedAttention { .. } | Op::GatherRows { .. } => {
                unreachable!("a training plan has no key/value cache")
            }
            Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::Linear { .. }
            | Op::LinearSwiGlu { .. }
            | Op::Add { .. }
            | Op::SwiGlu { .. }
            | Op::Scale { .. }
            | Op::Rope { .. } => {
                unreachable!("done by Pass::shared")
            }
        }
    }
}

/// Of the forward product that `dy` and its input belong to.
fn product_dims(pass: &Pass<'_>, dy: BufferId, x: BufferId) -> Dims {
    pass.dims(x, dy)
}

fn attention_dims(shape: &ModelShape, options: &TrainingOptions) -> AttentionDims {
    AttentionDims {
        batch: options.micro_batch as usize,
        seq: options.sequence as usize,
        heads: shape.heads as usize,
        kv_heads: shape.kv_heads as usize,
        head_dim: shape.head_dim as usize,
    }
}
