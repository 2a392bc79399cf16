//! Products of bytes, exact in 32-bit sums: [`Dots`], what the int8 products need of an
//! instruction set.

use super::Lanes;
use std::array::from_fn;
use std::marker::PhantomData;

/// A register of 32-bit sums, as many as the floats of `V`; each takes up products of four
/// neighbours along k.
pub(crate) trait Dots: Copy {
    /// The floats beside them.
    type V: Lanes;
    /// Registers wide a tile of four rows is: as many as fit the register file.
    const WIDE: usize;

    /// Sums before the first product. Weights are kept 128 too large, as unsigned bytes: whoever multiplies them as
    /// they are starts from `correction`, −128 · Σx over the block.
    fn start(correction: i32) -> Self;
    /// Adds to each sum the products of its four weights from `w` on and the four signed bytes of `x`,
    /// none of them −128.
    ///
    /// # Safety
    /// `4 · V::N` bytes can be read.
    unsafe fn dot(self, w: *const u8, x: i32) -> Self;
    /// As floats: exact below 2²⁴, which 32 products stay within.
    fn floats(self) -> Self::V;
}

/// Plain Rust, for `N` lanes of `V`.
#[derive(Clone, Copy)]
pub(crate) struct Plain<V, const N: usize>([i32; N], PhantomData<V>);

impl<V: Lanes, const N: usize> Dots for Plain<V, N> {
    type V = V;
    const WIDE: usize = 1;

    #[inline(always)]
    fn start(correction: i32) -> Self {
        Self([correction; N], PhantomData)
    }
    #[inline(always)]
    unsafe fn dot(mut self, w: *const u8, x: i32) -> Self {
        // SAFETY: the caller's.
        let w = unsafe { std::slice::from_raw_parts(w, 4 * N) };
        let x = x.to_le_bytes().map(|x| i32::from(x as i8));
        for (sum, w) in self.0.iter_mut().zip(w.as_chunks::<4>().0) {
            for i in 0..4 {
                *sum += i32::from(w[i]) * x[i];
            }
        }
        self
    }
    #[inline(always)]
    fn floats(self) -> V {
        const { assert!(N == V::N) };
        let floats: [f32; N] = from_fn(|i| self.0[i] as f32);
        // SAFETY: these are a whole register.
        unsafe { V::load(floats.as_ptr()) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Vnni};

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! [`Avx2`] and [`Vnni`] are named by the product alone, in functions that run only after the
    //! processor said that their instructions are there: why they may be used.

    use super::Dots;
    use crate::isa::{avx2::F32x8, avx512::F32x16};
    use std::arch::x86_64::*;

    /// Eight sums, over AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256i);

    impl Dots for Avx2 {
        type V = F32x8;
        const WIDE: usize = 1;

        #[inline(always)]
        fn start(_correction: i32) -> Avx2 {
            // SAFETY: AVX2 is there.
            Avx2(unsafe { _mm256_setzero_si256() })
        }
        #[inline(always)]
        unsafe fn dot(self, w: *const u8, x: i32) -> Avx2 {
            // SAFETY: AVX2 is there; the caller answers for `w`.
            Avx2(unsafe {
                let w = _mm256_xor_si256(_mm256_loadu_si256(w.cast()), _mm256_set1_epi8(-128));
                // |w| · (x with w's sign): two products of at most 128 · 127 fit 16 bits.
                let x = _mm256_sign_epi8(_mm256_set1_epi32(x), w);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), x);
                _mm256_add_epi32(self.0, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            })
        }
        #[inline(always)]
        fn floats(self) -> F32x8 {
            // SAFETY: AVX2 is there.
            F32x8(unsafe { _mm256_cvtepi32_ps(self.0) })
        }
    }

    /// Sixteen sums, over AVX-512 VNNI.
    #[derive(Clone, Copy)]
    pub(crate) struct Vnni(__m512i);

    impl Dots for Vnni {
        type V = F32x16;
        const WIDE: usize = 3;

        #[inline(always)]
        fn start(correction: i32) -> Vnni {
            // SAFETY: AVX-512 is there.
            Vnni(unsafe { _mm512_set1_epi32(correction) })
        }
        #[inline(always)]
        unsafe fn dot(self, w: *const u8, x: i32) -> Vnni {
            // SAFETY: AVX-512 VNNI is there; the caller answers for `w`.
            Vnni(unsafe {
                _mm512_dpbusd_epi32(self.0, _mm512_loadu_si512(w.cast()), _mm512_set1_epi32(x))
            })
        }
        #[inline(always)]
        fn floats(self) -> F32x16 {
            // SAFETY: AVX-512 is there.
            F32x16(unsafe { _mm512_cvtepi32_ps(self.0) })
        }
    }
}
