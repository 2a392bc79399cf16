//! The kernels' signatures, over plain loops.
use crate::Cpu;
use half::{bf16, f16};

/// Marks a position that has no target in [`cross_entropy`].
pub const IGNORE: u32 = u32::MAX;
/// Tokens in one block of a paged key/value cache.
pub const KV_BLOCK: usize = 16;
/// Values in one q8_0 block.
pub const Q8_0_VALUES: usize = 32;
/// Bytes of one q8_0 block: an f16 scale, then 32 signed bytes.
pub const Q8_0_BYTES: usize = 34;

/// A weight matrix `[N, K]`, row-major, in the type it is kept in.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// N·K floats.
    F32(&'a [f32]),
    /// N·K bfloat16 values, as bits.
    Bf16(&'a [u16]),
    /// N·K/32 blocks of 34 bytes (f16 scale, 32 × i8) along K; K is a multiple of 32.
    Q8_0(&'a [u8]),
}
/// Sizes of a linear layer: `x[t, k] · w[n, k]ᵀ = y[t, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Rows (tokens).
    pub t: usize,
    /// Features in.
    pub k: usize,
    /// Features out.
    pub n: usize,
}
/// What happens to a product before it is stored: `y = [y +] (x·wᵀ [+ bias])`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Added to every row; `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Add to what `y` holds (a residual) instead of replacing it.
    pub add: bool,
}
impl Epilogue<'_> {
    /// The bare product.
    pub const NONE: Epilogue<'static> = Epilogue {
        bias: None,
        add: false,
    };
    /// Add the product to what is there.
    pub const ADD: Epilogue<'static> = Epilogue {
        bias: None,
        add: true,
    };
}
/// Sizes of attention: `q[batch·seq, heads, head_dim]`, `k`, `v[batch·seq, kv_heads, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}
/// One sequence in a paged batch.
#[derive(Clone, Copy, Debug)]
pub struct PagedSequence<'a> {
    /// Query rows of this sequence, next to each other in `q`: its last `rows` tokens.
    pub rows: usize,
    /// Tokens in the cache, these rows included.
    pub context: usize,
    /// Cache block of tokens 16·i … 16·i+15; at least ⌈context/16⌉ entries.
    pub blocks: &'a [u32],
}
/// One AdamW step's coefficients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// 1 − beta1^step.
    pub bias1: f32,
    /// 1 − beta2^step.
    pub bias2: f32,
    /// Factor on the gradient first (clipping, mean over the batch).
    pub grad_scale: f32,
}
/// A weight laid out for fast products: built once for serving.
pub struct PackedWeight {
    n: usize,
    k: usize,
    w: Vec<f32>,
}
impl PackedWeight {
    /// Packs `w[n, k]`.
    ///
    /// # Panics
    /// `w` does not hold n·k values.
    pub fn new(_cpu: &Cpu, w: Weight<'_>, n: usize, k: usize) -> PackedWeight {
        PackedWeight {
            n,
            k,
            w: values(w, n * k),
        }
    }
    /// Features out.
    pub fn n(&self) -> usize {
        self.n
    }
    /// Features in.
    pub fn k(&self) -> usize {
        self.k
    }
    /// Bytes it occupies.
    pub fn bytes(&self) -> usize {
        self.w.len() * 4
    }
}
fn values(w: Weight<'_>, n: usize) -> Vec<f32> {
    let mut o = vec![0.0; n];
    dequantize(w, &mut o);
    o
}

/// Every value of `w` as f32, in the same order. Exact.
///
/// # Panics
/// `out` holds another number of values than `w`.
pub fn dequantize(w: Weight<'_>, out: &mut [f32]) {
    match w {
        Weight::F32(w) => out.copy_from_slice(w),
        Weight::Bf16(w) => {
            assert_eq!(w.len(), out.len());
            for (o, &b) in out.iter_mut().zip(w) {
                *o = bf16::from_bits(b).to_f32();
            }
        }
        Weight::Q8_0(w) => {
            assert_eq!(w.len(), out.len() / 32 * 34);
            for (o, b) in out.chunks_exact_mut(32).zip(w.chunks_exact(34)) {
                let d = f16::from_le_bytes([b[0], b[1]]).to_f32();
                for i in 0..32 {
                    o[i] = d * f32::from(b[2 + i] as i8);
                }
            }
        }
    }
}
/// Quantises to q8_0: 32 values become an f16 scale (largest magnitude / 127) and 32 signed bytes.
///
/// # Panics
/// `x` is not a multiple of 32 long, or `out` is not 34 bytes for each 32 values.
pub fn quantize_q8_0(x: &[f32], out: &mut [u8]) {
    assert!(x.len().is_multiple_of(32) && out.len() == x.len() / 32 * 34);
    for (x, b) in x.chunks_exact(32).zip(out.chunks_exact_mut(34)) {
        let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let d = amax / 127.0;
        let id = if d > 0.0 { 1.0 / d } else { 0.0 };
        b[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for i in 0..32 {
            b[2 + i] = (x[i] * id).round() as i8 as u8;
        }
    }
}
/// `y[t,n] = [y +] (x[t,k] · w[n,k]ᵀ [+ bias])`.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn linear(
    _cpu: &Cpu,
    x: &[f32],
    w: Weight<'_>,
    y: &mut [f32],
    dims: Dims,
    epilogue: Epilogue<'_>,
) {
    let Dims { t, k, n } = dims;
    let w = values(w, n * k);
    assert!(x.len() == t * k && y.len() == t * n);
    for i in 0..t {
        for j in 0..n {
            let mut a = 0f32;
            for p in 0..k {
                a = x[i * k + p].mul_add(w[j * k + p], a);
            }
            if let Some(b) = epilogue.bias {
                a += b[j];
            }
            y[i * n + j] = if epilogue.add { y[i * n + j] + a } else { a };
        }
    }
}
/// [`linear`] with a packed weight: the same bits.
///
/// # Panics
/// A slice's length does not fit.
pub fn linear_packed(
    cpu: &Cpu,
    x: &[f32],
    w: &PackedWeight,
    y: &mut [f32],
    t: usize,
    epilogue: Epilogue<'_>,
) {
    linear(
        cpu,
        x,
        Weight::F32(&w.w),
        y,
        Dims { t, k: w.k, n: w.n },
        epilogue,
    );
}
/// `h[t,n] = silu(x·w_gateᵀ) · (x·w_upᵀ)`; `keep` receives gate and up products `[t,n]` for the backward pass.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn linear_swiglu(
    cpu: &Cpu,
    x: &[f32],
    w_gate: Weight<'_>,
    w_up: Weight<'_>,
    h: &mut [f32],
    keep: Option<(&mut [f32], &mut [f32])>,
    dims: Dims,
) {
    let mut g = vec![0f32; h.len()];
    let mut u = vec![0f32; h.len()];
    linear(cpu, x, w_gate, &mut g, dims, Epilogue::NONE);
    linear(cpu, x, w_up, &mut u, dims, Epilogue::NONE);
    swiglu(cpu, &g, &u, h);
    if let Some((kg, ku)) = keep {
        kg.copy_from_slice(&g);
        ku.copy_from_slice(&u);
    }
}
/// [`linear_swiglu`] with packed weights: the same bits.
///
/// # Panics
/// A slice's length does not fit, or the two weights differ in shape.
pub fn linear_swiglu_packed(
    cpu: &Cpu,
    x: &[f32],
    gate: &PackedWeight,
    up: &PackedWeight,
    h: &mut [f32],
    t: usize,
) {
    linear_swiglu(
        cpu,
        x,
        Weight::F32(&gate.w),
        Weight::F32(&up.w),
        h,
        None,
        Dims {
            t,
            k: gate.k,
            n: gate.n,
        },
    );
}
/// `dx[t,k] = [dx +] dy[t,n] · w[n,k]`.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn linear_dx(
    _cpu: &Cpu,
    dy: &[f32],
    w: Weight<'_>,
    dx: &mut [f32],
    dims: Dims,
    accumulate: bool,
) {
    let Dims { t, k, n } = dims;
    let w = values(w, n * k);
    for i in 0..t {
        for j in 0..k {
            let mut a = 0f32;
            for p in 0..n {
                a = dy[i * n + p].mul_add(w[p * k + j], a);
            }
            dx[i * k + j] = if accumulate { dx[i * k + j] + a } else { a };
        }
    }
}
/// `dw[n,k] = [dw +] dy[t,n]ᵀ · x[t,k]`.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn linear_dw(_cpu: &Cpu, dy: &[f32], x: &[f32], dw: &mut [f32], dims: Dims, accumulate: bool) {
    let Dims { t, k, n } = dims;
    for i in 0..n {
        for j in 0..k {
            let mut a = 0f32;
            for p in 0..t {
                a = dy[p * n + i].mul_add(x[p * k + j], a);
            }
            dw[i * k + j] = if accumulate { dw[i * k + j] + a } else { a };
        }
    }
}
/// `sum[n] += Σ_t x[t,n]` (a bias's gradient).
///
/// # Panics
/// `x` is not a whole number of rows.
pub fn column_sum(_cpu: &Cpu, x: &[f32], sum: &mut [f32]) {
    let n = sum.len();
    for j in 0..n {
        let mut a = 0f32;
        for r in x.chunks_exact(n) {
            a += r[j];
        }
        sum[j] += a;
    }
}
/// `y = x · rstd · gain` with `rstd = 1/√(mean(x²) + eps)` kept for the backward pass.
/// Rows: `rstd.len()`; width: `gain.len()` (for qk-norm: tokens · heads rows of one head's width).
///
/// # Panics
/// `x` or `y` is not rows · width long.
pub fn rms_norm(_cpu: &Cpu, x: &[f32], gain: &[f32], y: &mut [f32], rstd: &mut [f32], eps: f32) {
    let n = gain.len();
    for (t, rs) in rstd.iter_mut().enumerate() {
        let x = &x[t * n..][..n];
        let s: f32 = x.iter().map(|v| v * v).sum();
        *rs = 1.0 / (s / n as f32 + eps).sqrt();
        for i in 0..n {
            y[t * n + i] = x[i] * *rs * gain[i];
        }
    }
}
/// Backward of [`rms_norm`]: `dx = [dx +] rstd·(gain·dy − x·rstd²·mean(gain·dy·x))`, `dgain += Σ_rows dy·x·rstd`.
///
/// # Panics
/// A slice's length does not fit.
pub fn rms_norm_backward(
    _cpu: &Cpu,
    x: &[f32],
    gain: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    dgain: Option<&mut [f32]>,
) {
    let n = gain.len();
    for (t, &rs) in rstd.iter().enumerate() {
        let o = t * n;
        let s: f32 = (0..n).map(|i| gain[i] * dy[o + i] * x[o + i]).sum();
        let c = s / n as f32 * rs * rs;
        for i in 0..n {
            let v = rs * (gain[i] * dy[o + i] - x[o + i] * c);
            dx[o + i] = if accumulate { dx[o + i] + v } else { v };
        }
    }
    if let Some(g) = dgain {
        for i in 0..n {
            g[i] += (0..rstd.len())
                .map(|t| dy[t * n + i] * x[t * n + i] * rstd[t])
                .sum::<f32>();
        }
    }
}
/// Rotary embedding in place, half-split layout: element i of a head pairs with i + d/2.
/// `x[t, heads, d]`, `cos`, `sin[positions, d/2]`, `positions[t]` rows of the tables; `inverse` turns back (the backward pass).
///
/// # Panics
/// A slice's length does not fit, or a position is beyond the tables.
pub fn rope(
    _cpu: &Cpu,
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
    heads: usize,
    inverse: bool,
) {
    let d = x.len() / (positions.len() * heads);
    let h = d / 2;
    for (r, x) in x.chunks_exact_mut(d).enumerate() {
        let p = positions[r / heads] as usize;
        for i in 0..h {
            let (c, s) = (cos[p * h + i], sin[p * h + i]);
            let s = if inverse { -s } else { s };
            let (a, b) = (x[i], x[h + i]);
            x[i] = a * c - b * s;
            x[h + i] = b * c + a * s;
        }
    }
}
/// `h = silu(gate) · up`.
///
/// # Panics
/// Lengths differ.
pub fn swiglu(_cpu: &Cpu, gate: &[f32], up: &[f32], h: &mut [f32]) {
    for i in 0..h.len() {
        h[i] = gate[i] / (1.0 + (-gate[i]).exp()) * up[i];
    }
}
/// Backward of [`swiglu`].
///
/// # Panics
/// Lengths differ.
pub fn swiglu_backward(
    _cpu: &Cpu,
    gate: &[f32],
    up: &[f32],
    dh: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    for i in 0..dh.len() {
        let s = 1.0 / (1.0 + (-gate[i]).exp());
        let y = gate[i] * s;
        dup[i] = dh[i] * y;
        dgate[i] = dh[i] * up[i] * (s + y * (1.0 - s));
    }
}
/// Causal grouped-query attention: `out = softmax(scale · q·kᵀ) · v` within each sequence; `lse[t, heads]` is kept for the backward pass.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn attention_forward(
    _cpu: &Cpu,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
    dims: AttentionDims,
    scale: f32,
) {
    let AttentionDims {
        batch,
        seq,
        heads,
        kv_heads,
        head_dim: d,
    } = dims;
    for b in 0..batch {
        for i in 0..seq {
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let t = b * seq + i;
                let qr = &q[(t * heads + h) * d..][..d];
                let s: Vec<f32> = (0..=i)
                    .map(|j| {
                        let kr = &k[((b * seq + j) * kv_heads + g) * d..][..d];
                        scale * (0..d).map(|e| qr[e] * kr[e]).sum::<f32>()
                    })
                    .collect();
                let m = s.iter().copied().fold(f32::MIN, f32::max);
                let z: f32 = s.iter().map(|s| (s - m).exp()).sum();
                lse[t * heads + h] = m + z.ln();
                let o = &mut out[(t * heads + h) * d..][..d];
                o.fill(0.0);
                for (j, s) in s.iter().enumerate() {
                    let p = (s - m).exp() / z;
                    let vr = &v[((b * seq + j) * kv_heads + g) * d..][..d];
                    for e in 0..d {
                        o[e] += p * vr[e];
                    }
                }
            }
        }
    }
}
/// Backward of [`attention_forward`]: overwrites `dq`, `dk`, `dv`; `delta[t, heads]` is scratch.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn attention_backward(
    _cpu: &Cpu,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    delta: &mut [f32],
    dims: AttentionDims,
    scale: f32,
) {
    let AttentionDims {
        batch,
        seq,
        heads,
        kv_heads,
        head_dim: d,
    } = dims;
    dq.fill(0.0);
    dk.fill(0.0);
    dv.fill(0.0);
    for b in 0..batch {
        for i in 0..seq {
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let t = b * seq + i;
                let qo = (t * heads + h) * d;
                let dl: f32 = (0..d).map(|e| out[qo + e] * dout[qo + e]).sum();
                delta[t * heads + h] = dl;
                for j in 0..=i {
                    let ko = ((b * seq + j) * kv_heads + g) * d;
                    let s = scale * (0..d).map(|e| q[qo + e] * k[ko + e]).sum::<f32>();
                    let p = (s - lse[t * heads + h]).exp();
                    let dp: f32 = (0..d).map(|e| dout[qo + e] * v[ko + e]).sum();
                    let ds = p * (dp - dl) * scale;
                    for e in 0..d {
                        dv[ko + e] += p * dout[qo + e];
                        dq[qo + e] += ds * k[ko + e];
                        dk[ko + e] += ds * q[qo + e];
                    }
                }
            }
        }
    }
}
/// Attention of several sequences' newest rows over a paged cache `[blocks, 16, kv_heads, head_dim]` (the rows' own keys and values already in it).
/// Each row's bits equal [`attention_forward`]'s at the same position, whatever else is in the batch.
/// `q`, `out[rows, heads, head_dim]`, sequences one after another.
///
/// # Panics
/// A slice's length does not fit, or a block is beyond the cache.
pub fn attention_paged(
    cpu: &Cpu,
    q: &[f32],
    k_cache: &[f32],
    v_cache: &[f32],
    out: &mut [f32],
    sequences: &[PagedSequence<'_>],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
) {
    let (d, w) = (head_dim, kv_heads * head_dim);
    let mut at = 0;
    for s in sequences {
        let gather = |c: &[f32]| -> Vec<f32> {
            (0..s.context)
                .flat_map(|j| c[(s.blocks[j / 16] as usize * 16 + j % 16) * w..][..w].to_vec())
                .collect()
        };
        let (k, v) = (gather(k_cache), gather(v_cache));
        let mut qq = vec![0f32; s.context * heads * d];
        let o = (s.context - s.rows) * heads * d;
        qq[o..].copy_from_slice(&q[at..at + s.rows * heads * d]);
        let mut oo = vec![0f32; qq.len()];
        let mut l = vec![0f32; s.context * heads];
        attention_forward(
            cpu,
            &qq,
            &k,
            &v,
            &mut oo,
            &mut l,
            AttentionDims {
                batch: 1,
                seq: s.context,
                heads,
                kv_heads,
                head_dim,
            },
            scale,
        );
        out[at..at + s.rows * heads * d].copy_from_slice(&oo[o..]);
        at += s.rows * heads * d;
    }
}
/// Copies row i of `x[rows, width]` to row `slots[i]` of `table` (a slot of a paged cache: block · 16 + offset).
///
/// # Panics
/// A slice's length does not fit, or a slot is beyond the table.
pub fn scatter_rows(x: &[f32], slots: &[u32], table: &mut [f32]) {
    let w = x.len() / slots.len().max(1);
    for (x, &s) in x.chunks_exact(w.max(1)).zip(slots) {
        table[s as usize * w..][..w].copy_from_slice(x);
    }
}
/// Cross-entropy of each row: `nll[t] = logsumexp(logits[t]) − logits[t, target]`, 0 where the target is [`IGNORE`];
/// `logits[t, v]` become their gradient `scale · (softmax − onehot)` in place (0 for ignored rows).
///
/// # Panics
/// A slice's length does not fit, or a target is beyond the vocabulary.
pub fn cross_entropy(_cpu: &Cpu, logits: &mut [f32], targets: &[u32], nll: &mut [f32], scale: f32) {
    let v = logits.len() / targets.len();
    for (t, x) in logits.chunks_exact_mut(v).enumerate() {
        if targets[t] == IGNORE {
            x.fill(0.0);
            nll[t] = 0.0;
            continue;
        }
        let m = x.iter().copied().fold(f32::MIN, f32::max);
        let z: f32 = x.iter().map(|x| (x - m).exp()).sum();
        nll[t] = m + z.ln() - x[targets[t] as usize];
        for x in x.iter_mut() {
            *x = scale * (*x - m).exp() / z;
        }
        x[targets[t] as usize] -= scale;
    }
}
/// The losses of [`cross_entropy`] alone; logits stay.
///
/// # Panics
/// As [`cross_entropy`].
pub fn cross_entropy_loss(_cpu: &Cpu, logits: &[f32], targets: &[u32], nll: &mut [f32]) {
    let v = logits.len() / targets.len();
    for (t, x) in logits.chunks_exact(v).enumerate() {
        nll[t] = if targets[t] == IGNORE {
            0.0
        } else {
            let m = x.iter().copied().fold(f32::MIN, f32::max);
            m + x.iter().map(|x| (x - m).exp()).sum::<f32>().ln() - x[targets[t] as usize]
        };
    }
}
/// `y[t] = table[tokens[t]]`, rows of `width` values.
///
/// # Panics
/// A slice's length does not fit, or a token is beyond the table.
pub fn embedding(_cpu: &Cpu, tokens: &[u32], table: Weight<'_>, y: &mut [f32], width: usize) {
    for (y, &t) in y.chunks_exact_mut(width).zip(tokens) {
        let t = t as usize;
        dequantize(
            match table {
                Weight::F32(w) => Weight::F32(&w[t * width..][..width]),
                Weight::Bf16(w) => Weight::Bf16(&w[t * width..][..width]),
                Weight::Q8_0(w) => Weight::Q8_0(&w[t * (width / 32 * 34)..][..width / 32 * 34]),
            },
            y,
        );
    }
}
/// `dw[tokens[t]] += dy[t]`, for each token in the order of its positions.
///
/// # Panics
/// A slice's length does not fit, or a token is beyond the table.
pub fn embedding_backward(_cpu: &Cpu, tokens: &[u32], dy: &[f32], dw: &mut [f32], width: usize) {
    for (dy, &t) in dy.chunks_exact(width).zip(tokens) {
        for i in 0..width {
            dw[t as usize * width + i] += dy[i];
        }
    }
}
/// One AdamW step: `g ← g·grad_scale`; `m`, `v` updated; `p ← p − lr·(m̂/(√v̂ + eps) + weight_decay·p)`.
///
/// # Panics
/// Lengths differ.
pub fn adamw(_cpu: &Cpu, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamW) {
    for i in 0..p.len() {
        let g = g[i] * c.grad_scale;
        m[i] = c.beta1 * m[i] + (1.0 - c.beta1) * g;
        v[i] = c.beta2 * v[i] + (1.0 - c.beta2) * g * g;
        p[i] -= c.lr * (m[i] / c.bias1 / ((v[i] / c.bias2).sqrt() + c.eps) + c.weight_decay * p[i]);
    }
}
/// Σ x², in a fixed order.
pub fn sum_squares(_cpu: &Cpu, x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}
/// `x ← x · s`.
pub fn scale(_cpu: &Cpu, x: &mut [f32], s: f32) {
    for x in x {
        *x *= s;
    }
}
/// `y ← y + x`.
///
/// # Panics
/// Lengths differ.
pub fn add(_cpu: &Cpu, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}
