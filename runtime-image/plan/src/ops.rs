//! The operations a plan is made of. Each names the buffers it reads and writes;
//! nothing else is ever read or written, so lifetimes follow from the list alone.
//!
//! Shapes: `T` rows (tokens) in a pass, `D` hidden, `H` query heads, `K`
//! key/value heads, `d` head width, `F` intermediate, `V` vocabulary. Matrices of
//! weights are `[out, in]`, as Hugging Face stores them.

use serde::Serialize;

/// A buffer of a plan, by its place in [`crate::plan::Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct BufferId(pub u32);

impl BufferId {
    /// As an index into [`crate::plan::Plan::buffers`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One operation. "Added to" means that the buffer's former contents stay in the sum.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// `out[t] = table[token[t]]`.
    Embed {
        /// `[V, D]`.
        table: BufferId,
        /// `[T, D]`.
        out: BufferId,
    },
    /// `out = x · r · gain` with `r = 1/√(mean(x²) + ε)` for each row as wide as
    /// the gain (Zhang and Sennrich 2019): a token's `D` numbers, or one head's `d`.
    RmsNorm {
        /// `[T, n·width]`.
        x: BufferId,
        /// `[width]`.
        gain: BufferId,
        /// `[T, n·width]`.
        out: BufferId,
        /// `[T, n]`: `r`.
        inverse_rms: BufferId,
    },
    /// `out = x · weightᵀ (+ bias) (+ residual)`.
    Linear {
        /// `[T, in]`.
        x: BufferId,
        /// `[out, in]`.
        weight: BufferId,
        /// `[out]`.
        bias: Option<BufferId>,
        /// `[T, out]`; may be `out` itself.
        residual: Option<BufferId>,
        /// `[T, out]`.
        out: BufferId,
    },
    /// `out = silu(x · gateᵀ) · (x · upᵀ)` (Shazeer 2020).
    LinearSwiGlu {
        /// `[T, D]`.
        x: BufferId,
        /// `[F, D]`.
        gate: BufferId,
        /// `[F, D]`.
        up: BufferId,
        /// Both `[T, F]`: the two products, kept for the backward pass.
        kept: Option<(BufferId, BufferId)>,
        /// `[T, F]`.
        out: BufferId,
    },
    /// `to += x`.
    Add {
        /// As `to`.
        x: BufferId,
        /// Any.
        to: BufferId,
    },
    /// `out = silu(gate) · up`, from products that [`Op::LinearSwiGlu`] could not make alone.
    SwiGlu {
        /// `[T, F]`.
        gate: BufferId,
        /// `[T, F]`.
        up: BufferId,
        /// `[T, F]`.
        out: BufferId,
    },
    /// `x = factor · x`.
    Scale {
        /// Any rows.
        x: BufferId,
        /// The same for all.
        factor: f32,
    },
    /// Rotates heads by their positions, in place (Su et al. 2021); or back.
    Rope {
        /// `[T, heads·d]`.
        x: BufferId,
        /// Heads in a row.
        heads: u32,
        /// `[positions, d/2]`.
        cos: BufferId,
        /// `[positions, d/2]`.
        sin: BufferId,
        /// The gradient: the rotation back.
        inverse: bool,
    },
    /// Causal attention within each whole sequence, without the `T×T` matrix.
    Attention {
        /// `[T, H·d]`.
        q: BufferId,
        /// `[T, K·d]`.
        k: BufferId,
        /// `[T, K·d]`.
        v: BufferId,
        /// `[T, H·d]`.
        out: BufferId,
        /// `[T, H]`: log of the sum of exponentials, kept for the backward pass.
        log_sum_exp: BufferId,
    },
    /// Copies the pass's keys and values into their sequences' blocks.
    WriteKv {
        /// `[T, K·d]`.
        keys_in: BufferId,
        /// `[T, K·d]`.
        values_in: BufferId,
        /// `[blocks, 16, K, d]`.
        keys: BufferId,
        /// `[blocks, 16, K, d]`.
        values: BufferId,
    },
    /// Causal attention of each row over the blocks of its sequence.
    PagedAttention {
        /// `[T, H·d]`.
        q: BufferId,
        /// `[blocks, 16, K, d]`.
        keys: BufferId,
        /// `[blocks, 16, K, d]`.
        values: BufferId,
        /// `[T, H·d]`.
        out: BufferId,
    },
    /// Picks the rows whose logits are wanted.
    GatherRows {
        /// `[T, D]`.
        x: BufferId,
        /// `[wanted, D]`.
        out: BufferId,
    },
    /// Negative log-likelihood of each target; where a backward pass follows, the
    /// logits become their gradient in place.
    CrossEntropy {
        /// `[T, V]`.
        logits: BufferId,
        /// `[T]`, in nats; 0 where the target is ignored.
        losses: BufferId,
    },
    /// `dx = dy · weight`.
    LinearDx {
        /// `[T, out]`.
        dy: BufferId,
        /// `[out, in]`.
        weight: BufferId,
        /// `[T, in]`.
        dx: BufferId,
        /// Whether `dx` is added to, or written.
        adds: bool,
    },
    /// `dweight += dyᵀ · x`.
    LinearDw {
        /// `[T, out]`.
        dy: BufferId,
        /// `[T, in]`.
        x: BufferId,
        /// `[out, in]`, added to.
        dweight: BufferId,
    },
    /// `dbias += Σ_t dy[t]`.
    BiasGradient {
        /// `[T, out]`.
        dy: BufferId,
        /// `[out]`, added to.
        dbias: BufferId,
    },
    /// Gradient of [`Op::RmsNorm`].
    RmsNormBackward {
        /// `[T, n·width]`.
        x: BufferId,
        /// `[width]`.
        gain: BufferId,
        /// `[T, n]`.
        inverse_rms: BufferId,
        /// `[T, n·width]`.
        dy: BufferId,
        /// `[T, n·width]`.
        dx: BufferId,
        /// Whether `dx` is added to (the residual stream's gradient), or written.
        adds: bool,
        /// `[width]`, added to; absent where the gain is frozen.
        dgain: Option<BufferId>,
    },
    /// Gradient of SwiGLU: `dgate`, `dup` from the kept products.
    SwiGluBackward {
        /// `[T, F]`.
        gate: BufferId,
        /// `[T, F]`.
        up: BufferId,
        /// `[T, F]`.
        dout: BufferId,
        /// `[T, F]`.
        dgate: BufferId,
        /// `[T, F]`.
        dup: BufferId,
    },
    /// Gradient of [`Op::Attention`].
    AttentionBackward {
        /// `[T, H·d]`.
        q: BufferId,
        /// `[T, K·d]`.
        k: BufferId,
        /// `[T, K·d]`.
        v: BufferId,
        /// `[T, H·d]`.
        out: BufferId,
        /// `[T, H]`.
        log_sum_exp: BufferId,
        /// `[T, H·d]`.
        dout: BufferId,
        /// `[T, H·d]`.
        dq: BufferId,
        /// `[T, K·d]`.
        dk: BufferId,
        /// `[T, K·d]`.
        dv: BufferId,
        /// `[T, H]`: scratch, each row's `dout · out`.
        delta: BufferId,
    },
    /// Adds the rows of `dx` to the rows of their tokens, in the order of their places.
    EmbedBackward {
        /// `[T, D]`.
        dx: BufferId,
        /// `[V, D]`, added to.
        dtable: BufferId,
    },
}

/// The buffers an operation touches. One that is changed in place is in both lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read.
    pub reads: Vec<BufferId>,
    /// Written.
    pub writes: Vec<BufferId>,
}

impl Op {
    /// What it reads and writes.
    pub fn access(&self) -> Access {
        type Optional<'a> = &'a [Option<BufferId>];
        let access = |reads: &[BufferId],
                      optional_reads: Optional<'_>,
                      writes: &[BufferId],
                      optional_writes: Optional<'_>| {
            let both = |ids: &[BufferId], optional: Optional<'_>| {
                ids.iter().copied().chain(optional.iter().flatten().copied()).collect()
            };
            Access { reads: both(reads, optional_reads), writes: both(writes, optional_writes) }
        };
        match *self {
            Self::Embed { table, out } => access(&[table], &[], &[out], &[]),
            Self::RmsNorm { x, gain, out, inverse_rms } => {
                access(&[x, gain], &[], &[out, inverse_rms], &[])
            }
            Self::Linear { x, weight, bias, residual, out } => {
                access(&[x, weight], &[bias, residual], &[out], &[])
            }
            Self::LinearSwiGlu { x, gate, up, kept, out } => {
                let (kept_gate, kept_up) = kept.unzip();
                access(&[x, gate, up], &[], &[out], &[kept_gate, kept_up])
            }
            Self::SwiGlu { gate, up, out } => access(&[gate, up], &[], &[out], &[]),
            Self::Add { x, to } => access(&[x, to], &[], &[to], &[]),
            Self::Scale { x, factor: _ } => access(&[x], &[], &[x], &[]),
            Self::Rope { x, heads: _, cos, sin, inverse: _ } => {
                access(&[x, cos, sin], &[], &[x], &[])
            }
            Self::Attention { q, k, v, out, log_sum_exp } => {
                access(&[q, k, v], &[], &[out, log_sum_exp], &[])
            }
            Self::WriteKv { keys_in, values_in, keys, values } => {
                access(&[keys_in, values_in], &[], &[keys, values], &[])
            }
            Self::PagedAttention { q, keys, values, out } => {
                access(&[q, keys, values], &[], &[out], &[])
            }
            Self::GatherRows { x, out } => access(&[x], &[], &[out], &[]),
            Self::CrossEntropy { logits, losses } => access(&[logits], &[], &[logits, losses], &[]),
            Self::LinearDx { dy, weight, dx, adds } => {
                access(&[dy, weight], &[adds.then_some(dx)], &[dx], &[])
            }
            Self::LinearDw { dy, x, dweight } => access(&[dy, x, dweight], &[], &[dweight], &[]),
            Self::BiasGradient { dy, dbias } => access(&[dy, dbias], &[], &[dbias], &[]),
            Self::RmsNormBackward { x, gain, inverse_rms, dy, dx, adds, dgain } => {
                access(&[x, gain, inverse_rms, dy], &[adds.then_some(dx), dgain], &[dx], &[dgain])
            }
            Self::SwiGluBackward { gate, up, dout, dgate, dup } => {
                access(&[gate, up, dout], &[], &[dgate, dup], &[])
            }
            Self::AttentionBackward { q, k, v, out, log_sum_exp, dout, dq, dk, dv, delta } => {
                access(&[q, k, v, out, log_sum_exp, dout], &[], &[dq, dk, dv, delta], &[])
            }
            Self::EmbedBackward { dx, dtable } => access(&[dx, dtable], &[], &[dtable], &[]),
        }
    }
}
