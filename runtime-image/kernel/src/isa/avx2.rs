//! AVX2 with FMA: eight floats.
//!
//! [`F32x8`] is named by `on_every_isa!` and the AVX-512 variant alone, in functions that run only
//! after the processor said that AVX2 and FMA are there: why the instructions may be used.

use super::{Lanes, operators};
use crate::{Isa, val::Val};
use std::arch::x86_64::*;
use std::ops::Neg;

/// Eight floats.
#[derive(Clone, Copy)]
pub(crate) struct F32x8(pub(super) __m256);

operators!(F32x8: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);

impl Neg for F32x8 {
    type Output = F32x8;
    #[inline(always)]
    fn neg(self) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe { _mm256_xor_ps(self.0, _mm256_set1_ps(-0.0)) })
    }
}

impl Val for F32x8 {
    #[inline(always)]
    fn lit(self, x: f32) -> F32x8 {
        F32x8::splat(x)
    }
    #[inline(always)]
    fn fma(self, a: F32x8, b: F32x8) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe { _mm256_fmadd_ps(self.0, a.0, b.0) })
    }
    #[inline(always)]
    fn max(self, o: F32x8) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe { _mm256_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn min(self, o: F32x8) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe { _mm256_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe { _mm256_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn round(self) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }
    #[inline(always)]
    fn ldexp(self, n: F32x8) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n.0));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), n))
        })
    }
    #[inline(always)]
    fn exponent(self) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe {
            let e = _mm256_srli_epi32::<23>(_mm256_castps_si256(self.0));
            let e = _mm256_and_si256(e, _mm256_set1_epi32(0xff));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)))
        })
    }
    #[inline(always)]
    fn if_lt(self, limit: F32x8, then: F32x8, other: F32x8) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe {
            _mm256_blendv_ps(other.0, then.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, limit.0))
        })
    }
    #[inline(always)]
    fn if_eq(self, to: F32x8, then: F32x8, other: F32x8) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe {
            _mm256_blendv_ps(other.0, then.0, _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, to.0))
        })
    }
}

/// All bits set in the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __m256i {
    // SAFETY: AVX2 and FMA are there.
    unsafe {
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    }
}

impl Lanes for F32x8 {
    const ISA: Isa = Isa::Avx2;
    const N: usize = 8;
    const TILE: (usize, usize) = (6, 2);

    #[inline(always)]
    fn splat(x: f32) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    fn iota() -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe { _mm256_setr_ps(0., 1., 2., 3., 4., 5., 6., 7.) })
    }
    #[inline(always)]
    fn keep(self, n: usize, other: f32) -> F32x8 {
        // SAFETY: AVX2 and FMA are there.
        F32x8(unsafe {
            _mm256_blendv_ps(_mm256_set1_ps(other), self.0, _mm256_castsi256_ps(first(n)))
        })
    }
    #[inline(always)]
    fn fold_sum(self) -> f32 {
        // SAFETY: AVX2 and FMA are there.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn fold_max(self) -> f32 {
        // SAFETY: AVX2 and FMA are there.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F32x8 {
        // SAFETY: AVX2 and FMA are there; the caller answers for `p`.
        F32x8(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn load_some(p: *const f32, n: usize) -> F32x8 {
        // SAFETY: AVX2 and FMA are there; the caller answers for `p`.
        F32x8(unsafe { _mm256_maskload_ps(p, first(n)) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: AVX2 and FMA are there; the caller answers for `p`.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_some(self, p: *mut f32, n: usize) {
        // SAFETY: AVX2 and FMA are there; the caller answers for `p`.
        unsafe { _mm256_maskstore_ps(p, first(n), self.0) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> F32x8 {
        // SAFETY: AVX2 and FMA are there; the caller answers for `p`.
        F32x8(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) })
    }
    #[inline(always)]
    unsafe fn load_i4(p: *const u8, shift: usize) -> F32x8 {
        // SAFETY: AVX2 and FMA are there; the caller answers for `p`.
        F32x8(unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let halves = _mm256_srl_epi32(bytes, _mm_cvtsi64_si128(shift as i64));
            let numbers = _mm256_and_si256(halves, _mm256_set1_epi32(15));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(numbers, _mm256_set1_epi32(8)))
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F32x8 {
        // SAFETY: AVX2 and FMA are there; the caller answers for `p`.
        F32x8(unsafe {
            let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
        })
    }
    #[inline(always)]
    unsafe fn store_lowest_bytes(self, p: *mut u8) {
        // SAFETY: AVX2 and FMA are there; the caller answers for `p`.
        unsafe {
            let x = _mm256_and_si256(_mm256_castps_si256(self.0), _mm256_set1_epi32(255));
            let x = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storel_epi64(p.cast(), _mm_packus_epi16(x, x));
        }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, ld: usize, dst: *mut f32, ldd: usize) {
        // SAFETY: AVX2 and FMA are there; the caller answers for `src` and `dst`.
        unsafe {
            let mut q = [_mm256_setzero_ps(); 8];
            for g in 0..2 {
                let r = src.add(4 * g * ld);
                let r = [
                    _mm256_loadu_ps(r),
                    _mm256_loadu_ps(r.add(ld)),
                    _mm256_loadu_ps(r.add(2 * ld)),
                    _mm256_loadu_ps(r.add(3 * ld)),
                ];
                let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
                let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
                q[g] = _mm256_shuffle_ps::<0x44>(a, c);
                q[2 + g] = _mm256_shuffle_ps::<0xee>(a, c);
                q[4 + g] = _mm256_shuffle_ps::<0x44>(b, d);
                q[6 + g] = _mm256_shuffle_ps::<0xee>(b, d);
            }
            // q[2·c + g], lane l: column 4·l + c of rows 4·g … 4·g+3.
            for c in 0..4 {
                let (a, b) = (q[2 * c], q[2 * c + 1]);
                _mm256_storeu_ps(dst.add(c * ldd), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(dst.add((4 + c) * ldd), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}
