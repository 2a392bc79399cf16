//! Every kernel of a transformer and its optimiser, recorded from its body.

use super::kernel::{Archetype, Kernel, Type};
use super::record::{Operand, Rec};
use crate::{AdamW, bodies};

const ELEMENTS: Archetype = Archetype::Map { count: "count", width: "" };
const PLACES: Archetype = Archetype::Map { count: "rows * n", width: "n" };

/// All kernels, each name once.
pub fn catalogue() -> Vec<Kernel> {
    let mut all = vec![rms_norm()];
    all.extend([false, true].map(rms_norm_backward));
    all.extend([gain_grad(), sum_blocks(), sum_partials(), sum_segments()]);
    all.extend([swiglu(), swiglu_backward(), add(), scale(), adamw(), rope(), dropout()]);
    all.extend([Right::F32, Right::Bf16, Right::Q8].map(embedding));
    all.extend([scatter_rows(), sum_squares(), dot(), cross_entropy(false), cross_entropy(true)]);
    for right in [Right::F32, Right::Bf16, Right::Q8] {
        all.extend(
            [(false, false), (false, true), (true, false)]
                .map(|(bias, before)| linear(right, bias, before)),
        );
        all.push(linear_swiglu(right));
    }
    for before in [false, true] {
        all.extend([linear_dx(before), linear_dw(before)]);
    }
    all.extend([attention(), attention_queries(), attention_keys()]);
    all
}

/// The kernel of that name.
pub fn kernel(name: &str) -> Option<Kernel> {
    catalogue().into_iter().find(|k| k.name == name)
}

const ROWS: &str = "rows * n";

fn rms_norm() -> Kernel {
    let mut k = Kernel::new("rms_norm", Archetype::Row, &["rows", "n"]);
    let x = k.f32("x", "row * n + i", ROWS);
    let gain = k.f32("gain", "i", "n");
    let y = k.f32("y", "row * n + i", ROWS);
    let rstd = k.f32("rstd", "row", "rows");
    let eps = k.number("eps");
    k.record(|r| bodies::rms_norm(r, x, gain, y, rstd, r.param(eps)));
    k
}

fn rms_norm_backward(before: bool) -> Kernel {
    let name = if before { "rms_norm_backward_add" } else { "rms_norm_backward" };
    let mut k = Kernel::new(name, Archetype::Row, &["rows", "n"]);
    let x = k.f32("x", "row * n + i", ROWS);
    let gain = k.f32("gain", "i", "n");
    let rstd = k.f32("rstd", "row", "rows");
    let dy = k.f32("dy", "row * n + i", ROWS);
    let dx = k.f32("dx", "row * n + i", ROWS);
    k.record(|r| bodies::rms_norm_backward(r, x, gain, rstd, dy, before.then_some(dx), dx));
    k
}

/// Rows of one partial sum of a column: as the CPU's.
const BLOCKS: Archetype = Archetype::Fold {
    segments: "(rows + 63) / 64",
    first: "segment * 64",
    end: "min(first + 64, rows)",
    row: "at",
};
const PARTIALS: &str = "(rows + 63) / 64 * n";

fn gain_grad() -> Kernel {
    let mut k = Kernel::new("rms_norm_gain_grad", BLOCKS, &["rows", "n"]);
    let x = k.f32("x", "row * n + i", ROWS);
    let rstd = k.f32("rstd", "row", "rows");
    let dy = k.f32("dy", "row * n + i", ROWS);
    let partials = k.f32("partials", "segment * n + i", PARTIALS);
    k.record(|f| bodies::rms_norm_gain_grad(f, x, rstd, dy, partials));
    k
}

fn sum_blocks() -> Kernel {
    let mut k = Kernel::new("sum_blocks", BLOCKS, &["rows", "n"]);
    let x = k.f32("x", "row * n + i", ROWS);
    let partials = k.f32("partials", "segment * n + i", PARTIALS);
    k.record(|f| bodies::sum_rows(f, x, None, partials));
    k
}

fn sum_partials() -> Kernel {
    let all = Archetype::Fold { segments: "1", first: "0", end: "rows", row: "at" };
    let mut k = Kernel::new("sum_partials", all, &["rows", "n"]);
    let partials = k.f32("partials", "row * n + i", ROWS);
    let sum = k.f32("sum", "i", "n");
    k.record(|f| bodies::sum_rows(f, partials, Some(sum), sum));
    k
}

/// The embedding's gradient: `order` lists positions by token, `starts` where the segment of
/// each of `tokens` starts, and where the last one ends.
fn sum_segments() -> Kernel {
    let segments = Archetype::Fold {
        segments: "segments",
        first: "starts[segment]",
        end: "starts[segment + 1]",
        row: "order[at]",
    };
    let mut k = Kernel::new("sum_segments", segments, &["rows", "n", "segments", "table_rows"]);
    k.lists = vec![("order", "rows"), ("starts", "segments + 1"), ("tokens", "segments")];
    let dy = k.f32("dy", "row * n + i", ROWS);
    let dw = k.f32("dw", "tokens[segment] * n + i", "table_rows * n");
    k.record(|f| bodies::sum_rows(f, dy, Some(dw), dw));
    k
}

fn elements<const N: usize>(name: &str, names: [&'static str; N]) -> (Kernel, [Operand; N]) {
    let mut k = Kernel::new(name, ELEMENTS, &["count"]);
    let operands = names.map(|name| k.f32(name, "i", "count"));
    (k, operands)
}

fn swiglu() -> Kernel {
    let (mut k, [gate, up, h]) = elements("swiglu", ["gate", "up", "h"]);
    k.record(|b| bodies::swiglu(b, (), gate, up, h));
    k
}

fn swiglu_backward() -> Kernel {
    let names = ["gate", "up", "dh", "dgate", "dup"];
    let (mut k, [gate, up, dh, dgate, dup]) = elements("swiglu_backward", names);
    k.record(|b| bodies::swiglu_backward(b, (), gate, up, dh, dgate, dup));
    k
}

fn add() -> Kernel {
    let (mut k, [x, y]) = elements("add", ["x", "y"]);
    k.record(|b| bodies::add(b, (), x, y, y));
    k
}

fn scale() -> Kernel {
    let (mut k, [x]) = elements("scale", ["x"]);
    let factor = k.number("factor");
    k.record(|b| bodies::scale(b, (), x, b.param(factor), x));
    k
}

fn adamw() -> Kernel {
    let (mut k, [p, g, m, v]) = elements("adamw", ["p", "g", "m", "v"]);
    let names = AdamW {
        lr: "lr",
        beta1: "beta1",
        beta2: "beta2",
        eps: "eps",
        weight_decay: "weight_decay",
        bias1: "bias1",
        bias2: "bias2",
        grad_scale: "grad_scale",
    };
    let names = names.map(|name| k.number(name));
    k.record(|b| {
        bodies::adamw(b, (), (p, g, m, v), (p, m, v), names.map(|name| b.param(name)));
    });
    k
}

/// Rows: tokens · heads, `n` = half a head wide, `2·n` apart.
fn rope() -> Kernel {
    let mut k = Kernel::new("rope", PLACES, &["rows", "n", "heads", "positions_known"]);
    k.lists = vec![("positions", "rows / heads")];
    let x = k.f32("x", "row * 2 * n + i", "rows * 2 * n");
    let y = k.f32("x", "row * 2 * n + n + i", "rows * 2 * n");
    let cos = k.f32("cos", "positions[row / heads] * n + i", "positions_known * n");
    let sin = k.f32("sin", "positions[row / heads] * n + i", "positions_known * n");
    let sign = k.number("sign");
    k.record(|b| bodies::rope(b, (), (x, y), (cos, sin, b.param(sign)), (x, y)));
    k
}

fn dropout() -> Kernel {
    let mut k = Kernel::new("dropout", ELEMENTS, &["count", "seed0", "seed1"]);
    let x = k.f32("x", "i", "count");
    let y = k.f32("y", "i", "count");
    let keep = k.number("keep");
    k.record(|b| {
        bodies::dropout(b, (), x, [b.param("seed0"), b.param("seed1")], b.param(keep), y);
    });
    k
}

/// How a weight is kept on a device; q8_0 as bytes and, apart, f32 scales.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    F32,
    Bf16,
    Q8,
}

impl Right {
    fn suffix(self) -> &'static str {
        match self {
            Right::F32 => "f32",
            Right::Bf16 => "bf16",
            Right::Q8 => "q8_0",
        }
    }
}

fn embedding(right: Right) -> Kernel {
    let name = format!("embedding_{}", right.suffix());
    let mut k = Kernel::new(&name, PLACES, &["rows", "n", "table_rows"]);
    k.lists = vec![("tokens", "rows")];
    let ty = match right {
        Right::F32 => Type::F32,
        Right::Bf16 => Type::Bf16,
        Right::Q8 => Type::I8,
    };
    let table = k.field("table", ty, "tokens[row] * n + i", "table_rows * n");
    let y = k.f32("y", "row * n + i", ROWS);
    if right == Right::Q8 {
        let scales = k.f32("scales", "(tokens[row] * n + i) / 32", "table_rows * n / 32");
        k.record(|b| bodies::copy_q8_0(b, (), (table, scales), y));
    } else {
        k.record(|b| bodies::copy(b, (), table, y));
    }
    k
}

fn scatter_rows() -> Kernel {
    let mut k = Kernel::new("scatter_rows", PLACES, &["rows", "n", "table_rows"]);
    k.lists = vec![("slots", "rows")];
    let x = k.f32("x", "row * n + i", ROWS);
    let table = k.f32("table", "slots[row] * n + i", "table_rows * n");
    k.record(|b| bodies::copy(b, (), x, table));
    k
}

fn sum_squares() -> Kernel {
    // Rows of 16,384 elements; the last one alone may be shorter, so it is its own launch.
    let mut k = Kernel::new("sum_squares", Archetype::Row, &["rows", "n"]);
    let x = k.f32("x", "row * n + i", ROWS);
    let sum = k.f32("sum", "row", "rows");
    k.record(|r| bodies::sum_squares(r, x, sum));
    k
}

fn dot() -> Kernel {
    let mut k = Kernel::new("dot_rows", Archetype::Row, &["rows", "n"]);
    let x = k.f32("x", "row * n + i", ROWS);
    let y = k.f32("y", "row * n + i", ROWS);
    let sum = k.f32("sum", "row", "rows");
    k.record(|r| bodies::dot(r, x, y, sum));
    k
}

/// `goal`: the target's column as a float, −1 for a row without one; `columns`: the same as
/// u32, 0 for such a row.
fn cross_entropy(gradient: bool) -> Kernel {
    let name = if gradient { "cross_entropy" } else { "cross_entropy_loss" };
    let mut k = Kernel::new(name, Archetype::Row, &["rows", "n"]);
    k.lists = vec![("columns", "rows")];
    let x = k.f32("x", "row * n + i", ROWS);
    let goal = k.f32("goal", "row", "rows");
    let logit = k.f32("x", "row * n + columns[row]", ROWS);
    let nll = k.f32("nll", "row", "rows");
    let factor = gradient.then(|| k.number("factor"));
    k.record(|r| {
        let dx = factor.map(|factor| (x, x, r.param(factor)));
        bodies::cross_entropy(r, x, (goal, logit), nll, dx);
    });
    k
}

/// A weight `[n, depth]` as a product's right operand.
fn weight(k: &mut Kernel, right: Right, name: &'static str, scales: &'static str) -> Prologue {
    let ty = match right {
        Right::F32 => Type::F32,
        Right::Bf16 => Type::Bf16,
        Right::Q8 => Type::I8,
    };
    let w = k.field(name, ty, "col * depth + k", "n * depth");
    let blocks = (right == Right::Q8)
        .then(|| k.f32(scales, "col * (depth / 32) + k / 32", "n * (depth / 32)"));
    Prologue(w, blocks)
}

/// What a weight's element is made of.
#[derive(Clone, Copy)]
struct Prologue(Operand, Option<Operand>);

impl Prologue {
    fn load(self, r: Rec<'_>) -> super::record::Value<'_> {
        use crate::val::Body;
        match self {
            Prologue(bytes, Some(scales)) => bodies::dequantize_q8_0(r, (bytes, scales), ()),
            Prologue(w, None) => r.load(w, ()),
        }
    }
}

const SIZES: [&str; 3] = ["m", "n", "depth"];

/// `y[m, n] = [y +] (x[m, depth] · w[n, depth]ᵀ [+ bias])`.
fn linear(right: Right, bias: bool, before: bool) -> Kernel {
    use crate::val::Body;
    let suffix = if bias {
        "_bias"
    } else if before {
        "_add"
    } else {
        ""
    };
    let name = format!("linear_{}{suffix}", right.suffix());
    let shape = Archetype::Gemm { products: 1, along_k: [true, true] };
    let mut k = Kernel::new(&name, shape, &SIZES);
    let x = k.f32("x", "row * depth + k", "m * depth");
    let w = weight(&mut k, right, "w", "scales");
    let bias = bias.then(|| k.f32("bias", "col", "n"));
    let y = k.f32("y", "row * n + col", "m * n");
    k.record(|r| {
        let product = r.chain(|| r.load(x, ()), || w.load(r));
        bodies::finish(r, (), product, bias, before.then_some(y), y);
    });
    k
}

/// `h = silu(x·gateᵀ) · (x·upᵀ)`, both products kept.
fn linear_swiglu(right: Right) -> Kernel {
    use crate::val::Body;
    let name = format!("linear_swiglu_{}", right.suffix());
    let shape = Archetype::Gemm { products: 2, along_k: [true, true] };
    let mut k = Kernel::new(&name, shape, &SIZES);
    let x = k.f32("x", "row * depth + k", "m * depth");
    let gate = weight(&mut k, right, "gate", "gate_scales");
    let up = weight(&mut k, right, "up", "up_scales");
    let h = k.f32("h", "row * n + col", "m * n");
    k.record(|r| {
        let [gate, up] = [gate, up].map(|w| r.chain(|| r.load(x, ()), || w.load(r)));
        bodies::finish_swiglu(r, (), gate, up, h, None);
    });
    k
}

/// `dx[m, n] = [dx +] dy[m, depth] · w[depth, n]`.
fn linear_dx(before: bool) -> Kernel {
    let name = if before { "linear_dx_add" } else { "linear_dx" };
    product(name, [true, false], ("dy", "row * depth + k"), ("w", "k * n + col"), "dx", before)
}

/// `dw[m, n] = [dw +] dy[depth, m]ᵀ · x[depth, n]`.
fn linear_dw(before: bool) -> Kernel {
    let name = if before { "linear_dw_add" } else { "linear_dw" };
    product(name, [false, false], ("dy", "k * m + row"), ("x", "k * n + col"), "dw", before)
}

fn product(
    name: &str,
    along_k: [bool; 2],
    left: (&'static str, &'static str),
    right: (&'static str, &'static str),
    result: &'static str,
    before: bool,
) -> Kernel {
    use crate::val::Body;
    let mut k = Kernel::new(name, Archetype::Gemm { products: 1, along_k }, &SIZES);
    let a = k.f32(left.0, left.1, "m * depth");
    let b = k.f32(right.0, right.1, "depth * n");
    let c = k.f32(result, "row * n + col", "m * n");
    k.record(|r| {
        let product = r.chain(|| r.load(a, ()), || r.load(b, ()));
        bodies::finish(r, (), product, None, before.then_some(c), c);
    });
    k
}

const HEADS: [&str; 5] = ["batch", "seq", "heads", "kv_heads", "head_dim"];
const QUERIES: &str = "batch * seq * heads * head_dim";
const KEYS: &str = "batch * seq * kv_heads * head_dim";
const CELL: &str = "(b * seq + position) * heads + head";
const CELLS: &str = "batch * seq * heads";

fn attention() -> Kernel {
    let mut k = Kernel::new("attention_forward", Archetype::Attention, &HEADS);
    for (name, len) in [("q", QUERIES), ("k", KEYS), ("v", KEYS)] {
        k.f32(name, "", len);
    }
    let out = k.f32("out", "((b * seq + position) * heads + head) * head_dim + i", QUERIES);
    let lse = k.f32("lse", CELL, CELLS);
    let s = k.field("s", Type::Local, "i", "");
    let [m, z, by] = ["m", "z", "by"].map(|name| k.field(name, Type::Local, "0", ""));
    let acc = k.field("acc", Type::Shared, "r * 256 + i", "");
    let scale = k.number("scale");
    k.record(|r| bodies::attend(r, (s, s), (m, m), (z, z), by, r.param(scale)));
    k.record(|r| bodies::shrink(r, acc, by, acc));
    k.record(|r| bodies::attended(r, acc, m, z, out, Some(lse)));
    k
}

fn backward(name: &str, archetype: Archetype, results: &[(&'static str, &'static str)]) -> Kernel {
    let mut k = Kernel::new(name, archetype, &HEADS);
    for (name, len) in [("q", QUERIES), ("k", KEYS), ("v", KEYS), ("dout", QUERIES)] {
        k.f32(name, "", len);
    }
    let lse = k.f32("lse", CELL, CELLS);
    let delta = k.f32("delta", CELL, CELLS);
    for (name, len) in results {
        k.f32(name, "", len);
    }
    let [s, dp] = ["s", "dp"].map(|name| k.field(name, Type::Local, "i", ""));
    let scale = k.number("scale");
    k.record(|r| bodies::attend_backward(r, (s, s), (dp, dp), lse, delta, r.param(scale)));
    k
}

fn attention_queries() -> Kernel {
    backward("attention_dq", Archetype::AttentionQueries, &[("dq", QUERIES)])
}

fn attention_keys() -> Kernel {
    backward("attention_dkv", Archetype::AttentionKeys, &[("dk", KEYS), ("dv", KEYS)])
}
