//! The plan of one forward and backward pass in training. Everything the
//! backward pass needs is kept; nothing is recomputed.

use serde::{Deserialize, Serialize};

use crate::builder::{Builder, Keep, LayerWeights};
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
        Self {
            micro_batch,
            sequence,
            frozen: Vec::new(),
            mesh: Mesh::ONE,
        }
    }
}

/// Tokens in one pass that a plan accepts at most; keeps every sum within 64 bits.
const MAX_ROWS: u64 = 1 << 24;

/// Buffers that a block's backward pass needs of its forward pass.
struct Kept {
    x: BufferId,
    input_norm: BufferId,
    input_inverse: BufferId,
    /// Before the heads' norm, and its inverse roots; with `qk_norm` only.
    raw_qkv: Option<(BufferId, BufferId)>,
    qkv: BufferId,
    attended: BufferId,
    log_sum_exp: BufferId,
    middle: BufferId,
    post_norm: BufferId,
    post_inverse: BufferId,
    gate_up: BufferId,
    activated: BufferId,
}

/// Plans training of a shape in f32.
///
/// # Errors
/// A shape or an option out of range, named.
pub fn plan_training(shape: &ModelShape, options: &TrainingOptions) -> Result<Plan, PlanError> {
    shape.validate()?;
    let TrainingOptions {
        micro_batch,
        sequence,
        frozen,
        mesh,
    } = options;
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
    b.push(Op::Embed {
        table: b.value(weights.embedding),
        out: x,
    });
    let mut kept = Vec::with_capacity(weights.layers.len());
    for (l, layer) in weights.layers.iter().enumerate() {
        let (block, out) = forward(&mut b, l, layer, rope, x, attention_flops);
        kept.push(block);
        x = out;
    }
    let normed = b.activation("norm", hidden);
    let inverse = b.activation("norm.inverse_rms", 1);
    b.push(Op::RmsNorm {
        x,
        gain: b.value(weights.norm),
        out: normed,
        inverse_rms: Some(inverse),
    });
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
    let forward_steps = b.steps.len();

    // Backward, down to the lowest thing that is trained.
    let trained_layer = |layer: &LayerWeights| {
        let LayerWeights {
            input_gain,
            qkv,
            qkv_bias,
            head_gains,
            output,
            post_gain,
            gate_up,
            down,
        } = *layer;
        [input_gain, qkv, output, post_gain, gate_up, down]
            .into_iter()
            .chain(qkv_bias)
            .chain(head_gains.into_iter().flat_map(|(q, k)| [q, k]))
            .any(|w| b.gradient(w).is_some())
    };
    let lowest = if b.gradient(weights.embedding).is_some() {
        0
    } else {
        weights
            .layers
            .iter()
            .position(trained_layer)
            .unwrap_or(weights.layers.len())
    };
    if let Some(dweight) = b.gradient(weights.head) {
        b.push(Op::LinearDw {
            dy: logits,
            x: normed,
            dweight,
        });
    }
    let dgain = b.gradient(weights.norm);
    if lowest < weights.layers.len() || dgain.is_some() || b.gradient(weights.embedding).is_some() {
        let dnormed = b.activation("d norm", hidden);
        b.push(Op::LinearDx {
            dy: logits,
            weight: b.value(weights.head),
            dx: dnormed,
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
        for (l, (layer, kept)) in weights
            .layers
            .iter()
            .zip(&kept)
            .enumerate()
            .skip(lowest)
            .rev()
        {
            backward(&mut b, l, layer, kept, rope, dx, attention_flops);
        }
        if let Some(dtable) = b.gradient(weights.embedding) {
            b.push(Op::EmbedBackward { dx, dtable });
        }
    }
    let (cos, sin) = rope;
    Ok(b.finish(
        forward_steps,
        Ports {
            cos,
            sin,
            logits,
            losses: Some(losses),
        },
    ))
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
    (cos, sin): (BufferId, BufferId),
    x: BufferId,
    attention_flops: u64,
) -> (Kept, BufferId) {
    let shape = b.shape;
    let (hidden, inner) = (u64::from(shape.hidden), u64::from(shape.intermediate));
    let (q_width, qkv_width) = (shape.q_width(), shape.qkv_width());
    let name = |what: &str| format!("layers.{l}.{what}");

    let input_norm = b.activation(name("input_norm"), hidden);
    let input_inverse = b.activation(name("input_norm.inverse_rms"), 1);
    b.push(Op::RmsNorm {
        x,
        gain: b.value(w.input_gain),
        out: input_norm,
        inverse_rms: Some(input_inverse),
    });
    let projected = b.activation(name("qkv"), qkv_width);
    b.push(Op::Linear {
        x: input_norm,
        weight: b.value(w.qkv),
        bias: w.qkv_bias.map(|i| b.value(i)),
        residual: None,
        out: projected,
    });
    let (qkv, raw_qkv) = match w.head_gains {
        None => (projected, None),
        Some((q_gain, k_gain)) => {
            let out = b.activation(name("normed_qkv"), qkv_width);
            let inverse = b.activation(
                name("qkv.inverse_rms"),
                u64::from(shape.heads + shape.kv_heads),
            );
            let (q_gain, k_gain) = (b.value(q_gain), b.value(k_gain));
            b.push(Op::HeadNorm {
                qkv: projected,
                q_gain,
                k_gain,
                out,
                inverse_rms: Some(inverse),
            });
            (out, Some((projected, inverse)))
        }
    };
    b.push(Op::Rope { qkv, cos, sin });
    let attended = b.activation(name("attended"), q_width);
    let log_sum_exp = b.activation(name("log_sum_exp"), u64::from(shape.heads));
    b.push(Op::Attention {
        qkv,
        out: attended,
        log_sum_exp,
    });
    b.set_flops(attention_flops);
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
        inverse_rms: Some(post_inverse),
    });
    let gate_up = b.activation(name("gate_up"), 2 * inner);
    b.push(Op::Linear {
        x: post_norm,
        weight: b.value(w.gate_up),
        bias: None,
        residual: None,
        out: gate_up,
    });
    let activated = b.activation(name("activated"), inner);
    b.push(Op::SwiGlu {
        gate_up,
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
        raw_qkv,
        qkv,
        attended,
        log_sum_exp,
        middle,
        post_norm,
        post_inverse,
        gate_up,
        activated,
    };
    (kept, out)
}

/// `dx` holds the gradient of the block's output on entry and of its input on return.
fn backward(
    b: &mut Builder<'_>,
    l: usize,
    w: &LayerWeights,
    kept: &Kept,
    (cos, sin): (BufferId, BufferId),
    dx: BufferId,
    attention_flops: u64,
) {
    let shape = b.shape;
    let (hidden, inner) = (u64::from(shape.hidden), u64::from(shape.intermediate));
    let (q_width, qkv_width) = (shape.q_width(), shape.qkv_width());
    let name = |what: &str| format!("layers.{l}.d {what}");

    linear_dw(b, dx, kept.activated, w.down);
    let dactivated = b.activation(name("activated"), inner);
    b.push(Op::LinearDx {
        dy: dx,
        weight: b.value(w.down),
        dx: dactivated,
    });
    let dgate_up = b.activation(name("gate_up"), 2 * inner);
    b.push(Op::SwiGluBackward {
        gate_up: kept.gate_up,
        dout: dactivated,
        dgate_up,
    });
    linear_dw(b, dgate_up, kept.post_norm, w.gate_up);
    let dpost = b.activation(name("post_norm"), hidden);
    b.push(Op::LinearDx {
        dy: dgate_up,
        weight: b.value(w.gate_up),
        dx: dpost,
    });
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
    let dattended = b.activation(name("attended"), q_width);
    b.push(Op::LinearDx {
        dy: dx,
        weight: b.value(w.output),
        dx: dattended,
    });
    let rows = b.rows;
    let delta = b.buffer(
        name("delta"),
        &[rows, u64::from(shape.heads)],
        Dtype::F32,
        Segment::Workspace,
    );
    let mut dqkv = b.activation(name("qkv"), qkv_width);
    b.push(Op::AttentionBackward {
        qkv: kept.qkv,
        out: kept.attended,
        log_sum_exp: kept.log_sum_exp,
        dout: dattended,
        delta,
        dqkv,
    });
    // Scores again, then the gradients of values, probabilities, queries and keys: five products to the forward pass's two.
    b.set_flops(attention_flops / 2 * 5);
    b.push(Op::RopeBackward { dqkv, cos, sin });
    if let (Some((raw, inverse_rms)), Some((q_gain, k_gain))) = (kept.raw_qkv, w.head_gains) {
        let draw = b.activation(name("raw_qkv"), qkv_width);
        b.push(Op::HeadNormBackward {
            qkv: raw,
            inverse_rms,
            q_gain: b.value(q_gain),
            k_gain: b.value(k_gain),
            dout: dqkv,
            dqkv: draw,
            dq_gain: b.gradient(q_gain),
            dk_gain: b.gradient(k_gain),
        });
        dqkv = draw;
    }
    if let Some(dbias) = w.qkv_bias.and_then(|i| b.gradient(i)) {
        b.push(Op::BiasGradient { dy: dqkv, dbias });
    }
    linear_dw(b, dqkv, kept.input_norm, w.qkv);
    let dinput = b.activation(name("input_norm"), hidden);
    b.push(Op::LinearDx {
        dy: dqkv,
        weight: b.value(w.qkv),
        dx: dinput,
    });
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

fn linear_dw(b: &mut Builder<'_>, dy: BufferId, x: BufferId, weight: usize) {
    if let Some(dweight) = b.gradient(weight) {
        b.push(Op::LinearDw { dy, x, dweight });
    }
}
