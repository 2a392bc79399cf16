//! Rows of tables: token embeddings, their gradient, and writing to a cache.

use crate::cpu::Shared;
use crate::norm::sum_columns;
use crate::simd::{Rows, rows, rows_mut};
use crate::{Cpu, Weight, dequantize};

/// `y[t] = table[tokens[t]]`, rows of `width` values.
///
/// # Panics
/// A slice's length does not fit, or a token is beyond the table.
pub fn embedding(cpu: &Cpu, tokens: &[u32], table: Weight<'_>, y: &mut [f32], width: usize) {
    assert_eq!(
        y.len(),
        tokens.len() * width,
        "embedding: {} values for {} tokens",
        y.len(),
        tokens.len()
    );
    let count = table.values() / width.max(1);
    table.check(count, width);
    check_tokens("embedding", tokens, count);
    let work = y.len();
    cpu.each(work, y.chunks_mut((64 * width).max(1)).zip(tokens.chunks(64)), |(y, tokens)| {
        for (y, &token) in y.chunks_exact_mut(width).zip(tokens) {
            dequantize(table.rows(width, token as usize, token as usize + 1), y);
        }
    });
}

/// `dw[tokens[t]] += dy[t]`: for each token the sum over its positions in order is
/// added once. A sorted segment sum, without atomics.
///
/// # Panics
/// A slice's length does not fit, or a token is beyond the table.
pub fn embedding_backward(cpu: &Cpu, tokens: &[u32], dy: &[f32], dw: &mut [f32], width: usize) {
    assert_eq!(dy.len(), tokens.len() * width, "embedding_backward: dy does not fit the tokens");
    check_tokens("embedding_backward", tokens, dw.len() / width.max(1));
    let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
    order.sort_by_key(|&t| tokens[t as usize]); // stable: positions stay in order
    // SAFETY: each row is written by the one task that has its token's segment.
    let table = unsafe { Shared::new(rows_mut(dw, width)) };
    let segments = order.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]);
    cpu.each(dy.len() * 2, segments, |segment| {
        let (dw, token) = (table.get(), tokens[segment[0] as usize] as usize);
        sum_columns(
            cpu.isa(),
            rows(dy, width),
            Rows::List(segment),
            Some(dw.read()),
            dw,
            token,
            width,
        );
    });
}

fn check_tokens(name: &str, tokens: &[u32], rows: usize) {
    if let Some(wrong) = tokens.iter().find(|&&t| t as usize >= rows) {
        panic!("{name}: token {wrong} in a table of {rows} rows");
    }
}

/// Copies row i of `x[rows, width]` to row `slots[i]` of `table` (a slot of a paged
/// cache: block · 16 + offset).
///
/// # Panics
/// A slice's length does not fit, or a slot is beyond the table.
pub fn scatter_rows(x: &[f32], slots: &[u32], table: &mut [f32]) {
    let width = x.len() / slots.len().max(1);
    assert_eq!(
        x.len(),
        slots.len() * width,
        "scatter_rows: {} values for {} slots",
        x.len(),
        slots.len()
    );
    for (x, &slot) in x.chunks_exact(width.max(1)).zip(slots) {
        table[slot as usize * width..][..width].copy_from_slice(x);
    }
}
