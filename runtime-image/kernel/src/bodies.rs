//! The kernels themselves, each written once: loop bodies over the archetypes of
//! [`val`](crate::val). The CPU runs these very functions over SIMD lanes; a
//! recorder that implements the same traits reads them.
//!
//! Shapes: T rows (tokens), N columns. Per-row numbers are `[T]`. Numbers that may differ
//! from launch to launch (`S`) are arguments, so that no kernel is printed twice for them.

use crate::val::{Body, Fold, Quant, Random, Row, Val, Word, threefry};

/// `y = x·rstd·gain`, `rstd = 1/√(mean(x²) + eps)`. Row.
#[inline(always)]
pub fn rms_norm<R: Row>(r: R, x: R::In, gain: R::In, y: R::Out, rstd: R::Out, eps: R::S) {
    let squares = r.sum(
        #[inline(always)]
        |at| r.load(x, at) * r.load(x, at),
    );
    let s = (squares / r.width() + eps).rsqrt();
    r.put(rstd, s);
    let s = r.splat(s);
    r.each(
        #[inline(always)]
        |at| r.store(y, at, r.load(x, at) * s * r.load(gain, at)),
    );
}

/// `dx = [before +] rstd·(gain·dy − x·rstd²·mean(gain·dy·x))`. Row.
#[inline(always)]
pub fn rms_norm_backward<R: Row>(
    r: R,
    x: R::In,
    gain: R::In,
    rstd: R::In,
    dy: R::In,
    before: Option<R::In>,
    dx: R::Out,
) {
    let dot = r.sum(
        #[inline(always)]
        |at| r.load(gain, at) * r.load(dy, at) * r.load(x, at),
    );
    let s = r.get(rstd);
    let c = r.splat(-(dot / r.width() * s * s));
    let s = r.splat(s);
    r.each(
        #[inline(always)]
        |at| {
            let v = s * c.fma(r.load(x, at), r.load(gain, at) * r.load(dy, at));
            store_added(r, at, v, before, dx);
        },
    );
}

/// `dgain = Σ_T dy·x·rstd` over a block of rows. Fold.
#[inline(always)]
pub fn rms_norm_gain_grad<F: Fold>(f: F, x: F::In, rstd: F::In, dy: F::In, dgain: F::Out) {
    let g = f.sum(
        #[inline(always)]
        |at| f.load(dy, at) * f.load(x, at) * f.of_row(rstd, at),
    );
    f.store(dgain, f.result(), g);
}

/// `sum = [before +] Σ x` over a list of rows. Fold: partial sums of a block, their
/// total, and (over the sorted positions of one token) the embedding's gradient.
#[inline(always)]
pub fn sum_rows<F: Fold>(f: F, x: F::In, before: Option<F::In>, sum: F::Out) {
    let s = f.sum(
        #[inline(always)]
        |at| f.load(x, at),
    );
    store_added(f, f.result(), s, before, sum);
}

/// `y = [before +] v`.
#[inline(always)]
fn store_added<B: Body>(b: B, at: B::At, v: B::V, before: Option<B::In>, y: B::Out) {
    let v = match before {
        Some(before) => b.load(before, at) + v,
        None => v,
    };
    b.store(y, at, v);
}

/// A q8_0 weight as a float: exact in the byte, one rounding. Prologue.
#[inline(always)]
pub fn dequantize_q8_0<Q: Quant>(b: Q, w: Q::Q8, at: Q::At) -> Q::V {
    let (byte, scale) = b.q8_0(w, at);
    scale * byte
}

/// `y = [before +] (product [+ bias])`. Epilogue.
#[inline(always)]
pub fn finish<B: Body>(
    b: B,
    at: B::At,
    product: B::V,
    bias: Option<B::In>,
    before: Option<B::In>,
    y: B::Out,
) {
    let v = match bias {
        Some(bias) => product + b.load(bias, at),
        None => product,
    };
    store_added(b, at, v, before, y);
}

/// `h = silu(gate)·up` of a pair of products, which are kept where asked. Epilogue.
#[inline(always)]
pub fn finish_swiglu<B: Body>(
    b: B,
    at: B::At,
    gate: B::V,
    up: B::V,
    h: B::Out,
    keep: Option<(B::Out, B::Out)>,
) {
    if let Some((keep_gate, keep_up)) = keep {
        b.store(keep_gate, at, gate);
        b.store(keep_up, at, up);
    }
    b.store(h, at, gate.silu() * up);
}

/// `h = silu(gate)·up`. Map.
#[inline(always)]
pub fn swiglu<B: Body>(b: B, at: B::At, gate: B::In, up: B::In, h: B::Out) {
    finish_swiglu(b, at, b.load(gate, at), b.load(up, at), h, None);
}

/// `dgate = dh·up·σ(gate)·(1 + gate·(1 − σ(gate)))`, `dup = dh·silu(gate)`. Map.
#[inline(always)]
pub fn swiglu_backward<B: Body>(
    b: B,
    at: B::At,
    gate: B::In,
    up: B::In,
    dh: B::In,
    dgate: B::Out,
    dup: B::Out,
) {
    let (g, u, d) = (b.load(gate, at), b.load(up, at), b.load(dh, at));
    let s = g.sigmoid();
    let silu = g * s;
    b.store(dup, at, d * silu);
    b.store(dgate, at, d * u * silu.fma(g.lit(1.0) - s, s));
}

/// The pair `(x, y)` turned by the angle whose cosine and sine are given; `sign` −1 turns
/// back. Map, in place.
#[inline(always)]
pub fn rope<B: Body>(
    b: B,
    at: B::At,
    (x, y): (B::In, B::In),
    (cos, sin, sign): (B::In, B::In, B::S),
    (x_out, y_out): (B::Out, B::Out),
) {
    let (cos, sin) = (b.load(cos, at), b.load(sin, at) * b.splat(sign));
    let (x, y) = (b.load(x, at), b.load(y, at));
    b.store(x_out, at, x.fma(cos, -(y * sin)));
    b.store(y_out, at, y.fma(cos, x * sin));
}

/// `y = x`: gather and scatter, where x or y is addressed through a list. Map.
#[inline(always)]
pub fn copy<B: Body>(b: B, at: B::At, x: B::In, y: B::Out) {
    b.store(y, at, b.load(x, at));
}

/// The same of a q8_0 table, made f32. Map.
#[inline(always)]
pub fn copy_q8_0<Q: Quant>(b: Q, at: Q::At, w: Q::Q8, y: Q::Out) {
    b.store(y, at, dequantize_q8_0(b, w, at));
}

/// `y = x/keep` with probability `keep`, else 0: decided by `seed` and the place. The same
/// of dy is its backward. Map.
#[inline(always)]
pub fn dropout<B: Random>(b: B, at: B::At, x: B::In, seed: [B::W; 2], keep: B::S, y: B::Out) {
    let [word, _] = threefry(seed, [b.counter(at), seed[0].word(0)]);
    let (x, keep) = (b.load(x, at), b.splat(keep));
    b.store(y, at, b.unit(word).if_lt(keep, x / keep, x.lit(0.0)));
}

/// `y = y + x`. Map.
#[inline(always)]
pub fn add<B: Body>(b: B, at: B::At, x: B::In, before: B::In, y: B::Out) {
    b.store(y, at, b.load(before, at) + b.load(x, at));
}

/// `y = x · s`. Map.
#[inline(always)]
pub fn scale<B: Body>(b: B, at: B::At, x: B::In, s: B::S, y: B::Out) {
    b.store(y, at, b.load(x, at) * b.splat(s));
}

/// One AdamW step (Loshchilov and Hutter 2019, algorithm 2, decoupled decay scaled by
/// the learning rate). Map. The inputs `p`, `m`, `v` and the outputs are the same memory.
#[inline(always)]
pub fn adamw<B: Body>(
    b: B,
    at: B::At,
    (p, g, m, v): (B::In, B::In, B::In, B::In),
    (p_out, m_out, v_out): (B::Out, B::Out, B::Out),
    c: crate::AdamW<B::S>,
) {
    let one = b.num(1.0);
    let (rest1, rest2) = (b.splat(one - c.beta1), b.splat(one - c.beta2));
    let p = b.load(p, at);
    let g = b.load(g, at) * b.splat(c.grad_scale);
    let m = b.load(m, at).fma(b.splat(c.beta1), g * rest1);
    let v = b.load(v, at).fma(b.splat(c.beta2), g * g * rest2);
    b.store(m_out, at, m);
    b.store(v_out, at, v);
    let root = (v / b.splat(c.bias2)).sqrt() + b.splat(c.eps);
    let step = (m / b.splat(c.bias1)) / root;
    b.store(p_out, at, b.splat(-c.lr).fma(p.fma(b.splat(c.weight_decay), step), p));
}

/// `Σ x²`. Row.
#[inline(always)]
pub fn sum_squares<R: Row>(r: R, x: R::In, sum: R::Out) {
    let s = r.sum(
        #[inline(always)]
        |at| r.load(x, at) * r.load(x, at),
    );
    r.put(sum, s);
}

/// `Σ x·y`. Row.
#[inline(always)]
pub fn dot<R: Row>(r: R, x: R::In, y: R::In, sum: R::Out) {
    let s = r.sum(
        #[inline(always)]
        |at| r.load(x, at) * r.load(y, at),
    );
    r.put(sum, s);
}

/// Log-sum-exp of a row less the target's logit, and (where `dx` is given, which
/// may be `x`) the gradient `scale·(softmax − onehot)`. Row. `target` is the column
/// as a number; −1 marks a row without one, whose loss and gradient are 0.
#[inline(always)]
pub fn cross_entropy<R: Row>(
    r: R,
    x: R::In,
    (target, target_logit): (R::In, R::In),
    nll: R::Out,
    dx: Option<(R::Out, R::In, R::S)>,
) {
    let (target, none, zero) = (r.get(target), r.num(-1.0), r.num(0.0));
    let max = r.max(
        #[inline(always)]
        |at| r.load(x, at),
    );
    let m = r.splat(max);
    let logit = r.get(target_logit);
    let sum = r.sum(
        #[inline(always)]
        |at| {
            let e = (r.load(x, at) - m).exp();
            if let Some((dx, ..)) = dx {
                r.store(dx, at, e);
            }
            e
        },
    );
    r.put(nll, target.if_eq(none, zero, (max - logit) + sum.ln()));
    if let Some((dx, exps, scale)) = dx {
        let scale = target.if_eq(none, zero, scale);
        let k = r.splat(scale / sum);
        let (t, scale) = (r.splat(target), r.splat(scale));
        r.each(
            #[inline(always)]
            |at| {
                let p = r.load(exps, at) * k;
                r.store(dx, at, r.index(at).if_eq(t, p - scale, p));
            },
        );
    }
}

/// One tile of keys of the online softmax: scores `s·scale` become `exp(s·scale − max)` in
/// `p`, the running `max` and `sum` go on, and `shrink` is what the output so far must be
/// multiplied by. Row, as wide as the keys this query may see.
#[inline(always)]
pub fn attend<R: Row>(
    r: R,
    (s, p): (R::In, R::Out),
    (max_in, max_out): (R::In, R::Out),
    (sum_in, sum_out): (R::In, R::Out),
    shrink: R::Out,
    scale: R::S,
) {
    let scale = r.splat(scale);
    let before = r.get(max_in);
    let max = r
        .max(
            #[inline(always)]
            |at| r.load(s, at) * scale,
        )
        .max(before);
    let m = r.splat(max);
    let sum = r.sum(
        #[inline(always)]
        |at| {
            let e = (r.load(s, at) * scale - m).exp();
            r.store(p, at, e);
            e
        },
    );
    let c = (before - max).exp();
    r.put(max_out, max);
    r.put(sum_out, r.get(sum_in).fma(c, sum));
    r.put(shrink, c);
}

/// `x ← x·by` with the row's number. Row.
#[inline(always)]
pub fn shrink<R: Row>(r: R, x: R::In, by: R::In, y: R::Out) {
    let by = r.splat(r.get(by));
    r.each(
        #[inline(always)]
        |at| r.store(y, at, r.load(x, at) * by),
    );
}

/// The end of attention for one query: `out = acc/sum`, `lse = max + ln sum`. Row.
#[inline(always)]
pub fn attended<R: Row>(
    r: R,
    acc: R::In,
    max: R::In,
    sum: R::In,
    out: R::Out,
    lse: Option<R::Out>,
) {
    let z = r.get(sum);
    if let Some(lse) = lse {
        r.put(lse, r.get(max) + z.ln());
    }
    let k = r.splat(r.num(1.0) / z);
    // + 0 makes every zero positive: whether a masked key was multiplied by 0 or
    // left out then leaves no trace.
    r.each(
        #[inline(always)]
        |at| {
            let v = r.load(acc, at);
            r.store(out, at, v.fma(k, v.lit(0.0)));
        },
    );
}

/// Attention's backward for one query and a tile of keys: `p = exp(s·scale − lse)` and
/// `ds = p·(dp − delta)·scale`. Row, as wide as the keys this query may see; `p` may
/// be `s` and `ds` may be `dp`.
#[inline(always)]
pub fn attend_backward<R: Row>(
    r: R,
    (s, p): (R::In, R::Out),
    (dp, ds): (R::In, R::Out),
    lse: R::In,
    delta: R::In,
    scale: R::S,
) {
    let (scale, lse, delta) = (r.splat(scale), r.splat(r.get(lse)), r.splat(r.get(delta)));
    r.each(
        #[inline(always)]
        |at| {
            let e = (r.load(s, at) * scale - lse).exp();
            r.store(ds, at, e * (r.load(dp, at) - delta) * scale);
            r.store(p, at, e);
        },
    );
}
