//! Causal grouped-query attention without the T×T matrix, contiguous or paged.
//!
//! Keys come in tiles of [`KEYS`], whose softmax is joined to that of the tiles before
//! (Milakov and Gimelshein 2018; Dao 2022). A query's bits depend on its own row, the
//! keys up to its position and that tile size alone: not on which other queries share
//! its task, nor on where the keys are stored. Keys it may not see are multiplied by 0
//! or left out, which gives the same (see [`bodies::attended`]).
//!
//! Suffixes: T tokens = batch · seq, H query heads, H_kv key/value heads, d width of a head.

use crate::cpu::Shared;
use crate::isa::{Lanes, Sc, on_every_isa};
use crate::product::{Left, Right, product, transpose};
use crate::scratch::scratch;
use crate::simd::{In, Out, Simd, rows, rows_mut};
use crate::{Cpu, Isa, bodies};

/// Tokens in one block of a paged key/value cache.
pub const KV_BLOCK: usize = 16;
/// Keys of a tile. Part of what fixes the bits.
const KEYS: usize = 64;
/// Queries of a task.
const QUERIES: usize = 64;
/// Queries whose scores are computed together: what the causal triangle wastes.
const STRIP: usize = 16;

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

impl AttentionDims {
    pub(crate) fn check(&self, name: &str, slices: &[(&str, usize, usize)]) {
        let AttentionDims { batch, seq, heads, kv_heads, head_dim: _ } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{name}: {heads} query heads cannot share {kv_heads} key/value heads"
        );
        for (what, len, width) in slices {
            assert_eq!(*len, batch * seq * width, "{name}: {what} has {len} values for {self:?}");
        }
    }
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

/// Where one head of one sequence keeps its keys and values: rows `stride` apart
/// within blocks of 16 tokens.
#[derive(Clone, Copy)]
struct Keys<'a> {
    k: *const f32,
    v: *const f32,
    stride: usize,
    blocks: Option<&'a [u32]>,
}

impl Keys<'_> {
    /// Offset of the `i`-th block of tokens.
    fn block(&self, i: usize) -> usize {
        self.blocks.map_or(i, |blocks| blocks[i] as usize) * KV_BLOCK * self.stride
    }
}

/// A task: the queries `first … first + count` of one sequence in all heads that share
/// one key/value head.
#[derive(Clone, Copy)]
struct Queries<'a> {
    keys: Keys<'a>,
    /// First query and output row of the first head; rows `stride`, heads `d` apart.
    q: *const f32,
    out: *mut f32,
    stride: usize,
    /// Log-sum-exp of the first query and head; rows `heads` apart.
    lse: Option<*mut f32>,
    heads: usize,
    group: usize,
    d: usize,
    first: usize,
    count: usize,
    scale: f32,
}

/// `out = softmax(scale · q·kᵀ) · v`, causal within each sequence; `lse[T, heads]`
/// is kept for the backward pass.
///
/// # Panics
/// A slice's length does not fit `dims`.
pub fn attention_forward(
    cpu: &Cpu,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
    dims: AttentionDims,
    scale: f32,
) {
    let AttentionDims { batch, seq, heads, kv_heads, head_dim: d } = dims;
    let (wide, narrow) = (heads * d, kv_heads * d);
    let slices = [("q", q.len(), wide), ("out", out.len(), wide), ("lse", lse.len(), heads)];
    dims.check("attention_forward", &slices);
    dims.check("attention_forward", &[("k", k.len(), narrow), ("v", v.len(), narrow)]);
    let group = heads / kv_heads;
    let tiles = seq.div_ceil(QUERIES);
    let (out, lse) = (out.as_mut_ptr(), lse.as_mut_ptr());
    // SAFETY: the lengths were checked; each task writes the rows and heads of its own queries.
    let pointers = unsafe { Shared::new((q.as_ptr(), k.as_ptr(), v.as_ptr(), out, lse)) };
    // The longest rows first, so that threads end together.
    let tasks = (0..tiles).rev().flat_map(|tile| (0..batch * kv_heads).map(move |i| (tile, i)));
    cpu.each(batch * seq * seq * wide, tasks, |(tile, i)| {
        let (q, k, v, out, lse) = pointers.get();
        let (b, head, first) = (i / kv_heads, i % kv_heads, tile * QUERIES);
        let row = b * seq + first;
        let key = b * seq * narrow + head * d;
        let query = row * wide + head * group * d;
        run(
            cpu.isa(),
            Queries {
                keys: Keys {
                    k: k.wrapping_add(key),
                    v: v.wrapping_add(key),
                    stride: narrow,
                    blocks: None,
                },
                q: q.wrapping_add(query),
                out: out.wrapping_add(query),
                stride: wide,
                lse: Some(lse.wrapping_add(row * heads + head * group)),
                heads,
                group,
                d,
                first,
                count: QUERIES.min(seq - first),
                scale,
            },
        );
    });
}

/// Attention of several sequences' newest rows over a paged cache
/// `[blocks, 16, kv_heads, head_dim]` (the rows' own keys and values already in it).
/// Each row's bits equal [`attention_forward`]'s at the same position, whatever else is
/// in the batch. `q`, `out[rows, heads, head_dim]`, sequences one after another.
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
    let (d, wide, narrow) = (head_dim, heads * head_dim, kv_heads * head_dim);
    let dims = AttentionDims {
        batch: 1,
        seq: sequences.iter().map(|s| s.rows).sum(),
        heads,
        kv_heads,
        head_dim,
    };
    dims.check("attention_paged", &[("q", q.len(), wide), ("out", out.len(), wide)]);
    assert_eq!(k_cache.len(), v_cache.len(), "attention_paged: the caches differ in length");
    let blocks = k_cache.len() / (KV_BLOCK * narrow).max(1);
    let (mut tasks, mut row, mut work) = (Vec::new(), 0, 0);
    for (i, s) in sequences.iter().enumerate() {
        let used = s.blocks.get(..s.context.div_ceil(KV_BLOCK));
        assert!(
            s.rows <= s.context
                && used.is_some_and(|used| used.iter().all(|&b| (b as usize) < blocks)),
            "attention_paged: sequence {i} ({} rows, context {}) does not fit its blocks or the cache's {blocks}",
            s.rows,
            s.context
        );
        for first in (0..s.rows).step_by(QUERIES) {
            tasks.extend((0..kv_heads).map(|head| (s, row + first, first, head)));
        }
        row += s.rows;
        work += s.rows * s.context * wide * 2;
    }
    let group = heads / kv_heads;
    // SAFETY: the lengths were checked; each task writes the rows and heads of its own queries.
    let pointers =
        unsafe { Shared::new((q.as_ptr(), k_cache.as_ptr(), v_cache.as_ptr(), out.as_mut_ptr())) };
    cpu.each(work, tasks.into_iter(), |(s, row, first, head)| {
        let (q, k, v, out) = pointers.get();
        let query = row * wide + head * group * d;
        run(
            cpu.isa(),
            Queries {
                keys: Keys {
                    k: k.wrapping_add(head * d),
                    v: v.wrapping_add(head * d),
                    stride: narrow,
                    blocks: Some(s.blocks),
                },
                q: q.wrapping_add(query),
                out: out.wrapping_add(query),
                stride: wide,
                lse: None,
                heads,
                group,
                d,
                first: s.context - s.rows + first,
                count: QUERIES.min(s.rows - first),
                scale,
            },
        );
    });
}

/// Scratch of one task.
struct Space<'a> {
    /// Keys of a tile, transposed: `[d, KEYS]`.
    k_t: &'a mut [f32],
    /// Values of a tile, padded: `[KEYS, wide]`.
    values: &'a mut [f32],
    /// Scores, then probabilities, of a strip: `[STRIP, KEYS]`.
    scores: &'a mut [f32],
    /// Outputs before the division: `[heads, queries, wide]`.
    acc: &'a mut [f32],
    /// Running maximum, running sum, and what the last tile shrank by: `[heads, queries]`.
    max: &'a mut [f32],
    sum: &'a mut [f32],
    by: &'a mut [f32],
}

fn run(isa: Isa, t: Queries<'_>) {
    let (d, wide, n) = (t.d, padded(t.d), t.group * t.count);
    let sizes = [d * KEYS, KEYS * wide, STRIP * KEYS, n * wide, n, n, n];
    scratch(sizes.iter().sum(), |space| {
        let mut rest = &mut space[..];
        let [k_t, values, scores, acc, max, sum, by] =
            sizes.map(|n| rest.split_off_mut(..n).expect("the sizes add up"));
        attend(isa, t, Space { k_t, values, scores, acc, max, sum, by });
    });
}

/// A width rounded up to whole registers of any variant.
pub(crate) fn padded(d: usize) -> usize {
    d.next_multiple_of(16)
}

/// Runs one task.
///
/// # Safety contract
/// The pointers hold the rows and heads named, and nobody else writes them.
#[inline(always)]
fn attend_lanes<V: Lanes>(t: Queries<'_>, space: Space<'_>) {
    let Queries { keys, q, out, stride, lse, heads, group, d, first, count, scale } = t;
    let Space { k_t, values, scores, acc, max, sum, by } = space;
    let isa = V::ISA;
    let wide = padded(d);
    // One query: its heads are the rows of one strip. Several: a strip is one head's queries.
    let one = count == 1;
    let (strips, m, row_stride) = if one { (1, group, d) } else { (group, count, stride) };
    acc.fill(0.0);
    max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    let end = first + count;
    for key in (0..end).step_by(KEYS) {
        for from in (0..KEYS.min(end - key)).step_by(KV_BLOCK) {
            let tokens = KV_BLOCK.min(end - key - from);
            let block = keys.block((key + from) / KV_BLOCK);
            let k = keys.k.wrapping_add(block);
            transpose(isa, tokens, d, k, keys.stride, k_t[from..].as_mut_ptr(), KEYS);
            for i in 0..tokens {
                // SAFETY: the contract above.
                let v =
                    unsafe { std::slice::from_raw_parts(keys.v.add(block + i * keys.stride), d) };
                values[(from + i) * wide..][..d].copy_from_slice(v);
            }
        }
        // Keys of this tile that row `r` of a strip may see.
        let seen = |r: usize| (first + if one { 0 } else { r } + 1).saturating_sub(key).min(KEYS);
        for strip in 0..strips {
            for r0 in (0..m).step_by(STRIP) {
                let rows_here = STRIP.min(m - r0);
                let most = seen(r0 + rows_here - 1);
                if most == 0 {
                    continue;
                }
                let left = Left {
                    p: q.wrapping_add(strip * d + r0 * row_stride),
                    row: row_stride,
                    step: 1,
                };
                let right = Right::F32(k_t.as_ptr(), KEYS);
                product(isa, rows_here, most, d, left, right, scores.as_mut_ptr(), KEYS, false);
                let at = strip * m + r0;
                let acc = acc[at * wide..].as_mut_ptr();
                let (max, sum, by) = (
                    rows_mut(&mut max[at..], 1),
                    rows_mut(&mut sum[at..], 1),
                    rows_mut(&mut by[at..], 1),
                );
                let s = rows_mut(scores, KEYS);
                for r in 0..rows_here {
                    let n = seen(r0 + r);
                    scores[r * KEYS + n..r * KEYS + most].fill(0.0);
                    if n == 0 {
                        continue;
                    }
                    let row = Simd::<V>::row(r, n);
                    bodies::attend(
                        row,
                        (s.read(), s),
                        (max.read(), max),
                        (sum.read(), sum),
                        by,
                        Sc(scale),
                    );
                    let acc = Out::at(acc, wide);
                    bodies::shrink(Simd::<V>::row(r, wide), acc.read(), by.read(), acc);
                }
                let left = Left { p: scores.as_ptr(), row: KEYS, step: 1 };
                product(
                    isa,
                    rows_here,
                    d,
                    most,
                    left,
                    Right::F32(values.as_ptr(), wide),
                    acc,
                    wide,
                    true,
                );
            }
        }
    }
    for strip in 0..strips {
        for r in 0..m {
            let at = strip * m + r;
            let out = Out::at(out.wrapping_add(strip * d + r * row_stride), 0);
            let lse = lse.map(|lse| {
                let place = if one { r } else { r * heads + strip };
                Out::at(lse.wrapping_add(place), 0)
            });
            let acc = rows(&acc[at * wide..][..d], 0);
            bodies::attended(
                Simd::<V>::row(0, d),
                acc,
                rows(&max[at..], 0),
                rows(&sum[at..], 0),
                out,
                lse,
            );
        }
    }
}
on_every_isa! { fn attend = attend_lanes(t: Queries<'_>, space: Space<'_>) }

/// Cells of one head, `heads` apart, from row `first` on.
pub(crate) fn head_cells(x: *const f32, first: usize, head: usize, heads: usize) -> In {
    In::at(x.wrapping_add(first * heads + head), heads)
}
