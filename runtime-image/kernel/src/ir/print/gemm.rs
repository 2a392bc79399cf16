//! The matrix product's skeleton on a GPU: a tile of 64 × 64 outputs for 256 threads, 4 × 4
//! each in registers, operands through shared memory 16 steps of k at a time. Every output
//! is one chain of fused multiply-adds over k in increasing order, as everywhere.

use super::Writer;
use crate::ir::record::{Gives, Step};

/// Words of a step's tile: 64 and four more, against bank conflicts.
const TILES: [&str; 3] = ["a_tile", "b_tile", "b_tile2"];

pub(super) fn shared(products: usize) -> Vec<(&'static str, usize)> {
    TILES[..=products].iter().map(|name| (*name, 16 * 68)).collect()
}

/// Loads a tile of 64 rows (or columns) × 16 steps through its prologue.
fn load(w: &mut Writer<'_>, tile: &str, prologue: &Gives, place: &str, end: &str, along_k: bool) {
    // Neighbouring threads read neighbouring addresses.
    let (step, side) = if along_k { ("j % 16u", "j / 16u") } else { ("j / 64u", "j % 64u") };
    w.line(&format!(
        "for (var j = thread; j < 1024u; j += 256u) {{
         let k = base + {step};
         let {place} = {place}0 + {side};
         var element = 0.0f;
         if ({place} < {end} && k < depth) {{"
    ));
    w.steps(&prologue.steps, false);
    let value = w.name(prologue.value);
    w.line(&format!("element = {value};\n}}\n{tile}[({step}) * 68u + {side}] = element;\n}}"));
}

pub(super) fn print(w: &mut Writer<'_>, products: usize, along_k: [bool; 2]) {
    let kernel = w.kernel;
    let program = &kernel.programs[0];
    let chains: Vec<_> = program
        .iter()
        .filter_map(|step| match step {
            Step::Chain { id, left, right } => Some((*id, left, right)),
            _ => None,
        })
        .collect();
    w.line(
        "let thread = local.y * 16u + local.x;
         let row0 = group.y * 64u;
         let col0 = group.x * 64u;",
    );
    let sums = &["sum", "sum2"][..products];
    for sum in sums {
        w.line(&format!("var {sum} = array<f32, 16>();"));
    }
    w.line("for (var base = 0u; base < depth; base += 16u) {");
    if let Some((_, left, _)) = chains.first() {
        load(w, "a_tile", left, "row", "m", along_k[0]);
    }
    for ((_, _, right), tile) in chains.iter().zip(&TILES[1..]) {
        load(w, tile, right, "col", "n", along_k[1]);
    }
    w.line(
        "workgroupBarrier();
         let steps = min(16u, depth - base);
         for (var k = 0u; k < steps; k += 1u) {
         #pragma unroll
         for (var i = 0u; i < 4u; i += 1u) {
         let a = a_tile[k * 68u + local.y * 4u + i];
         #pragma unroll
         for (var j = 0u; j < 4u; j += 1u) {",
    );
    for (sum, tile) in sums.iter().zip(&TILES[1..]) {
        w.line(&format!(
            "{sum}[i * 4u + j] = fma(a, {tile}[k * 68u + local.x + j * 16u], {sum}[i * 4u + j]);"
        ));
    }
    w.line(
        "}
         }
         }
         workgroupBarrier();
         }
         #pragma unroll
         for (var i = 0u; i < 4u; i += 1u) {
         #pragma unroll
         for (var j = 0u; j < 4u; j += 1u) {
         let row = row0 + local.y * 4u + i;
         let col = col0 + local.x + j * 16u;
         if (row < m && col < n) {",
    );
    for ((id, ..), sum) in chains.iter().zip(sums) {
        w.names.insert(*id, format!("{sum}[i * 4u + j]"));
    }
    w.steps(program, false);
    w.line("}\n}\n}");
}
