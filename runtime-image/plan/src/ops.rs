//! The operations a plan is made of. Each names the buffers it reads and writes;
//! nothing else is ever read or written, so lifetimes follow from the list alone.
//!
//! Shapes: `T` rows (tokens) in a pass, `D` hidden, `H` query heads, `K`
//! key/value heads, `d` head width, `F` intermediate, `V` vocabulary. Matrices of
//! weights are `[out, in]`, as Hugging Face stores them. The projections of
//! query, key and value are one matrix `[(H + 2K)·d, D]`, stacked by rows in that
//! order, and so are gate and up `[2F, D]`; activations follow: a row of `qkv`
//! holds all query heads, then all key heads, then all value heads.

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

/// One operation. "Adds to" means that the buffer's former contents stay in the sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// `out[t] = table[token[t]]`, `[T, D]`.
    Embed {
        /// `[V, D]`.
        table: BufferId,
        /// `[T, D]`.
        out: BufferId,
    },
    /// `out = x · r · gain` with `r = 1/√(mean(x²) + ε)` for each row (Zhang and Sennrich 2019).
    RmsNorm {
        /// `[T, D]`.
        x: BufferId,
        /// `[D]`.
        gain: BufferId,
        /// `[T, D]`.
        out: BufferId,
        /// `[T]`: `r`, kept for the backward pass.
        inverse_rms: Option<BufferId>,
    },
    /// `out = x · weightᵀ (+ bias) (+ residual)`.
    Linear {
        /// `[T, in]`.
        x: BufferId,
        /// `[out, in]`.
        weight: BufferId,
        /// `[out]`.
        bias: Option<BufferId>,
        /// `[T, out]`.
        residual: Option<BufferId>,
        /// `[T, out]`.
        out: BufferId,
    },
    /// RMSNorm of every query and key head by itself; values are copied (Qwen3).
    HeadNorm {
        /// `[T, (H + 2K)·d]`.
        qkv: BufferId,
        /// `[d]`.
        q_gain: BufferId,
        /// `[d]`.
        k_gain: BufferId,
        /// `[T, (H + 2K)·d]`.
        out: BufferId,
        /// `[T, H + K]`, kept for the backward pass.
        inverse_rms: Option<BufferId>,
    },
    /// Rotates query and key heads by their positions, in place (Su et al. 2021).
    Rope {
        /// `[T, (H + 2K)·d]`.
        qkv: BufferId,
        /// `[positions, d/2]`.
        cos: BufferId,
        /// `[positions, d/2]`.
        sin: BufferId,
    },
    /// Causal attention within each whole sequence, without the `T×T` matrix.
    Attention {
        /// `[T, (H + 2K)·d]`.
        qkv: BufferId,
        /// `[T, H·d]`.
        out: BufferId,
        /// `[T, H]`: log of the sum of exponentials, kept for the backward pass.
        log_sum_exp: BufferId,
    },
    /// Copies the pass's keys and values into their sequences' blocks.
    WriteKv {
        /// `[T, (H + 2K)·d]`.
        qkv: BufferId,
        /// `[blocks, K, 16, d]`.
        keys: BufferId,
        /// `[blocks, K, 16, d]`.
        values: BufferId,
    },
    /// Causal attention of each row over the blocks of its sequence.
    PagedAttention {
        /// `[T, (H + 2K)·d]`.
        qkv: BufferId,
        /// `[blocks, K, 16, d]`.
        keys: BufferId,
        /// `[blocks, K, 16, d]`.
        values: BufferId,
        /// `[T, H·d]`.
        out: BufferId,
    },
    /// `out = silu(gate) · up` (Shazeer 2020).
    SwiGlu {
        /// `[T, 2F]`: gate, then up.
        gate_up: BufferId,
        /// `[T, F]`.
        out: BufferId,
    },
    /// Picks the rows whose logits are wanted.
    GatherRows {
        /// `[T, D]`.
        x: BufferId,
        /// `[wanted, D]`.
        out: BufferId,
    },
    /// Negative log-likelihood of each target, and in place of the logits their gradient.
    CrossEntropy {
        /// `[T, V]`: logits before, their gradient after.
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
    },
    /// Adds `dyᵀ · x` to `dweight`.
    LinearDw {
        /// `[T, out]`.
        dy: BufferId,
        /// `[T, in]`.
        x: BufferId,
        /// `[out, in]`.
        dweight: BufferId,
    },
    /// Adds the sum over rows to `dbias`.
    BiasGradient {
        /// `[T, out]`.
        dy: BufferId,
        /// `[out]`.
        dbias: BufferId,
    },
    /// Gradient of [`Op::RmsNorm`].
    RmsNormBackward {
        /// `[T, D]`.
        x: BufferId,
        /// `[D]`.
        gain: BufferId,
        /// `[T]`.
        inverse_rms: BufferId,
        /// `[T, D]`.
        dy: BufferId,
        /// `[T, D]`.
        dx: BufferId,
        /// Whether `dx` is added to (the residual stream's gradient) or written.
        adds: bool,
        /// `[D]`, added to; absent where the gain is frozen.
        dgain: Option<BufferId>,
    },
    /// Gradient of [`Op::SwiGlu`].
    SwiGluBackward {
        /// `[T, 2F]`.
        gate_up: BufferId,
        /// `[T, F]`.
        dout: BufferId,
        /// `[T, 2F]`.
        dgate_up: BufferId,
    },
    /// Gradient of [`Op::Attention`].
    AttentionBackward {
        /// `[T, (H + 2K)·d]`.
        qkv: BufferId,
        /// `[T, H·d]`.
        out: BufferId,
        /// `[T, H]`.
        log_sum_exp: BufferId,
        /// `[T, H·d]`.
        dout: BufferId,
        /// `[T, H]`: scratch, the rows' `dout · out`.
        delta: BufferId,
        /// `[T, (H + 2K)·d]`.
        dqkv: BufferId,
    },
    /// Gradient of [`Op::Rope`]: the inverse rotation, in place.
    RopeBackward {
        /// `[T, (H + 2K)·d]`.
        dqkv: BufferId,
        /// `[positions, d/2]`.
        cos: BufferId,
        /// `[positions, d/2]`.
        sin: BufferId,
    },
    /// Gradient of [`Op::HeadNorm`].
    HeadNormBackward {
        /// `[T, (H + 2K)·d]`: before the norm.
        qkv: BufferId,
        /// `[T, H + K]`.
        inverse_rms: BufferId,
        /// `[d]`.
        q_gain: BufferId,
        /// `[d]`.
        k_gain: BufferId,
        /// `[T, (H + 2K)·d]`: gradient after the norm.
        dout: BufferId,
        /// `[T, (H + 2K)·d]`: gradient before the norm.
        dqkv: BufferId,
        /// `[d]`, added to; absent where frozen.
        dq_gain: Option<BufferId>,
        /// `[d]`, added to; absent where frozen.
        dk_gain: Option<BufferId>,
    },
    /// Adds the rows of `dx` to the rows of their tokens, in the order of the tokens' places.
    EmbedBackward {
        /// `[T, D]`.
        dx: BufferId,
        /// `[V, D]`.
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
        let access =
            |reads: &[BufferId], optional: &[Option<BufferId>], writes: &[BufferId]| Access {
                reads: reads
                    .iter()
                    .copied()
                    .chain(optional.iter().flatten().copied())
                    .collect(),
                writes: writes.to_vec(),
            };
        match *self {
            Self::Embed { table, out } => access(&[table], &[], &[out]),
            Self::RmsNorm {
                x,
                gain,
                out,
                inverse_rms,
            } => {
                let mut a = access(&[x, gain], &[], &[out]);
                a.writes.extend(inverse_rms);
                a
            }
            Self::Linear {
                x,
                weight,
                bias,
                residual,
                out,
            } => access(&[x, weight], &[bias, residual], &[out]),
            Self::HeadNorm {
                qkv,
                q_gain,
                k_gain,
                out,
                inverse_rms,
            } => {
                let mut a = access(&[qkv, q_gain, k_gain], &[], &[out]);
                a.writes.extend(inverse_rms);
                a
            }
            Self::Rope { qkv, cos, sin } => access(&[qkv, cos, sin], &[], &[qkv]),
            Self::Attention {
                qkv,
                out,
                log_sum_exp,
            } => access(&[qkv], &[], &[out, log_sum_exp]),
            Self::WriteKv { qkv, keys, values } => access(&[qkv], &[], &[keys, values]),
            Self::PagedAttention {
                qkv,
                keys,
                values,
                out,
            } => access(&[qkv, keys, values], &[], &[out]),
            Self::SwiGlu { gate_up, out } => access(&[gate_up], &[], &[out]),
            Self::GatherRows { x, out } => access(&[x], &[], &[out]),
            Self::CrossEntropy { logits, losses } => access(&[logits], &[], &[logits, losses]),
            Self::LinearDx { dy, weight, dx } => access(&[dy, weight], &[], &[dx]),
            Self::LinearDw { dy, x, dweight } => access(&[dy, x, dweight], &[], &[dweight]),
            Self::BiasGradient { dy, dbias } => access(&[dy, dbias], &[], &[dbias]),
            Self::RmsNormBackward {
                x,
                gain,
                inverse_rms,
                dy,
                dx,
                adds,
                dgain,
            } => {
                let mut a = access(
                    &[x, gain, inverse_rms, dy],
                    &[adds.then_some(dx), dgain],
                    &[dx],
                );
                a.writes.extend(dgain);
                a
            }
            Self::SwiGluBackward {
                gate_up,
                dout,
                dgate_up,
            } => access(&[gate_up, dout], &[], &[dgate_up]),
            Self::AttentionBackward {
                qkv,
                out,
                log_sum_exp,
                dout,
                delta,
                dqkv,
            } => access(&[qkv, out, log_sum_exp, dout], &[], &[delta, dqkv]),
            Self::RopeBackward { dqkv, cos, sin } => access(&[dqkv, cos, sin], &[], &[dqkv]),
            Self::HeadNormBackward {
                qkv,
                inverse_rms,
                q_gain,
                k_gain,
                dout,
                dqkv,
                dq_gain,
                dk_gain,
            } => {
                let mut a = access(
                    &[qkv, inverse_rms, q_gain, k_gain, dout],
                    &[dq_gain, dk_gain],
                    &[dqkv],
                );
                a.writes.extend(dq_gain);
                a.writes.extend(dk_gain);
                a
            }
            Self::EmbedBackward { dx, dtable } => access(&[dx, dtable], &[], &[dtable]),
        }
    }
}
