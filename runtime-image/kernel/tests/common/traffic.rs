//! What a kernel moves between memory and processor, counted of its recorded programs, and what
//! the same result costs with one launch an operation.
//!
//! Counted is what no cache can save: each element of each operand once where a program (or
//! skeleton) loads it, and once where it stores it. So a fused kernel's bytes and the sum of
//! unfused launches' differ by what is written only to be read again.

use petaflop_kernel::ir::kernel::{Archetype, Kernel, Type};
use petaflop_kernel::ir::record::Step;
use petaflop_kernel::ir::{Launch, catalogue};
use petaflop_kernel::val::{Body, Row, Val};

/// Sizes of a launch, by name.
pub(crate) type Dims<'a> = &'a [(&'static str, u32)];
/// Equal launches: the kernel, its sizes, and how many.
type Launches = (Kernel, Vec<(&'static str, u32)>, u64);

/// Bytes that a launch loads and stores.
pub(crate) fn bytes(kernel: &Kernel, dims: Dims<'_>) -> u64 {
    let launch = Launch { dims: dims.to_vec(), numbers: vec![] };
    let size = |text: &str| kernel.size(text, &launch).expect("a size of this launch");
    let (mut loaded, mut stored) = (vec![], vec![]);
    for steps in &kernel.programs {
        uses(steps, &mut loaded, &mut stored);
    }
    // Loaded and stored by attention's skeletons, at no program's place.
    for (at, field) in kernel.fields.iter().enumerate().filter(|(_, f)| f.index.is_empty()) {
        let result = ["dq", "dk", "dv"].contains(&field.name);
        if result {
            stored.push(at)
        } else {
            loaded.push(at)
        };
    }
    // Through a list only so much of a table as there are places.
    let places = match kernel.archetype {
        Archetype::Map { count, .. } => size(count),
        _ => u64::MAX,
    };
    let operands = |used: Vec<usize>| {
        let mut names: Vec<&str> = vec![];
        let mut bits = 0;
        for field in used.into_iter().map(|at| &kernel.fields[at]) {
            if !field.len.is_empty() && !names.contains(&field.name) {
                names.push(field.name);
                let each = match field.ty {
                    Type::Bf16 => 16,
                    Type::I8 => 8,
                    Type::F32 | Type::Local | Type::Shared => 32,
                };
                let scales = if field.name.ends_with("scales") { places / 32 } else { places };
                bits += each * size(field.len).min(scales);
            }
        }
        bits / 8
    };
    let lists: u64 = kernel.lists.iter().map(|(_, len)| 4 * size(len)).sum();
    lists + operands(loaded) + operands(stored)
}

/// Operands that the steps load and store.
fn uses(steps: &[Step], loaded: &mut Vec<usize>, stored: &mut Vec<usize>) {
    for step in steps {
        match step {
            Step::Load { from, .. } => loaded.push(from.0),
            Step::Store { to, .. } => stored.push(to.0),
            Step::Reduce { body, .. } => uses(&body.steps, loaded, stored),
            Step::Each { body } => uses(body, loaded, stored),
            Step::Chain { left, right, .. } => {
                uses(&left.steps, loaded, stored);
                uses(&right.steps, loaded, stored);
            }
            Step::Const { .. } | Step::Param { .. } | Step::Do { .. } => {}
        }
    }
}

/// A fused kernel, and the launches that would do the same.
pub(crate) struct Fused {
    pub(crate) name: &'static str,
    pub(crate) dims: Vec<(&'static str, u32)>,
    pub(crate) unfused: Vec<Launches>,
}

impl Fused {
    pub(crate) fn bytes(&self) -> u64 {
        bytes(&known(self.name), &self.dims)
    }

    pub(crate) fn unfused_bytes(&self) -> u64 {
        self.unfused.iter().map(|(kernel, dims, times)| times * bytes(kernel, dims)).sum()
    }

    /// A row of the table in the documentation.
    pub(crate) fn row(&self) -> String {
        let sizes: Vec<String> =
            self.dims.iter().map(|(name, size)| format!("{name} {size}")).collect();
        let launches: Vec<String> = self
            .unfused
            .iter()
            .map(|(kernel, _, times)| match times {
                1 => kernel.name.clone(),
                _ => format!("{times} × {}", kernel.name),
            })
            .collect();
        let (fused, unfused) = (self.bytes(), self.unfused_bytes());
        format!(
            "| `{}` | {} | {} | {:.1} | {:.1} | {:.2} |",
            self.name,
            sizes.join(", "),
            launches.join(", "),
            fused as f64 / 1e6,
            unfused as f64 / 1e6,
            unfused as f64 / fused as f64
        )
    }
}

fn known(name: &str) -> Kernel {
    catalogue::kernel(name).expect("it is in the catalogue")
}

/// Kernels that are only parts of fused ones, recorded as those are.
mod part {
    use super::*;

    const ROWS: &str = "rows * n";

    fn rows(name: &str) -> Kernel {
        Kernel::new(name, Archetype::Row, &["rows", "n"])
    }

    /// `y = x · s` with a number a row: what is left of a norm after its sum.
    pub(super) fn scale_rows() -> Kernel {
        let mut k = rows("scale_rows");
        let x = k.f32("x", "row * n + i", ROWS);
        let s = k.f32("s", "row", "rows");
        let y = k.f32("y", "row * n + i", ROWS);
        k.record(|r| {
            let s = r.get(s);
            r.each(|at| r.store(y, at, r.load(x, at) * r.splat(s)));
        });
        k
    }

    /// `y = x · g` with a number a column.
    pub(super) fn scale_columns() -> Kernel {
        let mut k = rows("scale_columns");
        let x = k.f32("x", "row * n + i", ROWS);
        let g = k.f32("g", "i", "n");
        let y = k.f32("y", "row * n + i", ROWS);
        k.record(|r| r.each(|at| r.store(y, at, r.load(x, at) * r.load(g, at))));
        k
    }

    /// `y = x + b` with a number a column.
    pub(super) fn add_columns() -> Kernel {
        let mut k = rows("add_columns");
        let x = k.f32("x", "row * n + i", ROWS);
        let b = k.f32("b", "i", "n");
        let y = k.f32("y", "row * n + i", ROWS);
        k.record(|r| r.each(|at| r.store(y, at, r.load(x, at) + r.load(b, at))));
        k
    }

    /// Each row's probabilities.
    pub(super) fn softmax() -> Kernel {
        let mut k = rows("softmax");
        let x = k.f32("x", "row * n + i", ROWS);
        let y = k.f32("y", "row * n + i", ROWS);
        k.record(|r| {
            let most = r.splat(Row::max(r, |at| r.load(x, at)));
            let z = r.splat(r.sum(|at| (r.load(x, at) - most).exp()));
            r.each(|at| r.store(y, at, (r.load(x, at) - most).exp() / z));
        });
        k
    }

    /// The gradient of the loss, of probabilities and the targets' columns.
    pub(super) fn loss_gradient() -> Kernel {
        let mut k = rows("loss_gradient");
        let p = k.f32("p", "row * n + i", ROWS);
        let goal = k.f32("goal", "row", "rows");
        let dx = k.f32("dx", "row * n + i", ROWS);
        k.record(|r| {
            let goal = r.splat(r.get(goal));
            r.each(|at| {
                let (p, i) = (r.load(p, at), r.index(at));
                r.store(dx, at, p - i.if_eq(goal, p.lit(1.0), p.lit(0.0)));
            });
        });
        k
    }

    /// `y = silu(x)`.
    pub(super) fn silu() -> Kernel {
        let mut k = Kernel::new("silu", Archetype::Map { count: "count", width: "" }, &["count"]);
        let (x, y) = (k.f32("x", "i", "count"), k.f32("y", "i", "count"));
        k.record(|b| b.store(y, (), b.load(x, ()).silu()));
        k
    }

    /// `y = x · y`.
    pub(super) fn multiply() -> Kernel {
        let map = Archetype::Map { count: "count", width: "" };
        let mut k = Kernel::new("multiply", map, &["count"]);
        let (x, y) = (k.f32("x", "i", "count"), k.f32("y", "i", "count"));
        k.record(|b| b.store(y, (), b.load(x, ()) * b.load(y, ())));
        k
    }

    /// The matrix of a quantised or rounded weight, as f32.
    pub(super) fn widened(format: &str) -> Kernel {
        let mut k = known(&format!("embedding_{format}"));
        k.lists.clear();
        k.name = format!("widen_{format}");
        k
    }
}

/// The fused kernels at the sizes of a block of SmolLM2-135M (hidden 576, inner 1536, 9 query and
/// 3 key heads of 64) over 2048 tokens, its vocabulary of 49152 for the loss.
pub(crate) fn fused() -> Vec<Fused> {
    const TOKENS: u32 = 2048;
    const HIDDEN: u32 = 576;
    const INNER: u32 = 1536;
    const VOCAB: u32 = 49152;
    let gemm = |m, n, depth| vec![("m", m), ("n", n), ("depth", depth)];
    let rows = |rows, n| vec![("rows", rows), ("n", n)];
    let count = |count| vec![("count", count)];
    let table = |rows, n| vec![("rows", rows), ("n", n), ("table_rows", rows)];
    let one = |kernel: Kernel, dims| (kernel, dims, 1);
    let (square, down) = (gemm(TOKENS, HIDDEN, HIDDEN), gemm(TOKENS, HIDDEN, INNER));
    let inner = gemm(TOKENS, INNER, HIDDEN);
    let hidden = TOKENS * HIDDEN;
    let swiglu = || {
        let elements = count(TOKENS * INNER);
        [one(part::silu(), elements.clone()), one(part::multiply(), elements)]
    };
    let mut all = vec![
        Fused {
            name: "rms_norm",
            dims: rows(TOKENS, HIDDEN),
            unfused: vec![
                one(known("sum_squares"), rows(TOKENS, HIDDEN)),
                one(part::scale_rows(), rows(TOKENS, HIDDEN)),
                one(part::scale_columns(), rows(TOKENS, HIDDEN)),
            ],
        },
        Fused {
            name: "rms_norm_backward_add",
            dims: rows(TOKENS, HIDDEN),
            unfused: vec![
                one(known("rms_norm_backward"), rows(TOKENS, HIDDEN)),
                one(known("add"), count(hidden)),
            ],
        },
        Fused { name: "swiglu", dims: count(TOKENS * INNER), unfused: swiglu().into() },
        Fused {
            name: "linear_f32_bias",
            dims: square.clone(),
            unfused: vec![
                one(known("linear_f32"), square.clone()),
                one(part::add_columns(), rows(TOKENS, HIDDEN)),
            ],
        },
        Fused {
            name: "linear_f32_add",
            dims: down.clone(),
            unfused: vec![one(known("linear_f32"), down.clone()), one(known("add"), count(hidden))],
        },
        Fused {
            name: "linear_dx_add",
            dims: inner.clone(),
            unfused: vec![
                one(known("linear_dx"), inner.clone()),
                one(known("add"), count(TOKENS * INNER)),
            ],
        },
        Fused {
            name: "linear_dw_add",
            dims: gemm(INNER, HIDDEN, TOKENS),
            unfused: vec![
                one(known("linear_dw"), gemm(INNER, HIDDEN, TOKENS)),
                one(known("add"), count(INNER * HIDDEN)),
            ],
        },
        Fused {
            name: "cross_entropy",
            dims: rows(TOKENS, VOCAB),
            unfused: vec![
                one(known("cross_entropy_loss"), rows(TOKENS, VOCAB)),
                one(part::softmax(), rows(TOKENS, VOCAB)),
                one(part::loss_gradient(), rows(TOKENS, VOCAB)),
            ],
        },
    ];
    for (name, plain, format) in [
        ("linear_swiglu_f32", "linear_f32", None),
        ("linear_swiglu_bf16", "linear_f32", Some("bf16")),
        ("linear_swiglu_q8_0", "linear_f32", Some("q8_0")),
    ] {
        let mut unfused = vec![];
        unfused.extend(format.map(|f| (part::widened(f), table(INNER, HIDDEN), 2)));
        unfused.push((known(plain), inner.clone(), 2));
        unfused.extend(swiglu());
        all.push(Fused { name, dims: inner.clone(), unfused });
    }
    for tokens in [1, TOKENS] {
        let product = gemm(tokens, INNER, HIDDEN);
        all.push(Fused {
            name: "linear_q8_0",
            dims: product.clone(),
            unfused: vec![
                one(part::widened("q8_0"), table(INNER, HIDDEN)),
                one(known("linear_f32"), product),
            ],
        });
    }
    // Scores, their scale, probabilities and values: a matrix of all pairs for each head.
    let (heads, pairs) = (9, TOKENS * TOKENS);
    all.push(Fused {
        name: "attention_forward",
        dims: vec![
            ("batch", 1),
            ("seq", TOKENS),
            ("heads", heads),
            ("kv_heads", 3),
            ("head_dim", 64),
        ],
        unfused: [
            (known("linear_f32"), gemm(TOKENS, TOKENS, 64)),
            (known("scale"), count(pairs)),
            (part::softmax(), rows(TOKENS, TOKENS)),
            (known("linear_dx"), gemm(TOKENS, 64, TOKENS)),
        ]
        .map(|(kernel, dims)| (kernel, dims, u64::from(heads)))
        .into(),
    });
    all
}
