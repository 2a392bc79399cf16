//! What the kernels need of an instruction set: [`Lanes`], one register of f32.
//!
//! One file an instance: [`portable`] (and the scalar [`Sc`]), `avx512`, `avx2`,
//! `neon`; beside them [`dots`], products of bytes. The macro `on_every_isa!` makes of a generic function one function a
//! variant, compiled for its features, and the match that chooses between them.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod dots;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

pub(crate) use portable::Sc;

use crate::{Isa, val::Val};

/// One register of `N` floats. Lane order is memory order.
pub(crate) trait Lanes: Val + Send + Sync {
    /// The variant these lanes belong to.
    const ISA: Isa;
    /// Floats in a register; divides 64, at least 4.
    const N: usize;
    /// Most rows and registers of a product's micro-tile: as many as fit the register file.
    const TILE: (usize, usize);

    fn splat(x: f32) -> Self;
    /// 0, 1, 2, …
    fn iota() -> Self;
    /// The first `n` lanes, then `other`.
    fn keep(self, n: usize, other: f32) -> Self;
    /// Halving tree: lane l + lane l+N/2, and so on.
    fn fold_sum(self) -> f32;
    /// The same tree with [`Val::max`].
    fn fold_max(self) -> f32;

    /// # Safety
    /// `N` floats can be read.
    unsafe fn load(p: *const f32) -> Self;
    /// Reads `n ≤ N` floats; the other lanes are 0.
    /// # Safety
    /// `n` floats can be read.
    unsafe fn load_some(p: *const f32, n: usize) -> Self;
    /// # Safety
    /// `N` floats can be written.
    unsafe fn store(self, p: *mut f32);
    /// # Safety
    /// `n ≤ N` floats can be written.
    unsafe fn store_some(self, p: *mut f32, n: usize);
    /// # Safety
    /// `N` bytes can be read.
    unsafe fn load_i8(p: *const i8) -> Self;
    /// Of `N` bytes the four bits from bit `shift` (0 or 4) on, less 8.
    /// # Safety
    /// `N` bytes can be read.
    unsafe fn load_i4(p: *const u8, shift: usize) -> Self;
    /// # Safety
    /// `N` values can be read.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Writes the lowest byte of each float's bits.
    /// # Safety
    /// `N` bytes can be written.
    unsafe fn store_lowest_bytes(self, p: *mut u8);
    /// Transposes an N × N block with row strides `ld` and `ldd`.
    /// # Safety
    /// The block can be read from `src` and written to `dst`.
    unsafe fn transpose(src: *const f32, ld: usize, dst: *mut f32, ldd: usize);
}

/// Of `fn generic<V: Lanes>(…)` makes `fn name(isa, …)`: one copy for each
/// variant, compiled with its instructions, and the choice between them.
macro_rules! on_every_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident = $generic:ident($($a:ident: $t:ty),* $(,)?) $(-> $r:ty)?) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::Isa, $($a: $t),*) $(-> $r)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($a: $t),*) $(-> $r)? { $generic::<$crate::isa::avx512::F32x16>($($a),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($a: $t),*) $(-> $r)? { $generic::<$crate::isa::avx2::F32x8>($($a),*) }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon($($a: $t),*) $(-> $r)? { $generic::<$crate::isa::neon::F32x4>($($a),*) }
            match isa {
                // SAFETY: a variant gets here only through `Cpu::new`, which asked the
                // processor for exactly these features.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 => unsafe { avx512($($a),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => unsafe { avx2($($a),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                $crate::Isa::Neon => unsafe { neon($($a),*) },
                _ => $generic::<$crate::isa::portable::F32s>($($a),*),
            }
        }
    };
}
pub(crate) use on_every_isa;

/// The arithmetic operators of a register type from its intrinsics.
macro_rules! operators {
    ($ty:ident: $($trait:ident $method:ident $intrinsic:ident),*) => {$(
        impl std::ops::$trait for $ty {
            type Output = $ty;
            #[inline(always)]
            fn $method(self, other: $ty) -> $ty {
                // SAFETY: values of this type exist only where its instructions do.
                $ty(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
#[allow(unused_imports)] // unused where only the portable variant exists
pub(crate) use operators;
