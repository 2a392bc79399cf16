//! The second instance: the functions that the CPU runs over SIMD lanes leave their loop
//! bodies as a readable program when they are run on a recorder. What a GPU printer
//! will need is therefore in the traits from the start.
//!
//! Only a recorder is here, not the printers. Equal operations on equal values are
//! recorded once; a store forgets what was loaded.

use petaflop_kernel::bodies;
use petaflop_kernel::val::{Body, Fold, Quant, Row, Val};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Every operation a kernel may leave. A GPU backend implements these and no more.
const OPERATIONS: [&str; 25] = [
    "const", "add", "sub", "mul", "div", "neg", "fma", "max", "min", "sqrt", "round", "ldexp",
    "exponent", "if_lt", "if_eq", "load", "store", "width", "index", "byte", "scale", "sum",
    "maximum", "each", "chain",
];

#[derive(Default)]
struct Recorder {
    lines: Vec<String>,
    /// One table a loop: text of an operation → its value.
    known: Vec<HashMap<String, usize>>,
    values: usize,
    used: BTreeSet<&'static str>,
}

impl Recorder {
    fn line(&mut self, text: &str) {
        let indent = "  ".repeat(self.known.len());
        self.lines.push(format!("{indent}{text}"));
    }

    fn operation(&mut self, op: &'static str, arguments: &str) -> usize {
        assert!(OPERATIONS.contains(&op), "{op} is not in the table");
        self.used.insert(op);
        let text = format!("{op} {arguments}").trim_end().to_owned();
        if let Some(&id) = self.known.iter().rev().find_map(|known| known.get(&text)) {
            return id;
        }
        let id = self.values;
        self.values += 1;
        self.line(&format!("%{id} = {text}"));
        self.known.last_mut().expect("a program is open").insert(text, id);
        id
    }

    fn open(&mut self, text: &str) {
        self.line(text);
        self.known.push(HashMap::new());
    }

    fn close(&mut self, text: &str) {
        self.known.pop();
        self.line(text);
    }
}

/// A value, and the recorder that knows it.
#[derive(Clone, Copy)]
struct Id<'r>(&'r RefCell<Recorder>, usize);

impl<'r> Id<'r> {
    fn with(self, op: &'static str, others: &[Id<'r>]) -> Id<'r> {
        let arguments: Vec<String> =
            [self].iter().chain(others).map(|v| format!("%{}", v.1)).collect();
        Id(self.0, self.0.borrow_mut().operation(op, &arguments.join(" ")))
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident),*) => {$(
        impl<'r> $trait for Id<'r> {
            type Output = Id<'r>;
            fn $method(self, other: Id<'r>) -> Id<'r> { self.with(stringify!($method), &[other]) }
        }
    )*};
}
operators!(Add add, Sub sub, Mul mul, Div div);

impl<'r> Neg for Id<'r> {
    type Output = Id<'r>;
    fn neg(self) -> Id<'r> {
        self.with("neg", &[])
    }
}

impl Val for Id<'_> {
    fn lit(self, x: f32) -> Self {
        Id(self.0, self.0.borrow_mut().operation("const", &format!("{x:?}")))
    }
    fn fma(self, a: Self, b: Self) -> Self {
        self.with("fma", &[a, b])
    }
    fn max(self, other: Self) -> Self {
        self.with("max", &[other])
    }
    fn min(self, other: Self) -> Self {
        self.with("min", &[other])
    }
    fn sqrt(self) -> Self {
        self.with("sqrt", &[])
    }
    fn round(self) -> Self {
        self.with("round", &[])
    }
    fn ldexp(self, n: Self) -> Self {
        self.with("ldexp", &[n])
    }
    fn exponent(self) -> Self {
        self.with("exponent", &[])
    }
    fn if_lt(self, limit: Self, then: Self, other: Self) -> Self {
        self.with("if_lt", &[limit, then, other])
    }
    fn if_eq(self, to: Self, then: Self, other: Self) -> Self {
        self.with("if_eq", &[to, then, other])
    }
}

/// What a name stands for, and so how it is addressed.
#[derive(Clone, Copy)]
enum Operand {
    Matrix(&'static str),
    Vector(&'static str),
    Cells(&'static str),
}
use Operand::{Cells, Matrix, Vector};

/// A place: the words that stand for its row and column.
#[derive(Clone, Copy)]
struct Place(&'static str, &'static str);

impl Operand {
    fn at(self, Place(row, col): Place) -> String {
        match self {
            Matrix(name) => format!("{name}[{row}, {col}]"),
            Vector(name) => format!("{name}[{col}]"),
            Cells(name) => format!("{name}[{row}]"),
        }
    }
}

/// A program being recorded. `down`: what the rows of a fold are, and the row its result belongs to.
#[derive(Clone, Copy)]
struct Rec<'r> {
    recorder: &'r RefCell<Recorder>,
    down: (&'static str, &'static str),
}

impl<'r> Rec<'r> {
    fn op(self, op: &'static str, arguments: &str) -> Id<'r> {
        Id(self.recorder, self.recorder.borrow_mut().operation(op, arguments))
    }

    /// A loop that gives one value.
    fn reduce(self, op: &'static str, over: &str, f: impl FnOnce() -> Id<'r>) -> Id<'r> {
        let id = {
            let mut r = self.recorder.borrow_mut();
            r.used.insert(op);
            let id = r.values;
            r.values += 1;
            r.open(&format!("%{id} = {op} {over} {{"));
            id
        };
        let v = f();
        self.recorder.borrow_mut().close(&format!("}} %{}", v.1));
        Id(self.recorder, id)
    }

    /// The skeleton of a product: one chain a weight, then the epilogue.
    fn gemm<const P: usize>(
        self,
        prologues: [impl Fn(Place) -> Id<'r>; P],
        epilogue: impl Fn(Place, [Id<'r>; P]),
    ) {
        let products = prologues.map(|prologue| {
            self.reduce("chain", "k fma x[row, k]", || prologue(Place("k", "col")))
        });
        epilogue(Place("row", "col"), products);
    }
}

impl<'r> Body for Rec<'r> {
    type V = Id<'r>;
    type S = Id<'r>;
    type In = Operand;
    type Out = Operand;
    type At = Place;

    fn num(self, x: f32) -> Id<'r> {
        self.op("const", &format!("{x:?}"))
    }
    fn splat(self, s: Id<'r>) -> Id<'r> {
        s
    }
    fn load(self, x: Operand, at: Place) -> Id<'r> {
        self.op("load", &x.at(at))
    }
    fn store(self, y: Operand, at: Place, v: Id<'r>) {
        let mut r = self.recorder.borrow_mut();
        r.used.insert("store");
        r.line(&format!("store {} %{}", y.at(at), v.1));
        for known in &mut r.known {
            known.retain(|text, _| !text.starts_with("load "));
        }
    }
}

const ELEMENT: Place = Place("row", "i");

impl<'r> Row for Rec<'r> {
    fn width(self) -> Id<'r> {
        self.op("width", "")
    }
    fn get(self, x: Operand) -> Id<'r> {
        self.load(x, ELEMENT)
    }
    fn put(self, y: Operand, s: Id<'r>) {
        self.store(y, ELEMENT, s);
    }
    fn index(self, _: Place) -> Id<'r> {
        self.op("index", "i")
    }
    fn sum(self, f: impl Fn(Place) -> Id<'r>) -> Id<'r> {
        self.reduce("sum", "i", || f(ELEMENT))
    }
    fn max(self, f: impl Fn(Place) -> Id<'r>) -> Id<'r> {
        self.reduce("maximum", "i", || f(ELEMENT))
    }
    fn each(self, f: impl Fn(Place)) {
        self.recorder.borrow_mut().used.insert("each");
        self.recorder.borrow_mut().open("each i {");
        f(ELEMENT);
        self.recorder.borrow_mut().close("}");
    }
}

impl<'r> Fold for Rec<'r> {
    fn of_row(self, x: Operand, at: Place) -> Id<'r> {
        self.load(x, at)
    }
    fn sum(self, f: impl Fn(Place) -> Id<'r>) -> Id<'r> {
        self.reduce("sum", self.down.0, || f(ELEMENT))
    }
    fn result(self) -> Place {
        Place(self.down.1, "i")
    }
}

impl<'r> Quant for Rec<'r> {
    type Q8 = &'static str;
    fn q8_0(self, w: &'static str, Place(row, col): Place) -> (Id<'r>, Id<'r>) {
        let byte = self.op("byte", &format!("{w}[{col}, {row}]"));
        (byte, self.op("scale", &format!("{w}[{col}, {row} / 32]")))
    }
}

/// Records a program under a title; `down` as in [`Rec`].
fn record(
    title: &str,
    down: (&'static str, &'static str),
    program: impl FnOnce(Rec<'_>),
) -> (String, BTreeSet<&'static str>) {
    let recorder = RefCell::new(Recorder::default());
    recorder.borrow_mut().open(title);
    program(Rec { recorder: &recorder, down });
    let recorder = recorder.into_inner();
    (recorder.lines.join("\n"), recorder.used)
}

fn rms_norm() -> Vec<(String, BTreeSet<&'static str>)> {
    vec![
        record("row rms_norm:", ("", ""), |r| {
            bodies::rms_norm(r, Matrix("x"), Vector("gain"), Matrix("y"), Cells("rstd"), 1e-5);
        }),
        record("row rms_norm_backward:", ("", ""), |r| {
            let (x, gain, rstd) = (Matrix("x"), Vector("gain"), Cells("rstd"));
            bodies::rms_norm_backward(
                r,
                x,
                gain,
                rstd,
                Matrix("dy"),
                Some(Matrix("dx")),
                Matrix("dx"),
            );
        }),
        record("column rms_norm_gain_grad:", ("row in a block of 64", "block"), |r| {
            bodies::rms_norm_gain_grad(
                r,
                Matrix("x"),
                Cells("rstd"),
                Matrix("dy"),
                Matrix("partials"),
            );
        }),
        record("column total of partials:", ("row in blocks", "0"), |r| {
            bodies::sum_rows(r, Matrix("partials"), Some(Matrix("dgain")), Matrix("dgain"));
        }),
    ]
}

fn gemm() -> Vec<(String, BTreeSet<&'static str>)> {
    vec![record("gemm with q8_0 weights and a SwiGLU pair:", ("", ""), |r| {
        r.gemm(
            ["gate", "up"].map(|w| move |at| bodies::dequantize_q8_0(r, w, at)),
            |at, [gate, up]| bodies::finish_swiglu(r, at, gate, up, Matrix("h"), None),
        );
    })]
}

fn embedding() -> Vec<(String, BTreeSet<&'static str>)> {
    vec![record(
        "sorted segment embedding_grad:",
        ("row in the positions of a token", "token"),
        |r| {
            bodies::sum_rows(r, Matrix("dy"), Some(Matrix("dw")), Matrix("dw"));
        },
    )]
}

fn others() -> Vec<(String, BTreeSet<&'static str>)> {
    vec![
        record("row cross_entropy:", ("", ""), |r| {
            let x = Matrix("x");
            bodies::cross_entropy(
                r,
                x,
                (Cells("target"), Cells("logit")),
                Cells("nll"),
                Some((x, x, 1.0)),
            );
        }),
        record("row attend (one tile of keys):", ("", ""), |r| {
            let (s, max, sum) = (Matrix("s"), Cells("max"), Cells("sum"));
            bodies::attend(r, (s, s), (max, max), (sum, sum), Cells("shrink"), 0.125);
        }),
    ]
}

fn text(programs: &[(String, BTreeSet<&'static str>)]) -> String {
    programs.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join("\n\n")
}

#[test]
fn rms_norm_forward_and_backward_leave_their_loops() {
    insta::assert_snapshot!("rms_norm", text(&rms_norm()));
}

#[test]
fn a_product_of_quantised_weights_leaves_its_prologue_and_epilogue() {
    insta::assert_snapshot!("gemm_q8_0_swiglu", text(&gemm()));
}

#[test]
fn the_gradient_of_an_embedding_is_a_sum_over_sorted_positions() {
    insta::assert_snapshot!("embedding_grad", text(&embedding()));
}

#[test]
fn loss_and_attention_leave_their_loops() {
    insta::assert_snapshot!("loss_and_attention", text(&others()));
}

#[test]
fn all_of_it_is_made_of_at_most_30_operations() {
    assert!(OPERATIONS.len() <= 30);
    let used: BTreeSet<_> = [rms_norm(), gemm(), embedding(), others()]
        .iter()
        .flatten()
        .flat_map(|(_, used)| used.clone())
        .collect();
    let idle: Vec<_> = OPERATIONS.iter().filter(|op| !used.contains(*op)).collect();
    assert!(idle.is_empty(), "operations that no recorded kernel uses: {idle:?}");
}
