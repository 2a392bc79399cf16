//! Plain Rust: the scalar [`Sc`], which every variant uses for numbers of a whole
//! row, and eight of them as [`F32s`], the portable variant.

use super::Lanes;
use crate::{Isa, val::Val};
use std::array::from_fn;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// One float.
#[derive(Clone, Copy)]
pub(crate) struct Sc(pub(crate) f32);

/// Eight floats.
#[derive(Clone, Copy)]
pub(crate) struct F32s([f32; 8]);

macro_rules! operator {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl $trait for Sc {
            type Output = Sc;
            #[inline(always)]
            fn $method(self, o: Sc) -> Sc { Sc(self.0 $op o.0) }
        }
        impl $trait for F32s {
            type Output = F32s;
            #[inline(always)]
            fn $method(self, o: F32s) -> F32s { F32s(from_fn(|i| self.0[i] $op o.0[i])) }
        }
    )*};
}
operator!(Add add +, Sub sub -, Mul mul *, Div div /);

impl Neg for Sc {
    type Output = Sc;
    #[inline(always)]
    fn neg(self) -> Sc {
        Sc(-self.0)
    }
}

impl Neg for F32s {
    type Output = F32s;
    #[inline(always)]
    fn neg(self) -> F32s {
        F32s(self.0.map(|x| -x))
    }
}

impl Val for Sc {
    #[inline(always)]
    fn lit(self, x: f32) -> Sc {
        Sc(x)
    }
    #[inline(always)]
    fn fma(self, a: Sc, b: Sc) -> Sc {
        Sc(self.0.mul_add(a.0, b.0))
    }
    #[inline(always)]
    fn max(self, o: Sc) -> Sc {
        if self.0 > o.0 { self } else { o }
    }
    #[inline(always)]
    fn min(self, o: Sc) -> Sc {
        if self.0 < o.0 { self } else { o }
    }
    #[inline(always)]
    fn sqrt(self) -> Sc {
        Sc(self.0.sqrt())
    }
    #[inline(always)]
    fn round(self) -> Sc {
        Sc(self.0.round_ties_even())
    }
    #[inline(always)]
    fn ldexp(self, n: Sc) -> Sc {
        Sc(f32::from_bits(self.0.to_bits().wrapping_add(((n.0 as i32) << 23) as u32)))
    }
    #[inline(always)]
    fn exponent(self) -> Sc {
        Sc((((self.0.to_bits() >> 23) & 0xff) as i32 - 127) as f32)
    }
    #[inline(always)]
    fn if_lt(self, limit: Sc, then: Sc, other: Sc) -> Sc {
        if self.0 < limit.0 { then } else { other }
    }
    #[inline(always)]
    fn if_eq(self, to: Sc, then: Sc, other: Sc) -> Sc {
        if self.0 == to.0 { then } else { other }
    }
}

impl F32s {
    #[inline(always)]
    fn zip(self, o: F32s, f: impl Fn(Sc, Sc) -> Sc) -> F32s {
        F32s(from_fn(|i| f(Sc(self.0[i]), Sc(o.0[i])).0))
    }

    #[inline(always)]
    fn fold(self, f: impl Fn(Sc, Sc) -> Sc) -> f32 {
        let mut a = self.0;
        for half in [4, 2, 1] {
            for i in 0..half {
                a[i] = f(Sc(a[i]), Sc(a[i + half])).0;
            }
        }
        a[0]
    }
}

impl Val for F32s {
    #[inline(always)]
    fn lit(self, x: f32) -> F32s {
        F32s([x; 8])
    }
    #[inline(always)]
    fn fma(self, a: F32s, b: F32s) -> F32s {
        F32s(from_fn(|i| self.0[i].mul_add(a.0[i], b.0[i])))
    }
    #[inline(always)]
    fn max(self, o: F32s) -> F32s {
        self.zip(o, Sc::max)
    }
    #[inline(always)]
    fn min(self, o: F32s) -> F32s {
        self.zip(o, Sc::min)
    }
    #[inline(always)]
    fn sqrt(self) -> F32s {
        F32s(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn round(self) -> F32s {
        F32s(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    fn ldexp(self, n: F32s) -> F32s {
        self.zip(n, Sc::ldexp)
    }
    #[inline(always)]
    fn exponent(self) -> F32s {
        F32s(self.0.map(|x| Sc(x).exponent().0))
    }
    #[inline(always)]
    fn if_lt(self, limit: F32s, then: F32s, other: F32s) -> F32s {
        F32s(from_fn(|i| if self.0[i] < limit.0[i] { then.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn if_eq(self, to: F32s, then: F32s, other: F32s) -> F32s {
        F32s(from_fn(|i| if self.0[i] == to.0[i] { then.0[i] } else { other.0[i] }))
    }
}

impl Lanes for F32s {
    const ISA: Isa = Isa::Portable;
    const N: usize = 8;
    const TILE: (usize, usize) = (4, 3);

    #[inline(always)]
    fn splat(x: f32) -> F32s {
        F32s([x; 8])
    }
    #[inline(always)]
    fn iota() -> F32s {
        F32s(from_fn(|i| i as f32))
    }
    #[inline(always)]
    fn keep(self, n: usize, other: f32) -> F32s {
        F32s(from_fn(|i| if i < n { self.0[i] } else { other }))
    }
    #[inline(always)]
    fn fold_sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }
    #[inline(always)]
    fn fold_max(self) -> f32 {
        self.fold(Sc::max)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F32s {
        // SAFETY: the caller's.
        F32s(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_some(p: *const f32, n: usize) -> F32s {
        // SAFETY: the caller's.
        F32s(from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_some(self, p: *mut f32, n: usize) {
        for i in 0..n {
            // SAFETY: the caller's.
            unsafe { *p.add(i) = self.0[i] }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> F32s {
        // SAFETY: the caller's.
        F32s(from_fn(|i| f32::from(unsafe { *p.add(i) })))
    }
    #[inline(always)]
    unsafe fn load_i4(p: *const u8, shift: usize) -> F32s {
        // SAFETY: the caller's.
        F32s(from_fn(|i| f32::from((unsafe { *p.add(i) } >> shift & 15) as i8 - 8)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F32s {
        // SAFETY: the caller's.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        F32s(bits.map(|x| f32::from_bits(u32::from(x) << 16)))
    }
    #[inline(always)]
    unsafe fn store_lowest_bytes(self, p: *mut u8) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[u8; 8]>().write(self.0.map(|x| x.to_bits() as u8)) }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, ld: usize, dst: *mut f32, ldd: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller's.
                unsafe { *dst.add(j * ldd + i) = *src.add(i * ld + j) }
            }
        }
    }
}
