//! The micro-kernel: C[m, n] = A·B with every output one chain of fused
//! multiply-adds in increasing k. Gemm and attention are loops around it.

use crate::bodies::dequantize_q8_0;
use crate::isa::{Lanes, on_every_isa};
use crate::simd::{At, Q4, Q8, Simd};
use std::array::from_fn;
use std::convert::identity;

/// The left operand, in place: element (i, p) is at `i · row + p · step`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) p: *const f32,
    pub(crate) row: usize,
    pub(crate) step: usize,
}

impl Left {
    /// The operand from row `i` and step `p` on.
    pub(crate) fn from(self, i: usize, p: usize) -> Left {
        Left { p: self.p.wrapping_add(i * self.row + p * self.step), ..self }
    }
}

/// The right operand, registers wide.
#[derive(Clone, Copy)]
pub(crate) enum Right {
    /// Element (p, j) at `p · ld + j`.
    F32(*const f32, usize),
    /// The same, bfloat16.
    Bf16(*const u16, usize),
    /// A q8_0 panel.
    Q8_0(Q8),
    /// A q4_0 panel.
    Q4_0(Q4),
    /// A q8_0 panel for rounded activations; [`product`] has none of these.
    Int8(Q8),
}

/// `c[m, width] = [c +] a · b` over `k` steps; `width` is rounded up to whole
/// registers, which `b` and `c` must hold. `carry`: the chains go on from `c`.
///
/// # Safety contract
/// The operands hold these elements, and nobody else uses `c`.
#[inline(always)]
fn product_lanes<V: Lanes>(
    m: usize,
    width: usize,
    k: usize,
    a: Left,
    b: Right,
    c: *mut f32,
    ldc: usize,
    carry: bool,
) {
    let registers = width.div_ceil(V::N);
    match b {
        Right::F32(b, ld) => {
            // SAFETY: the contract above.
            let load = identity(
                #[inline(always)]
                |p: usize, i: usize| unsafe { V::load(b.add(p * ld + i)) },
            );
            columns::<V, _>(m, registers, k, a, load, c, ldc, carry);
        }
        Right::Bf16(b, ld) => {
            // SAFETY: the contract above.
            let load = identity(
                #[inline(always)]
                |p: usize, i: usize| unsafe { V::load_bf16(b.add(p * ld + i)) },
            );
            columns::<V, _>(m, registers, k, a, load, c, ldc, carry);
        }
        Right::Q8_0(w) => {
            let load = identity(
                #[inline(always)]
                |p: usize, i: usize| {
                    dequantize_q8_0(Simd::<V>::row(0, 0), w, At { row: p, i, lanes: V::N })
                },
            );
            columns::<V, _>(m, registers, k, a, load, c, ldc, carry);
        }
        Right::Q4_0(w) => {
            // SAFETY: the contract above.
            let load = identity(
                #[inline(always)]
                |p: usize, i: usize| unsafe { w.dequantize::<V>(p, i) },
            );
            columns::<V, _>(m, registers, k, a, load, c, ldc, carry);
        }
        Right::Int8(_) => unreachable!("its left operand is rounded"),
    }
}
on_every_isa! {
    /// See `product_lanes`.
    pub(crate) fn product = product_lanes(m: usize, width: usize, k: usize, a: Left, b: Right, c: *mut f32, ldc: usize, carry: bool)
}

#[inline(always)]
fn columns<V: Lanes, B: Fn(usize, usize) -> V + Copy>(
    m: usize,
    registers: usize,
    k: usize,
    a: Left,
    b: B,
    c: *mut f32,
    ldc: usize,
    carry: bool,
) {
    let mut j = 0;
    while j < registers {
        let (i, c) = (j * V::N, c.wrapping_add(j * V::N));
        let b = identity(
            #[inline(always)]
            move |p: usize, r: usize| b(p, i + r),
        );
        j += match registers - j {
            1 => down::<V, _, 1>(m, k, a, b, c, ldc, carry),
            left if left == 2 || left == 4 || V::TILE.1 == 2 => {
                down::<V, _, 2>(m, k, a, b, c, ldc, carry)
            }
            _ => down::<V, _, 3>(m, k, a, b, c, ldc, carry),
        };
    }
}

#[inline(always)]
fn down<V: Lanes, B: Fn(usize, usize) -> V + Copy, const W: usize>(
    m: usize,
    k: usize,
    a: Left,
    b: B,
    c: *mut f32,
    ldc: usize,
    carry: bool,
) -> usize {
    let mut i = 0;
    let at = |i| (a.from(i, 0), c.wrapping_add(i * ldc));
    if V::TILE.0 == 8 {
        while i + 8 <= m {
            let (a, c) = at(i);
            tile::<V, B, 8, W>(k, a, b, c, ldc, carry);
            i += 8;
        }
    }
    if V::TILE.0 == 6 {
        while i + 6 <= m {
            let (a, c) = at(i);
            tile::<V, B, 6, W>(k, a, b, c, ldc, carry);
            i += 6;
        }
    }
    while i + 4 <= m {
        let (a, c) = at(i);
        tile::<V, B, 4, W>(k, a, b, c, ldc, carry);
        i += 4;
    }
    if i + 2 <= m {
        let (a, c) = at(i);
        tile::<V, B, 2, W>(k, a, b, c, ldc, carry);
        i += 2;
    }
    if i < m {
        let (a, c) = at(i);
        tile::<V, B, 1, W>(k, a, b, c, ldc, carry);
    }
    W
}

/// M × W registers of C. Plain loops: what a closure in a library function does is
/// not compiled with this function's instructions.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn tile<V: Lanes, B: Fn(usize, usize) -> V, const M: usize, const W: usize>(
    k: usize,
    a: Left,
    b: B,
    c: *mut f32,
    ldc: usize,
    carry: bool,
) {
    // SAFETY: the contract of `product_lanes`.
    let place = identity(
        #[inline(always)]
        |i: usize, j: usize| unsafe { c.add(i * ldc + j * V::N) },
    );
    let mut acc = [[V::splat(0.0); W]; M];
    if carry {
        for i in 0..M {
            for j in 0..W {
                // SAFETY: as above.
                acc[i][j] = unsafe { V::load(place(i, j)) };
            }
        }
    }
    let rows: [*const f32; M] = from_fn(|i| a.from(i, 0).p);
    for p in 0..k {
        let mut bs = [V::splat(0.0); W];
        for j in 0..W {
            bs[j] = b(p, j * V::N);
        }
        for i in 0..M {
            // SAFETY: as above.
            let x = V::splat(unsafe { *rows[i].add(p * a.step) });
            for j in 0..W {
                acc[i][j] = x.fma(bs[j], acc[i][j]);
            }
        }
    }
    for i in 0..M {
        for j in 0..W {
            // SAFETY: as above.
            unsafe { acc[i][j].store(place(i, j)) }
        }
    }
}

/// `dst[cols, rows] = src[rows, cols]ᵀ`, rows `lds` and `ldd` apart.
///
/// # Safety contract
/// Both hold these elements, and nobody else uses `dst`.
#[inline(always)]
fn transpose_lanes<V: Lanes>(
    rows: usize,
    cols: usize,
    src: *const f32,
    lds: usize,
    dst: *mut f32,
    ldd: usize,
) {
    let (whole_rows, whole_cols) = (rows / V::N * V::N, cols / V::N * V::N);
    for i in (0..whole_rows).step_by(V::N) {
        for j in (0..whole_cols).step_by(V::N) {
            // SAFETY: the contract above.
            unsafe { V::transpose(src.add(i * lds + j), lds, dst.add(j * ldd + i), ldd) }
        }
    }
    for i in 0..rows {
        for j in if i < whole_rows { whole_cols } else { 0 }..cols {
            // SAFETY: the contract above.
            unsafe { *dst.add(j * ldd + i) = *src.add(i * lds + j) }
        }
    }
}
on_every_isa! {
    /// See `transpose_lanes`.
    pub(crate) fn transpose = transpose_lanes(rows: usize, cols: usize, src: *const f32, lds: usize, dst: *mut f32, ldd: usize)
}
