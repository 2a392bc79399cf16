//! The backward pass of attention: scores are computed again from the kept
//! log-sum-exp (Dao 2022), tile by tile, without the T×T matrix.
//!
//! One task has one key/value head of one sequence and goes through its query heads,
//! query tiles and key tiles in order, so every gradient is one chain: dq over keys,
//! dk and dv over (query head, query), without atomics.

use crate::attention::{AttentionDims, head_cells, padded};
use crate::cpu::Shared;
use crate::isa::{Lanes, Sc, on_every_isa};
use crate::product::{Left, Right, product, transpose};
use crate::scratch::scratch;
use crate::simd::{Out, Simd, rows, rows_mut};
use crate::{Cpu, bodies};

/// Queries and keys of a tile; free to choose.
const TILE: usize = 32;
/// Rows of a task that computes `delta`.
const ROWS: usize = 256;

/// One key/value head of one sequence; pointers to its first row and (first) head.
#[derive(Clone, Copy)]
struct Head {
    q: *const f32,
    k: *const f32,
    v: *const f32,
    dout: *const f32,
    lse: *const f32,
    delta: *const f32,
    dq: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
    dims: AttentionDims,
    scale: f32,
}

/// Backward of [`attention_forward`](crate::attention_forward): overwrites `dq`, `dk`, `dv`;
/// `delta[T, heads]` is scratch.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn attention_backward(
    cpu: &Cpu,
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
    let AttentionDims { batch, seq, heads, kv_heads, head_dim: d } = dims;
    let (wide, narrow) = (heads * d, kv_heads * d);
    dims.check(
        "attention_backward",
        &[
            ("q", q.len(), wide),
            ("k", k.len(), narrow),
            ("v", v.len(), narrow),
            ("out", out.len(), wide),
            ("lse", lse.len(), heads),
            ("dout", dout.len(), wide),
            ("dq", dq.len(), wide),
            ("dk", dk.len(), narrow),
            ("dv", dv.len(), narrow),
            ("delta", delta.len(), heads),
        ],
    );
    let parts = delta
        .chunks_mut(ROWS)
        .zip(out.chunks((ROWS * d).max(1)))
        .zip(dout.chunks((ROWS * d).max(1)));
    cpu.each(out.len() * 4, parts, |((delta, out), dout)| dots(cpu.isa(), out, dout, delta));

    let all = Head {
        q: q.as_ptr(),
        k: k.as_ptr(),
        v: v.as_ptr(),
        dout: dout.as_ptr(),
        lse: lse.as_ptr(),
        delta: delta.as_ptr(),
        dq: dq.as_mut_ptr(),
        dk: dk.as_mut_ptr(),
        dv: dv.as_mut_ptr(),
        dims,
        scale,
    };
    // SAFETY: the lengths were checked; each task writes its own sequence's own heads.
    let all = unsafe { Shared::new(all) };
    cpu.each(batch * seq * seq * wide * 3, 0..batch * kv_heads, |i| {
        let Head { q, k, v, dout, lse, delta, dq, dk, dv, dims, scale } = all.get();
        let (b, head, group) = (i / kv_heads, i % kv_heads, heads / kv_heads);
        let query = b * seq * wide + head * group * d;
        let key = b * seq * narrow + head * d;
        let cell = b * seq * heads + head * group;
        let head = Head {
            q: q.wrapping_add(query),
            k: k.wrapping_add(key),
            v: v.wrapping_add(key),
            dout: dout.wrapping_add(query),
            lse: lse.wrapping_add(cell),
            delta: delta.wrapping_add(cell),
            dq: dq.wrapping_add(query),
            dk: dk.wrapping_add(key),
            dv: dv.wrapping_add(key),
            dims,
            scale,
        };
        let tiles = seq.div_ceil(TILE);
        let (turned, padded) = (d * TILE, TILE * padded(d));
        let sequence =
            [tiles * turned, tiles * turned, tiles * padded, tiles * padded, tiles * padded];
        let tile = [padded, padded, padded, TILE * TILE, TILE * TILE];
        scratch(sequence.iter().chain(&tile).sum(), |space| {
            let mut rest = &mut space[..];
            let mut take =
                |n: usize| rest.split_off_mut(..n).expect("the sizes add up").as_mut_ptr();
            let [k_t, v_t, k_rows, dk_rows, dv_rows] = sequence.map(&mut take);
            let [q, dout, dq, p, ds] = tile.map(&mut take);
            head_backward(
                cpu.isa(),
                head,
                Space { k_t, v_t, k_rows, dk_rows, dv_rows, q, dout, dq, p, ds },
            );
        });
    });
}

/// Scratch of one task: the whole sequence tile by tile, transposed (`[d, TILE]`) or
/// padded (`[TILE, wide]`), and one tile of each thing that goes with a query.
#[derive(Clone, Copy)]
struct Space {
    k_t: *mut f32,
    v_t: *mut f32,
    k_rows: *mut f32,
    dk_rows: *mut f32,
    dv_rows: *mut f32,
    q: *mut f32,
    dout: *mut f32,
    dq: *mut f32,
    p: *mut f32,
    ds: *mut f32,
}

#[inline(always)]
fn dots_lanes<V: Lanes>(x: &[f32], y: &[f32], sums: &mut [f32]) {
    let (count, d) = (sums.len(), x.len() / sums.len());
    let (x, y, sums) = (rows(x, d), rows(y, d), rows_mut(sums, 1));
    for row in 0..count {
        bodies::dot(Simd::<V>::row(row, d), x, y, sums);
    }
}
on_every_isa! { fn dots = dots_lanes(x: &[f32], y: &[f32], sums: &mut [f32]) }

/// Copies `count` rows of `d`, `from_stride` and `to_stride` apart.
///
/// # Safety
/// Both hold these rows.
unsafe fn copy_rows(
    count: usize,
    d: usize,
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    for i in 0..count {
        // SAFETY: the caller's.
        unsafe {
            std::ptr::copy_nonoverlapping(from.add(i * from_stride), to.add(i * to_stride), d)
        }
    }
}

/// Runs one task.
///
/// # Safety contract
/// The pointers hold the rows and heads named, and nobody else writes them.
#[inline(always)]
fn head_backward_lanes<V: Lanes>(head: Head, space: Space) {
    let Head { q, k, v, dout, lse, delta, dq, dk, dv, dims, scale } = head;
    let AttentionDims { batch: _, seq, heads, kv_heads, head_dim: d } = dims;
    let (isa, group) = (V::ISA, heads / kv_heads);
    let (q_stride, k_stride) = (heads * d, kv_heads * d);
    let Space {
        k_t,
        v_t,
        k_rows,
        dk_rows,
        dv_rows,
        q: q_tile,
        dout: dout_tile,
        dq: dq_tile,
        p,
        ds,
    } = space;
    let wide = padded(d);
    let tiles = seq.div_ceil(TILE);
    let rows_of = |tile: usize| TILE.min(seq - tile * TILE);
    let (turned, padded) = (d * TILE, TILE * wide);
    for j in 0..tiles {
        let (from, count) = (j * TILE * k_stride, rows_of(j));
        let (k, v) = (k.wrapping_add(from), v.wrapping_add(from));
        transpose(isa, count, d, k, k_stride, k_t.wrapping_add(j * turned), TILE);
        transpose(isa, count, d, v, k_stride, v_t.wrapping_add(j * turned), TILE);
        // SAFETY: the contract above; scratch holds `tiles` tiles.
        unsafe { copy_rows(count, d, k, k_stride, k_rows.add(j * padded), wide) };
    }
    for g in 0..group {
        for i in 0..tiles {
            let (from, count) = (i * TILE * q_stride + g * d, rows_of(i));
            // SAFETY: the contract above.
            unsafe {
                copy_rows(count, d, q.add(from), q_stride, q_tile, wide);
                copy_rows(count, d, dout.add(from), q_stride, dout_tile, wide);
            }
            let (q_left, dout_left) =
                (Left { p: q_tile, row: wide, step: 1 }, Left { p: dout_tile, row: wide, step: 1 });
            let lse = head_cells(lse, i * TILE, g, heads);
            let delta = head_cells(delta, i * TILE, g, heads);
            for j in 0..=i {
                let keys = rows_of(j);
                let k_right = Right::F32(k_t.wrapping_add(j * turned), TILE);
                let v_right = Right::F32(v_t.wrapping_add(j * turned), TILE);
                product(isa, count, keys, d, q_left, k_right, p, TILE, false);
                product(isa, count, keys, d, dout_left, v_right, ds, TILE, false);
                let (p_out, ds_out) = (Out::at(p, TILE), Out::at(ds, TILE));
                for r in 0..count {
                    let seen = keys.min((i - j) * TILE + r + 1);
                    let row = Simd::<V>::row(r, seen);
                    bodies::attend_backward(
                        row,
                        (p_out.read(), p_out),
                        (ds_out.read(), ds_out),
                        lse,
                        delta,
                        Sc(scale),
                    );
                    // SAFETY: both tiles are TILE wide.
                    unsafe {
                        p.add(r * TILE + seen).write_bytes(0, keys - seen);
                        ds.add(r * TILE + seen).write_bytes(0, keys - seen);
                    }
                }
                let begun = (g, i) != (0, j);
                let down = |p: *const f32| Left { p, row: 1, step: TILE };
                let (dv, dk) = (dv_rows.wrapping_add(j * padded), dk_rows.wrapping_add(j * padded));
                product(isa, keys, d, count, down(p), Right::F32(dout_tile, wide), dv, wide, begun);
                product(isa, keys, d, count, down(ds), Right::F32(q_tile, wide), dk, wide, begun);
                let across = Left { p: ds, row: TILE, step: 1 };
                let k_rows = Right::F32(k_rows.wrapping_add(j * padded), wide);
                product(isa, count, d, keys, across, k_rows, dq_tile, wide, j > 0);
            }
            // SAFETY: the contract above.
            unsafe { copy_rows(count, d, dq_tile, wide, dq.add(from), q_stride) };
        }
    }
    // SAFETY: the contract above; tiles of whole rows follow one another.
    unsafe {
        copy_rows(seq, d, dk_rows, wide, dk, k_stride);
        copy_rows(seq, d, dv_rows, wide, dv, k_stride);
    }
}
on_every_isa! { fn head_backward = head_backward_lanes(head: Head, space: Space) }
