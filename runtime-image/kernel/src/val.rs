//! The language kernels are written in.
//!
//! [`Val`] is a value (a vector register, a float, or a node of a recorded loop
//! body) and holds all arithmetic, the transcendentals included. The archetypes
//! are traits over it; a kernel is a generic function over one of them:
//!
//! | archetype | a program is | trait |
//! |---|---|---|
//! | map, prologue, epilogue | one place | [`Body`] |
//! | row | one row, with reductions | [`Row`] |
//! | column, sorted segment | one column, summed down a list of rows | [`Fold`] |
//! | gemm | prologue ([`Quant`]) and epilogue ([`Body`]) at one place of the product | skeleton per backend |
//! | attention | [`Row`] programs over a tile of scores | skeleton per backend |
//!
//! A kernel sees places only as `At`, which it cannot compute with, so the same
//! function runs over SIMD lanes here and leaves its loop body when recorded.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A value. Every operation is defined to the bit: `+ − × ÷ √` and `fma` round
/// once as IEEE 754 says, the rest as stated.
pub trait Val:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// A constant of the same kind as `self`.
    fn lit(self, x: f32) -> Self;
    /// `self · a + b`, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
    /// `self` if `self > other`, else `other` (also when either is NaN).
    fn max(self, other: Self) -> Self;
    /// `self` if `self < other`, else `other` (also when either is NaN).
    fn min(self, other: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self · 2ⁿ` by adding the integer `n` to the exponent field: the result must be normal.
    fn ldexp(self, n: Self) -> Self;
    /// The exponent field minus 127: ⌊log₂ self⌋ of a positive normal number.
    fn exponent(self) -> Self;
    /// `then` where `self < limit`, else `other`.
    fn if_lt(self, limit: Self, then: Self, other: Self) -> Self;
    /// `then` where `self = to`, else `other`.
    fn if_eq(self, to: Self, then: Self, other: Self) -> Self;

    /// eˣ within 1.5 ulp. 0 below −87, ∞ above 88.37; NaN stays NaN.
    ///
    /// Cody–Waite reduction to |r| ≤ ln 2 / 2, then the polynomial of Cephes' `expf`.
    #[inline(always)]
    fn exp(self) -> Self {
        let x = self.lit(-87.0).max(self.lit(88.37).min(self));
        let n = (x * x.lit(std::f32::consts::LOG2_E)).round();
        let r = n.fma(x.lit(-0.693_359_4), x);
        let r = n.fma(x.lit(2.121_944_4e-4), r);
        let mut p = x.lit(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.fma(r, x.lit(c));
        }
        let e = (p * r).fma(r, r) + x.lit(1.0);
        let e = self.if_lt(x.lit(-87.0), x.lit(0.0), e.ldexp(n));
        x.lit(88.37).if_lt(self, x.lit(f32::INFINITY), e)
    }

    /// Natural logarithm of a positive normal number, within 1.5 ulp (Cephes' `logf`).
    #[inline(always)]
    fn ln(self) -> Self {
        // self = m · 2ⁿ with √½ ≤ m < √2, so that ln m has no cancellation with n·ln 2.
        let n = self.exponent();
        let m = self.ldexp(-n);
        let half = self.lit(std::f32::consts::SQRT_2).if_lt(m, self.lit(1.0), self.lit(0.0));
        let (n, m) = (n + half, m.ldexp(-half));
        let r = m - self.lit(1.0);
        let z = r * r;
        let mut p = self.lit(7.037_683_6e-2);
        for c in [
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ] {
            p = p.fma(r, self.lit(c));
        }
        let y = n.fma(self.lit(-2.121_944_4e-4), p * r * z);
        n.fma(self.lit(0.693_359_4), r + z.fma(self.lit(-0.5), y))
    }

    /// `1/√self`, each step rounded.
    #[inline(always)]
    fn rsqrt(self) -> Self {
        self.lit(1.0) / self.sqrt()
    }

    /// `1/(1 + e⁻ˣ)`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        self.lit(1.0) / (self.lit(1.0) + (-self).exp())
    }

    /// `x · sigmoid(x)`.
    #[inline(always)]
    fn silu(self) -> Self {
        self / (self.lit(1.0) + (-self).exp())
    }
}

/// One place of a loop: what a map body, a prologue or an epilogue may do.
pub trait Body: Copy {
    /// A value for each lane.
    type V: Val;
    /// One value common to all lanes.
    type S: Val;
    /// Something to read: a matrix, a vector common to all rows, or a number for each row.
    type In: Copy;
    /// Something to write.
    type Out: Copy;
    /// A place. Matrices are addressed by its row and column, vectors by its column.
    type At: Copy;

    /// A constant.
    fn num(self, x: f32) -> Self::S;
    /// The same value in every lane.
    fn splat(self, s: Self::S) -> Self::V;
    /// The element of `x` at a place.
    fn load(self, x: Self::In, at: Self::At) -> Self::V;
    /// Writes the element of `y` at a place.
    fn store(self, y: Self::Out, at: Self::At, v: Self::V);
}

/// One row of `width` elements, with reductions over it.
pub trait Row: Body {
    /// Elements of the row.
    fn width(self) -> Self::S;
    /// This row's number in `x`.
    fn get(self, x: Self::In) -> Self::S;
    /// Writes this row's number in `y`.
    fn put(self, y: Self::Out, s: Self::S);
    /// The column of a place, as a number (exact below 2²⁴).
    fn index(self, at: Self::At) -> Self::V;
    /// Σ `f` over the row, in the order the crate's documentation fixes.
    fn sum(self, f: impl Fn(Self::At) -> Self::V) -> Self::S;
    /// Largest `f` over the row, −∞ at least.
    fn max(self, f: impl Fn(Self::At) -> Self::V) -> Self::S;
    /// Runs `f` at every place of the row.
    fn each(self, f: impl Fn(Self::At));
}

/// One column, summed down a list of rows in its order: a block of a matrix's
/// rows, or the rows that share a token.
pub trait Fold: Body {
    /// The number that `x` has for the row of a place.
    fn of_row(self, x: Self::In, at: Self::At) -> Self::V;
    /// Σ `f` down the rows, one addition after another, starting at 0.
    fn sum(self, f: impl Fn(Self::At) -> Self::V) -> Self::V;
    /// Where this column's result belongs.
    fn result(self) -> Self::At;
}

/// Reads a quantised matrix operand, for prologues.
pub trait Quant: Body {
    /// A q8_0 matrix.
    type Q8: Copy;
    /// The signed byte of `w` at a place, and the scale of its block of 32.
    fn q8_0(self, w: Self::Q8, at: Self::At) -> (Self::V, Self::V);
}

/// An unsigned number of 32 bits, for generators.
pub trait Word: Copy {
    /// A constant of the same kind as `self`.
    fn word(self, x: u32) -> Self;
    /// Sum modulo 2³².
    fn plus(self, other: Self) -> Self;
    /// Exclusive or.
    fn xor(self, other: Self) -> Self;
    /// Turned left by 1 to 31 bits.
    fn rotl(self, bits: u32) -> Self;
}

/// Reads random numbers that depend on a seed and a place alone, so that any number of
/// threads, and the backward pass, see the same ones.
pub trait Random: Body {
    /// A word for each lane.
    type W: Word;
    /// Number of the place.
    fn counter(self, at: Self::At) -> Self::W;
    /// The upper 24 bits as a fraction in [0, 1), exact.
    fn unit(self, w: Self::W) -> Self::V;
}

/// Threefry-2×32 with 20 rounds (Salmon et al. 2011): a counter-based generator, two
/// random words of a key and a counter.
#[inline(always)]
pub fn threefry<W: Word>(key: [W; 2], counter: [W; 2]) -> [W; 2] {
    let keys = [key[0], key[1], key[0].xor(key[1]).xor(key[0].word(0x1bd1_1bda))];
    let [mut a, mut b] = [counter[0].plus(keys[0]), counter[1].plus(keys[1])];
    for group in 0..5 {
        for bits in [[13, 15, 26, 6], [17, 29, 16, 24]][group % 2] {
            a = a.plus(b);
            b = b.rotl(bits).xor(a);
        }
        a = a.plus(keys[(group + 1) % 3]);
        b = b.plus(keys[(group + 2) % 3]).plus(key[0].word(group as u32 + 1));
    }
    [a, b]
}
