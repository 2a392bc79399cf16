//! Training on a device: its weights, gradients and moments, and the optimiser.

use std::borrow::Cow;

use petaflop_device::device::{Device, View};
use petaflop_plan::ops::BufferId;
use petaflop_plan::plan::{Plan, Segment, Tensor};
use petaflop_plan::shape::ModelShape;

use super::{DeviceModel, SQUARES, place};
use crate::error::ModelError;
use crate::initial::Initial;
use crate::place::{Restore, State, Tensors, Training};
use crate::training::{AdamwStep, Loss, NO_TARGET};
use crate::weights::Weights;

impl<D: Device> DeviceModel<D> {
    fn owned(&self, id: BufferId) -> Result<Cow<'_, [f32]>, ModelError> {
        self.get(id).map(Cow::Owned)
    }

    /// Buffers of a checkpoint, by name: as the processor's model names them.
    fn kept(&self) -> Vec<(String, BufferId)> {
        let mut kept = Vec::new();
        for Tensor { name, value, trained, .. } in &self.plan.tensors {
            kept.push((name.clone(), *value));
            if let Some(trained) = trained {
                kept.push((format!("{name}.first_moment"), trained.first_moment));
                kept.push((format!("{name}.second_moment"), trained.second_moment));
            }
        }
        kept
    }
}

impl<D: Device> Training for DeviceModel<D> {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn arena_bytes(&self) -> u64 {
        self.plan.arena_bytes()
    }

    fn init(&mut self, seed: u64) -> Result<(), ModelError> {
        let initial = Initial::new(seed, &self.shape);
        for index in 0..self.plan.tensors.len() {
            let tensor = &self.plan.tensors[index];
            let value = tensor.value;
            let mut numbers = vec![0.0; self.words(value)];
            initial.fill(index as u32, tensor, &mut numbers);
            self.put(value, &numbers)?;
        }
        Ok(())
    }

    fn load(&mut self, weights: &dyn Weights) -> Result<(), ModelError> {
        weights.expect_shape(&self.shape)?;
        for index in 0..self.plan.tensors.len() {
            let Tensor { name, role, value, .. } = &self.plan.tensors[index];
            if role.is_adapter() {
                continue;
            }
            let value = *value;
            let mut numbers = vec![0.0; self.words(value)];
            weights.read_f32(name, &mut numbers)?;
            self.put(value, &numbers)?;
        }
        Ok(())
    }

    fn zero_gradients(&mut self) -> Result<(), ModelError> {
        if let Some(gradients) = &mut self.segments[place(Segment::Gradients)] {
            let zeros = vec![0; (self.plan.segments.gradients / 4) as usize];
            self.device.write(gradients, 0, &zeros)?;
        }
        Ok(())
    }

    fn accumulate(
        &mut self,
        tokens: &[u32],
        targets: &[u32],
        scale: f32,
    ) -> Result<Loss, ModelError> {
        self.run(tokens, targets, Some(scale))
    }

    fn evaluate(&mut self, tokens: &[u32], targets: &[u32]) -> Result<Loss, ModelError> {
        self.run(tokens, targets, None)
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Cow<'_, [f32]>, ModelError> {
        self.run(tokens, &vec![NO_TARGET; tokens.len()], None)?;
        self.owned(self.plan.ports.logits)
    }

    fn clip(&mut self, max_norm: f64) -> Result<f64, ModelError> {
        let Some(gradients) = &self.segments[place(Segment::Gradients)] else {
            return Ok(0.0);
        };
        let all = self.device.whole(gradients);
        let (whole, rest) = (all.words / SQUARES, all.words % SQUARES);
        let partials = self.device.whole(&self.lists.partials);
        let mut stream = self.device.stream();
        let rows = [("rows", whole as u32), ("n", SQUARES as u32)];
        self.launch(&mut stream, "sum_squares", &rows, &[], &[("x", all), ("sum", partials)])?;
        self.device.finish(stream)?;
        let mut sums = self.device.read(View { words: whole, ..partials })?;
        if rest > 0 {
            let mut stream = self.device.stream();
            let last = View { at: whole * SQUARES, words: rest, ..all };
            let row = [("rows", 1), ("n", rest as u32)];
            self.launch(&mut stream, "sum_squares", &row, &[], &[("x", last), ("sum", partials)])?;
            self.device.finish(stream)?;
            sums.extend(self.device.read(View { words: 1, ..partials })?);
        }
        let sum: f64 = sums.into_iter().map(|bits| f64::from(f32::from_bits(bits))).sum();
        let norm = libm::sqrt(sum);
        if max_norm > 0.0 && norm > max_norm {
            let mut stream = self.device.stream();
            let factor = [("factor", (max_norm / norm) as f32)];
            let count = [("count", all.words as u32)];
            self.launch(&mut stream, "scale", &count, &factor, &[("x", all)])?;
            self.device.finish(stream)?;
        }
        Ok(norm)
    }

    fn adamw(&mut self, step: &AdamwStep) -> Result<(), ModelError> {
        let mut stream = self.device.stream();
        for tensor in &self.plan.tensors {
            let Some(trained) = tensor.trained else {
                continue;
            };
            let c = step.coefficients(tensor.role);
            let numbers = [
                ("lr", c.lr),
                ("beta1", c.beta1),
                ("beta2", c.beta2),
                ("eps", c.eps),
                ("weight_decay", c.weight_decay),
                ("bias1", c.bias1),
                ("bias2", c.bias2),
                ("grad_scale", c.grad_scale),
            ];
            let count = [("count", self.words(tensor.value) as u32)];
            let [p, g, m, v] =
                [tensor.value, trained.gradient, trained.first_moment, trained.second_moment]
                    .map(|id| self.view(id));
            let buffers = [("p", p), ("g", g), ("m", m), ("v", v)];
            self.launch(&mut stream, "adamw", &count, &numbers, &buffers)?;
        }
        Ok(self.device.finish(stream)?)
    }

    fn tensors(&self) -> Result<Tensors<'_>, ModelError> {
        let tensors = self.plan.tensors.iter();
        tensors.map(|tensor| Ok((tensor, self.owned(tensor.value)?))).collect()
    }

    fn gradients(&self) -> Result<Tensors<'_>, ModelError> {
        let trained = self.plan.tensors.iter().filter_map(|t| Some((t, t.trained?.gradient)));
        trained.map(|(tensor, gradient)| Ok((tensor, self.owned(gradient)?))).collect()
    }

    fn state(&self) -> Result<State<'_>, ModelError> {
        self.kept().into_iter().map(|(name, id)| Ok((name, self.owned(id)?))).collect()
    }

    fn restore(&mut self, numbers: Restore<'_>) -> Result<(), String> {
        for (name, id) in self.kept() {
            let mut values = vec![0.0; self.words(id)];
            numbers(&name, &mut values)?;
            self.put(id, &values).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
