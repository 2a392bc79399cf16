//! Products of activations rounded to 8 bits with q8_0 weights: the numerics mode
//! `int8-activations`.
//!
//! A row's activations are rounded in blocks of 32, as q8_0 rounds weights but with an f32 scale:
//! x ≈ d·q, d = max|x| ÷ 127, q from −127 to 127. An output's chain then takes a step for each block:
//! its 32 products of bytes are summed exactly, and join it by one fused multiply-add with the
//! product of the two scales. So the bits are the same on every instruction set, as
//! elsewhere; they are others than those of the exact mode.

use crate::isa::dots::{Dots, Plain};
use crate::isa::{Lanes, on_every_isa, portable};
use crate::scratch::scratch;
use crate::simd::Q8;
use crate::val::Val;
use crate::{BLOCK_VALUES, Cpu, Isa};

/// Rows of rounded activations. A row is its bytes, then for each block its scale, then for each
/// block −128 · the sum of its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Rounded {
    bytes: *const u8,
    scales: *const f32,
    corrections: *const i32,
    /// From row to row, in bytes.
    ld: usize,
}

impl Rounded {
    /// From row `i` and step `p` (a multiple of 32) on.
    pub(crate) fn from(self, i: usize, p: usize) -> Rounded {
        Rounded {
            bytes: self.bytes.wrapping_add(i * self.ld + p),
            scales: self.scales.wrapping_byte_add(i * self.ld + p / 8),
            corrections: self.corrections.wrapping_byte_add(i * self.ld + p / 8),
            ld: self.ld,
        }
    }
}

/// Runs `f` with the rows of `x[t, k]` rounded.
pub(crate) fn with_rounded(cpu: &Cpu, x: &[f32], k: usize, f: impl FnOnce(Rounded)) {
    let blocks = k / BLOCK_VALUES;
    let row = k / 4 + 2 * blocks;
    scratch(x.len() / k.max(1) * row, |space| {
        let rows = space.chunks_mut(row.max(1)).zip(x.chunks(k.max(1)));
        cpu.each(x.len() * 8, rows, |(to, x)| {
            let scales = to[k / 4..].as_mut_ptr();
            round(cpu.isa(), blocks, x.as_ptr(), to.as_mut_ptr().cast(), scales);
        });
        let scales = space.as_ptr().wrapping_add(k / 4);
        f(Rounded {
            bytes: space.as_ptr().cast(),
            scales,
            corrections: scales.wrapping_add(blocks).cast(),
            ld: row * size_of::<f32>(),
        });
    });
}

/// Added to a number of small magnitude, it rounds that to a whole one, ties to even, whose lowest byte
/// is then the sum's: 1.5 · 2²³.
const WHOLE: f32 = 12_582_912.0;

/// # Safety contract
/// There are so many blocks of floats at `x` and of bytes at `bytes`, and twice so many numbers at `scales`.
#[inline(always)]
fn round_lanes<V: Lanes>(blocks: usize, x: *const f32, bytes: *mut u8, scales: *mut f32) {
    for block in 0..blocks {
        let x = x.wrapping_add(block * BLOCK_VALUES);
        let (mut largest, mut poison) = (V::splat(0.0), V::splat(0.0));
        for i in (0..BLOCK_VALUES).step_by(V::N) {
            // SAFETY: the contract above.
            let x = unsafe { V::load(x.add(i)) };
            largest = x.max(-x).max(largest);
            // 0, or NaN where the number is none or infinite: then so is the scale.
            poison = x.fma(V::splat(0.0), poison);
        }
        let scale = largest.fold_max() / 127.0 + poison.fold_sum();
        // Below, its reciprocal would be infinite: a block of zeros.
        let scale = if scale < f32::MIN_POSITIVE { 0.0 } else { scale };
        let inverse = V::splat(if scale == 0.0 { 0.0 } else { 1.0 / scale });
        let mut sum = V::splat(0.0);
        for i in (0..BLOCK_VALUES).step_by(V::N) {
            // SAFETY: the contract above.
            unsafe {
                let large = V::load(x.add(i)) * inverse + V::splat(WHOLE);
                sum = sum + (large - V::splat(WHOLE));
                large.store_lowest_bytes(bytes.add(block * BLOCK_VALUES + i));
            }
        }
        // SAFETY: the contract above.
        unsafe {
            *scales.add(block) = scale;
            *scales.add(blocks + block).cast() = -128 * sum.fold_sum() as i32;
        }
    }
}
on_every_isa! { fn round = round_lanes(blocks: usize, x: *const f32, bytes: *mut u8, scales: *mut f32) }

/// As `product::product`, of bytes: `c[m, width] = [c +] x · w` over `blocks` of k. Weights lie four steps of k
/// beside one another for each column, `[k/4, ld, 4]`, 128 too large.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) width: usize,
    pub(crate) blocks: usize,
    pub(crate) x: Rounded,
    pub(crate) w: Q8,
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    /// The chains go on from `c`.
    pub(crate) carry: bool,
}

impl Product {
    /// # Safety
    /// The operands hold these elements, `w` and `c` in whole registers, nobody else uses `c`, and
    /// the processor has `isa`.
    pub(crate) unsafe fn run(self, isa: Isa) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn vnni(product: Product) {
            product.columns::<crate::isa::dots::Vnni>();
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2(product: Product) {
            product.columns::<crate::isa::dots::Avx2>();
        }
        match isa {
            // SAFETY: the processor was asked.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => unsafe { vnni(self) },
            // SAFETY: as the caller says; what has AVX-512 has AVX2.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => unsafe { avx2(self) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => self.columns::<Plain<crate::isa::neon::F32x4, 4>>(),
            _ => self.columns::<Plain<portable::F32s, 8>>(),
        }
    }

    #[inline(always)]
    fn columns<D: Dots>(self) {
        let registers = self.width.div_ceil(D::V::N);
        let mut j = 0;
        while j + 3 <= registers && D::WIDE == 3 {
            self.down::<D, 3>(j);
            j += 3;
        }
        while j < registers {
            self.down::<D, 1>(j);
            j += 1;
        }
    }

    #[inline(always)]
    fn down<D: Dots, const W: usize>(self, j: usize) {
        let mut i = 0;
        while i + 4 <= self.m {
            self.tile::<D, 4, W>(i, j);
            i += 4;
        }
        if i + 2 <= self.m {
            self.tile::<D, 2, W>(i, j);
            i += 2;
        }
        if i < self.m {
            self.tile::<D, 1, W>(i, j);
        }
    }

    /// M rows from `row` on, W registers from register `register` on. Plain loops: what a closure in a
    /// library function does is not compiled with this function's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn tile<D: Dots, const M: usize, const W: usize>(self, row: usize, register: usize) {
        let Product { blocks, w, ldc, .. } = self;
        let first = register * D::V::N;
        let x = self.x.from(row, 0);
        let c = self.c.wrapping_add(row * ldc + first);
        let (weights, scales) =
            (w.bytes.cast::<u8>().wrapping_add(4 * first), w.scales.wrapping_add(first));
        let mut chains = [[D::V::splat(0.0); W]; M];
        if self.carry {
            for i in 0..M {
                for j in 0..W {
                    // SAFETY: the contract of `run`.
                    chains[i][j] = unsafe { D::V::load(c.add(i * ldc + j * D::V::N)) };
                }
            }
        }
        for block in 0..blocks {
            let mut dots = [[D::start(0); W]; M];
            for i in 0..M {
                // SAFETY: as above.
                let correction = unsafe { *x.from(i, 0).corrections.add(block) };
                for j in 0..W {
                    dots[i][j] = D::start(correction);
                }
            }
            for four in block * 8..(block + 1) * 8 {
                let weights = weights.wrapping_add(four * 4 * w.ld);
                for i in 0..M {
                    // SAFETY: as above.
                    let x =
                        unsafe { x.bytes.add(i * x.ld + 4 * four).cast::<i32>().read_unaligned() };
                    for j in 0..W {
                        // SAFETY: as above.
                        dots[i][j] = unsafe { dots[i][j].dot(weights.add(4 * j * D::V::N), x) };
                    }
                }
            }
            for j in 0..W {
                // SAFETY: as above.
                let scale = unsafe { D::V::load(scales.add(block * w.ld + j * D::V::N)) };
                for i in 0..M {
                    // SAFETY: as above.
                    let of_row = unsafe { *x.from(i, 0).scales.add(block) };
                    chains[i][j] =
                        dots[i][j].floats().fma(D::V::splat(of_row) * scale, chains[i][j]);
                }
            }
        }
        for i in 0..M {
            for j in 0..W {
                // SAFETY: as above.
                unsafe { chains[i][j].store(c.add(i * ldc + j * D::V::N)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor may have AVX-512 without VNNI: then AVX2 reads panels of AVX-512's width.
    #[test]
    fn every_variant_reads_panels_of_any_width() {
        let (m, width, blocks) = (7, 48, 3);
        let k = blocks * BLOCK_VALUES;
        let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u8;
        let weights: Vec<u8> = (0..k * width).map(byte).collect();
        let scales: Vec<f32> = (0..blocks * width).map(|i| 0.01 + f32::from(byte(i))).collect();
        let x: Vec<f32> = (0..m * k).map(|i| f32::from(byte(i + 1)) - 99.0).collect();
        let results = Isa::available().into_iter().map(|isa| {
            let cpu = Cpu::new(Some(isa), 1).expect("it is available");
            let mut c: Vec<f32> = (0..m * width).map(|i| i as f32).collect();
            with_rounded(&cpu, &x, k, |x| {
                let w = Q8 { bytes: weights.as_ptr().cast(), scales: scales.as_ptr(), ld: width };
                let c = c.as_mut_ptr();
                let product = Product { m, width, blocks, x, w, c, ldc: width, carry: true };
                // SAFETY: the operands hold these elements, and the processor has `isa`.
                unsafe { product.run(isa) };
            });
            c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        let results: Vec<_> = results.collect();
        assert!(results.iter().all(|bits| *bits == results[0]));
        assert_ne!(results[0][0], 0f32.to_bits());
    }
}
