//! A model in training on a device: the memory plan's segments as the device's buffers, its
//! steps as launches of recorded kernels. What the processor does is [`crate::training`]; both
//! execute the same plan, and on a device that computes as the interpreter both have the same bits.
//!
//! | module | holds |
//! |---|---|
//! | this | the memory, and a pass |
//! | `steps` | an operation of the plan as launches |
//! | `trained` | training: what is read and written, the optimiser |
//! | [`serving`] | answers, by whole sequences |

pub mod serving;
mod steps;
mod trained;

use petaflop_device::device::{Device, DeviceError, View};
use petaflop_kernel::ir::{Kernel, Launch, catalogue};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::ops::BufferId;
use petaflop_plan::plan::{Plan, Segment};
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::{TrainingOptions, plan_training};

use crate::error::ModelError;
use crate::rope;
use crate::training::{Loss, NO_TARGET, check_rows};

/// Elements of a row of the norm's sum: as on the processor.
const SQUARES: usize = 1 << 14;

/// Lists in [`Lists`] with a word for each row.
const LISTS: usize = 7;

/// A model, its gradients and its optimiser's moments, on a device.
pub struct DeviceModel<D: Device> {
    device: D,
    shape: ModelShape,
    options: TrainingOptions,
    plan: Plan,
    /// By [`Segment::ALL`]; none where the plan needs nothing of it.
    segments: Vec<Option<D::Buffer>>,
    lists: Lists<D::Buffer>,
    kernels: Vec<Kernel>,
}

/// What a pass is given besides the plan's buffers, and what kernels need that the processor keeps
/// in each thread's scratch.
struct Lists<B> {
    /// `[T]`: tokens.
    tokens: B,
    /// `[T]`: each token's place in its sequence.
    positions: B,
    /// `[T]`: targets as floats, −1 where there is none.
    goal: B,
    /// `[T]`: targets, 0 where there is none.
    columns: B,
    /// `[T]`: places, by token.
    order: B,
    /// `[T + 1]`: where each token's places start in `order`, and where the last ones end.
    starts: B,
    /// `[T]`: the tokens of the segments.
    segments: B,
    /// Sums of blocks of rows, or of a segment's squares.
    partials: B,
}

/// What a pass is asked for.
struct Asked {
    /// Distinct tokens.
    segments: u32,
    /// Factor on the gradient, where a backward pass follows.
    backward: Option<f32>,
}

impl<D: Device> DeviceModel<D> {
    /// Plans and allocates on the device; all weights are zero until [`crate::place::Training::load`].
    ///
    /// # Errors
    /// No plan, frozen matrices in another format than f32 (which devices do not have yet), or
    /// too little memory of the device: where it is known how much that is, before any is taken.
    pub fn new(
        device: D,
        shape: &ModelShape,
        options: &TrainingOptions,
    ) -> Result<Self, ModelError> {
        let plan = plan_training(shape, options)?;
        if let Some(other) = plan.buffers.iter().find(|b| b.dtype != Dtype::F32) {
            return Err(ModelError::Input {
                what: "frozen_weights",
                expected: "f32 on a device".to_owned(),
                found: format!("{} for {}", other.dtype, other.name),
            });
        }
        let words = |segment: Segment| (plan.segments.of(segment) / 4) as usize;
        let rows = plan.rows as usize;
        let widest = plan.tensors.iter().filter_map(|t| t.shape.last()).max().copied();
        let partials = (rows.div_ceil(64) * widest.unwrap_or(0) as usize)
            .max(words(Segment::Gradients).div_ceil(SQUARES));
        let needed = plan.arena_bytes() + (LISTS * rows + 1 + partials) as u64 * 4;
        if let Some(available) = device.memory().filter(|&available| needed > available) {
            return Err(DeviceError::DoesNotFit { device: device.name(), needed, available }.into());
        }
        let segments = Segment::ALL
            .into_iter()
            .map(|segment| (words(segment) > 0).then(|| device.buffer(words(segment))).transpose());
        let segments = segments.collect::<Result<Vec<_>, DeviceError>>()?;
        let list = || device.buffer(rows);
        let lists = Lists {
            tokens: list()?,
            positions: list()?,
            goal: list()?,
            columns: list()?,
            order: list()?,
            starts: device.buffer(rows + 1)?,
            segments: list()?,
            partials: device.buffer(partials)?,
        };
        let mut model = Self {
            device,
            shape: shape.clone(),
            options: options.clone(),
            plan,
            segments,
            lists,
            kernels: catalogue(),
        };
        let positions: Vec<u32> =
            (0..options.micro_batch).flat_map(|_| 0..options.sequence).collect();
        model.device.write(&mut model.lists.positions, 0, &positions)?;
        let (cos, sin) = (model.plan.ports.cos, model.plan.ports.sin);
        let mut tables = [cos, sin].map(|id| vec![0.0; model.words(id)]);
        let [cosines, sines] = &mut tables;
        rope::fill_tables(shape, cosines, sines);
        model.put(cos, &tables[0])?;
        model.put(sin, &tables[1])?;
        Ok(model)
    }

    /// What it computes on.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn run(
        &mut self,
        tokens: &[u32],
        targets: &[u32],
        backward: Option<f32>,
    ) -> Result<Loss, ModelError> {
        check_rows(self.plan.rows as usize, self.shape.vocab, tokens, targets)?;
        let asked = Asked { segments: self.write_lists(tokens, targets)?, backward };
        let steps = match backward {
            Some(_) => self.plan.steps.len(),
            None => self.plan.forward_steps,
        };
        let mut stream = self.device.stream();
        for step in &self.plan.steps[..steps] {
            self.record(&mut stream, &step.op, &asked)?;
        }
        self.device.finish(stream)?;
        let losses = self.get(self.plan.ports.losses.expect("a training plan has losses"))?;
        let loss = Loss {
            nats: losses.iter().map(|&nats| f64::from(nats)).sum(),
            tokens: targets.iter().filter(|&&t| t != NO_TARGET).count() as u64,
        };
        if loss.nats.is_finite() {
            return Ok(loss);
        }
        Err(ModelError::NotFinite { tensor: "the sum of losses".to_owned() })
    }

    /// Brings a pass's lists to the device; returns how many different tokens there are.
    fn write_lists(&mut self, tokens: &[u32], targets: &[u32]) -> Result<u32, DeviceError> {
        let goal: Vec<u32> = targets
            .iter()
            .map(|&t| if t == NO_TARGET { -1.0 } else { t as f32 }.to_bits())
            .collect();
        let columns: Vec<u32> =
            targets.iter().map(|&t| if t == NO_TARGET { 0 } else { t }).collect();
        let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
        order.sort_by_key(|&at| tokens[at as usize]); // stable: places stay in order
        let (mut starts, mut segments) = (vec![0], Vec::new());
        for run in order.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]) {
            segments.push(tokens[run[0] as usize]);
            starts.push(starts[starts.len() - 1] + run.len() as u32);
        }
        let Self { device, lists, .. } = self;
        device.write(&mut lists.tokens, 0, tokens)?;
        device.write(&mut lists.goal, 0, &goal)?;
        device.write(&mut lists.columns, 0, &columns)?;
        device.write(&mut lists.order, 0, &order)?;
        device.write(&mut lists.starts, 0, &starts)?;
        device.write(&mut lists.segments, 0, &segments)?;
        Ok(segments.len() as u32)
    }

    /// Words of a buffer of the plan.
    fn words(&self, id: BufferId) -> usize {
        (self.plan.buffer(id).bytes / 4) as usize
    }

    /// A buffer of the plan, in its segment.
    fn view(&self, id: BufferId) -> View<'_, D::Buffer> {
        let buffer = self.plan.buffer(id);
        let segment = self.segments[place(buffer.segment)].as_ref();
        let segment = segment.expect("a segment with buffers has bytes");
        View { buffer: segment, at: (buffer.offset / 4) as usize, words: self.words(id) }
    }

    fn get(&self, id: BufferId) -> Result<Vec<f32>, ModelError> {
        let words = self.device.read(self.view(id))?;
        Ok(words.into_iter().map(f32::from_bits).collect())
    }

    fn put(&mut self, id: BufferId, numbers: &[f32]) -> Result<(), DeviceError> {
        let buffer = self.plan.buffer(id);
        let segment = self.segments[place(buffer.segment)].as_mut();
        let segment = segment.expect("a segment with buffers has bytes");
        self.device.write(segment, (buffer.offset / 4) as usize, bytemuck::cast_slice(numbers))
    }

    fn launch(
        &self,
        stream: &mut D::Stream,
        kernel: &str,
        dims: &[(&'static str, u32)],
        numbers: &[(&'static str, f32)],
        buffers: &[(&str, View<'_, D::Buffer>)],
    ) -> Result<(), DeviceError> {
        let known = self.kernels.iter().find(|k| k.name == kernel);
        let missing = || DeviceError::None(format!("{kernel} is not in the catalogue"));
        let launch = Launch { dims: dims.to_vec(), numbers: numbers.to_vec() };
        self.device.launch(stream, known.ok_or_else(missing)?, &launch, buffers)
    }
}

fn place(segment: Segment) -> usize {
    Segment::ALL.into_iter().position(|s| s == segment).expect("all are in the list")
}
