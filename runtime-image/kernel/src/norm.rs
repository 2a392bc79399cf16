//! RMSNorm, forward and backward (Zhang and Sennrich 2019), and sums of columns.

use crate::isa::{Lanes, Sc, on_every_isa};
use crate::scratch::scratch;
use crate::simd::{Columns, In, Out, Rows, Simd, common, rows, rows_mut};
use crate::{Cpu, bodies};
use std::marker::PhantomData;

/// Rows of one partial sum of a column.
const BLOCK: usize = 64;
/// Elements a task of row programs covers, about.
const TASK: usize = 1 << 14;

fn check(name: &str, what: &str, len: usize, rows: usize, width: usize) {
    assert_eq!(len, rows * width, "{name}: {what} [{rows}, {width}] has {len} values");
}

/// `y = x · rstd · gain` with `rstd = 1/√(mean(x²) + eps)` kept for the backward pass.
/// Rows: `rstd.len()`; width: `gain.len()` (for qk-norm: tokens · heads rows of one
/// head's width).
///
/// # Panics
/// `x` or `y` is not rows · width long.
pub fn rms_norm(cpu: &Cpu, x: &[f32], gain: &[f32], y: &mut [f32], rstd: &mut [f32], eps: f32) {
    let n = gain.len();
    check("rms_norm", "x", x.len(), rstd.len(), n);
    check("rms_norm", "y", y.len(), rstd.len(), n);
    let many = (TASK / n.max(1)).max(1);
    let parts = x.chunks(many * n).zip(y.chunks_mut(many * n)).zip(rstd.chunks_mut(many));
    cpu.each(x.len() * 4, parts, |((x, y), rstd)| forward(cpu.isa(), x, gain, y, rstd, eps));
}

#[inline(always)]
fn forward_lanes<V: Lanes>(x: &[f32], gain: &[f32], y: &mut [f32], rstd: &mut [f32], eps: f32) {
    let (n, count) = (gain.len(), rstd.len());
    let (x, gain, y, rstd) = (rows(x, n), common(gain), rows_mut(y, n), rows_mut(rstd, 1));
    for row in 0..count {
        bodies::rms_norm(Simd::<V>::row(row, n), x, gain, y, rstd, Sc(eps));
    }
}
on_every_isa! { fn forward = forward_lanes(x: &[f32], gain: &[f32], y: &mut [f32], rstd: &mut [f32], eps: f32) }

/// Backward of [`rms_norm`]: `dx = [dx +] rstd·(gain·dy − x·rstd²·mean(gain·dy·x))`, and
/// `dgain += Σ_rows dy·x·rstd` where it is asked for.
///
/// # Panics
/// A slice's length does not fit.
pub fn rms_norm_backward(
    cpu: &Cpu,
    x: &[f32],
    gain: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    dgain: Option<&mut [f32]>,
) {
    let n = gain.len();
    for (what, len) in [("x", x.len()), ("dy", dy.len()), ("dx", dx.len())] {
        check("rms_norm_backward", what, len, rstd.len(), n);
    }
    let many = (TASK / n.max(1)).max(1);
    let parts = x
        .chunks(many * n)
        .zip(dy.chunks(many * n))
        .zip(dx.chunks_mut(many * n))
        .zip(rstd.chunks(many));
    cpu.each(x.len() * 8, parts, |(((x, dy), dx), rstd)| {
        backward(cpu.isa(), x, gain, rstd, dy, dx, accumulate);
    });
    if let Some(dgain) = dgain {
        check("rms_norm_backward", "dgain", dgain.len(), 1, n);
        column_blocks(cpu, rstd.len(), dgain, |first, end, partial| {
            gain_block(cpu.isa(), x, rstd, dy, first, end, partial);
        });
    }
}

#[inline(always)]
fn backward_lanes<V: Lanes>(
    x: &[f32],
    gain: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
) {
    let (n, count) = (gain.len(), rstd.len());
    let (x, gain, rstd, dy, dx) =
        (rows(x, n), common(gain), rows(rstd, 1), rows(dy, n), rows_mut(dx, n));
    for row in 0..count {
        let before = accumulate.then(|| dx.read());
        bodies::rms_norm_backward(Simd::<V>::row(row, n), x, gain, rstd, dy, before, dx);
    }
}
on_every_isa! { fn backward = backward_lanes(x: &[f32], gain: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) }

#[inline(always)]
fn gain_block_lanes<V: Lanes>(
    x: &[f32],
    rstd: &[f32],
    dy: &[f32],
    first: usize,
    end: usize,
    to: &mut [f32],
) {
    let n = to.len();
    let (x, rstd, dy, to) = (rows(x, n), rows(rstd, 1), rows(dy, n), rows_mut(to, n));
    each_columns(
        n,
        Rows::Block(first, end),
        #[inline(always)]
        |f: Columns<'_, V>| bodies::rms_norm_gain_grad(f, x, rstd, dy, to),
    );
}
on_every_isa! { fn gain_block = gain_block_lanes(x: &[f32], rstd: &[f32], dy: &[f32], first: usize, end: usize, to: &mut [f32]) }

/// `sum[n] += Σ_t x[t,n]` (a bias's gradient).
///
/// # Panics
/// `x` is not a whole number of rows.
pub fn column_sum(cpu: &Cpu, x: &[f32], sum: &mut [f32]) {
    let n = sum.len();
    assert!(x.len().is_multiple_of(n.max(1)), "column_sum: {} values in rows of {n}", x.len());
    column_blocks(cpu, x.len() / n.max(1), sum, |first, end, partial| {
        sum_columns(
            cpu.isa(),
            rows(x, n),
            Rows::Block(first, end),
            None,
            rows_mut(partial, n),
            0,
            n,
        );
    });
}

/// Sums columns over `count` rows into `sum`: `block(first, end, partial)` gives the sum
/// of each [`BLOCK`] of rows, and the partial sums are added in their order, then to `sum`.
fn column_blocks(
    cpu: &Cpu,
    count: usize,
    sum: &mut [f32],
    block: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let n = sum.len();
    let blocks = count.div_ceil(BLOCK);
    scratch(blocks * n, |partials| {
        let tasks = partials.chunks_mut(n.max(1)).enumerate();
        cpu.each(count * n * 4, tasks, |(i, partial)| {
            block(i * BLOCK, ((i + 1) * BLOCK).min(count), partial)
        });
        let sum = rows_mut(sum, n);
        sum_columns(
            cpu.isa(),
            rows(partials, n),
            Rows::Block(0, blocks),
            Some(sum.read()),
            sum,
            0,
            n,
        );
    });
}

/// Runs `f` on every register of `n` columns.
#[inline(always)]
fn each_columns<V: Lanes>(n: usize, rows: Rows<'_>, f: impl Fn(Columns<'_, V>)) {
    let mut i = 0;
    while i + V::N <= n {
        f(Columns { i, lanes: V::N, rows, result: 0, v: PhantomData });
        i += V::N;
    }
    if i < n {
        f(Columns { i, lanes: n - i, rows, result: 0, v: PhantomData });
    }
}

#[inline(always)]
fn sum_columns_lanes<V: Lanes>(
    x: In,
    list: Rows<'_>,
    before: Option<In>,
    sum: Out,
    result: usize,
    n: usize,
) {
    each_columns(
        n,
        list,
        #[inline(always)]
        |f: Columns<'_, V>| bodies::sum_rows(Columns { result, ..f }, x, before, sum),
    );
}
on_every_isa! {
    /// [`bodies::sum_rows`] over `n` columns, into row `result` of `sum`.
    pub(crate) fn sum_columns = sum_columns_lanes(x: In, list: Rows<'_>, before: Option<In>, sum: Out, result: usize, n: usize)
}
