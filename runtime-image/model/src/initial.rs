//! Weights to begin from, by counter: element `i` of tensor `t` depends on (seed, t, i) alone.

use petaflop_plan::plan::Tensor;
use petaflop_plan::shape::{ModelShape, TensorRole};

use crate::rng::Philox;

/// What the randomness of a counter is for, in its last word.
const INIT: u32 = 0;

/// Matrices from a normal distribution of deviation 0.02, those that write to the residual
/// stream divided by `√(2·layers)` (Radford et al. 2019), gains 1, biases 0. Adapters begin as
/// nothing (Hu et al. 2021): of each pair the first matrix from a normal distribution of variance
/// `1 ÷ (3·in)`, the second 0.
pub(crate) struct Initial {
    philox: Philox,
    residual: f64,
}

impl Initial {
    pub(crate) fn new(seed: u64, shape: &ModelShape) -> Self {
        let residual = 0.02 / libm::sqrt(2.0 * f64::from(shape.layers));
        Self { philox: Philox::new(seed), residual }
    }

    /// Fills the tensor of this index in its plan.
    pub(crate) fn fill(&self, index: u32, tensor: &Tensor, values: &mut [f32]) {
        let deviation = match tensor.role {
            TensorRole::Gain => return values.fill(1.0),
            TensorRole::Bias | TensorRole::AdapterUp => return values.fill(0.0),
            TensorRole::AdapterDown => 1.0 / libm::sqrt(3.0 * tensor.shape[1] as f64),
            TensorRole::Matrix
                if tensor.name.ends_with("o_proj.weight")
                    || tensor.name.ends_with("down_proj.weight") =>
            {
                self.residual
            }
            TensorRole::Matrix => 0.02,
        };
        for (block, four) in (0u64..).zip(values.chunks_mut(4)) {
            let normals = self.philox.normals([block as u32, (block >> 32) as u32, index, INIT]);
            for (value, normal) in four.iter_mut().zip(normals) {
                *value = (deviation * normal) as f32;
            }
        }
    }
}
