//! Operations taken apart: one launch for each product, sum and map, and every result through
//! memory. The bits stay the same; it is what fusion is measured against.

use serde::{Deserialize, Serialize};

use crate::builder::Builder;
use crate::dtype::Dtype;
use crate::ops::{BufferId, Op};
use crate::plan::Segment;

/// Whether products end in what is done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    /// Residuals, sums of gradients and SwiGLU are part of their products.
    #[default]
    Fused,
    /// Each is a launch of its own, over the same kernels. Attention stays one, as do a loss and
    /// its gradient, and a bias with its product.
    Apart,
}

impl Builder<'_> {
    /// Appends what `op` is made of.
    pub(crate) fn push_apart(&mut self, op: Op) {
        match op {
            Op::Linear { x, weight, bias, residual: Some(residual), out } => {
                // In place, the residual must outlive the product.
                let product = if residual == out { self.like(out) } else { out };
                let term = if residual == out { product } else { residual };
                self.append(Op::Linear { x, weight, bias, residual: None, out: product });
                self.append(Op::Add { x: term, to: out });
            }
            Op::LinearSwiGlu { x, gate, up, kept, out } => {
                let (g, u) = kept.unwrap_or_else(|| (self.like(out), self.like(out)));
                for (weight, out) in [(gate, g), (up, u)] {
                    self.append(Op::Linear { x, weight, bias: None, residual: None, out });
                }
                self.append(Op::SwiGlu { gate: g, up: u, out });
            }
            Op::LinearDx { dy, weight, dx, adds: true } => {
                let product = self.like(dx);
                self.append(Op::LinearDx { dy, weight, dx: product, adds: false });
                self.append(Op::Add { x: product, to: dx });
            }
            Op::RmsNormBackward { x, gain, inverse_rms, dy, dx, adds: true, dgain } => {
                let own = self.like(dx);
                let norm =
                    Op::RmsNormBackward { x, gain, inverse_rms, dy, dx: own, adds: false, dgain };
                self.append(norm);
                self.append(Op::Add { x: own, to: dx });
            }
            whole => self.append(whole),
        }
    }

    /// A buffer of the same form.
    fn like(&mut self, id: BufferId) -> BufferId {
        let of = self.of(id);
        let (name, shape) = (format!("part of {}", of.name), of.shape.clone());
        self.buffer(name, &shape, Dtype::F32, Segment::Activations)
    }
}
