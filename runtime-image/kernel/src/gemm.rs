//! The matrix product's skeleton on the CPU: blocks of rows and panels of columns,
//! each a task; the micro-kernel of [`product`] inside, an epilogue at the end.
//!
//! Tiles ([`tune`](crate::tune)), tasks and threads are chosen freely here, because each output
//! is one chain over k whatever its tile: between blocks of k the chain waits in scratch.

use crate::bodies;
use crate::int8::{Product, Rounded};
use crate::isa::{Lanes, on_every_isa};
use crate::product::{Left, Right, product};
use crate::scratch::scratch;
use crate::simd::{At, In, Out, Q4, Q8, Simd};
use crate::tune::{F32_TILES, TILES, Tiles};
use crate::val::Body;
use crate::{BLOCK_VALUES, Cpu, Isa, cpu::Shared};

/// Columns of a panel: the widest micro-tile.
pub(crate) fn panel_width(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 48,
        Isa::Avx2 => 16,
        Isa::Portable => 24,
        Isa::Neon => 12,
    }
}

/// A right operand B[k, n] as panels.
#[derive(Clone, Copy)]
pub(crate) enum Panels {
    /// Panel after panel, each `[k, panel_width]`; the last padded.
    F32(*const f32),
    /// The same, bfloat16.
    Bf16(*const u16),
    /// The same, bytes; and scales, each panel `[k/32, panel_width]`.
    Q8_0(*const i8, *const f32),
    /// The same of four bits, two steps of k in a byte.
    Q4_0(*const u8, *const f32),
    /// q8_0 for rounded activations: see [`Product`].
    Int8(*const u8, *const f32),
    /// Rows of a matrix in place, `ld` apart; and the last panel, packed, if it is not whole.
    InPlace { rows: *const f32, ld: usize, last: *const f32 },
}

impl Panels {
    fn name(&self) -> &'static str {
        match self {
            Panels::F32(_) => "f32",
            Panels::Bf16(_) => "bf16",
            Panels::Q8_0(..) => "q8_0",
            Panels::Q4_0(..) => "q4_0",
            Panels::Int8(..) => "int8",
            Panels::InPlace { .. } => "in_place",
        }
    }
}

/// A right operand and its size.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub(crate) panels: Panels,
    pub(crate) k: usize,
    pub(crate) n: usize,
}

impl Operand {
    /// Panel `j` from step `p` (a multiple of 32) on.
    fn right(&self, width: usize, j: usize, p: usize) -> Right {
        let at = (j * self.k + p) * width;
        match self.panels {
            Panels::F32(b) => Right::F32(b.wrapping_add(at), width),
            Panels::Bf16(b) => Right::Bf16(b.wrapping_add(at), width),
            Panels::Q8_0(bytes, scales) => Right::Q8_0(Q8 {
                bytes: bytes.wrapping_add(at),
                scales: scales.wrapping_add((j * self.k + p) / 32 * width),
                ld: width,
            }),
            Panels::Q4_0(halves, scales) => Right::Q4_0(Q4 {
                halves: halves.wrapping_add(at / 2),
                scales: scales.wrapping_add((j * self.k + p) / 32 * width),
                ld: width,
            }),
            Panels::Int8(bytes, scales) => Right::Int8(Q8 {
                bytes: bytes.wrapping_add(at).cast(),
                scales: scales.wrapping_add((j * self.k + p) / 32 * width),
                ld: width,
            }),
            Panels::InPlace { rows, ld, last } => {
                if (j + 1) * width <= self.n {
                    Right::F32(rows.wrapping_add(p * ld + j * width), ld)
                } else {
                    Right::F32(last.wrapping_add(p * width), width)
                }
            }
        }
    }
}

/// A left operand: as it is, or rounded, for [`Panels::Int8`] alone.
#[derive(Clone, Copy)]
pub(crate) enum Rows {
    Exact(Left),
    Rounded(Rounded),
}

/// A finished block of products: `rows × cols` from (`row`, `col`), for each of P operands
/// at `c`, rows `ld` apart.
#[derive(Clone, Copy)]
pub(crate) struct Block<const P: usize> {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    c: [*const f32; P],
    ld: usize,
}

/// `A[m, k]·B[k, n]` for each operand B in `b` (all of one size), block by block into `finish`.
///
/// # Safety
/// `a` and `b` hold these elements until this returns.
pub(crate) unsafe fn multiply<const P: usize>(
    cpu: &Cpu,
    m: usize,
    a: Rows,
    b: [Operand; P],
    finish: impl Fn(Block<P>) + Sync,
) {
    let (n, k) = (b[0].n, b[0].k);
    // What the best tiles depend on.
    let rows = matches!(a, Rows::Exact(Left { step: 1, .. }) | Rows::Rounded(_));
    let (order, right) = (if rows { "rows" } else { "columns" }, b[0].panels.name());
    let product = || format!("{P} {} {k} {n} {order} {right}", m.next_power_of_two());
    let tried = if matches!(right, "f32" | "int8" | "in_place") { F32_TILES } else { TILES.len() };
    // SAFETY: as promised to this function.
    cpu.tuned(product, tried, P * m * n * k, |tiles| unsafe {
        multiply_in(tiles, cpu, m, a, b, finish)
    });
}

/// [`multiply`], cut so.
///
/// # Safety
/// As there.
unsafe fn multiply_in<const P: usize>(
    tiles: Tiles,
    cpu: &Cpu,
    m: usize,
    a: Rows,
    b: [Operand; P],
    finish: impl Fn(Block<P>) + Sync,
) {
    let (isa, width) = (cpu.isa(), panel_width(cpu.isa()));
    let (n, k) = (b[0].n, b[0].k);
    let panels = n.div_ceil(width);
    // A few tasks a thread: blocks of rows first, groups of panels if those are few.
    let want = cpu.threads() * tiles.tasks;
    let rows = m.div_ceil(want).next_multiple_of(24).clamp(32, tiles.rows).min(m.max(1));
    let row_blocks = m.div_ceil(rows);
    let group = panels.div_ceil(want.div_ceil(row_blocks.max(1))).max(1);
    let group = if k > tiles.steps { group.min(tiles.panels) } else { group };
    let groups = panels.div_ceil(group);

    // SAFETY: tasks only read the operands; they are borrowed until this returns.
    let shared = unsafe { Shared::new((a, b)) };
    let task = |index: usize| {
        let (a, b) = shared.get();
        let (row, first) = (index / groups * rows, index % groups * group);
        let rows = rows.min(m - row);
        let end = (first + group).min(panels);
        // Panels whose chains are open at once: one if a single block of k ends them.
        let open = if k <= tiles.steps { 1 } else { end - first };
        let ld = open * width;
        scratch(P * rows * ld + tiles.steps * width, |space| {
            let (c, panel) = space.split_at_mut(P * rows * ld);
            let c: [*mut f32; P] = std::array::from_fn(|i| c[i * rows * ld..].as_mut_ptr());
            for first in (first..end).step_by(open) {
                // An empty chain is 0: k = 0 still runs once.
                for p in (0..k.max(1)).step_by(tiles.steps) {
                    let steps = tiles.steps.min(k - p);
                    for j in first..(first + open).min(end) {
                        for (b, c) in b.iter().zip(c) {
                            let mut right = b.right(width, j, p);
                            let c = c.wrapping_add((j - first) * width);
                            let (cols, carry) = (width.min(n - j * width), p > 0);
                            let a = match (a, right) {
                                (Rows::Exact(a), _) => a.from(row, p),
                                (Rows::Rounded(x), Right::Int8(w)) => {
                                    let (x, blocks) = (x.from(row, p), steps / BLOCK_VALUES);
                                    let product = Product {
                                        m: rows,
                                        width: cols,
                                        blocks,
                                        x,
                                        w,
                                        c,
                                        ldc: ld,
                                        carry,
                                    };
                                    // SAFETY: as promised to this function.
                                    unsafe { product.run(isa) };
                                    continue;
                                }
                                _ => unreachable!("rows are rounded for these panels alone"),
                            };
                            if rows > tiles.direct && !matches!(right, Right::F32(..)) {
                                widen(isa, right, steps, width, panel.as_mut_ptr());
                                right = Right::F32(panel.as_ptr(), width);
                            }
                            product(isa, rows, cols, steps, a, right, c, ld, carry);
                        }
                    }
                }
                let col = first * width;
                let cols = ld.min(n - col);
                finish(Block { row, rows, col, cols, c: c.map(<*mut f32>::cast_const), ld });
            }
        });
    };
    cpu.each(P * m * n * k, 0..row_blocks * groups, task);
}

/// A quantised panel of `steps` rows as f32.
#[inline(always)]
fn widen_lanes<V: Lanes>(from: Right, steps: usize, width: usize, to: *mut f32) {
    for p in 0..steps {
        for i in (0..width).step_by(V::N) {
            // SAFETY: the panel holds `steps` rows of `width`, as does `to`.
            unsafe {
                let v = match from {
                    Right::F32(b, ld) => V::load(b.add(p * ld + i)),
                    Right::Bf16(b, ld) => V::load_bf16(b.add(p * ld + i)),
                    Right::Q8_0(w) => bodies::dequantize_q8_0(
                        Simd::<V>::row(0, 0),
                        w,
                        At { row: p, i, lanes: V::N },
                    ),
                    Right::Q4_0(w) => w.dequantize(p, i),
                    Right::Int8(_) => unreachable!("it is multiplied as it is"),
                };
                v.store(to.add(p * width + i));
            }
        }
    }
}
on_every_isa! { fn widen = widen_lanes(from: Right, steps: usize, width: usize, to: *mut f32) }

/// Runs `body` at every place of a block with its products.
#[inline(always)]
fn places<V: Lanes, const P: usize>(block: Block<P>, body: impl Fn(Simd<V>, At, [V; P])) {
    for i in 0..block.rows {
        let s = Simd::row(block.row + i, 0);
        for j in (0..block.cols).step_by(V::N) {
            let lanes = V::N.min(block.cols - j);
            let mut c = [V::splat(0.0); P];
            for (v, from) in c.iter_mut().zip(block.c) {
                *v = s.load(In::at(from, block.ld), At { row: i, i: j, lanes });
            }
            body(s, At { row: block.row + i, i: block.col + j, lanes }, c);
        }
    }
}

#[inline(always)]
fn finish_lanes<V: Lanes>(block: Block<1>, bias: Option<In>, before: Option<In>, y: Out) {
    places(
        block,
        #[inline(always)]
        |s: Simd<V>, at, [product]| bodies::finish(s, at, product, bias, before, y),
    );
}
on_every_isa! {
    /// [`bodies::finish`] over a block.
    pub(crate) fn finish = finish_lanes(block: Block<1>, bias: Option<In>, before: Option<In>, y: Out)
}

#[inline(always)]
fn finish_swiglu_lanes<V: Lanes>(block: Block<2>, h: Out, keep: Option<(Out, Out)>) {
    places(
        block,
        #[inline(always)]
        |s: Simd<V>, at, [gate, up]| bodies::finish_swiglu(s, at, gate, up, h, keep),
    );
}
on_every_isa! {
    /// [`bodies::finish_swiglu`] over a block.
    pub(crate) fn finish_swiglu = finish_swiglu_lanes(block: Block<2>, h: Out, keep: Option<(Out, Out)>)
}
