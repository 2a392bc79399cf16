//! The CPU instance of the archetypes: programs over SIMD lanes.
//!
//! The order of every reduction is here, and only here. A row's element i goes to
//! virtual lane i mod 64 in increasing order, whatever the register's width; then
//! lane l takes lane l+32, l+16, … l+1. A tail is filled with the identity.

use crate::isa::{Lanes, Sc};
use crate::val::{Body, Fold, Quant, Random, Row, Word};
use std::marker::PhantomData;

/// Virtual lanes of a row reduction.
pub(crate) const LANES: usize = 64;

/// A place: `lanes` elements of `row` from column `i` on.
#[derive(Clone, Copy)]
pub(crate) struct At {
    pub(crate) row: usize,
    pub(crate) i: usize,
    pub(crate) lanes: usize,
}

/// Something to read: element (row, i) is at `row · ld + i`.
#[derive(Clone, Copy)]
pub(crate) struct In {
    p: *const f32,
    ld: usize,
}

/// Something to write, addressed as [`In`].
#[derive(Clone, Copy)]
pub(crate) struct Out {
    p: *mut f32,
    ld: usize,
}

/// Rows of `n` numbers each. Whoever makes one promises that the programs it is
/// given to stay within `x`.
pub(crate) fn rows(x: &[f32], n: usize) -> In {
    In { p: x.as_ptr(), ld: n }
}

/// [`rows`] to write; it may be read too.
pub(crate) fn rows_mut(x: &mut [f32], n: usize) -> Out {
    Out { p: x.as_mut_ptr(), ld: n }
}

/// One vector common to all rows.
pub(crate) fn common(x: &[f32]) -> In {
    In { p: x.as_ptr(), ld: 0 }
}

impl Out {
    /// The same place to read from.
    pub(crate) fn read(self) -> In {
        In { p: self.p, ld: self.ld }
    }

    /// Rows from `p` on, `ld` apart.
    pub(crate) fn at(p: *mut f32, ld: usize) -> Out {
        Out { p, ld }
    }
}

impl In {
    /// Rows from `p` on, `ld` apart.
    pub(crate) fn at(p: *const f32, ld: usize) -> In {
        In { p, ld }
    }
}

/// One row (or one place) of a loop over lanes of `V`.
#[derive(Clone, Copy)]
pub(crate) struct Simd<V> {
    row: usize,
    n: usize,
    lanes: PhantomData<V>,
}

impl<V: Lanes> Simd<V> {
    /// The program of `row`, `n` elements wide.
    #[inline(always)]
    pub(crate) fn row(row: usize, n: usize) -> Simd<V> {
        Simd { row, n, lanes: PhantomData }
    }

    /// Registers that make up the virtual lanes.
    const REGISTERS: usize = LANES / V::N;

    #[inline(always)]
    fn reduce(
        self,
        identity: f32,
        f: impl Fn(At) -> V,
        join: impl Fn(V, V) -> V,
        fold: impl Fn(V) -> f32,
    ) -> Sc {
        let mut acc = [V::splat(identity); 16];
        let mut i = 0;
        while i + LANES <= self.n {
            for (r, acc) in acc.iter_mut().enumerate().take(Self::REGISTERS) {
                *acc = join(f(At { row: self.row, i: i + r * V::N, lanes: V::N }), *acc);
            }
            i += LANES;
        }
        for acc in acc.iter_mut().take(Self::REGISTERS) {
            if i < self.n {
                let lanes = V::N.min(self.n - i);
                *acc = join(f(At { row: self.row, i, lanes }).keep(lanes, identity), *acc);
                i += V::N;
            }
        }
        let mut half = Self::REGISTERS / 2;
        while half > 0 {
            for r in 0..half {
                acc[r] = join(acc[r], acc[r + half]);
            }
            half /= 2;
        }
        Sc(fold(acc[0]))
    }
}

impl<V: Lanes> Body for Simd<V> {
    type V = V;
    type S = Sc;
    type In = In;
    type Out = Out;
    type At = At;

    #[inline(always)]
    fn num(self, x: f32) -> Sc {
        Sc(x)
    }
    #[inline(always)]
    fn splat(self, s: Sc) -> V {
        V::splat(s.0)
    }
    #[inline(always)]
    fn load(self, x: In, at: At) -> V {
        // SAFETY: the maker of `x` promised these elements.
        unsafe {
            let p = x.p.add(at.row * x.ld + at.i);
            if at.lanes == V::N { V::load(p) } else { V::load_some(p, at.lanes) }
        }
    }
    #[inline(always)]
    fn store(self, y: Out, at: At, v: V) {
        // SAFETY: the maker of `y` promised these elements.
        unsafe {
            let p = y.p.add(at.row * y.ld + at.i);
            if at.lanes == V::N { v.store(p) } else { v.store_some(p, at.lanes) }
        }
    }
}

impl<V: Lanes> Row for Simd<V> {
    #[inline(always)]
    fn width(self) -> Sc {
        Sc(self.n as f32)
    }
    #[inline(always)]
    fn get(self, x: In) -> Sc {
        // SAFETY: the maker of `x` promised a number for this row.
        Sc(unsafe { *x.p.add(self.row * x.ld) })
    }
    #[inline(always)]
    fn put(self, y: Out, s: Sc) {
        // SAFETY: the maker of `y` promised a number for this row.
        unsafe { *y.p.add(self.row * y.ld) = s.0 }
    }
    #[inline(always)]
    fn index(self, at: At) -> V {
        V::iota() + V::splat(at.i as f32)
    }
    #[inline(always)]
    fn sum(self, f: impl Fn(At) -> V) -> Sc {
        self.reduce(
            0.0,
            f,
            #[inline(always)]
            |a, b| a + b,
            #[inline(always)]
            |v| v.fold_sum(),
        )
    }
    #[inline(always)]
    fn max(self, f: impl Fn(At) -> V) -> Sc {
        self.reduce(
            f32::NEG_INFINITY,
            f,
            #[inline(always)]
            |a, b| a.max(b),
            #[inline(always)]
            |v| v.fold_max(),
        )
    }
    #[inline(always)]
    fn each(self, f: impl Fn(At)) {
        let mut i = 0;
        while i + V::N <= self.n {
            f(At { row: self.row, i, lanes: V::N });
            i += V::N;
        }
        if i < self.n {
            f(At { row: self.row, i, lanes: self.n - i });
        }
    }
}

/// A register's worth of columns, summed down `rows`.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a, V> {
    /// First column, and how many.
    pub(crate) i: usize,
    pub(crate) lanes: usize,
    pub(crate) rows: Rows<'a>,
    /// Row of the result.
    pub(crate) result: usize,
    pub(crate) v: PhantomData<V>,
}

/// Rows of a [`Columns`] program, in order.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// A block of neighbours.
    Block(usize, usize),
    /// These rows.
    List(&'a [u32]),
}

impl<V: Lanes> Columns<'_, V> {
    #[inline(always)]
    fn one(self) -> Simd<V> {
        Simd::row(0, 0)
    }
}

impl<V: Lanes> Body for Columns<'_, V> {
    type V = V;
    type S = Sc;
    type In = In;
    type Out = Out;
    type At = At;

    #[inline(always)]
    fn num(self, x: f32) -> Sc {
        Sc(x)
    }
    #[inline(always)]
    fn splat(self, s: Sc) -> V {
        V::splat(s.0)
    }
    #[inline(always)]
    fn load(self, x: In, at: At) -> V {
        self.one().load(x, at)
    }
    #[inline(always)]
    fn store(self, y: Out, at: At, v: V) {
        self.one().store(y, at, v);
    }
}

impl<V: Lanes> Fold for Columns<'_, V> {
    #[inline(always)]
    fn of_row(self, x: In, at: At) -> V {
        V::splat(Simd::<V>::row(at.row, 1).get(x).0)
    }
    #[inline(always)]
    fn sum(self, f: impl Fn(At) -> V) -> V {
        let mut acc = V::splat(0.0);
        match self.rows {
            Rows::Block(first, end) => {
                for row in first..end {
                    acc = acc + f(At { row, i: self.i, lanes: self.lanes });
                }
            }
            Rows::List(list) => {
                for &row in list {
                    acc = acc + f(At { row: row as usize, i: self.i, lanes: self.lanes });
                }
            }
        }
        acc
    }
    #[inline(always)]
    fn result(self) -> At {
        At { row: self.result, i: self.i, lanes: self.lanes }
    }
}

/// A q8_0 matrix laid out in panels for the product: bytes `[k, ld]` (for `int8` `[k/4, ld, 4]`), scales `[k/32, ld]`.
#[derive(Clone, Copy)]
pub(crate) struct Q8 {
    pub(crate) bytes: *const i8,
    pub(crate) scales: *const f32,
    pub(crate) ld: usize,
}

impl<V: Lanes> Quant for Simd<V> {
    type Q8 = Q8;
    #[inline(always)]
    fn q8_0(self, w: Q8, at: At) -> (V, V) {
        // SAFETY: the maker of `w` promised whole registers at every row of its panel.
        unsafe {
            let q = V::load_i8(w.bytes.add(at.row * w.ld + at.i));
            (q, V::load(w.scales.add(at.row / 32 * w.ld + at.i)))
        }
    }
}

/// A q4_0 matrix laid out in panels for the product: bytes `[k/2, ld]`, each of two steps of k, the
/// first in its lower half; scales `[k/32, ld]`.
#[derive(Clone, Copy)]
pub(crate) struct Q4 {
    pub(crate) halves: *const u8,
    pub(crate) scales: *const f32,
    pub(crate) ld: usize,
}

impl Q4 {
    /// The weights of step `p` from column `i` on, as floats: exact in the number, one rounding.
    ///
    /// # Safety
    /// The panel holds whole registers at this place.
    #[inline(always)]
    pub(crate) unsafe fn dequantize<V: Lanes>(self, p: usize, i: usize) -> V {
        // SAFETY: the caller's.
        unsafe {
            let number = V::load_i4(self.halves.add(p / 2 * self.ld + i), p % 2 * 4);
            V::load(self.scales.add(p / 32 * self.ld + i)) * number
        }
    }
}

/// A word for each lane of any register.
#[derive(Clone, Copy)]
pub(crate) struct Words(pub(crate) [u32; 16]);

impl Word for Words {
    #[inline(always)]
    fn word(self, x: u32) -> Words {
        Words([x; 16])
    }
    #[inline(always)]
    fn plus(self, o: Words) -> Words {
        Words(std::array::from_fn(|i| self.0[i].wrapping_add(o.0[i])))
    }
    #[inline(always)]
    fn xor(self, o: Words) -> Words {
        Words(std::array::from_fn(|i| self.0[i] ^ o.0[i]))
    }
    #[inline(always)]
    fn rotl(self, bits: u32) -> Words {
        Words(self.0.map(|x| x.rotate_left(bits)))
    }
}

/// Vectors are numbered on from the row's number: rows of maps have `ld` 0.
impl<V: Lanes> Random for Simd<V> {
    type W = Words;
    #[inline(always)]
    fn counter(self, at: At) -> Words {
        Words(std::array::from_fn(|lane| (at.row + at.i + lane) as u32))
    }
    #[inline(always)]
    fn unit(self, w: Words) -> V {
        let fractions = w.0.map(|x| (x >> 8) as f32 * (1.0 / 16_777_216.0));
        // SAFETY: sixteen floats are a whole register of any variant.
        unsafe { V::load(fractions.as_ptr()) }
    }
}
