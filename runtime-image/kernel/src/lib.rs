//! The kernels of the runtime, written once in Rust, and their CPU instance.
//!
//! A kernel is a generic function over a small trait ([`val`]); all of them are in
//! [`bodies`]. On SIMD lanes they are the CPU backend: AVX-512, AVX2, NEON and portable,
//! chosen when a [`Cpu`] is made. On a recorder they leave the loop body that a GPU
//! printer writes out (`tests/recorder.rs`). The skeletons of the matrix product and of
//! attention belong to the backend; what they do to an element is in [`bodies`] too.
//!
//! To follow one kernel: `bodies::rms_norm` is the arithmetic, `norm` the loop over rows
//! and the public function, `simd` the reduction and its lanes, `isa` the instructions.
//!
//! | module | holds |
//! |---|---|
//! | [`val`], [`bodies`] | the language, and every kernel in it |
//! | `isa`, `simd` | one register of each instruction set; rows and columns over them |
//! | `product`, `gemm` | the micro-kernel; blocks, panels and epilogues around it |
//! | `int8` | its like for activations rounded to 8 bits: a numerics mode of its own |
//! | [`tune`] | which tiles a product takes: measured as calls come |
//! | `linear`, `weight` | linear layers and their gradients; types and packing of weights |
//! | `attention`, `attention_backward` | causal grouped-query attention, contiguous and paged |
//! | `norm`, `pointwise`, `loss`, `embedding` | the rest of a transformer and its optimiser |
//! | `cpu`, `scratch`, [`bench`] | threads; working memory; rates of the machine |
//!
//! State: AVX-512, AVX2 and portable run under the same tests. NEON passes them, with the same
//! golden bits, emulated by qemu-user (`make kernels`); it has not been timed or run on a real machine.
//!
//! # Bits are part of the API
//!
//! The same inputs give the same bits on every instruction set, with any number of
//! threads, in any batch. What fixes them:
//!
//! * **Contractions** (linear layers, scores, attention's sums over keys): every output is
//!   one chain of fused multiply-adds over k in increasing order, starting at 0. Blocks of
//!   k carry the chain on. Bias, then what was there before, are added once, at the end.
//!   A weight of another type is first made f32 (q8_0: scale · byte, rounded once).
//!   With a [`PackedWeight::for_int8`] the steps of the chain are blocks of 32 (`int8`).
//! * **Row reductions:** 64 virtual lanes; element i joins lane i mod 64 in increasing
//!   order; then lane l takes lane l + 32, l + 16, … l + 1. Tails are filled with the
//!   identity. [`sum_squares`] makes rows of 16,384 elements and adds their sums in f64.
//! * **Column reductions:** blocks of 64 rows, each summed in order from 0; then the
//!   blocks in order; then what was there before is added to. The embedding's gradient:
//!   one sum a token, over its positions in order.
//! * **Attention:** tiles of 64 keys from the sequence's start, joined by the online
//!   softmax; within a tile a row reduction for the maximum and the sum. In the backward
//!   pass dq is one chain over keys, dk and dv over (query head, query) in order.
//! * **Elements:** `+ − × ÷ √` and fused multiply-add round as IEEE 754 says (the portable
//!   variant asks the C library for `fmaf`); `max`, `min`, comparisons, rounding and
//!   exponents are defined in [`val::Val`] to the bit, exponential and logarithm are
//!   built from those. Only the payload of a NaN is not defined.
//!
//! Tiles, panels, tasks, alignment and thresholds are none of these and may change freely;
//! a change to one of these raises the project's `NUMERICS_VERSION`.
//!
//! # Memory
//!
//! Functions take slices and allocate nothing that grows with the model but scratch, which
//! each thread keeps between calls: [`linear`] and its relatives a packed copy of the
//! weight, [`attention_backward`] five times one head's keys.
#![allow(unsafe_code)]

pub mod bench;
pub mod bodies;
pub mod ir;
pub mod tune;
pub mod val;

mod attention;
mod attention_backward;
mod blocks;
mod cpu;
mod embedding;
mod gemm;
mod int8;
mod isa;
mod linear;
mod loss;
mod norm;
mod pointwise;
mod product;
mod scratch;
mod simd;
mod weight;

pub use attention::{AttentionDims, KV_BLOCK, PagedSequence, attention_forward, attention_paged};
pub use attention_backward::attention_backward;
pub use blocks::{
    BLOCK_VALUES, Q4_0_BYTES, Q8_0_BYTES, q4_0_numbers, q8_0_for_devices, quantize_q4_0,
    quantize_q8_0,
};
pub use cpu::{Cpu, Isa, ParseIsaError, UnsupportedIsa};
pub use embedding::{embedding, embedding_backward, scatter_rows};
pub use linear::{
    Dims, Epilogue, linear, linear_dw, linear_dx, linear_packed, linear_swiglu,
    linear_swiglu_packed,
};
pub use loss::{IGNORE, cross_entropy, cross_entropy_loss};
pub use norm::{column_sum, rms_norm, rms_norm_backward};
pub use pointwise::{
    AdamW, adamw, add, dropout, rope, scale, sum_squares, swiglu, swiglu_backward,
};
pub use weight::{PackedWeight, Weight, dequantize};
