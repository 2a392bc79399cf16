//! Linear layers: forward, the gradients of input and weight, and the SwiGLU pair.
//!
//! Suffixes: T tokens, K features in, N features out.

use crate::gemm::{Operand, Panels, Rows, finish, finish_swiglu, multiply, panel_width};
use crate::int8::with_rounded;
use crate::product::Left;
use crate::scratch::scratch;
use crate::simd::{Out, common, rows_mut};
use crate::weight::{pack, packed_len};
use crate::{Cpu, PackedWeight, Weight, cpu::Shared, dequantize};

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
    pub const NONE: Epilogue<'static> = Epilogue { bias: None, add: false };
    /// Add the product to what is there.
    pub const ADD: Epilogue<'static> = Epilogue { bias: None, add: true };
}

/// Widest rows that are read in place as a right operand; wider ones are copied
/// into panels, because neighbours in a column would fall into the same cache sets.
const IN_PLACE: usize = 512;

/// A result whose blocks are finished by one task each.
fn shared(y: &mut [f32], n: usize) -> Shared<Out> {
    // SAFETY: `y` is borrowed until the product returns, and each block has one task.
    unsafe { Shared::new(rows_mut(y, n)) }
}

fn check(name: &str, what: &str, len: usize, rows: usize, cols: usize) {
    assert_eq!(len, rows * cols, "{name}: {what} [{rows}, {cols}] has {len} values");
}

/// `y[t,n] = [y +] (x[t,k] · w[n,k]ᵀ [+ bias])`.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn linear(
    cpu: &Cpu,
    x: &[f32],
    w: Weight<'_>,
    y: &mut [f32],
    dims: Dims,
    epilogue: Epilogue<'_>,
) {
    with_packed(cpu, w, dims, |b| forward(cpu, x, b, y, dims.t, epilogue));
}

/// [`linear`] with a packed weight: the same bits.
///
/// # Panics
/// A slice's length does not fit, or the weight was packed for another instruction set.
pub fn linear_packed(
    cpu: &Cpu,
    x: &[f32],
    w: &PackedWeight,
    y: &mut [f32],
    t: usize,
    epilogue: Epilogue<'_>,
) {
    forward(cpu, x, w.operand(cpu), y, t, epilogue);
}

/// `h[t,n] = silu(x·w_gateᵀ) · (x·w_upᵀ)`; `keep` receives gate and up products `[t,n]`
/// for the backward pass.
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
    with_packed(cpu, w_gate, dims, |gate| {
        with_packed(cpu, w_up, dims, |up| forward_swiglu(cpu, x, [gate, up], h, keep, dims.t));
    });
}

/// [`linear_swiglu`] with packed weights: the same bits.
///
/// # Panics
/// A slice's length does not fit, or the two weights differ in shape or numerics mode.
pub fn linear_swiglu_packed(
    cpu: &Cpu,
    x: &[f32],
    gate: &PackedWeight,
    up: &PackedWeight,
    h: &mut [f32],
    t: usize,
) {
    assert_eq!(
        (gate.n(), gate.k()),
        (up.n(), up.k()),
        "linear_swiglu_packed: gate and up differ in shape"
    );
    assert_eq!(gate.is_for_int8(), up.is_for_int8(), "linear_swiglu_packed: one alone is for int8");
    forward_swiglu(cpu, x, [gate.operand(cpu), up.operand(cpu)], h, None, t);
}

/// `dx[t,k] = [dx +] dy[t,n] · w[n,k]`.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn linear_dx(
    cpu: &Cpu,
    dy: &[f32],
    w: Weight<'_>,
    dx: &mut [f32],
    dims: Dims,
    accumulate: bool,
) {
    let Dims { t, k, n } = dims;
    w.check(n, k);
    check("linear_dx", "dy", dy.len(), t, n);
    let a = Left { p: dy.as_ptr(), row: n, step: 1 };
    match w {
        Weight::F32(w) => rows_product(cpu, "linear_dx", t, a, w, (n, k), dx, accumulate),
        w => scratch(n * k, |space| {
            dequantize(w, space);
            rows_product(cpu, "linear_dx", t, a, space, (n, k), dx, accumulate);
        }),
    }
}

/// `dw[n,k] = [dw +] dy[t,n]ᵀ · x[t,k]`.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn linear_dw(cpu: &Cpu, dy: &[f32], x: &[f32], dw: &mut [f32], dims: Dims, accumulate: bool) {
    let Dims { t, k, n } = dims;
    check("linear_dw", "dy", dy.len(), t, n);
    check("linear_dw", "x", x.len(), t, k);
    let a = Left { p: dy.as_ptr(), row: 1, step: n };
    rows_product(cpu, "linear_dw", n, a, x, (t, k), dw, accumulate);
}

fn with_packed(cpu: &Cpu, w: Weight<'_>, dims: Dims, f: impl FnOnce(Operand)) {
    let Dims { t: _, k, n } = dims;
    w.check(n, k);
    scratch(packed_len(cpu, n, k), |panels| {
        pack(cpu, w, n, k, panels);
        f(Operand { panels: Panels::F32(panels.as_ptr()), k, n });
    });
}

fn forward(cpu: &Cpu, x: &[f32], b: Operand, y: &mut [f32], t: usize, epilogue: Epilogue<'_>) {
    let Epilogue { bias, add } = epilogue;
    check("linear", "x", x.len(), t, b.k);
    check("linear", "y", y.len(), t, b.n);
    if let Some(bias) = bias {
        check("linear", "bias", bias.len(), 1, b.n);
    }
    let y = shared(y, b.n);
    let finish = |block| {
        let y = y.get();
        finish(cpu.isa(), block, bias.map(common), add.then(|| y.read()), y);
    };
    // SAFETY: the lengths were checked, and the slices are borrowed until this returns.
    with_rows(cpu, x, b, |a| unsafe { multiply(cpu, t, a, [b], finish) });
}

fn forward_swiglu(
    cpu: &Cpu,
    x: &[f32],
    b: [Operand; 2],
    h: &mut [f32],
    keep: Option<(&mut [f32], &mut [f32])>,
    t: usize,
) {
    let (n, k) = (b[0].n, b[0].k);
    check("linear_swiglu", "x", x.len(), t, k);
    check("linear_swiglu", "h", h.len(), t, n);
    let h = shared(h, n);
    let keep = keep.map(|(gate, up)| {
        check("linear_swiglu", "gate", gate.len(), t, n);
        check("linear_swiglu", "up", up.len(), t, n);
        (shared(gate, n), shared(up, n))
    });
    let finish = |block| {
        let keep = keep.as_ref().map(|(gate, up)| (gate.get(), up.get()));
        finish_swiglu(cpu.isa(), block, h.get(), keep);
    };
    // SAFETY: the lengths were checked, and the slices are borrowed until this returns.
    with_rows(cpu, x, b[0], |a| unsafe { multiply(cpu, t, a, b, finish) });
}

/// Runs `f` with the rows of `x` as `b` is multiplied with.
fn with_rows(cpu: &Cpu, x: &[f32], b: Operand, f: impl FnOnce(Rows)) {
    match b.panels {
        Panels::Int8(..) => with_rounded(cpu, x, b.k, |x| f(Rows::Rounded(x))),
        _ => f(Rows::Exact(Left { p: x.as_ptr(), row: b.k, step: 1 })),
    }
}

/// `c[m, n] = [c +] a · b[k, n]` where b's rows lie as they are multiplied.
fn rows_product(
    cpu: &Cpu,
    name: &str,
    m: usize,
    a: Left,
    b: &[f32],
    (k, n): (usize, usize),
    c: &mut [f32],
    accumulate: bool,
) {
    check(name, "the result", c.len(), m, n);
    let width = panel_width(cpu.isa());
    let c = shared(c, n);
    let finish = |block| {
        let c = c.get();
        finish(cpu.isa(), block, None, accumulate.then(|| c.read()), c);
    };
    // Panels that must be copied: all of them, or only a last one that is not whole.
    let first = if n > IN_PLACE { 0 } else { n / width * width };
    scratch((n - first).next_multiple_of(width) * k, |space| {
        let panels = space.chunks_mut((width * k).max(1)).enumerate();
        cpu.each((n - first) * k * 8, panels, |(j, panel)| {
            let from = first + j * width;
            let cols = width.min(n - from);
            for (to, row) in panel.chunks_exact_mut(width).zip(b.chunks_exact(n)) {
                to[..cols].copy_from_slice(&row[from..from + cols]);
                to[cols..].fill(0.0);
            }
        });
        let panels = if n > IN_PLACE {
            Panels::F32(space.as_ptr())
        } else {
            Panels::InPlace { rows: b.as_ptr(), ld: n, last: space.as_ptr() }
        };
        // SAFETY: the lengths were checked, and the slices are borrowed until this returns.
        unsafe { multiply(cpu, m, Rows::Exact(a), [Operand { panels, k, n }], finish) }
    });
}
