//! A model in training: the forward and the backward pass of the plan, the
//! gradients they add up, and the optimiser's step.

use std::sync::Arc;

use petaflop_kernel as kernel;
use petaflop_kernel::{Cpu, IGNORE};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::plan::{Plan, Segment, Tensor};
use petaflop_plan::shape::{ModelShape, TensorRole};
use petaflop_plan::training::{TrainingOptions, plan_training};

use crate::arena::Arena;
use crate::backward::TrainingPass;
use crate::error::ModelError;
use crate::initial::Initial;
use crate::pass::Pass;
use crate::rope;
use crate::weights::{Weights, encode};

/// Marks a position that has no target.
pub const NO_TARGET: u32 = IGNORE;

/// A model, its gradients and its optimiser's moments.
pub struct TrainingModel {
    cpu: Arc<Cpu>,
    shape: ModelShape,
    options: TrainingOptions,
    plan: Plan,
    arena: Arena,
    /// `[B·S]`: 0 … S−1 for each sequence.
    positions: Vec<u32>,
}

/// Sum of the negative log-likelihoods of some targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// In nats, summed over the targets in the order of their places.
    pub nats: f64,
    /// How many targets there were.
    pub tokens: u64,
}

impl Loss {
    /// Nats a target; 0 without targets.
    pub fn mean(self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.nats / self.tokens as f64 }
    }
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Self) {
        self.nats += other.nats;
        self.tokens += other.tokens;
    }
}

/// One step of AdamW (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Steps done before it: 0 for the first.
    pub step: u64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of matrices; gains and biases are not decayed.
    pub weight_decay: f64,
}

impl AdamwStep {
    /// What the kernel takes for a tensor of this role.
    pub(crate) fn coefficients(&self, role: TensorRole) -> kernel::AdamW<f32> {
        let Self { step, learning_rate, beta1, beta2, eps, weight_decay } = *self;
        let done = (step + 1) as f64;
        kernel::AdamW {
            lr: learning_rate as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: eps as f32,
            weight_decay: if role.decays() { weight_decay as f32 } else { 0.0 },
            bias1: (1.0 - libm::pow(beta1, done)) as f32,
            bias2: (1.0 - libm::pow(beta2, done)) as f32,
            grad_scale: 1.0,
        }
    }
}

impl TrainingModel {
    /// Plans and allocates; all weights are zero until [`Self::init`] or [`Self::load`].
    ///
    /// # Errors
    /// No plan, or no memory.
    pub fn new(
        cpu: Arc<Cpu>,
        shape: &ModelShape,
        options: &TrainingOptions,
    ) -> Result<Self, ModelError> {
        let plan = plan_training(shape, options)?;
        let mut arena = Arena::new(&plan)?;
        assert_eq!(arena.bytes(), plan.arena_bytes(), "the arena is what was planned");
        let [cos, sin] = arena.work.views([plan.ports.cos, plan.ports.sin]);
        rope::fill_tables(shape, cos, sin);
        let positions = (0..options.micro_batch).flat_map(|_| 0..options.sequence).collect();
        Ok(Self { cpu, shape: shape.clone(), options: options.clone(), plan, arena, positions })
    }

    /// The model's form.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// What it computes on.
    pub fn cpu(&self) -> &Arc<Cpu> {
        &self.cpu
    }

    /// What is executed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes that were allocated: [`Plan::arena_bytes`].
    pub fn arena_bytes(&self) -> u64 {
        self.arena.bytes()
    }

    /// Random weights: matrices from a normal distribution of deviation 0.02, those
    /// that write to the residual stream divided by `√(2·layers)` (Radford et al.
    /// 2019), gains 1, biases 0; adapters as [`Self::init_adapters`]. Element `i` of
    /// tensor `t` depends on (seed, t, i) alone.
    pub fn init(&mut self, seed: u64) {
        self.init_some(seed, |_| true);
    }

    /// Adapters that begin as nothing (Hu et al. 2021): of each pair the first matrix from
    /// a normal distribution of variance `1 ÷ (3·in)`, the second 0.
    pub fn init_adapters(&mut self, seed: u64) {
        self.init_some(seed, TensorRole::is_adapter);
    }

    fn init_some(&mut self, seed: u64, which: impl Fn(TensorRole) -> bool) {
        let initial = Initial::new(seed, &self.shape);
        for (index, tensor) in (0u32..).zip(&self.plan.tensors).filter(|(_, t)| which(t.role)) {
            let fill = |values: &mut [f32]| initial.fill(index, tensor, values);
            match self.plan.buffer(tensor.value).dtype {
                Dtype::F32 => fill(self.arena.parameters.f32s_mut(tensor.value)),
                other => {
                    let mut values = vec![0.0; tensor.shape.iter().product::<u64>() as usize];
                    fill(&mut values);
                    encode(other, &values, self.arena.parameters.bytes_mut(tensor.value));
                }
            }
        }
    }

    /// Takes a model's weights, each in its planned format. Adapters are no part of
    /// them: [`Self::init_adapters`] begins them.
    ///
    /// # Errors
    /// Their shape is another, or a tensor cannot be read.
    pub fn load(&mut self, weights: &dyn Weights) -> Result<(), ModelError> {
        weights.expect_shape(&self.shape)?;
        for tensor in self.plan.tensors.iter().filter(|t| !t.role.is_adapter()) {
            let dtype = self.plan.buffer(tensor.value).dtype;
            weights.read(&tensor.name, dtype, self.arena.parameters.bytes_mut(tensor.value))?;
        }
        Ok(())
    }

    /// Sets all gradients to 0: the start of an optimiser step.
    pub fn zero_gradients(&mut self) {
        self.arena.work.segment_mut(Segment::Gradients).fill(0.0);
    }

    /// Forward and backward over `[B·S]` tokens, each with its target or [`NO_TARGET`].
    /// Adds `scale ·` the gradient of the summed loss to the gradients.
    ///
    /// # Errors
    /// Tokens or targets that do not fit the plan; a loss that is not finite, with
    /// the name of the first bad buffer (the gradients are then of no use).
    pub fn accumulate(
        &mut self,
        tokens: &[u32],
        targets: &[u32],
        scale: f32,
    ) -> Result<Loss, ModelError> {
        self.run(tokens, targets, Some(scale))
    }

    /// The loss alone.
    ///
    /// # Errors
    /// As [`Self::accumulate`].
    pub fn evaluate(&mut self, tokens: &[u32], targets: &[u32]) -> Result<Loss, ModelError> {
        self.run(tokens, targets, None)
    }

    /// The logits `[B·S, V]` of these tokens.
    ///
    /// # Errors
    /// Tokens that do not fit the plan.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<&[f32], ModelError> {
        self.run(tokens, &vec![NO_TARGET; tokens.len()], None)?;
        Ok(self.arena.work.view(self.plan.ports.logits))
    }

    /// Scales the gradients down to this global L2 norm, where they are above it
    /// and it is above 0. Returns the norm they had.
    pub fn clip(&mut self, max_norm: f64) -> f64 {
        let gradients = self.arena.work.segment_mut(Segment::Gradients);
        let norm = libm::sqrt(kernel::sum_squares(&self.cpu, gradients));
        if max_norm > 0.0 && norm > max_norm {
            kernel::scale(&self.cpu, gradients, (max_norm / norm) as f32);
        }
        norm
    }

    /// One step of the optimiser over the gradients as they are.
    pub fn adamw(&mut self, step: &AdamwStep) {
        for tensor in &self.plan.tensors {
            let Some(trained) = tensor.trained else {
                continue;
            };
            let coefficients = step.coefficients(tensor.role);
            let [gradient, first, second] = self.arena.work.views([
                trained.gradient,
                trained.first_moment,
                trained.second_moment,
            ]);
            let value = self.arena.parameters.f32s_mut(tensor.value);
            kernel::adamw(&self.cpu, value, gradient, first, second, &coefficients);
        }
    }

    /// Every tensor with its numbers, in the plan's order: what is saved as a model. Not
    /// those of a frozen base in another format than f32, which are a folder's already.
    pub fn tensors(&self) -> impl Iterator<Item = (&Tensor, &[f32])> {
        let in_f32 = |t: &&Tensor| self.plan.buffer(t.value).dtype == Dtype::F32;
        let tensors = self.plan.tensors.iter().filter(in_f32);
        tensors.map(|t| (t, self.arena.parameters.f32s(t.value)))
    }

    /// The gradient of every trained tensor, in the plan's order.
    pub fn gradients(&self) -> impl Iterator<Item = (&Tensor, &[f32])> {
        let gradient = |t: &Tensor| t.trained.map(|kept| kept.gradient);
        self.plan.tensors.iter().filter_map(move |t| Some((t, self.arena.work.view(gradient(t)?))))
    }

    /// What a checkpoint holds: each of [`Self::tensors`] by its name, and where it is
    /// trained its moments by that name and `.first_moment`, `.second_moment`.
    pub fn state(&self) -> Vec<(String, &[f32])> {
        let mut state = Vec::new();
        for (tensor, values) in self.tensors() {
            state.push((tensor.name.clone(), values));
            if let Some(trained) = tensor.trained {
                state.push((
                    format!("{}.first_moment", tensor.name),
                    self.arena.work.view(trained.first_moment),
                ));
                state.push((
                    format!("{}.second_moment", tensor.name),
                    self.arena.work.view(trained.second_moment),
                ));
            }
        }
        state
    }

    /// [`Self::state`], to write when a checkpoint is taken up.
    pub fn state_mut(&mut self) -> Vec<(String, &mut [f32])> {
        // Both segments are laid out in the order of the tensors.
        let mut moments = self.arena.work.all_mut(Segment::Moments).into_iter();
        let mut state = Vec::new();
        let in_f32 = |t: &&Tensor| self.plan.buffer(t.value).dtype == Dtype::F32;
        let tensors = self.plan.tensors.iter().filter(in_f32);
        for (tensor, values) in tensors.zip(self.arena.parameters.all_mut()) {
            state.push((tensor.name.clone(), values));
            if tensor.trained.is_some() {
                for which in ["first_moment", "second_moment"] {
                    let moment = moments.next().expect("each trained tensor has two moments");
                    state.push((format!("{}.{which}", tensor.name), moment));
                }
            }
        }
        state
    }

    fn run(
        &mut self,
        tokens: &[u32],
        targets: &[u32],
        backward: Option<f32>,
    ) -> Result<Loss, ModelError> {
        check_rows(self.positions.len(), self.shape.vocab, tokens, targets)?;
        let steps =
            if backward.is_some() { self.plan.steps.len() } else { self.plan.forward_steps };
        let cpu = Arc::clone(&self.cpu);
        cpu.install(|| {
            let mut pass = TrainingPass {
                options: &self.options,
                targets,
                backward,
                pass: Pass {
                    cpu: &self.cpu,
                    shape: &self.shape,
                    plan: &self.plan,
                    parameters: &self.arena.parameters,
                    work: &mut self.arena.work,
                    tokens,
                    positions: &self.positions,
                    rows: tokens.len(),
                },
            };
            for step in &self.plan.steps[..steps] {
                pass.execute(&step.op);
            }
        });
        let losses = self.plan.ports.losses.expect("a training plan has losses");
        let losses = self.arena.work.view(losses);
        let loss = Loss {
            nats: losses.iter().map(|&nats| f64::from(nats)).sum(),
            tokens: targets.iter().filter(|&&t| t != NO_TARGET).count() as u64,
        };
        if loss.nats.is_finite() {
            return Ok(loss);
        }
        Err(ModelError::NotFinite { tensor: self.first_not_finite(tokens, targets) })
    }

    /// Runs forward again, step by step, and names the first buffer that goes bad.
    fn first_not_finite(&mut self, tokens: &[u32], targets: &[u32]) -> String {
        let bad = |values: &[f32]| values.iter().any(|v| !v.is_finite());
        if let Some((tensor, _)) = self.tensors().find(|(_, values)| bad(values)) {
            return tensor.name.clone();
        }
        let mut pass = TrainingPass {
            options: &self.options,
            targets,
            backward: None,
            pass: Pass {
                cpu: &self.cpu,
                shape: &self.shape,
                plan: &self.plan,
                parameters: &self.arena.parameters,
                work: &mut self.arena.work,
                tokens,
                positions: &self.positions,
                rows: tokens.len(),
            },
        };
        for step in &self.plan.steps[..self.plan.forward_steps] {
            pass.execute(&step.op);
            let written = step.op.access().writes;
            if let Some(id) = written.into_iter().find(|&id| bad(pass.pass.work.view(id))) {
                return self.plan.buffer(id).name.clone();
            }
        }
        "the sum of losses".to_owned()
    }
}

/// Refuses tokens and targets that are not `rows`, or beyond the vocabulary.
pub(crate) fn check_rows(
    rows: usize,
    vocab: u32,
    tokens: &[u32],
    targets: &[u32],
) -> Result<(), ModelError> {
    let refuse =
        |what, expected: String, found: String| Err(ModelError::Input { what, expected, found });
    for (what, len) in [("tokens", tokens.len()), ("targets", targets.len())] {
        if len != rows {
            return refuse(
                what,
                format!("micro-batch × sequence = {rows} of them"),
                len.to_string(),
            );
        }
    }
    if let Some(token) = tokens.iter().find(|&&t| t >= vocab) {
        return refuse(
            "tokens",
            format!("numbers below the vocabulary's {vocab}"),
            token.to_string(),
        );
    }
    if let Some(target) = targets.iter().find(|&&t| t >= vocab && t != NO_TARGET) {
        return refuse(
            "targets",
            format!("numbers below the vocabulary's {vocab}, or NO_TARGET"),
            target.to_string(),
        );
    }
    Ok(())
}
