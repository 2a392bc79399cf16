//! The operations: one table for the recorder, the interpreter and every printer.
//!
//! `text` is what all printers write: CUDA-C, HIP-C and WGSL agree on it, because the
//! C prelude ([`super::print::c`]) teaches C++ the few words of WGSL that it lacks.

/// An operation. What it does is its row of [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the table says it
pub enum Op {
    Const,
    Param,
    Width,
    Index,
    Counter,
    Load,
    Store,
    Add,
    Sub,
    Mul,
    Div,
    Neg,
    Fma,
    Max,
    Min,
    Sqrt,
    Round,
    Ldexp,
    Exponent,
    IfLt,
    IfEq,
    Plus,
    Xor,
    Rotl,
    Unit,
    Sum,
    Maximum,
    Each,
    Chain,
}

/// One row of the table.
#[derive(Debug)]
pub struct Operation {
    /// Which one.
    pub op: Op,
    /// Its name in recorded programs.
    pub name: &'static str,
    /// Types in and out; f: f32, u: u32.
    pub types: &'static str,
    /// What printers write, `$0`, `$1`, … being the arguments; empty where the shape of the
    /// kernel decides.
    pub text: &'static str,
    /// What it does, to the bit.
    pub meaning: &'static str,
    /// The same, for the interpreter: of the arguments' bits the result's bits.
    pub eval: Option<fn(&[u32]) -> u32>,
}

const fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

const fn row(
    op: Op,
    name: &'static str,
    types: &'static str,
    text: &'static str,
    meaning: &'static str,
) -> Operation {
    Operation { op, name, types, text, meaning, eval: None }
}

const fn pure(
    op: Op,
    name: &'static str,
    types: &'static str,
    text: &'static str,
    meaning: &'static str,
    eval: fn(&[u32]) -> u32,
) -> Operation {
    Operation { op, name, types, text, meaning, eval: Some(eval) }
}

/// All operations, in the order of [`Op`].
#[rustfmt::skip]
pub const TABLE: [Operation; 29] = [
    row(Op::Const, "const", "→ f or u", "", "a number known when the kernel is printed"),
    row(Op::Param, "param", "→ f or u", "", "a number given at launch"),
    row(Op::Width, "width", "→ f", "", "elements of the row, as a float (exact below 2²⁴)"),
    row(Op::Index, "index", "→ f", "f32(i)", "number of the place in its row, as a float"),
    row(Op::Counter, "counter", "→ u", "i", "number of the place"),
    row(Op::Load, "load", "→ f", "", "the operand's element at this place; bf16 widened, a q8_0 byte as a signed number"),
    row(Op::Store, "store", "f →", "", "writes the operand's element at this place"),
    pure(Op::Add, "add", "f f → f", "$0 + $1", "IEEE 754, rounded once", |a| (f(a[0]) + f(a[1])).to_bits()),
    pure(Op::Sub, "sub", "f f → f", "$0 - $1", "IEEE 754, rounded once", |a| (f(a[0]) - f(a[1])).to_bits()),
    pure(Op::Mul, "mul", "f f → f", "$0 * $1", "IEEE 754, rounded once", |a| (f(a[0]) * f(a[1])).to_bits()),
    pure(Op::Div, "div", "f f → f", "$0 / $1", "IEEE 754, rounded once (WGSL: within 2.5 ulp)", |a| (f(a[0]) / f(a[1])).to_bits()),
    pure(Op::Neg, "neg", "f → f", "-$0", "the sign bit turned", |a| a[0] ^ 0x8000_0000),
    pure(Op::Fma, "fma", "f f f → f", "fma($0, $1, $2)", "$0 · $1 + $2, rounded once (WGSL: perhaps twice)", |a| f(a[0]).mul_add(f(a[1]), f(a[2])).to_bits()),
    pure(Op::Max, "max", "f f → f", "select($1, $0, $0 > $1)", "$0 if $0 > $1, else $1 (also when either is NaN)", |a| if f(a[0]) > f(a[1]) { a[0] } else { a[1] }),
    pure(Op::Min, "min", "f f → f", "select($1, $0, $0 < $1)", "$0 if $0 < $1, else $1 (also when either is NaN)", |a| if f(a[0]) < f(a[1]) { a[0] } else { a[1] }),
    pure(Op::Sqrt, "sqrt", "f → f", "sqrt($0)", "IEEE 754, rounded once (WGSL: as 1/inverseSqrt)", |a| f(a[0]).sqrt().to_bits()),
    pure(Op::Round, "round", "f → f", "round($0)", "nearest integer, ties to even", |a| f(a[0]).round_ties_even().to_bits()),
    pure(Op::Ldexp, "ldexp", "f f → f", "bitcast<f32>(bitcast<u32>($0) + (u32(i32($1)) << 23u))", "the integer $1 added to the exponent field of $0", |a| a[0].wrapping_add(((f(a[1]) as i32) << 23) as u32)),
    pure(Op::Exponent, "exponent", "f → f", "f32(i32((bitcast<u32>($0) >> 23u) & 255u) - 127)", "the exponent field less 127", |a| ((((a[0] >> 23) & 255) as i32 - 127) as f32).to_bits()),
    pure(Op::IfLt, "if_lt", "f f f f → f", "select($3, $2, $0 < $1)", "$2 where $0 < $1, else $3", |a| if f(a[0]) < f(a[1]) { a[2] } else { a[3] }),
    pure(Op::IfEq, "if_eq", "f f f f → f", "select($3, $2, $0 == $1)", "$2 where $0 = $1, else $3", |a| if f(a[0]) == f(a[1]) { a[2] } else { a[3] }),
    pure(Op::Plus, "plus", "u u → u", "$0 + $1", "modulo 2³²", |a| a[0].wrapping_add(a[1])),
    pure(Op::Xor, "xor", "u u → u", "$0 ^ $1", "exclusive or", |a| a[0] ^ a[1]),
    pure(Op::Rotl, "rotl", "u u → u", "($0 << $1) | ($0 >> (32u - $1))", "turned left by 1 to 31 bits", |a| a[0].rotate_left(a[1])),
    pure(Op::Unit, "unit", "u → f", "f32($0 >> 8u) * 5.9604645e-8f", "the upper 24 bits · 2⁻²⁴: in [0, 1), exact", |a| ((a[0] >> 8) as f32 * 2f32.powi(-24)).to_bits()),
    row(Op::Sum, "sum", "loop → f", "", "row: 64 virtual lanes and their tree; column: one addition after another, from 0"),
    row(Op::Maximum, "maximum", "loop → f", "", "as sum, with max and from −∞"),
    row(Op::Each, "each", "loop", "", "every place of the row, in any order"),
    row(Op::Chain, "chain", "loop → f", "", "fused multiply-adds of two loop values over k in increasing order, from 0"),
];

impl Op {
    /// Its row of the table.
    pub fn operation(self) -> &'static Operation {
        &TABLE[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::TABLE;

    #[test]
    fn the_table_is_in_the_order_of_the_operations_and_short() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.op as usize, i, "{}", row.name);
            let arguments = row.types.split(" →").next().unwrap_or("").split(' ').count();
            let used = (0..4).take_while(|i| row.text.contains(&format!("${i}"))).count();
            assert!(row.eval.is_none() || used == arguments, "{}: {used} of {arguments}", row.name);
        }
        assert!(TABLE.len() <= 30);
    }
}
