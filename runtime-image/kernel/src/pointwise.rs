//! Maps: SwiGLU, rotary embedding, the optimiser's step, and sums over whole slices.

use crate::isa::{Lanes, Sc, on_every_isa};
use crate::scratch::scratch;
use crate::simd::{At, Simd, Words, rows, rows_mut};
use crate::val::Row;
use crate::{Cpu, bodies};

/// Elements of a task. For [`sum_squares`] part of what fixes its bits.
const CHUNK: usize = 1 << 14;

/// Runs `body` at every place of `n` elements.
#[inline(always)]
fn map<V: Lanes>(n: usize, body: impl Fn(Simd<V>, At)) {
    let s = Simd::row(0, n);
    s.each(
        #[inline(always)]
        |at| body(s, at),
    );
}

/// `h = silu(gate) · up`.
///
/// # Panics
/// Lengths differ.
pub fn swiglu(cpu: &Cpu, gate: &[f32], up: &[f32], h: &mut [f32]) {
    assert!(gate.len() == h.len() && up.len() == h.len(), "swiglu: lengths differ");
    let parts = gate.chunks(CHUNK).zip(up.chunks(CHUNK)).zip(h.chunks_mut(CHUNK));
    cpu.each(gate.len() * 16, parts, |((gate, up), h)| swiglu_chunk(cpu.isa(), gate, up, h));
}

#[inline(always)]
fn swiglu_lanes<V: Lanes>(gate: &[f32], up: &[f32], h: &mut [f32]) {
    let n = h.len();
    let (gate, up, h) = (rows(gate, 0), rows(up, 0), rows_mut(h, 0));
    map(
        n,
        #[inline(always)]
        |s: Simd<V>, at| bodies::swiglu(s, at, gate, up, h),
    );
}
on_every_isa! { fn swiglu_chunk = swiglu_lanes(gate: &[f32], up: &[f32], h: &mut [f32]) }

/// Backward of [`swiglu`].
///
/// # Panics
/// Lengths differ.
pub fn swiglu_backward(
    cpu: &Cpu,
    gate: &[f32],
    up: &[f32],
    dh: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let n = dh.len();
    assert!(
        [gate.len(), up.len(), dgate.len(), dup.len()] == [n; 4],
        "swiglu_backward: lengths differ"
    );
    let inputs = gate.chunks(CHUNK).zip(up.chunks(CHUNK)).zip(dh.chunks(CHUNK));
    let parts = inputs.zip(dgate.chunks_mut(CHUNK)).zip(dup.chunks_mut(CHUNK));
    cpu.each(n * 24, parts, |((((gate, up), dh), dgate), dup)| {
        swiglu_backward_chunk(cpu.isa(), gate, up, dh, dgate, dup);
    });
}

#[inline(always)]
fn swiglu_backward_lanes<V: Lanes>(
    gate: &[f32],
    up: &[f32],
    dh: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let n = dh.len();
    let (gate, up, dh) = (rows(gate, 0), rows(up, 0), rows(dh, 0));
    let (dgate, dup) = (rows_mut(dgate, 0), rows_mut(dup, 0));
    map(
        n,
        #[inline(always)]
        |s: Simd<V>, at| bodies::swiglu_backward(s, at, gate, up, dh, dgate, dup),
    );
}
on_every_isa! { fn swiglu_backward_chunk = swiglu_backward_lanes(gate: &[f32], up: &[f32], dh: &[f32], dgate: &mut [f32], dup: &mut [f32]) }

/// Rotary embedding in place (Su et al. 2021), half-split layout: element i of a head
/// pairs with i + d/2. `x[t, heads, d]`, `cos` and `sin` `[positions, d/2]`,
/// `positions[t]` rows of the tables; `inverse` turns back (the backward pass).
///
/// # Panics
/// A slice's length does not fit, or a position is beyond the tables.
pub fn rope(
    cpu: &Cpu,
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
    heads: usize,
    inverse: bool,
) {
    if positions.is_empty() {
        assert!(x.is_empty(), "rope: {} values without positions", x.len());
        return;
    }
    let width = x.len() / positions.len();
    let half = width / heads / 2;
    assert!(
        x.len() == positions.len() * heads * 2 * half,
        "rope: x does not hold whole heads of even width"
    );
    assert_eq!(cos.len(), sin.len(), "rope: tables differ in length");
    let last = positions.iter().max().map_or(0, |&p| p as usize + 1);
    assert!(
        last * half <= cos.len(),
        "rope: position {} is beyond the tables",
        last.saturating_sub(1)
    );
    let many = (CHUNK / width.max(1)).max(1);
    let work = x.len() * 4;
    let parts = x.chunks_mut((many * width).max(1)).zip(positions.chunks(many));
    cpu.each(work, parts, |(x, positions)| {
        rope_rows(cpu.isa(), x, cos, sin, positions, half, inverse)
    });
}

#[inline(always)]
fn rope_lanes<V: Lanes>(
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
    half: usize,
    inverse: bool,
) {
    let heads = x.len() / positions.len() / (2 * half).max(1);
    let sign = if inverse { -1.0 } else { 1.0 };
    for (x, &position) in x.chunks_exact_mut(heads * 2 * half).zip(positions) {
        let table = position as usize * half;
        let (cos, sin) = (rows(&cos[table..][..half], 0), rows(&sin[table..][..half], 0));
        for head in x.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            let (a, b) = (rows_mut(a, 0), rows_mut(b, 0));
            map(
                half,
                #[inline(always)]
                |s: Simd<V>, at| {
                    bodies::rope(s, at, (a.read(), b.read()), (cos, sin, Sc(sign)), (a, b));
                },
            );
        }
    }
}
on_every_isa! { fn rope_rows = rope_lanes(x: &mut [f32], cos: &[f32], sin: &[f32], positions: &[u32], half: usize, inverse: bool) }

/// One AdamW step's coefficients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW<N = f32> {
    /// Learning rate of this step.
    pub lr: N,
    /// Decay of the first moment.
    pub beta1: N,
    /// Decay of the second moment.
    pub beta2: N,
    /// Added to the root of the second moment.
    pub eps: N,
    /// Decoupled weight decay.
    pub weight_decay: N,
    /// 1 − beta1^step.
    pub bias1: N,
    /// 1 − beta2^step.
    pub bias2: N,
    /// Factor on the gradient first (clipping, mean over the batch).
    pub grad_scale: N,
}

impl<N> AdamW<N> {
    /// The same as another kind of number.
    #[inline(always)]
    pub fn map<M>(self, mut f: impl FnMut(N) -> M) -> AdamW<M> {
        let AdamW { lr, beta1, beta2, eps, weight_decay, bias1, bias2, grad_scale } = self;
        AdamW {
            lr: f(lr),
            beta1: f(beta1),
            beta2: f(beta2),
            eps: f(eps),
            weight_decay: f(weight_decay),
            bias1: f(bias1),
            bias2: f(bias2),
            grad_scale: f(grad_scale),
        }
    }
}

/// One AdamW step: `g ← g·grad_scale`; `m`, `v` updated; `p ← p − lr·(m̂/(√v̂ + eps) + weight_decay·p)`.
///
/// # Panics
/// Lengths differ.
pub fn adamw(cpu: &Cpu, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamW) {
    let n = p.len();
    assert!([g.len(), m.len(), v.len()] == [n; 3], "adamw: lengths differ");
    let parts =
        p.chunks_mut(CHUNK).zip(g.chunks(CHUNK)).zip(m.chunks_mut(CHUNK)).zip(v.chunks_mut(CHUNK));
    cpu.each(n * 16, parts, |(((p, g), m), v)| adamw_chunk(cpu.isa(), p, g, m, v, c));
}

#[inline(always)]
fn adamw_lanes<V: Lanes>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamW) {
    let n = p.len();
    let (p, g, m, v) = (rows_mut(p, 0), rows(g, 0), rows_mut(m, 0), rows_mut(v, 0));
    let c = c.map(Sc);
    map(
        n,
        #[inline(always)]
        |s: Simd<V>, at| bodies::adamw(s, at, (p.read(), g, m.read(), v.read()), (p, m, v), c),
    );
}
on_every_isa! { fn adamw_chunk = adamw_lanes(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamW) }

/// Σ x²: each chunk of 16,384 elements as a row, the chunks' sums added in order in f64.
pub fn sum_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    scratch(x.len().div_ceil(CHUNK), |partials| {
        let parts = x.chunks(CHUNK).zip(partials.chunks_mut(1));
        cpu.each(x.len() * 4, parts, |(x, sum)| sum_squares_chunk(cpu.isa(), x, sum));
        partials.iter().map(|&p| f64::from(p)).sum()
    })
}

#[inline(always)]
fn sum_squares_lanes<V: Lanes>(x: &[f32], sum: &mut [f32]) {
    bodies::sum_squares(Simd::<V>::row(0, x.len()), rows(x, 0), rows_mut(sum, 0));
}
on_every_isa! { fn sum_squares_chunk = sum_squares_lanes(x: &[f32], sum: &mut [f32]) }

/// `x ← x · s`.
pub fn scale(cpu: &Cpu, x: &mut [f32], s: f32) {
    cpu.each(x.len() * 4, x.chunks_mut(CHUNK), |x| scale_chunk(cpu.isa(), x, s));
}

#[inline(always)]
fn scale_lanes<V: Lanes>(x: &mut [f32], factor: f32) {
    let n = x.len();
    let x = rows_mut(x, 0);
    map(
        n,
        #[inline(always)]
        |s: Simd<V>, at| bodies::scale(s, at, x.read(), Sc(factor), x),
    );
}
on_every_isa! { fn scale_chunk = scale_lanes(x: &mut [f32], factor: f32) }

/// `y ← y + x`.
///
/// # Panics
/// Lengths differ.
pub fn add(cpu: &Cpu, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "add: lengths differ");
    cpu.each(x.len() * 4, x.chunks(CHUNK).zip(y.chunks_mut(CHUNK)), |(x, y)| {
        add_chunk(cpu.isa(), x, y)
    });
}

#[inline(always)]
fn add_lanes<V: Lanes>(x: &[f32], y: &mut [f32]) {
    let n = y.len();
    let (x, y) = (rows(x, 0), rows_mut(y, 0));
    map(
        n,
        #[inline(always)]
        |s: Simd<V>, at| bodies::add(s, at, x, y.read(), y),
    );
}
on_every_isa! { fn add_chunk = add_lanes(x: &[f32], y: &mut [f32]) }

/// `y = x/keep` with probability `keep`, else 0. Which, `seed` and the element's number say
/// ([`threefry`](crate::val::threefry)): the same of dy is the backward pass.
///
/// # Panics
/// Lengths differ, or there are more than 2³² elements.
pub fn dropout(cpu: &Cpu, x: &[f32], y: &mut [f32], seed: [u32; 2], keep: f32) {
    assert_eq!(x.len(), y.len(), "dropout: lengths differ");
    assert!(u32::try_from(x.len()).is_ok(), "dropout: {} elements", x.len());
    let parts = x.chunks(CHUNK).zip(y.chunks_mut(CHUNK)).enumerate();
    cpu.each(x.len() * 64, parts, |(i, (x, y))| {
        dropout_chunk(cpu.isa(), x, y, i * CHUNK, seed, keep);
    });
}

#[inline(always)]
fn dropout_lanes<V: Lanes>(x: &[f32], y: &mut [f32], first: usize, seed: [u32; 2], keep: f32) {
    let n = y.len();
    let (x, y) = (rows(x, 0), rows_mut(y, 0));
    let seed = seed.map(|s| Words([s; 16]));
    // Places of this chunk count on from those before: `row` holds its first.
    let s = Simd::<V>::row(first, n);
    s.each(
        #[inline(always)]
        |at| bodies::dropout(s, at, x, seed, Sc(keep), y),
    );
}
on_every_isa! { fn dropout_chunk = dropout_lanes(x: &[f32], y: &mut [f32], first: usize, seed: [u32; 2], keep: f32) }
