//! The plan of one forward and backward pass in training. Everything the
//! backward pass needs is kept; nothing is recomputed.

use serde::{Deserialize, Serialize};

use crate::apart::Fusion;
use crate::builder::{Builder, Keep, LayerWeights, Projection};
use crate::dtype::Dtype;
use crate::linear::{Adapters, Linear};
use crate::mesh::Mesh;
use crate::ops::{BufferId, Op};
use crate::plan::{Plan, PlanError, Ports, Segment};
use crate::shape::ModelShape;

/// What a training plan depends on besides the shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingOptions {
    /// Sequences in one pass.
    pub micro_batch: u32,
    /// Tokens of each sequence.
    pub sequence: u32,
    /// Tensors that are not trained: Hugging Face names, or their beginnings up to a dot.
    #[serde(default)]
    pub frozen: Vec<String>,
    /// Number format of the frozen matrices: f32, bf16 or q8_0. All else is f32.
    #[serde(default = "f32_weights")]
    pub frozen_weights: Dtype,
    /// Low-rank pairs that are trained beside the weights.
    #[serde(default)]
    pub adapters: Option<Adapters>,
    /// Devices; one.
    #[serde(default)]
    pub mesh: Mesh,
    /// Whether operations are taken apart.
    #[serde(default)]
    pub fusion: Fusion,
}

impl TrainingOptions {
    /// All tensors trained, on one device.
    pub const fn new(micro_batch: u32, sequence: u32) -> Self {
        Self {
            micro_batch,
            sequence,
            frozen: Vec::new(),
            frozen_weights: f32_weights(),
            adapters: None,
            mesh: Mesh::ONE,
            fusion: Fusion::Fused,
        }
    }
}

const fn f32_weights() -> Dtype {
    Dtype::F32
}

/// Tokens in one pass that a plan accepts at most; keeps every sum within 64 bits.
const MAX_ROWS: u64 = 1 << 24;

/// Buffers that a block's backward pass needs of its forward pass.
struct Kept {
    x: BufferId,
    input_norm: BufferId,
    input_inverse: BufferId,
    q: Heads,
    k: Heads,
    v: Heads,
    attended: BufferId,
    log_sum_exp: BufferId,
    middle: BufferId,
    post_norm: BufferId,
    post_inverse: BufferId,
    gate: BufferId,
    up: BufferId,
    activated: BufferId,
    low: Low,
}

/// What each adapted layer of a block keeps: `s·x·Aᵀ` of its pair.
struct Low {
    output: Option<BufferId>,
    gate: Option<BufferId>,
    up: Option<BufferId>,
    down: Option<BufferId>,
}

/// Queries, keys or values of a block.
struct Heads {
    weights: Projection,
    /// `s·x·Aᵀ` of the projection's pair.
    low: Option<BufferId>,
    /// In a row.
    count: u32,
    /// As attention sees them.
    out: BufferId,
    /// Before the heads' norm, and its inverse roots.
    before_norm: Option<(BufferId, BufferId)>,
}

/// Plans training of a shape in f32.
///
/// # Errors
/// A shape or an option out of range, named.
pub fn plan_training(shape: &ModelShape, options: &TrainingOptions) -> Result<Plan, PlanError> {
    shape.validate()?;
    let TrainingOptions { micro_batch, sequence, frozen, frozen_weights, adapters, mesh, fusion } =
        options;
    mesh.validate().map_err(PlanError::Mesh)?;
    let rows = u64::from(*micro_batch) * u64::from(*sequence);
    if *micro_batch == 0 || *sequence == 0 || rows > MAX_ROWS {
        return Err(PlanError::Option {
            option: "micro_batch × sequence",
            expected: format!("1 to {MAX_ROWS} tokens"),
            found: format!("{micro_batch} × {sequence}"),
        });
    }
    if *sequence > shape.max_positions {
        return Err(PlanError::Option {
            option: "sequence",
            expected: format!("at most the model's {} positions", shape.max_positions),
            found: sequence.to_string(),
        });
    }
    if !matches!(frozen_weights, Dtype::F32 | Dtype::Bf16 | Dtype::Q8_0) {
        return Err(PlanError::Option {
            option: "frozen_weights",
            expected: "f32, bf16 or q8_0".to_owned(),
            found: frozen_weights.to_string(),
        });
    }
    let mut b = Builder::new(shape, rows, *fusion);
    let adapters = adapters.as_ref();
    let keep = Keep::Train { frozen, frozen_weights: *frozen_weights, adapters };
    let weights = b.model_weights(&keep)?;
    let rope = b.rope_tables(u64::from(*sequence));
    let attention_flops = causal_flops(shape, *micro_batch, *sequence);
    let (hidden, vocab) = (u64::from(shape.hidden), u64::from(shape.vocab));

    let mut x = b.activation("embedded", hidden);
    b.push(Op::Embed { table: b.value(weights.embedding), out: x });
    let mut kept = Vec::with_capacity(weights.layers.len());
    for (l, layer) in weights.layers.iter().enumerate() {
        let (block, out) = forward(&mut b, l, layer, rope, x, attention_flops);
        kept.push(block);
        x = out;
    }
    let normed = b.activation("norm", hidden);
    let inverse = b.activation("norm.inverse_rms", 1);
    b.push(Op::RmsNorm { x, gain: b.value(weights.norm), out: normed, inverse_rms: inverse });
    let logits = b.activation("logits", vocab);
    b.push(Op::Linear {
        x: normed,
        weight: b.value(weights.head),
        bias: None,
        residual: None,
        out: logits,
    });
    let losses = b.activation("losses", 1);
    b.push(Op::CrossEntropy { logits, losses });
    let forward_steps = b.steps();

    // Backward, down to the lowest thing that is trained.
    let trained_layer = |layer: &LayerWeights| {
        let LayerWeights { input_gain, query, key, value, output, post_gain, gate, up, down } =
            *layer;
        let projections = [query, key, value];
        [input_gain, post_gain]
            .into_iter()
            .chain(projections.iter().filter_map(|p| p.gain))
            .chain(projections.map(|p| p.linear).into_iter().flat_map(Linear::tensors))
            .chain([output, gate, up, down].into_iter().flat_map(Linear::tensors))
            .any(|tensor| b.gradient(tensor).is_some())
    };
    let lowest = if b.gradient(weights.embedding).is_some() {
        0
    } else {
        weights.layers.iter().position(trained_layer).unwrap_or(weights.layers.len())
    };
    b.product_gradient(weights.head, logits, normed);
    let dgain = b.gradient(weights.norm);
    if lowest < weights.layers.len() || dgain.is_some() || b.gradient(weights.embedding).is_some() {
        let dnormed = b.activation("d norm", hidden);
        b.push(Op::LinearDx {
            dy: logits,
            weight: b.value(weights.head),
            dx: dnormed,
            adds: false,
        });
        let dx = b.activation("d residual", hidden);
        b.push(Op::RmsNormBackward {
            x,
            gain: b.value(weights.norm),
            inverse_rms: inverse,
            dy: dnormed,
            dx,
            adds: false,
            dgain,
        });
        for (l, (layer, kept)) in weights.layers.iter().zip(&kept).enumerate().skip(lowest).rev() {
            backward(&mut b, l, layer, kept, rope, dx, attention_flops);
        }
        if let Some(dtable) = b.gradient(weights.embedding) {
            b.push(Op::EmbedBackward { dx, dtable });
        }
    }
    let (cos, sin) = rope;
    Ok(b.finish(forward_steps, Ports { cos, sin, logits, losses: Some(losses) }))
}

/// Two products (scores, and their weighted sum of values) over the lower triangle.
fn causal_flops(shape: &ModelShape, micro_batch: u32, sequence: u32) -> u64 {
    let pairs = u64::from(sequence) * (u64::from(sequence) + 1) / 2;
    4u64.saturating_mul(u64::from(micro_batch) * pairs)
        .saturating_mul(u64::from(shape.heads) * u64::from(shape.head_dim))
}

fn forward(
    b: &mut Builder<'_>,
    l: usize,
    w: &LayerWeights,
    rope: (BufferId, BufferId),
    x: BufferId,
    attention_flops: u64,
) -> (Kept, BufferId) {
    let shape = b.shape;
    let (hidden, inner) = (u64::from(shape.hidden), u64::from(shape.intermediate));
    let name = |what: &str| format!("layers.{l}.{what}");

    let input_norm = b.activation(name("input_norm"), hidden);
    let input_inverse = b.activation(name("input_norm.inverse_rms"), 1);
    b.push(Op::RmsNorm {
        x,
        gain: b.value(w.input_gain),
        out: input_norm,
        inverse_rms: input_inverse,
    });
    let q = heads_forward(b, &name("q"), w.query, shape.heads, input_norm, Some(rope));
    let k = heads_forward(b, &name("k"), w.key, shape.kv_heads, input_norm, Some(rope));
    let v = heads_forward(b, &name("v"), w.value, shape.kv_heads, input_norm, None);
    let attended = b.activation(name("attended"), shape.q_width());
    let log_sum_exp = b.activation(name("log_sum_exp"), u64::from(shape.heads));
    let attention = Op::Attention { q: q.out, k: k.out, v: v.out, out: attended, log_sum_exp };
    b.push_attention(attention, attention_flops);
    let middle = b.activation(name("middle"), hidden);
    let low_output = b.linear(&name("output"), w.output, attended, Some(x), middle);

    let post_norm = b.activation(name("post_norm"), hidden);
    let post_inverse = b.activation(name("post_norm.inverse_rms"), 1);
    b.push(Op::RmsNorm {
        x: middle,
        gain: b.value(w.post_gain),
        out: post_norm,
        inverse_rms: post_inverse,
    });
    let gate = b.activation(name("gate"), inner);
    let up = b.activation(name("up"), inner);
    let activated = b.activation(name("activated"), inner);
    let (low_gate, low_up) = if w.gate.pair.is_none() && w.up.pair.is_none() {
        b.push(Op::LinearSwiGlu {
            x: post_norm,
            gate: b.value(w.gate.weight),
            up: b.value(w.up.weight),
            kept: Some((gate, up)),
            out: activated,
        });
        (None, None)
    } else {
        let low_gate = b.linear(&name("gate"), w.gate, post_norm, None, gate);
        let low_up = b.linear(&name("up"), w.up, post_norm, None, up);
        b.push(Op::SwiGlu { gate, up, out: activated });
        (low_gate, low_up)
    };
    let out = b.activation(name("out"), hidden);
    let low_down = b.linear(&name("down"), w.down, activated, Some(middle), out);
    let kept = Kept {
        x,
        input_norm,
        input_inverse,
        q,
        k,
        v,
        attended,
        log_sum_exp,
        middle,
        post_norm,
        post_inverse,
        gate,
        up,
        activated,
        low: Low { output: low_output, gate: low_gate, up: low_up, down: low_down },
    };
    (kept, out)
}

fn heads_forward(
    b: &mut Builder<'_>,
    name: &str,
    weights: Projection,
    count: u32,
    x: BufferId,
    rope: Option<(BufferId, BufferId)>,
) -> Heads {
    let width = u64::from(count) * u64::from(b.shape.head_dim);
    let projected = b.activation(name, width);
    let low = b.linear(name, weights.linear, x, None, projected);
    let mut heads = Heads { weights, low, count, out: projected, before_norm: None };
    if let Some(gain) = weights.gain {
        let inverse_rms = b.activation(format!("{name}.inverse_rms"), u64::from(count));
        heads.out = b.activation(format!("{name}.normed"), width);
        heads.before_norm = Some((projected, inverse_rms));
        b.push(Op::RmsNorm { x: projected, gain: b.value(gain), out: heads.out, inverse_rms });
    }
    if let Some((cos, sin)) = rope {
        b.push(Op::Rope { x: heads.out, heads: count, cos, sin, inverse: false });
    }
    heads
}

/// `dx` holds the gradient of the block's output on entry and of its input on return.
fn backward(
    b: &mut Builder<'_>,
    l: usize,
    w: &LayerWeights,
    kept: &Kept,
    rope: (BufferId, BufferId),
    dx: BufferId,
    attention_flops: u64,
) {
    let shape = b.shape;
    let (hidden, inner) = (u64::from(shape.hidden), u64::from(shape.intermediate));
    let name = |what: &str| format!("layers.{l}.d {what}");

    let dlow = b.linear_dw(&name("down"), w.down, kept.low.down, dx, kept.activated);
    let dactivated = b.activation(name("activated"), inner);
    b.linear_dx(w.down, dlow, dx, dactivated, false);
    let (dgate, dup) = (b.activation(name("gate"), inner), b.activation(name("up"), inner));
    b.push(Op::SwiGluBackward { gate: kept.gate, up: kept.up, dout: dactivated, dgate, dup });
    let dlow_gate = b.linear_dw(&name("gate"), w.gate, kept.low.gate, dgate, kept.post_norm);
    let dlow_up = b.linear_dw(&name("up"), w.up, kept.low.up, dup, kept.post_norm);
    let dpost = b.activation(name("post_norm"), hidden);
    b.linear_dx(w.gate, dlow_gate, dgate, dpost, false);
    b.linear_dx(w.up, dlow_up, dup, dpost, true);
    b.push(Op::RmsNormBackward {
        x: kept.middle,
        gain: b.value(w.post_gain),
        inverse_rms: kept.post_inverse,
        dy: dpost,
        dx,
        adds: true,
        dgain: b.gradient(w.post_gain),
    });

    let dlow = b.linear_dw(&name("output"), w.output, kept.low.output, dx, kept.attended);
    let dattended = b.activation(name("attended"), shape.q_width());
    b.linear_dx(w.output, dlow, dx, dattended, false);
    let delta =
        b.buffer(name("delta"), &[b.rows, u64::from(shape.heads)], Dtype::F32, Segment::Workspace);
    let dq = b.activation(name("q"), shape.q_width());
    let dk = b.activation(name("k"), shape.kv_width());
    let dv = b.activation(name("v"), shape.kv_width());
    let attention = Op::AttentionBackward {
        q: kept.q.out,
        k: kept.k.out,
        v: kept.v.out,
        out: kept.attended,
        log_sum_exp: kept.log_sum_exp,
        dout: dattended,
        dq,
        dk,
        dv,
        delta,
    };
    // Scores again, then the gradients of values, probabilities, queries and keys: five products to the forward pass's two.
    b.push_attention(attention, (attention_flops / 2).saturating_mul(5));
    let dinput = b.activation(name("input_norm"), hidden);
    heads_backward(b, &name("q"), &kept.q, Some(rope), dq, kept.input_norm, dinput, false);
    heads_backward(b, &name("k"), &kept.k, Some(rope), dk, kept.input_norm, dinput, true);
    heads_backward(b, &name("v"), &kept.v, None, dv, kept.input_norm, dinput, true);
    b.push(Op::RmsNormBackward {
        x: kept.x,
        gain: b.value(w.input_gain),
        inverse_rms: kept.input_inverse,
        dy: dinput,
        dx,
        adds: true,
        dgain: b.gradient(w.input_gain),
    });
}

/// From the gradient `dy` of queries, keys or values to that of their weights and of their input `x`.
fn heads_backward(
    b: &mut Builder<'_>,
    name: &str,
    heads: &Heads,
    rope: Option<(BufferId, BufferId)>,
    mut dy: BufferId,
    x: BufferId,
    dx: BufferId,
    adds: bool,
) {
    let Heads { weights, low, count, out: _, before_norm } = heads;
    if let Some((cos, sin)) = rope {
        b.push(Op::Rope { x: dy, heads: *count, cos, sin, inverse: true });
    }
    if let (Some((before, inverse_rms)), Some(gain)) = (*before_norm, weights.gain) {
        let width = u64::from(*count) * u64::from(b.shape.head_dim);
        let dbefore = b.activation(format!("{name}.before_norm"), width);
        b.push(Op::RmsNormBackward {
            x: before,
            gain: b.value(gain),
            inverse_rms,
            dy,
            dx: dbefore,
            adds: false,
            dgain: b.gradient(gain),
        });
        dy = dbefore;
    }
    let dlow = b.linear_dw(name, weights.linear, *low, dy, x);
    b.linear_dx(weights.linear, dlow, dy, dx, adds);
}
