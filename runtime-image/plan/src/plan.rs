//! The memory plan: every buffer with its place, every operation in order, and
//! what they add up to. The runtime allocates exactly [`Plan::arena_bytes`] and
//! executes [`Plan::steps`] literally; the arbiter asks the same plan "does it fit?".

use serde::Serialize;

use crate::dtype::Dtype;
use crate::ops::{BufferId, Op};
use crate::shape::{ShapeError, TensorRole};

/// Every buffer starts at a multiple of this many bytes within its segment (what
/// wgpu asks of a binding's offset, and a multiple of every cache line).
pub const ALIGNMENT: u64 = 256;

/// Tokens in one block of the key/value cache.
pub const KV_BLOCK_TOKENS: u32 = 16;

/// A run of memory that is allocated as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    /// The weights.
    Parameters,
    /// Gradients of the trained weights.
    Gradients,
    /// AdamW's two moments of the trained weights.
    Moments,
    /// Tables that depend on the shape alone (rotary cosines and sines).
    Constants,
    /// What operations hand to each other; places are reused.
    Activations,
    /// Scratch of single operations; places are reused.
    Workspace,
    /// Keys and values of sequences in flight.
    KvCache,
}

impl Segment {
    /// All, in the order in which a plan lists them.
    pub const ALL: [Self; 7] = [
        Self::Parameters,
        Self::Gradients,
        Self::Moments,
        Self::Constants,
        Self::Activations,
        Self::Workspace,
        Self::KvCache,
    ];

    /// Whether buffers that are never alive together may share a place.
    pub(crate) const fn reuses(self) -> bool {
        matches!(self, Self::Activations | Self::Workspace)
    }
}

/// How a buffer's numbers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Row after row, at its offset in its segment.
    Rows,
    /// As products read it ([`Dtype::packed_bytes`]): an allocation of its own,
    /// whose offset says nothing, counted in full in its segment.
    Packed,
}

/// One buffer and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Buffer {
    /// For people: `layers.3.qkv`.
    pub name: String,
    /// Dimensions, slowest first.
    pub shape: Vec<u64>,
    /// Number format.
    pub dtype: Dtype,
    /// How its numbers lie.
    pub layout: Layout,
    /// Where it lies.
    pub segment: Segment,
    /// Bytes from the segment's start; a multiple of [`ALIGNMENT`].
    pub offset: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// First step that touches it.
    pub first: u32,
    /// Last step that touches it. Buffers of segments that are not reused live for all steps.
    pub last: u32,
}

/// One operation and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// What is done.
    #[serde(flatten)]
    pub op: Op,
    /// Arithmetic of its matrix products (a fused multiply-add counts two); 0 for
    /// the others, which memory bounds.
    pub flops: u64,
    /// Bytes it must read at least once.
    pub bytes_read: u64,
    /// Bytes it must write at least once.
    pub bytes_written: u64,
}

/// A tensor of the model and what is kept for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tensor {
    /// Its Hugging Face name: `model.layers.0.self_attn.q_proj.weight`; of an adapter's
    /// pair as PEFT has it: `….q_proj.lora_A.weight`, `….q_proj.lora_B.weight`.
    pub name: String,
    /// Dimensions, slowest first; matrices are `[out, in]`.
    pub shape: Vec<u64>,
    /// What it is to the optimiser: only matrices are decayed.
    pub role: TensorRole,
    /// The numbers.
    pub value: BufferId,
    /// Present where it is trained.
    pub trained: Option<Trained>,
}

/// What training keeps for a tensor; all of the tensor's own shape, in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Trained {
    /// Sum of gradients since the last optimiser step.
    pub gradient: BufferId,
    /// AdamW's first moment.
    pub first_moment: BufferId,
    /// AdamW's second moment.
    pub second_moment: BufferId,
}

/// Bytes of each segment, alignment included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SegmentBytes {
    /// [`Segment::Parameters`].
    pub parameters: u64,
    /// [`Segment::Gradients`].
    pub gradients: u64,
    /// [`Segment::Moments`].
    pub moments: u64,
    /// [`Segment::Constants`].
    pub constants: u64,
    /// [`Segment::Activations`].
    pub activations: u64,
    /// [`Segment::Workspace`].
    pub workspace: u64,
    /// [`Segment::KvCache`].
    pub kv_cache: u64,
}

impl SegmentBytes {
    /// Of one segment.
    pub const fn of(&self, segment: Segment) -> u64 {
        match segment {
            Segment::Parameters => self.parameters,
            Segment::Gradients => self.gradients,
            Segment::Moments => self.moments,
            Segment::Constants => self.constants,
            Segment::Activations => self.activations,
            Segment::Workspace => self.workspace,
            Segment::KvCache => self.kv_cache,
        }
    }

    pub(crate) const fn of_mut(&mut self, segment: Segment) -> &mut u64 {
        match segment {
            Segment::Parameters => &mut self.parameters,
            Segment::Gradients => &mut self.gradients,
            Segment::Moments => &mut self.moments,
            Segment::Constants => &mut self.constants,
            Segment::Activations => &mut self.activations,
            Segment::Workspace => &mut self.workspace,
            Segment::KvCache => &mut self.kv_cache,
        }
    }
}

/// A whole plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Rows (tokens) in one pass: all of them in training, at most this many in serving.
    pub rows: u64,
    /// Every buffer; [`BufferId`] is an index into it.
    pub buffers: Vec<Buffer>,
    /// Every operation of one pass, in order.
    pub steps: Vec<Step>,
    /// Steps that belong to the forward pass; the loss is the last of them.
    pub forward_steps: usize,
    /// The model's tensors, in the order of [`crate::shape::ModelShape::tensors`]; then the
    /// pairs of its adapters, in the order of the weights beside which they are.
    pub tensors: Vec<Tensor>,
    /// Bytes by segment.
    pub segments: SegmentBytes,
    /// What the caller reads and fills.
    pub ports: Ports,
}

/// Buffers that the caller, not an operation, reads or fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ports {
    /// Rotary cosines `[positions, d/2]`.
    pub cos: BufferId,
    /// Rotary sines `[positions, d/2]`.
    pub sin: BufferId,
    /// `[rows whose logits are wanted, V]`; in training they end as their gradient.
    pub logits: BufferId,
    /// `[T]`, in training.
    pub losses: Option<BufferId>,
}

impl Plan {
    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.index()]
    }

    /// Bytes that the runtime allocates: the sum of all segments.
    pub fn arena_bytes(&self) -> u64 {
        Segment::ALL.iter().map(|&s| self.segments.of(s)).sum()
    }

    /// Arithmetic of one forward pass.
    pub fn forward_flops(&self) -> u64 {
        total(&self.steps[..self.forward_steps], |s| s.flops)
    }

    /// Arithmetic of one backward pass; 0 in serving.
    pub fn backward_flops(&self) -> u64 {
        total(&self.steps[self.forward_steps..], |s| s.flops)
    }

    /// Bytes that one pass reads and writes when nothing stays in a cache between operations.
    pub fn bytes_moved(&self) -> u64 {
        total(&self.steps, |s| s.bytes_read.saturating_add(s.bytes_written))
    }

    /// Trained numbers.
    pub fn trained_parameters(&self) -> u64 {
        let trained = self.tensors.iter().filter(|t| t.trained.is_some());
        trained.map(|t| t.shape.iter().product::<u64>()).sum()
    }

    /// Bytes that one optimiser step reads and writes: four numbers read (weight,
    /// gradient, two moments) and three written for each trained one, and each
    /// gradient read once more for its norm.
    pub fn update_bytes(&self) -> u64 {
        self.trained_parameters().saturating_mul(8 * 4)
    }
}

fn total(steps: &[Step], of: impl Fn(&Step) -> u64) -> u64 {
    steps.iter().map(of).fold(0, u64::saturating_add)
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The shape itself is wrong.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// An option is out of range.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The option.
        option: &'static str,
        /// What it may be.
        expected: String,
        /// What it was.
        found: String,
    },
    /// More than one device was asked for.
    #[error("{0}")]
    Mesh(String),
}
