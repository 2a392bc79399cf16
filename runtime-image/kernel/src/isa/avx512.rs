//! AVX-512: sixteen floats.
//!
//! [`F32x16`] is named by `on_every_isa!` alone, in functions that run only after the processor
//! said that AVX-512 is there: the reason why the instructions may be used.

use super::{Lanes, operators};
use crate::{Isa, val::Val};
use std::arch::x86_64::*;
use std::ops::Neg;

/// Sixteen floats.
#[derive(Clone, Copy)]
pub(crate) struct F32x16(pub(super) __m512);

operators!(F32x16: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);

impl Neg for F32x16 {
    type Output = F32x16;
    #[inline(always)]
    fn neg(self) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe { _mm512_xor_ps(self.0, _mm512_set1_ps(-0.0)) })
    }
}

impl Val for F32x16 {
    #[inline(always)]
    fn lit(self, x: f32) -> F32x16 {
        F32x16::splat(x)
    }
    #[inline(always)]
    fn fma(self, a: F32x16, b: F32x16) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe { _mm512_fmadd_ps(self.0, a.0, b.0) })
    }
    #[inline(always)]
    fn max(self, o: F32x16) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe { _mm512_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn min(self, o: F32x16) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe { _mm512_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe { _mm512_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn round(self) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }
    #[inline(always)]
    fn ldexp(self, n: F32x16) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_cvtps_epi32(n.0));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n))
        })
    }
    #[inline(always)]
    fn exponent(self) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe {
            let e = _mm512_srli_epi32::<23>(_mm512_castps_si512(self.0));
            let e = _mm512_and_si512(e, _mm512_set1_epi32(0xff));
            _mm512_cvtepi32_ps(_mm512_sub_epi32(e, _mm512_set1_epi32(127)))
        })
    }
    #[inline(always)]
    fn if_lt(self, limit: F32x16, then: F32x16, other: F32x16) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0), other.0, then.0)
        })
    }
    #[inline(always)]
    fn if_eq(self, to: F32x16, then: F32x16, other: F32x16) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, to.0), other.0, then.0)
        })
    }
}

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

impl Lanes for F32x16 {
    const ISA: Isa = Isa::Avx512;
    const N: usize = 16;
    const TILE: (usize, usize) = (8, 3);

    #[inline(always)]
    fn splat(x: f32) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn iota() -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe {
            _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.)
        })
    }
    #[inline(always)]
    fn keep(self, n: usize, other: f32) -> F32x16 {
        // SAFETY: AVX-512 is there.
        F32x16(unsafe { _mm512_mask_blend_ps(first(n), _mm512_set1_ps(other), self.0) })
    }
    #[inline(always)]
    fn fold_sum(self) -> f32 {
        // SAFETY: AVX-512 is there.
        unsafe {
            let (lo, hi) = (_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            super::avx2::F32x8(_mm256_add_ps(lo, hi)).fold_sum()
        }
    }
    #[inline(always)]
    fn fold_max(self) -> f32 {
        // SAFETY: AVX-512 is there.
        unsafe {
            let (lo, hi) = (_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            super::avx2::F32x8(_mm256_max_ps(lo, hi)).fold_max()
        }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F32x16 {
        // SAFETY: AVX-512 is there; the caller answers for `p`.
        F32x16(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn load_some(p: *const f32, n: usize) -> F32x16 {
        // SAFETY: AVX-512 is there; the caller answers for `p`.
        F32x16(unsafe { _mm512_maskz_loadu_ps(first(n), p) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: AVX-512 is there; the caller answers for `p`.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_some(self, p: *mut f32, n: usize) {
        // SAFETY: AVX-512 is there; the caller answers for `p`.
        unsafe { _mm512_mask_storeu_ps(p, first(n), self.0) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> F32x16 {
        // SAFETY: AVX-512 is there; the caller answers for `p`.
        F32x16(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) })
    }
    #[inline(always)]
    unsafe fn load_i4(p: *const u8, shift: usize) -> F32x16 {
        // SAFETY: AVX-512 is there; the caller answers for `p`.
        F32x16(unsafe {
            let numbers = _mm512_setr_ps(
                -8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.,
            );
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            // The table is looked into by the lowest four bits alone.
            let halves = _mm512_srl_epi32(bytes, _mm_cvtsi64_si128(shift as i64));
            _mm512_permutexvar_ps(halves, numbers)
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F32x16 {
        // SAFETY: AVX-512 is there; the caller answers for `p`.
        F32x16(unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        })
    }
    #[inline(always)]
    unsafe fn store_lowest_bytes(self, p: *mut u8) {
        // SAFETY: AVX-512 is there; the caller answers for `p`.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(self.0))) }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, ld: usize, dst: *mut f32, ldd: usize) {
        // SAFETY: AVX-512 is there; the caller answers for `src` and `dst`.
        unsafe {
            // Four columns of four rows in each 128-bit lane, then the lanes themselves.
            let mut q = [_mm512_setzero_ps(); 16];
            for g in 0..4 {
                let r = src.add(4 * g * ld);
                let r = [
                    _mm512_loadu_ps(r),
                    _mm512_loadu_ps(r.add(ld)),
                    _mm512_loadu_ps(r.add(2 * ld)),
                    _mm512_loadu_ps(r.add(3 * ld)),
                ];
                let (a, b) = (_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
                let (c, d) = (_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
                q[g] = _mm512_shuffle_ps::<0x44>(a, c);
                q[4 + g] = _mm512_shuffle_ps::<0xee>(a, c);
                q[8 + g] = _mm512_shuffle_ps::<0x44>(b, d);
                q[12 + g] = _mm512_shuffle_ps::<0xee>(b, d);
            }
            // q[4·c + g], lane l: column 4·l + c of rows 4·g … 4·g+3.
            for c in 0..4 {
                let [a, b, d, e] = [q[4 * c], q[4 * c + 1], q[4 * c + 2], q[4 * c + 3]];
                let (x, y) =
                    (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
                let (z, w) =
                    (_mm512_shuffle_f32x4::<0x44>(d, e), _mm512_shuffle_f32x4::<0xee>(d, e));
                _mm512_storeu_ps(dst.add(c * ldd), _mm512_shuffle_f32x4::<0x88>(x, z));
                _mm512_storeu_ps(dst.add((4 + c) * ldd), _mm512_shuffle_f32x4::<0xdd>(x, z));
                _mm512_storeu_ps(dst.add((8 + c) * ldd), _mm512_shuffle_f32x4::<0x88>(y, w));
                _mm512_storeu_ps(dst.add((12 + c) * ldd), _mm512_shuffle_f32x4::<0xdd>(y, w));
            }
        }
    }
}
