//! NEON: four floats.
//!
//! Every AArch64 processor has NEON: why the instructions may be used.

use super::{Lanes, operators};
use crate::{Isa, val::Val};
use std::arch::aarch64::*;
use std::ops::Neg;

/// Four floats.
#[derive(Clone, Copy)]
pub(crate) struct F32x4(float32x4_t);

operators!(F32x4: Add add vaddq_f32, Sub sub vsubq_f32, Mul mul vmulq_f32, Div div vdivq_f32);

impl Neg for F32x4 {
    type Output = F32x4;
    #[inline(always)]
    fn neg(self) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vnegq_f32(self.0) })
    }
}

impl Val for F32x4 {
    #[inline(always)]
    fn lit(self, x: f32) -> F32x4 {
        F32x4::splat(x)
    }
    #[inline(always)]
    fn fma(self, a: F32x4, b: F32x4) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vfmaq_f32(b.0, self.0, a.0) })
    }
    // `vmaxq_f32` would give NaN where either is NaN, and order zeros by sign.
    #[inline(always)]
    fn max(self, o: F32x4) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vbslq_f32(vcgtq_f32(self.0, o.0), self.0, o.0) })
    }
    #[inline(always)]
    fn min(self, o: F32x4) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vbslq_f32(vcltq_f32(self.0, o.0), self.0, o.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vsqrtq_f32(self.0) })
    }
    #[inline(always)]
    fn round(self) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vrndnq_f32(self.0) })
    }
    #[inline(always)]
    fn ldexp(self, n: F32x4) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe {
            let n = vshlq_n_s32::<23>(vcvtnq_s32_f32(n.0));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self.0), n))
        })
    }
    #[inline(always)]
    fn exponent(self) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe {
            let e = vshrq_n_u32::<23>(vreinterpretq_u32_f32(self.0));
            let e = vreinterpretq_s32_u32(vandq_u32(e, vdupq_n_u32(0xff)));
            vcvtq_f32_s32(vsubq_s32(e, vdupq_n_s32(127)))
        })
    }
    #[inline(always)]
    fn if_lt(self, limit: F32x4, then: F32x4, other: F32x4) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vbslq_f32(vcltq_f32(self.0, limit.0), then.0, other.0) })
    }
    #[inline(always)]
    fn if_eq(self, to: F32x4, then: F32x4, other: F32x4) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vbslq_f32(vceqq_f32(self.0, to.0), then.0, other.0) })
    }
}

impl F32x4 {
    #[inline(always)]
    fn array(self) -> [f32; 4] {
        let mut a = [0.0; 4];
        // SAFETY: NEON is there, and four floats fit.
        unsafe { vst1q_f32(a.as_mut_ptr(), self.0) };
        a
    }

    #[inline(always)]
    fn first(n: usize) -> uint32x4_t {
        const INDEX: [u32; 4] = [0, 1, 2, 3];
        // SAFETY: NEON is there, and so are four numbers.
        unsafe { vcltq_u32(vld1q_u32(INDEX.as_ptr()), vdupq_n_u32(n as u32)) }
    }
}

impl Lanes for F32x4 {
    const ISA: Isa = Isa::Neon;
    const N: usize = 4;
    const TILE: (usize, usize) = (8, 3);

    #[inline(always)]
    fn splat(x: f32) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vdupq_n_f32(x) })
    }
    #[inline(always)]
    fn iota() -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vld1q_f32([0.0, 1.0, 2.0, 3.0].as_ptr()) })
    }
    #[inline(always)]
    fn keep(self, n: usize, other: f32) -> F32x4 {
        // SAFETY: NEON is there.
        F32x4(unsafe { vbslq_f32(Self::first(n), self.0, vdupq_n_f32(other)) })
    }
    #[inline(always)]
    fn fold_sum(self) -> f32 {
        let [a, b, c, d] = self.array();
        (a + c) + (b + d)
    }
    #[inline(always)]
    fn fold_max(self) -> f32 {
        let [a, b, c, d] = self.array().map(super::Sc);
        a.max(c).max(b.max(d)).0
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F32x4 {
        // SAFETY: NEON is there; the caller answers for `p`.
        F32x4(unsafe { vld1q_f32(p) })
    }
    #[inline(always)]
    unsafe fn load_some(p: *const f32, n: usize) -> F32x4 {
        let mut a = [0.0; 4];
        // SAFETY: the caller answers for `p`, and `n` is at most four.
        unsafe { std::ptr::copy_nonoverlapping(p, a.as_mut_ptr(), n) };
        // SAFETY: NEON is there, and so are four floats.
        F32x4(unsafe { vld1q_f32(a.as_ptr()) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: NEON is there; the caller answers for `p`.
        unsafe { vst1q_f32(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_some(self, p: *mut f32, n: usize) {
        // SAFETY: the caller answers for `p`, and `n` is at most four.
        unsafe { std::ptr::copy_nonoverlapping(self.array().as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> F32x4 {
        // SAFETY: NEON is there; the caller answers for `p`.
        F32x4(unsafe {
            vcvtq_f32_s32(vld1q_s32([*p, *p.add(1), *p.add(2), *p.add(3)].map(i32::from).as_ptr()))
        })
    }
    #[inline(always)]
    unsafe fn load_i4(p: *const u8, shift: usize) -> F32x4 {
        // SAFETY: NEON is there; the caller answers for `p`.
        F32x4(unsafe {
            let bytes = [*p, *p.add(1), *p.add(2), *p.add(3)];
            vcvtq_f32_s32(vld1q_s32(bytes.map(|b| i32::from(b >> shift & 15) - 8).as_ptr()))
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F32x4 {
        // SAFETY: NEON is there; the caller answers for `p`.
        F32x4(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) })
    }
    #[inline(always)]
    unsafe fn store_lowest_bytes(self, p: *mut u8) {
        // SAFETY: the caller answers for `p`.
        unsafe { p.cast::<[u8; 4]>().write(self.array().map(|x| x.to_bits() as u8)) }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, ld: usize, dst: *mut f32, ldd: usize) {
        // SAFETY: NEON is there; the caller answers for `src` and `dst`.
        unsafe {
            let (a, b) = (vld1q_f32(src), vld1q_f32(src.add(ld)));
            let (c, d) = (vld1q_f32(src.add(2 * ld)), vld1q_f32(src.add(3 * ld)));
            let (ab, ab1) = (vtrn1q_f32(a, b), vtrn2q_f32(a, b));
            let (cd, cd1) = (vtrn1q_f32(c, d), vtrn2q_f32(c, d));
            let pair = |x, y, high: bool| {
                let (x, y) = (vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y));
                vreinterpretq_f32_f64(if high { vtrn2q_f64(x, y) } else { vtrn1q_f64(x, y) })
            };
            vst1q_f32(dst, pair(ab, cd, false));
            vst1q_f32(dst.add(ldd), pair(ab1, cd1, false));
            vst1q_f32(dst.add(2 * ldd), pair(ab, cd, true));
            vst1q_f32(dst.add(3 * ldd), pair(ab1, cd1, true));
        }
    }
}
