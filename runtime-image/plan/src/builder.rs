//! What the training and the serving planner share: laying out weights, naming
//! buffers, and counting what each operation costs.

use std::collections::BTreeMap;

use crate::apart::Fusion;
use crate::dtype::Dtype;
use crate::formats::served;
use crate::lifetimes;
use crate::linear::{Adapters, Linear, Pair};
use crate::ops::{BufferId, Op};
use crate::plan::{Buffer, Layout, Plan, PlanError, Ports, Segment, Step, Tensor, Trained};
use crate::shape::{ModelShape, TensorInfo, TensorRole};

/// The tensors of one block, as indices into [`Builder::tensors`].
pub(crate) struct LayerWeights {
    pub(crate) input_gain: usize,
    pub(crate) query: Projection,
    pub(crate) key: Projection,
    pub(crate) value: Projection,
    pub(crate) output: Linear,
    pub(crate) post_gain: usize,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// A projection to heads, and what is done to its result.
#[derive(Clone, Copy)]
pub(crate) struct Projection {
    pub(crate) linear: Linear,
    /// Gain of each head's norm; never for values.
    pub(crate) gain: Option<usize>,
}

/// All tensors, as indices into [`Builder::tensors`].
pub(crate) struct ModelWeights {
    pub(crate) embedding: usize,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) norm: usize,
    /// The embedding itself where the two are tied.
    pub(crate) head: usize,
}

/// What decides how tensors are kept.
pub(crate) enum Keep<'a> {
    /// In f32, with gradients and moments except where a name is frozen.
    Train {
        /// Tensor names, or what they begin with up to a dot.
        frozen: &'a [String],
        /// Format of the matrices among them.
        frozen_weights: Dtype,
        /// Pairs to train beside the weights.
        adapters: Option<&'a Adapters>,
    },
    /// Matrices in this format (see [`served`]), the rest in f32. Adapters were added to them before.
    Serve(Dtype),
}

/// How the numbers of one tensor are kept.
struct Kept {
    dtype: Dtype,
    layout: Layout,
    is_trained: bool,
}

pub(crate) struct Builder<'a> {
    pub(crate) shape: &'a ModelShape,
    pub(crate) rows: u64,
    fusion: Fusion,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
    pub(crate) tensors: Vec<Tensor>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(shape: &'a ModelShape, rows: u64, fusion: Fusion) -> Self {
        Self { shape, rows, fusion, buffers: Vec::new(), steps: Vec::new(), tensors: Vec::new() }
    }

    pub(crate) fn buffer(
        &mut self,
        name: impl Into<String>,
        shape: &[u64],
        dtype: Dtype,
        segment: Segment,
    ) -> BufferId {
        let id = BufferId(
            u32::try_from(self.buffers.len()).expect("a plan has far fewer than 2³² buffers"),
        );
        self.buffers.push(Buffer {
            name: name.into(),
            shape: shape.to_vec(),
            dtype,
            layout: Layout::Rows,
            segment,
            offset: 0,
            bytes: dtype.bytes(shape.iter().product()),
            first: 0,
            last: 0,
        });
        id
    }

    /// An f32 buffer of `[rows, width]` that operations hand to each other.
    pub(crate) fn activation(&mut self, name: impl Into<String>, width: u64) -> BufferId {
        self.buffer(name, &[self.rows, width], Dtype::F32, Segment::Activations)
    }

    /// The rotary tables for this many positions.
    pub(crate) fn rope_tables(&mut self, positions: u64) -> (BufferId, BufferId) {
        let half = u64::from(self.shape.head_dim) / 2;
        let cos = self.buffer("rope.cos", &[positions, half], Dtype::F32, Segment::Constants);
        let sin = self.buffer("rope.sin", &[positions, half], Dtype::F32, Segment::Constants);
        (cos, sin)
    }

    pub(crate) fn value(&self, tensor: usize) -> BufferId {
        self.tensors[tensor].value
    }

    /// Where the tensor's gradient is added up; none where it is frozen.
    pub(crate) fn gradient(&self, tensor: usize) -> Option<BufferId> {
        self.tensors[tensor].trained.map(|t| t.gradient)
    }

    /// Lays out all tensors.
    pub(crate) fn model_weights(&mut self, keep: &Keep<'_>) -> Result<ModelWeights, PlanError> {
        let tensors = self.shape.tensors();
        if let Keep::Train { frozen, .. } = keep
            && let Some(prefix) =
                frozen.iter().find(|p| !tensors.iter().any(|t| is_under(&t.name, p)))
        {
            return Err(PlanError::Option {
                option: "frozen",
                expected: "names of this model's tensors, or their beginnings up to a dot"
                    .to_owned(),
                found: prefix.clone(),
            });
        }
        for tensor in tensors {
            let is_matrix = tensor.role == TensorRole::Matrix;
            let kept = match keep {
                Keep::Train { frozen, frozen_weights, adapters: _ } => {
                    let is_trained = !frozen.iter().any(|p| is_under(&tensor.name, p));
                    let dtype = if is_matrix && !is_trained { *frozen_weights } else { Dtype::F32 };
                    Kept { dtype, layout: Layout::Rows, is_trained }
                }
                Keep::Serve(weights) if is_matrix => {
                    let dtype = served(*weights, &tensor.name);
                    Kept { dtype, layout: Layout::Packed, is_trained: false }
                }
                Keep::Serve(_) => {
                    Kept { dtype: Dtype::F32, layout: Layout::Rows, is_trained: false }
                }
            };
            self.tensor(tensor, &kept)?;
        }
        let pairs = match keep {
            Keep::Train { adapters: Some(adapters), .. } => self.pairs(adapters)?,
            Keep::Train { adapters: None, .. } | Keep::Serve(_) => BTreeMap::new(),
        };
        Ok(self.index(&pairs))
    }

    /// Lays out a tensor, and what training keeps for it. Returns its index.
    fn tensor(&mut self, tensor: TensorInfo, kept: &Kept) -> Result<usize, PlanError> {
        let TensorInfo { name, shape, role } = tensor;
        let Kept { dtype, layout, is_trained } = *kept;
        let width = *shape.last().expect("every tensor has a dimension");
        if !width.is_multiple_of(dtype.block_len()) {
            return Err(PlanError::Option {
                option: match layout {
                    Layout::Rows => "frozen_weights",
                    Layout::Packed => "weights",
                },
                expected: format!(
                    "a format whose blocks divide the rows of {name} ({width} numbers)"
                ),
                found: format!("{dtype}, in blocks of {}", dtype.block_len()),
            });
        }
        let value = self.buffer(&name, &shape, dtype, Segment::Parameters);
        if let (Layout::Packed, &[rows, width]) = (layout, &shape[..]) {
            let matrix = &mut self.buffers[value.index()];
            matrix.layout = layout;
            matrix.bytes = dtype.packed_bytes(rows, width);
        }
        let mut kept = |what: &str, segment| {
            self.buffer(format!("{what} of {name}"), &shape, Dtype::F32, segment)
        };
        let trained = is_trained.then(|| Trained {
            gradient: kept("gradient", Segment::Gradients),
            first_moment: kept("first moment", Segment::Moments),
            second_moment: kept("second moment", Segment::Moments),
        });
        self.tensors.push(Tensor { name, shape, role, value, trained });
        Ok(self.tensors.len() - 1)
    }

    /// Lays out a pair for each adapted weight; by that weight.
    fn pairs(&mut self, adapters: &Adapters) -> Result<BTreeMap<usize, Pair>, PlanError> {
        adapters.validate()?;
        let rank = u64::from(adapters.rank);
        let mut pairs = BTreeMap::new();
        for weight in 0..self.tensors.len() {
            let Tensor { name, shape, .. } = &self.tensors[weight];
            let (true, &[rows, width]) = (adapters.adapts(name), &shape[..]) else {
                continue;
            };
            let module = name.trim_end_matches(".weight").to_owned();
            let mut trained = |which: &str, shape: [u64; 2], role| {
                let name = format!("{module}.{which}.weight");
                let info = TensorInfo { name, shape: shape.to_vec(), role };
                let kept = Kept { dtype: Dtype::F32, layout: Layout::Rows, is_trained: true };
                self.tensor(info, &kept)
            };
            let down = trained("lora_A", [rank, width], TensorRole::AdapterDown)?;
            let up = trained("lora_B", [rows, rank], TensorRole::AdapterUp)?;
            pairs.insert(weight, Pair { down, up, scale: adapters.scale() });
        }
        Ok(pairs)
    }

    fn index(&self, pairs: &BTreeMap<usize, Pair>) -> ModelWeights {
        // Tensors come in a fixed order (`ModelShape::tensors`), so each name is looked up just behind the one before it.
        let mut names = self.tensors.iter().map(|t| t.name.as_str()).enumerate().peekable();
        let mut next = |name: &str| names.next_if(|(_, found)| *found == name).map(|(i, _)| i);
        let must = |found: Option<usize>| {
            found.expect("ModelShape::tensors lists every tensor of the shape in this order")
        };
        let linear = |weight, bias| Linear { weight, bias, pair: pairs.get(&weight).copied() };
        let embedding = must(next("model.embed_tokens.weight"));
        let layers = (0..self.shape.layers)
            .map(|l| {
                let mut layer = |what: &str| next(&format!("model.layers.{l}.{what}"));
                let input_gain = must(layer("input_layernorm.weight"));
                let [q, k, v] =
                    ["q", "k", "v"].map(|p| must(layer(&format!("self_attn.{p}_proj.weight"))));
                let [q_bias, k_bias, v_bias] =
                    ["q", "k", "v"].map(|p| layer(&format!("self_attn.{p}_proj.bias")));
                let [q_gain, k_gain] =
                    ["q", "k"].map(|p| layer(&format!("self_attn.{p}_norm.weight")));
                LayerWeights {
                    input_gain,
                    query: Projection { linear: linear(q, q_bias), gain: q_gain },
                    key: Projection { linear: linear(k, k_bias), gain: k_gain },
                    value: Projection { linear: linear(v, v_bias), gain: None },
                    output: linear(must(layer("self_attn.o_proj.weight")), None),
                    post_gain: must(layer("post_attention_layernorm.weight")),
                    gate: linear(must(layer("mlp.gate_proj.weight")), None),
                    up: linear(must(layer("mlp.up_proj.weight")), None),
                    down: linear(must(layer("mlp.down_proj.weight")), None),
                }
            })
            .collect();
        let norm = must(next("model.norm.weight"));
        let head = next("lm_head.weight").unwrap_or(embedding);
        ModelWeights { embedding, layers, norm, head }
    }

    /// Appends an operation and counts what it costs.
    pub(crate) fn push(&mut self, op: Op) {
        match self.fusion {
            Fusion::Fused => self.append(op),
            Fusion::Apart => self.push_apart(op),
        }
    }

    pub(crate) fn of(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.index()]
    }

    pub(crate) fn append(&mut self, op: Op) {
        let access = op.access();
        let bytes = |id: BufferId| self.buffers[id.index()].bytes;
        let sum = |ids: &[BufferId]| ids.iter().map(|&id| bytes(id)).fold(0, u64::saturating_add);
        let (mut read, mut written) = (sum(&access.reads), sum(&access.writes));
        match op {
            // Only the rows of the tokens, or the wanted rows, are touched.
            Op::Embed { out, .. } | Op::GatherRows { out, .. } => read = bytes(out),
            Op::EmbedBackward { dx, dtable } => {
                let touched = bytes(dx).min(bytes(dtable));
                (read, written) = (bytes(dx) + touched, touched);
            }
            Op::WriteKv { .. } => written = read,
            _ => {}
        }
        let flops = self.product_flops(&op);
        self.steps.push(Step { op, flops, bytes_read: read, bytes_written: written });
    }

    fn product_flops(&self, op: &Op) -> u64 {
        let dims = |id: BufferId| &self.buffers[id.index()].shape;
        let product = |rows: BufferId, matrix: BufferId| {
            2u64.saturating_mul(dims(rows)[0]).saturating_mul(dims(matrix).iter().product())
        };
        match *op {
            Op::Linear { x, weight, .. } => product(x, weight),
            Op::LinearSwiGlu { x, gate, up, .. } => product(x, gate).saturating_add(product(x, up)),
            Op::LinearDx { dy, weight, .. } => product(dy, weight),
            Op::LinearDw { dy, dweight, .. } => product(dy, dweight),
            _ => 0,
        }
    }

    /// Appends attention, whose arithmetic depends on lengths that only the caller knows.
    pub(crate) fn push_attention(&mut self, op: Op, flops: u64) {
        self.push(op);
        if let Some(step) = self.steps.last_mut() {
            step.flops = flops;
        }
    }

    pub(crate) fn steps(&self) -> usize {
        self.steps.len()
    }

    pub(crate) fn finish(mut self, forward_steps: usize, ports: Ports) -> Plan {
        let outputs: Vec<BufferId> = std::iter::once(ports.logits).chain(ports.losses).collect();
        let segments = lifetimes::place(&mut self.buffers, &self.steps, &outputs);
        Plan {
            rows: self.rows,
            buffers: self.buffers,
            steps: self.steps,
            forward_steps,
            tensors: self.tensors,
            segments,
            ports,
        }
    }
}

/// Whether `name` is `prefix`, or lies under it.
fn is_under(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
