//! Executes operations of a plan, one kernel call each. What training and serving
//! share is here; their own operations are beside their loops.

use petaflop_kernel as kernel;
use petaflop_kernel::{Cpu, Dims, Epilogue};
use petaflop_plan::ops::{BufferId, Op};
use petaflop_plan::plan::Plan;
use petaflop_plan::shape::ModelShape;

use crate::arena::{Matrix, Parameters, Work};

/// One pass over a plan's steps.
pub(crate) struct Pass<'a> {
    pub(crate) cpu: &'a Cpu,
    pub(crate) shape: &'a ModelShape,
    pub(crate) plan: &'a Plan,
    pub(crate) parameters: &'a Parameters,
    pub(crate) work: &'a mut Work,
    /// `[rows]`.
    pub(crate) tokens: &'a [u32],
    /// `[rows]`: each token's place in its sequence.
    pub(crate) positions: &'a [u32],
    /// Rows of this pass; at most the plan's.
    pub(crate) rows: usize,
}

impl Pass<'_> {
    /// Numbers in one row of a buffer.
    pub(crate) fn width(&self, id: BufferId) -> usize {
        let shape = &self.plan.buffer(id).shape;
        usize::try_from(shape[1..].iter().product::<u64>()).expect("the arena holds it, so it fits")
    }

    /// The first `rows` rows of each buffer, side by side.
    pub(crate) fn rows<const N: usize>(&mut self, ids: [BufferId; N]) -> [&mut [f32]; N] {
        let lengths = ids.map(|id| self.rows * self.width(id));
        let mut views = self.work.views(ids);
        for (view, len) in views.iter_mut().zip(lengths) {
            *view = &mut std::mem::take(view)[..len];
        }
        views
    }

    pub(crate) fn dims(&self, x: BufferId, out: BufferId) -> Dims {
        Dims { t: self.rows, k: self.width(x), n: self.width(out) }
    }

    /// Does `op` where it is one of those that training and serving share; says whether it was.
    pub(crate) fn shared(&mut self, op: &Op) -> bool {
        let (cpu, parameters) = (self.cpu, self.parameters);
        match *op {
            Op::Embed { table, out } => {
                let (tokens, width) = (self.tokens, self.width(out));
                let [out] = self.rows([out]);
                match parameters.matrix(table) {
                    Matrix::Rows(table) => kernel::embedding(cpu, tokens, table, out, width),
                    Matrix::Packed(table) => {
                        for (out, &token) in out.chunks_exact_mut(width).zip(tokens) {
                            table.row(token as usize, out);
                        }
                    }
                }
            }
            Op::RmsNorm { x, gain, out, inverse_rms } => {
                let eps = self.shape.norm_eps as f32;
                let [x, out, inverse_rms] = self.rows([x, out, inverse_rms]);
                kernel::rms_norm(cpu, x, parameters.f32s(gain), out, inverse_rms, eps);
            }
            Op::Linear { x, weight, bias, residual, out } => {
                if let Some(residual) = residual.filter(|&r| r != out) {
                    let [residual, out] = self.rows([residual, out]);
                    out.copy_from_slice(residual);
                }
                let dims = self.dims(x, out);
                let epilogue =
                    Epilogue { bias: bias.map(|b| parameters.f32s(b)), add: residual.is_some() };
                let [x, out] = self.rows([x, out]);
                match parameters.matrix(weight) {
                    Matrix::Rows(weight) => kernel::linear(cpu, x, weight, out, dims, epilogue),
                    Matrix::Packed(weight) => {
                        kernel::linear_packed(cpu, x, weight, out, dims.t, epilogue)
                    }
                }
            }
            Op::LinearSwiGlu { x, gate, up, kept, out } => {
                let dims = self.dims(x, out);
                match (parameters.matrix(gate), parameters.matrix(up), kept) {
                    (Matrix::Packed(gate), Matrix::Packed(up), None) => {
                        let [x, out] = self.rows([x, out]);
                        kernel::linear_swiglu_packed(cpu, x, gate, up, out, dims.t);
                    }
                    (Matrix::Rows(gate), Matrix::Rows(up), Some((kept_gate, kept_up))) => {
                        let [x, out, kept_gate, kept_up] = self.rows([x, out, kept_gate, kept_up]);
                        kernel::linear_swiglu(
                            cpu,
                            x,
                            gate,
                            up,
                            out,
                            Some((kept_gate, kept_up)),
                            dims,
                        );
                    }
                    _ => unreachable!(
                        "serving packs its weights and keeps nothing, training does neither"
                    ),
                }
            }
            Op::Add { x, to } => {
                let [x, to] = self.rows([x, to]);
                kernel::add(cpu, x, to);
            }
            Op::SwiGlu { gate, up, out } => {
                let [gate, up, out] = self.rows([gate, up, out]);
                kernel::swiglu(cpu, gate, up, out);
            }
            Op::Scale { x, factor } => {
                let [x] = self.rows([x]);
                kernel::scale(cpu, x, factor);
            }
            Op::Rope { x, heads, cos, sin, inverse } => {
                let (positions, len) = (self.positions, self.rows * self.width(x));
                let [x, cos, sin] = self.work.views([x, cos, sin]);
                kernel::rope(cpu, &mut x[..len], cos, sin, positions, heads as usize, inverse);
            }
            _ => return false,
        }
        true
    }

    /// See [`score_scale`].
    pub(crate) fn score_scale(&self) -> f32 {
        score_scale(self.shape)
    }
}

/// Factor on the scores of attention.
pub(crate) fn score_scale(shape: &ModelShape) -> f32 {
    (1.0 / libm::sqrt(f64::from(shape.head_dim))) as f32
}
