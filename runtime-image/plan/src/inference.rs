//! The plan of one pass in serving: prefill chunks and single tokens of many
//! sequences, side by side, over a key/value cache in blocks.

use serde::{Deserialize, Serialize};

use crate::Numerics;
use crate::apart::Fusion;
use crate::builder::{Builder, Keep, LayerWeights, Projection};
use crate::dtype::Dtype;
use crate::mesh::Mesh;
use crate::ops::{BufferId, Op};
use crate::plan::{KV_BLOCK_TOKENS, Plan, PlanError, Ports, Segment};
use crate::shape::ModelShape;

/// What a serving plan depends on besides the shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServingOptions {
    /// Number format of the matrices: f32, bf16, q8_0 or q4_0, in which embedding and output
    /// projection take q8_0 ([`crate::formats::served`]). Gains and biases stay f32.
    pub weights: Dtype,
    /// Sequences in flight at most.
    pub max_sequences: u32,
    /// Tokens in one pass at most; at least `max_sequences`.
    pub max_batched_tokens: u32,
    /// Rows of one pass whose logits may be asked for; at least `max_sequences`.
    pub logit_rows: u32,
    /// Tokens of one sequence at most, prompt and answer together.
    pub context: u32,
    /// Blocks of [`KV_BLOCK_TOKENS`] tokens in the cache, for all sequences together.
    pub kv_blocks: u32,
    /// Devices; one.
    #[serde(default)]
    pub mesh: Mesh,
    /// Whether operations are taken apart.
    #[serde(default)]
    pub fusion: Fusion,
    /// `Exact`, or `Int8Activations` where the matrices are q8_0.
    #[serde(default)]
    pub numerics: Numerics,
}

impl ServingOptions {
    /// Room for every sequence's whole context, and logits for one row a sequence.
    pub const fn new(
        weights: Dtype,
        max_sequences: u32,
        max_batched_tokens: u32,
        context: u32,
    ) -> Self {
        Self {
            weights,
            max_sequences,
            max_batched_tokens,
            logit_rows: max_sequences,
            context,
            kv_blocks: max_sequences.saturating_mul(context.div_ceil(KV_BLOCK_TOKENS)),
            mesh: Mesh::ONE,
            fusion: Fusion::Fused,
            numerics: Numerics::Exact,
        }
    }

    fn validate(&self, shape: &ModelShape) -> Result<(), PlanError> {
        let Self {
            weights,
            max_sequences,
            max_batched_tokens,
            logit_rows,
            context,
            kv_blocks,
            mesh,
            fusion: _, // the same plan either way, but for its size
            numerics,
        } = self;
        mesh.validate().map_err(PlanError::Mesh)?;
        let refuse = |option, expected: String, found: &dyn std::fmt::Display| {
            Err(PlanError::Option { option, expected, found: found.to_string() })
        };
        if !matches!(weights, Dtype::F32 | Dtype::Bf16 | Dtype::Q8_0 | Dtype::Q4_0) {
            return refuse("weights", "f32, bf16, q8_0 or q4_0".to_owned(), weights);
        }
        match numerics {
            Numerics::Exact => {}
            Numerics::Int8Activations if *weights == Dtype::Q8_0 => {}
            Numerics::Int8Activations => {
                let expected =
                    format!("exact, for the matrices are computed with in {weights}, not q8_0");
                return refuse("numerics", expected, numerics);
            }
            Numerics::Cuda | Numerics::Hip | Numerics::Wgsl => {
                return refuse("numerics", "exact or int8-activations".to_owned(), numerics);
            }
        }
        if !(1..=MAX_SEQUENCES).contains(max_sequences) {
            return refuse("max_sequences", format!("1 to {MAX_SEQUENCES}"), max_sequences);
        }
        if !(*max_sequences..=MAX_ROWS).contains(max_batched_tokens) {
            return refuse(
                "max_batched_tokens",
                format!("max_sequences ({max_sequences}) to {MAX_ROWS}"),
                max_batched_tokens,
            );
        }
        if !(*max_sequences..=*max_batched_tokens).contains(logit_rows) {
            let expected = format!(
                "max_sequences ({max_sequences}) to max_batched_tokens ({max_batched_tokens})"
            );
            return refuse("logit_rows", expected, logit_rows);
        }
        if !(1..=shape.max_positions).contains(context) {
            return refuse(
                "context",
                format!("1 to the model's {} positions", shape.max_positions),
                context,
            );
        }
        let one = context.div_ceil(KV_BLOCK_TOKENS);
        if !(one..=MAX_BLOCKS).contains(kv_blocks) {
            return refuse(
                "kv_blocks",
                format!("{one} (one whole context) to {MAX_BLOCKS}"),
                kv_blocks,
            );
        }
        Ok(())
    }
}

// Bounds that keep every sum within 64 bits.
const MAX_SEQUENCES: u32 = 1 << 16;
const MAX_ROWS: u32 = 1 << 22;
const MAX_BLOCKS: u32 = 1 << 22;

/// Plans serving of a shape.
///
/// # Errors
/// A shape or an option out of range, named.
pub fn plan_inference(shape: &ModelShape, options: &ServingOptions) -> Result<Plan, PlanError> {
    shape.validate()?;
    options.validate(shape)?;
    let mut b = Builder::new(shape, u64::from(options.max_batched_tokens), options.fusion);
    let weights = b.model_weights(&Keep::Serve(options.weights))?;
    let (cos, sin) = b.rope_tables(u64::from(options.context));
    let hidden = u64::from(shape.hidden);

    let x = b.activation("residual", hidden);
    b.push(Op::Embed { table: b.value(weights.embedding), out: x });
    for (l, layer) in weights.layers.iter().enumerate() {
        block(&mut b, l, layer, (cos, sin), x, options);
    }
    let wanted = u64::from(options.logit_rows);
    let gathered = b.buffer("wanted rows", &[wanted, hidden], Dtype::F32, Segment::Activations);
    b.push(Op::GatherRows { x, out: gathered });
    let normed = b.buffer("norm", &[wanted, hidden], Dtype::F32, Segment::Activations);
    let inverse_rms = b.buffer("norm.inverse_rms", &[wanted, 1], Dtype::F32, Segment::Workspace);
    b.push(Op::RmsNorm { x: gathered, gain: b.value(weights.norm), out: normed, inverse_rms });
    let logits =
        b.buffer("logits", &[wanted, u64::from(shape.vocab)], Dtype::F32, Segment::Activations);
    b.push(Op::Linear {
        x: normed,
        weight: b.value(weights.head),
        bias: None,
        residual: None,
        out: logits,
    });
    let steps = b.steps();
    Ok(b.finish(steps, Ports { cos, sin, logits, losses: None }))
}

/// Adds what the block does to the residual stream `x`, in place.
fn block(
    b: &mut Builder<'_>,
    l: usize,
    w: &LayerWeights,
    rope: (BufferId, BufferId),
    x: BufferId,
    options: &ServingOptions,
) {
    let shape = b.shape;
    let (hidden, inner) = (u64::from(shape.hidden), u64::from(shape.intermediate));
    let name = |what: &str| format!("layers.{l}.{what}");
    let cache = [
        u64::from(options.kv_blocks),
        u64::from(KV_BLOCK_TOKENS),
        u64::from(shape.kv_heads),
        u64::from(shape.head_dim),
    ];

    let input_norm = b.activation(name("input_norm"), hidden);
    norm(b, &name("input_norm"), x, w.input_gain, input_norm, 1);
    let q = heads(b, &name("q"), w.query, shape.heads, input_norm, Some(rope));
    let k = heads(b, &name("k"), w.key, shape.kv_heads, input_norm, Some(rope));
    let v = heads(b, &name("v"), w.value, shape.kv_heads, input_norm, None);
    let keys = b.buffer(name("keys"), &cache, Dtype::F32, Segment::KvCache);
    let values = b.buffer(name("values"), &cache, Dtype::F32, Segment::KvCache);
    b.push(Op::WriteKv { keys_in: k, values_in: v, keys, values });
    let attended = b.activation(name("attended"), shape.q_width());
    // At most: every row sees a whole context.
    let pairs = u64::from(options.max_batched_tokens) * u64::from(options.context);
    let flops = (4 * pairs).saturating_mul(shape.q_width());
    b.push_attention(Op::PagedAttention { q, keys, values, out: attended }, flops);
    b.linear(&name("output"), w.output, attended, Some(x), x);

    let post_norm = b.activation(name("post_norm"), hidden);
    norm(b, &name("post_norm"), x, w.post_gain, post_norm, 1);
    let activated = b.activation(name("activated"), inner);
    b.push(Op::LinearSwiGlu {
        x: post_norm,
        gate: b.value(w.gate.weight),
        up: b.value(w.up.weight),
        kept: None,
        out: activated,
    });
    b.linear(&name("down"), w.down, activated, Some(x), x);
}

/// Queries, keys or values of a block, as attention sees them.
fn heads(
    b: &mut Builder<'_>,
    name: &str,
    weights: Projection,
    count: u32,
    x: BufferId,
    rope: Option<(BufferId, BufferId)>,
) -> BufferId {
    let width = u64::from(count) * u64::from(b.shape.head_dim);
    let mut out = b.activation(name, width);
    b.linear(name, weights.linear, x, None, out);
    if let Some(gain) = weights.gain {
        let normed = b.activation(format!("{name}.normed"), width);
        norm(b, name, out, gain, normed, count);
        out = normed;
    }
    if let Some((cos, sin)) = rope {
        b.push(Op::Rope { x: out, heads: count, cos, sin, inverse: false });
    }
    out
}

fn norm(b: &mut Builder<'_>, name: &str, x: BufferId, gain: usize, out: BufferId, per_row: u32) {
    let shape = [b.rows, u64::from(per_row)];
    let inverse_rms =
        b.buffer(format!("{name}.inverse_rms"), &shape, Dtype::F32, Segment::Workspace);
    b.push(Op::RmsNorm { x, gain: b.value(gain), out, inverse_rms });
}
