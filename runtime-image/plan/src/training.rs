//! The plan of one forward and backward pass in training. Everything the
//! backward pass needs is kept; nothing is recomputed.

use serde::{Deserialize, Serialize};

use crate::builder::{Builder, Keep, LayerWeights, Projection};
use crate::dtype::Dtype;
use crate::mesh::Mesh;
use crate::ops::{BufferId, Op};
use crate::plan::{Plan, PlanError, Ports, Segment};
use crate::shape::ModelShape;

/// What a training plan depends on besides the shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingOptions {
    /// Sequences in one pass.
    pub micro_batch: u32,
    /// Tokens of each sequence.
    pub sequence: u32,
    /// Tensors that are not trained: Hugging Face names, or their beginnings up to a dot.
    #[serde(default)]
    pub frozen: Vec<String>,
    /// Devices; one.
    #[serde(default)]
    pub mesh: Mesh,
}

impl TrainingOptions {
    /// All tensors trained, on one device.
    pub const fn new(micro_batch: u32, sequence: u32) -> Self {
        Self { micro_batch, sequence, frozen: Vec::new(), mesh: Mesh::ONE }
    }
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
}

/// Queries, keys or values of a block.
struct Heads {
    weights: Projection,
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
    let TrainingOptions { micro_batch, sequence, frozen, mesh } = options;
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
    let mut b = Builder::new(shape, rows);
    let weights = b.model_weights(&Keep::Train { frozen })?;
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
        let heads = [query, key, value];
        [input_gain, output, post_gain, gate, up, down]
            .into_iter()
            .chain(
                heads
                    .into_iter()
                    .flat_map(|Projection { weight, bias, gain }| [Some(weight), bias, gain])
                    .flatten(),
            )
            .any(|tensor| b.gradient(tensor).is_some())
    };
    let lowest = if b.gradient(weights.embedding).is_some() {
        0
    } else {
        weights.layers.iter().position(trained_layer).unwrap_or(weights.layers.len())
    };
    linear_dw(&mut b, logits, normed, weights.head);
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
    b.push(Op::Linear {
        x: attended,
        weight: b.value(w.output),
        bias: None,
        residual: Some(x),
        out: middle,
    });

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
    b.push(Op::LinearSwiGlu {
        x: post_norm,
        gate: b.value(w.gate),
        up: b.value(w.up),
        kept: Some((gate, up)),
        out: activated,
    });
    let out = b.activation(name("out"), hidden);
    b.push(Op::Linear {
        x: activated,
        weight: b.value(w.down),
        bias: None,
        residual: Some(middle),
        out,
    });
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
    let bias = weights.bias.map(|t| b.value(t));
    b.push(Op::Linear { x, weight: b.value(weights.weight), bias, residual: None, out: projected });
    let mut heads = Heads { weights, count, out: projected, before_norm: None };
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

    linear_dw(b, dx, kept.activated, w.down);
    let dactivated = b.activation(name("activated"), inner);
    b.push(Op::LinearDx { dy: dx, weight: b.value(w.down), dx: dactivated, adds: false });
    let (dgate, dup) = (b.activation(name("gate"), inner), b.activation(name("up"), inner));
    b.push(Op::SwiGluBackward { gate: kept.gate, up: kept.up, dout: dactivated, dgate, dup });
    linear_dw(b, dgate, kept.post_norm, w.gate);
    linear_dw(b, dup, kept.post_norm, w.up);
    let dpost = b.activation(name("post_norm"), hidden);
    b.push(Op::LinearDx { dy: dgate, weight: b.value(w.gate), dx: dpost, adds: false });
    b.push(Op::LinearDx { dy: dup, weight: b.value(w.up), dx: dpost, adds: true });
    b.push(Op::RmsNormBackward {
        x: kept.middle,
        gain: b.value(w.post_gain),
        inverse_rms: kept.post_inverse,
        dy: dpost,
        dx,
        adds: true,
        dgain: b.gradient(w.post_gain),
    });

    linear_dw(b, dx, kept.attended, w.output);
    let dattended = b.activation(name("attended"), shape.q_width());
    b.push(Op::LinearDx { dy: dx, weight: b.value(w.output), dx: dattended, adds: false });
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
    let Heads { weights, count, out: _, before_norm } = heads;
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
    if let Some(dbias) = weights.bias.and_then(|t| b.gradient(t)) {
        b.push(Op::BiasGradient { dy, dbias });
    }
    linear_dw(b, dy, x, weights.weight);
    b.push(Op::LinearDx { dy, weight: b.value(weights.weight), dx, adds });
}

fn linear_dw(b: &mut Builder<'_>, dy: BufferId, x: BufferId, tensor: usize) {
    if let Some(dweight) = b.gradient(tensor) {
        b.push(Op::LinearDw { dy, x, dweight });
    }
}
