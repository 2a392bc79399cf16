//! Linear layers: a weight of any format, and a low-rank pair beside it where the
//! layer is adapted (Hu et al. 2021, *LoRA*): `y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ` with A `[rank, in]`,
//! B `[out, rank]` and `s = alpha ÷ rank`. A pair is two more products and a scale, so
//! a layer without one costs what it always did.

use serde::{Deserialize, Serialize};

use crate::builder::Builder;
use crate::ops::{BufferId, Op};
use crate::plan::PlanError;

/// The projections of a block that may be adapted, as Hugging Face names them.
pub const ADAPTABLE: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Low-rank pairs that are trained beside weights. Whether those are trained too is
/// another question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapters {
    /// Rows of A and columns of B.
    pub rank: u32,
    /// The pair's product is multiplied by `alpha ÷ rank`.
    pub alpha: f64,
    /// Which of [`ADAPTABLE`] get a pair, in every block.
    pub targets: Vec<String>,
}

const MAX_RANK: u32 = 1 << 12;

impl Adapters {
    /// Factor on the pair's product: `alpha ÷ rank`, rounded to f32 once.
    pub fn scale(&self) -> f32 {
        (self.alpha / f64::from(self.rank)) as f32
    }

    /// Whether the tensor of this name is the weight of a layer that gets a pair.
    pub(crate) fn adapts(&self, tensor: &str) -> bool {
        let projection =
            tensor.strip_suffix(".weight").and_then(|module| module.rsplit('.').next());
        projection.is_some_and(|found| self.targets.iter().any(|target| target == found))
    }

    pub(crate) fn validate(&self) -> Result<(), PlanError> {
        let Self { rank, alpha, targets } = self;
        let refuse = |option, expected: String, found: String| {
            Err(PlanError::Option { option, expected, found })
        };
        if !(1..=MAX_RANK).contains(rank) {
            return refuse("adapters.rank", format!("1 to {MAX_RANK}"), rank.to_string());
        }
        if !alpha.is_finite() || !self.scale().is_finite() {
            return refuse(
                "adapters.alpha",
                "a number that f32 holds".to_owned(),
                alpha.to_string(),
            );
        }
        let unknown = targets.iter().find(|target| !ADAPTABLE.contains(&target.as_str()));
        if targets.is_empty() || unknown.is_some() {
            let found = unknown.map_or_else(|| "none".to_owned(), Clone::clone);
            let expected = format!("one or several of {}", ADAPTABLE.join(", "));
            return refuse("adapters.targets", expected, found);
        }
        Ok(())
    }
}

/// A linear layer: tensors as indices into [`Builder::tensors`].
#[derive(Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) weight: usize,
    pub(crate) bias: Option<usize>,
    pub(crate) pair: Option<Pair>,
}

/// A low-rank pair.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    /// A.
    pub(crate) down: usize,
    /// B.
    pub(crate) up: usize,
    /// [`Adapters::scale`].
    pub(crate) scale: f32,
}

impl Linear {
    /// Its tensors.
    pub(crate) fn tensors(self) -> impl Iterator<Item = usize> {
        let Self { weight, bias, pair } = self;
        let (down, up) = pair.map(|Pair { down, up, scale: _ }| (down, up)).unzip();
        [Some(weight), bias, down, up].into_iter().flatten()
    }
}

impl Builder<'_> {
    /// `out = x·Wᵀ (+ bias) (+ residual) (+ s·(x·Aᵀ)·Bᵀ)`. Returns `s·x·Aᵀ`, which the
    /// pair's gradient needs.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        linear: Linear,
        x: BufferId,
        residual: Option<BufferId>,
        out: BufferId,
    ) -> Option<BufferId> {
        let Linear { weight, bias, pair } = linear;
        let bias = bias.map(|t| self.value(t));
        self.push(Op::Linear { x, weight: self.value(weight), bias, residual, out });
        let Pair { down, up, scale } = pair?;
        let low = self.activation(format!("{name}.low_rank"), self.rank(down));
        let down = self.value(down);
        self.push(Op::Linear { x, weight: down, bias: None, residual: None, out: low });
        self.push(Op::Scale { x: low, factor: scale });
        let up = self.value(up);
        self.push(Op::Linear { x: low, weight: up, bias: None, residual: Some(out), out });
        Some(low)
    }

    /// Gradients of the layer's own tensors: of weight and bias where they are trained,
    /// and of its pair, for which `low` is what [`Self::linear`] returned. Returns the
    /// gradient of `x·Aᵀ`, through which [`Self::linear_dx`] goes on.
    pub(crate) fn linear_dw(
        &mut self,
        name: &str,
        linear: Linear,
        low: Option<BufferId>,
        dy: BufferId,
        x: BufferId,
    ) -> Option<BufferId> {
        let Linear { weight, bias, pair } = linear;
        if let Some(dbias) = bias.and_then(|t| self.gradient(t)) {
            self.push(Op::BiasGradient { dy, dbias });
        }
        self.product_gradient(weight, dy, x);
        let (Pair { down, up, scale }, low) = pair.zip(low)?;
        self.product_gradient(up, dy, low);
        let dlow = self.activation(format!("{name}.low_rank"), self.rank(down));
        self.push(Op::LinearDx { dy, weight: self.value(up), dx: dlow, adds: false });
        self.push(Op::Scale { x: dlow, factor: scale });
        self.product_gradient(down, dlow, x);
        Some(dlow)
    }

    /// Gradient of the layer's input, through the weight and through the pair; `dlow` is
    /// what [`Self::linear_dw`] returned. `adds`: to what `dx` holds.
    pub(crate) fn linear_dx(
        &mut self,
        linear: Linear,
        dlow: Option<BufferId>,
        dy: BufferId,
        dx: BufferId,
        adds: bool,
    ) {
        self.push(Op::LinearDx { dy, weight: self.value(linear.weight), dx, adds });
        if let Some((pair, dlow)) = linear.pair.zip(dlow) {
            self.push(Op::LinearDx { dy: dlow, weight: self.value(pair.down), dx, adds: true });
        }
    }

    /// `dweight += dyᵀ·x` where the weight is trained.
    pub(crate) fn product_gradient(&mut self, weight: usize, dy: BufferId, x: BufferId) {
        if let Some(dweight) = self.gradient(weight) {
            self.push(Op::LinearDw { dy, x, dweight });
        }
    }

    /// Rows of A.
    fn rank(&self, down: usize) -> u64 {
        self.tensors[down].shape[0]
    }
}

#[cfg(test)]
mod tests {
    use super::{ADAPTABLE, Adapters};

    #[test]
    fn a_target_names_a_projection_and_nothing_else() {
        let adapters = Adapters { rank: 4, alpha: 8.0, targets: vec!["o_proj".to_owned()] };
        assert_eq!(adapters.scale(), 2.0);
        assert!(adapters.adapts("model.layers.3.self_attn.o_proj.weight"));
        assert!(!adapters.adapts("model.layers.3.self_attn.o_proj.bias"));
        assert!(!adapters.adapts("model.layers.3.mlp.no_proj.weight"));
        for target in ["lm_head", "proj", "self_attn.o_proj", ""] {
            let adapters = Adapters { targets: vec![target.to_owned()], ..adapters.clone() };
            let refused = adapters.validate().expect_err(target).to_string();
            assert!(refused.contains(ADAPTABLE[6]) && refused.contains(target), "{refused}");
        }
    }
}
