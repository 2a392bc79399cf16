//! A model wherever it computes. The processor's models are [`TrainingModel`] and
//! [`InferenceModel`]; a device that was chosen makes its own ([`crate::on_device`]).

use std::borrow::Cow;

use petaflop_device::device::Device;
use petaflop_plan::Numerics;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::plan::{Plan, Tensor};
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::TrainingOptions;

use crate::error::ModelError;
use crate::inference::{Chunk, InferenceModel};
use crate::on_device::{DeviceModel, serving::DeviceServing};
use crate::training::{AdamwStep, Loss, TrainingModel};
use crate::weights::Weights;

/// A device that was chosen, before it is known what for.
pub trait Place: Send {
    /// Backend and name, for logs.
    fn name(&self) -> String;

    /// Whose bits its results have.
    fn numerics(&self) -> Numerics;

    /// A model to train on it, all weights zero.
    ///
    /// # Errors
    /// See [`DeviceModel::new`].
    fn training(
        self: Box<Self>,
        shape: &ModelShape,
        options: &TrainingOptions,
    ) -> Result<Box<dyn Training>, ModelError>;

    /// A model to serve on it.
    ///
    /// # Errors
    /// See [`DeviceServing::new`].
    fn serving(
        self: Box<Self>,
        weights: &dyn Weights,
        options: &ServingOptions,
    ) -> Result<Box<dyn Serving>, ModelError>;
}

impl<D> Place for D
where
    D: Device + Send + 'static,
    D::Buffer: Send,
{
    fn name(&self) -> String {
        Device::name(self)
    }

    fn numerics(&self) -> Numerics {
        Device::numerics(self)
    }

    fn training(
        self: Box<Self>,
        shape: &ModelShape,
        options: &TrainingOptions,
    ) -> Result<Box<dyn Training>, ModelError> {
        Ok(Box::new(DeviceModel::new(*self, shape, options)?))
    }

    fn serving(
        self: Box<Self>,
        weights: &dyn Weights,
        options: &ServingOptions,
    ) -> Result<Box<dyn Serving>, ModelError> {
        Ok(Box::new(DeviceServing::new(*self, weights, options)?))
    }
}

/// A model in serving, with what it remembers of its sequences.
pub trait Serving: Send {
    /// Bytes that were allocated as planned.
    fn arena_bytes(&self) -> u64;

    /// As [`InferenceModel::forward`].
    ///
    /// # Errors
    /// A chunk that does not fit the plan, or a device that is gone.
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<&[f32], ModelError>;
}

impl Serving for InferenceModel {
    fn arena_bytes(&self) -> u64 {
        InferenceModel::arena_bytes(self)
    }

    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<&[f32], ModelError> {
        InferenceModel::forward(self, chunks)
    }
}

/// Tensors with their numbers, in the plan's order.
pub type Tensors<'a> = Vec<(&'a Tensor, Cow<'a, [f32]>)>;

/// What a checkpoint holds, by name.
pub type State<'a> = Vec<(String, Cow<'a, [f32]>)>;

/// Writes what is known by a name, or says why it cannot.
pub type Restore<'a> = &'a mut dyn FnMut(&str, &mut [f32]) -> Result<(), String>;

/// A model, its gradients and its optimiser's moments. Each function is as the one of
/// [`TrainingModel`]; on a device each may also find that the device is gone.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
pub trait Training {
    /// The model's form.
    fn shape(&self) -> &ModelShape;
    /// What is executed.
    fn plan(&self) -> &Plan;
    /// Bytes that were allocated for the plan.
    fn arena_bytes(&self) -> u64;
    /// Random weights.
    fn init(&mut self, seed: u64) -> Result<(), ModelError>;
    /// Takes a model's weights.
    fn load(&mut self, weights: &dyn Weights) -> Result<(), ModelError>;
    /// Sets all gradients to 0.
    fn zero_gradients(&mut self) -> Result<(), ModelError>;
    /// Forward and backward; adds `scale ·` the gradient of the summed loss to the gradients.
    fn accumulate(
        &mut self,
        tokens: &[u32],
        targets: &[u32],
        scale: f32,
    ) -> Result<Loss, ModelError>;
    /// The loss alone.
    fn evaluate(&mut self, tokens: &[u32], targets: &[u32]) -> Result<Loss, ModelError>;
    /// The logits `[B·S, V]` of these tokens.
    fn logits(&mut self, tokens: &[u32]) -> Result<Cow<'_, [f32]>, ModelError>;
    /// Scales the gradients down to this global norm; returns the norm they had.
    fn clip(&mut self, max_norm: f64) -> Result<f64, ModelError>;
    /// One step of the optimiser.
    fn adamw(&mut self, step: &AdamwStep) -> Result<(), ModelError>;
    /// What is saved as a model.
    fn tensors(&self) -> Result<Tensors<'_>, ModelError>;
    /// The gradient of every trained tensor.
    fn gradients(&self) -> Result<Tensors<'_>, ModelError>;
    /// What a checkpoint holds, by name.
    fn state(&self) -> Result<State<'_>, ModelError>;
    /// Brings [`Self::state`] back: `numbers` writes what is known by a name.
    fn restore(&mut self, numbers: Restore<'_>) -> Result<(), String>;
}

impl Training for TrainingModel {
    fn shape(&self) -> &ModelShape {
        TrainingModel::shape(self)
    }

    fn plan(&self) -> &Plan {
        TrainingModel::plan(self)
    }

    fn arena_bytes(&self) -> u64 {
        TrainingModel::arena_bytes(self)
    }

    fn init(&mut self, seed: u64) -> Result<(), ModelError> {
        TrainingModel::init(self, seed);
        Ok(())
    }

    fn load(&mut self, weights: &dyn Weights) -> Result<(), ModelError> {
        TrainingModel::load(self, weights)
    }

    fn zero_gradients(&mut self) -> Result<(), ModelError> {
        TrainingModel::zero_gradients(self);
        Ok(())
    }

    fn accumulate(
        &mut self,
        tokens: &[u32],
        targets: &[u32],
        scale: f32,
    ) -> Result<Loss, ModelError> {
        TrainingModel::accumulate(self, tokens, targets, scale)
    }

    fn evaluate(&mut self, tokens: &[u32], targets: &[u32]) -> Result<Loss, ModelError> {
        TrainingModel::evaluate(self, tokens, targets)
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Cow<'_, [f32]>, ModelError> {
        TrainingModel::logits(self, tokens).map(Cow::Borrowed)
    }

    fn clip(&mut self, max_norm: f64) -> Result<f64, ModelError> {
        Ok(TrainingModel::clip(self, max_norm))
    }

    fn adamw(&mut self, step: &AdamwStep) -> Result<(), ModelError> {
        TrainingModel::adamw(self, step);
        Ok(())
    }

    fn tensors(&self) -> Result<Tensors<'_>, ModelError> {
        Ok(TrainingModel::tensors(self).map(|(t, values)| (t, Cow::Borrowed(values))).collect())
    }

    fn gradients(&self) -> Result<Tensors<'_>, ModelError> {
        Ok(TrainingModel::gradients(self).map(|(t, values)| (t, Cow::Borrowed(values))).collect())
    }

    fn state(&self) -> Result<State<'_>, ModelError> {
        let state = TrainingModel::state(self).into_iter();
        Ok(state.map(|(name, values)| (name, Cow::Borrowed(values))).collect())
    }

    fn restore(&mut self, numbers: Restore<'_>) -> Result<(), String> {
        self.state_mut().into_iter().try_for_each(|(name, values)| numbers(&name, values))
    }
}
