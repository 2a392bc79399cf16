//! What the training and the serving planner share: laying out weights, naming
//! buffers, and counting what each operation costs.

use crate::dtype::Dtype;
use crate::lifetimes;
use crate::ops::{BufferId, Op};
use crate::plan::{Buffer, Plan, PlanError, Ports, Segment, Step, Tensor, Trained, Weight};
use crate::shape::{ModelShape, TensorInfo, TensorRole};

/// The weights of one block, as indices into [`Builder::weights`].
pub(crate) struct LayerWeights {
    pub(crate) input_gain: usize,
    pub(crate) qkv: usize,
    pub(crate) qkv_bias: Option<usize>,
    pub(crate) head_gains: Option<(usize, usize)>,
    pub(crate) output: usize,
    pub(crate) post_gain: usize,
    pub(crate) gate_up: usize,
    pub(crate) down: usize,
}

/// All weights, as indices into [`Builder::weights`].
pub(crate) struct ModelWeights {
    pub(crate) embedding: usize,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) norm: usize,
    /// The embedding itself where the two are tied.
    pub(crate) head: usize,
}

pub(crate) struct Builder<'a> {
    pub(crate) shape: &'a ModelShape,
    pub(crate) rows: u64,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) steps: Vec<Step>,
    pub(crate) weights: Vec<Weight>,
    pub(crate) tensors: Vec<Tensor>,
}

/// What decides how weights are kept.
pub(crate) enum Keep<'a> {
    /// In f32, with gradients and moments except where a name is frozen.
    Train {
        /// Tensor names, or what they begin with up to a dot.
        frozen: &'a [String],
    },
    /// Matrices in this format, the rest in f32.
    Serve(Dtype),
}

impl<'a> Builder<'a> {
    pub(crate) fn new(shape: &'a ModelShape, rows: u64) -> Self {
        Self {
            shape,
            rows,
            buffers: Vec::new(),
            steps: Vec::new(),
            weights: Vec::new(),
            tensors: Vec::new(),
        }
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
        let cos = self.buffer(
            "rope.cos",
            &[positions, half],
            Dtype::F32,
            Segment::Constants,
        );
        let sin = self.buffer(
            "rope.sin",
            &[positions, half],
            Dtype::F32,
            Segment::Constants,
        );
        (cos, sin)
    }

    pub(crate) fn value(&self, weight: usize) -> BufferId {
        self.weights[weight].value
    }

    pub(crate) fn gradient(&self, weight: usize) -> Option<BufferId> {
        self.weights[weight].trained.map(|t| t.gradient)
    }

    /// Lays out all weights; tensors that are stacked follow each other in [`ModelShape::tensors`].
    pub(crate) fn model_weights(&mut self, keep: &Keep<'_>) -> Result<ModelWeights, PlanError> {
        let tensors = self.shape.tensors();
        if let Keep::Train { frozen } = keep
            && let Some(prefix) = frozen
                .iter()
                .find(|p| !tensors.iter().any(|t| is_under(&t.name, p)))
        {
            return Err(PlanError::Option {
                option: "frozen",
                expected: "names of this model's tensors, or their beginnings up to a dot"
                    .to_owned(),
                found: prefix.clone(),
            });
        }
        let mut stacks: Vec<(String, Vec<TensorInfo>)> = Vec::new();
        for tensor in tensors {
            let name = stack_name(&tensor.name);
            match stacks.last_mut() {
                Some((last, members)) if *last == name => members.push(tensor),
                _ => stacks.push((name, vec![tensor])),
            }
        }
        let mut names = Vec::with_capacity(stacks.len());
        for (name, members) in stacks {
            self.stack(&name, members, keep)?;
            names.push(name);
        }
        Ok(self.index_weights(&names))
    }

    /// Lays out one weight: a tensor, or several of equal width one above the other.
    fn stack(
        &mut self,
        name: &str,
        members: Vec<TensorInfo>,
        keep: &Keep<'_>,
    ) -> Result<(), PlanError> {
        let mut shape = members[0].shape.clone();
        shape[0] = members.iter().map(|t| t.shape[0]).sum();
        let matrix = members[0].role == TensorRole::Matrix;
        let (dtype, trained) = match keep {
            Keep::Train { frozen } => {
                let is_frozen =
                    |t: &TensorInfo| frozen.iter().any(|prefix| is_under(&t.name, prefix));
                let first = is_frozen(&members[0]);
                if let Some(odd) = members.iter().find(|t| is_frozen(t) != first) {
                    return Err(PlanError::Option {
                        option: "frozen",
                        expected: format!("all or none of the tensors stacked in {name}"),
                        found: format!("{} unlike {}", odd.name, members[0].name),
                    });
                }
                (Dtype::F32, !first)
            }
            Keep::Serve(dtype) => (if matrix { *dtype } else { Dtype::F32 }, false),
        };
        let width = *shape.last().expect("every tensor has a dimension");
        if !width.is_multiple_of(dtype.block_len()) {
            return Err(PlanError::Option {
                option: "weights",
                expected: format!(
                    "a format whose blocks of {} divide the rows of {name}",
                    dtype.block_len()
                ),
                found: format!("{dtype} for rows of {width}"),
            });
        }
        let value = self.buffer(name, &shape, dtype, Segment::Parameters);
        let trained = trained.then(|| Trained {
            gradient: self.buffer(
                format!("gradient of {name}"),
                &shape,
                Dtype::F32,
                Segment::Gradients,
            ),
            first_moment: self.buffer(
                format!("first moment of {name}"),
                &shape,
                Dtype::F32,
                Segment::Moments,
            ),
            second_moment: self.buffer(
                format!("second moment of {name}"),
                &shape,
                Dtype::F32,
                Segment::Moments,
            ),
        });
        let weight = self.weights.len();
        self.weights.push(Weight {
            value,
            trained,
            matrix,
        });
        let mut start = 0;
        for TensorInfo {
            name,
            shape,
            role: _,
        } in members
        {
            let len = shape.iter().product();
            self.tensors.push(Tensor {
                name,
                shape,
                weight,
                start,
                len,
            });
            start += len;
        }
        Ok(())
    }

    fn index_weights(&self, names: &[String]) -> ModelWeights {
        let find = |name: &str| names.iter().position(|n| n == name);
        let must =
            |name: &str| find(name).expect("ModelShape::tensors lists every weight of the shape");
        let embedding = must("embed_tokens");
        let layers = (0..self.shape.layers)
            .map(|l| LayerWeights {
                input_gain: must(&format!("layers.{l}.input_layernorm")),
                qkv: must(&format!("layers.{l}.qkv")),
                qkv_bias: find(&format!("layers.{l}.qkv.bias")),
                head_gains: find(&format!("layers.{l}.q_norm"))
                    .zip(find(&format!("layers.{l}.k_norm"))),
                output: must(&format!("layers.{l}.o_proj")),
                post_gain: must(&format!("layers.{l}.post_attention_layernorm")),
                gate_up: must(&format!("layers.{l}.gate_up")),
                down: must(&format!("layers.{l}.down_proj")),
            })
            .collect();
        ModelWeights {
            embedding,
            layers,
            norm: must("norm"),
            head: find("lm_head").unwrap_or(embedding),
        }
    }

    /// Appends an operation and counts what it costs.
    pub(crate) fn push(&mut self, op: Op) {
        let access = op.access();
        let sum = |ids: &[BufferId]| {
            ids.iter()
                .map(|id| self.buffers[id.index()].bytes)
                .fold(0, u64::saturating_add)
        };
        let bytes = |id: BufferId| self.buffers[id.index()].bytes;
        let (mut read, mut written) = (sum(&access.reads), sum(&access.writes));
        match op {
            // Only the rows of the tokens are touched.
            Op::Embed { out, .. } => read = bytes(out),
            Op::GatherRows { out, .. } => read = bytes(out),
            Op::EmbedBackward { dx, dtable } => {
                let touched = bytes(dx).min(bytes(dtable));
                (read, written) = (bytes(dx) + touched, touched);
            }
            Op::WriteKv { qkv, .. } => {
                let row = u64::from(self.shape.heads) + 2 * u64::from(self.shape.kv_heads);
                written = bytes(qkv) / row * 2 * u64::from(self.shape.kv_heads);
                read = written;
            }
            _ => {}
        }
        let flops = self.product_flops(&op);
        self.steps.push(Step {
            op,
            flops,
            bytes_read: read,
            bytes_written: written,
        });
    }

    fn product_flops(&self, op: &Op) -> u64 {
        let dims = |id: BufferId| &self.buffers[id.index()].shape;
        let product = |rows: BufferId, matrix: BufferId| {
            2u64.saturating_mul(dims(rows)[0])
                .saturating_mul(dims(matrix).iter().product())
        };
        match *op {
            Op::Linear { x, weight, .. } => product(x, weight),
            Op::LinearDx { dy, weight, .. } => product(dy, weight),
            Op::LinearDw { dy, dweight, .. } => product(dy, dweight),
            _ => 0,
        }
    }

    /// Sets the arithmetic of the step pushed last (attention: the caller knows the lengths).
    pub(crate) fn set_flops(&mut self, flops: u64) {
        if let Some(step) = self.steps.last_mut() {
            step.flops = flops;
        }
    }

    pub(crate) fn finish(mut self, forward_steps: usize, ports: Ports) -> Plan {
        let outputs: Vec<BufferId> = std::iter::once(ports.logits).chain(ports.losses).collect();
        let segments = lifetimes::place(&mut self.buffers, &self.steps, &outputs);
        Plan {
            rows: self.rows,
            buffers: self.buffers,
            steps: self.steps,
            forward_steps,
            weights: self.weights,
            tensors: self.tensors,
            segments,
            ports,
        }
    }
}

/// Whether `name` is `prefix`, or lies under it.
fn is_under(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The weight that a tensor belongs to: its own, or the stack it is a part of.
fn stack_name(tensor: &str) -> String {
    let (owner, kind) = tensor
        .rsplit_once('.')
        .expect("tensor names end in .weight or .bias");
    let owner = owner.trim_start_matches("model.");
    let mut parts: Vec<&str> = owner
        .split('.')
        .filter(|p| !matches!(*p, "self_attn" | "mlp"))
        .collect();
    if let Some(last) = parts.last_mut() {
        *last = match *last {
            "q_proj" | "k_proj" | "v_proj" => "qkv",
            "gate_proj" | "up_proj" => "gate_up",
            other => other,
        };
    }
    let name = parts.join(".");
    if kind == "bias" {
        format!("{name}.bias")
    } else {
        name
    }
}
