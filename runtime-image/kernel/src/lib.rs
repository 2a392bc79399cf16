//! The kernels of the runtime and their CPU instance.
#![allow(unsafe_code)]

pub mod bench;
pub mod bodies;
pub mod val;

mod attention;
mod attention_backward;
mod cpu;
mod embedding;
mod gemm;
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
pub use cpu::{Cpu, Isa, ParseIsaError, UnsupportedIsa};
pub use embedding::{embedding, embedding_backward, scatter_rows};
pub use linear::{
    Dims, Epilogue, linear, linear_dw, linear_dx, linear_packed, linear_swiglu,
    linear_swiglu_packed,
};
pub use loss::{IGNORE, cross_entropy, cross_entropy_loss};
pub use norm::{column_sum, rms_norm, rms_norm_backward};
pub use pointwise::{AdamW, adamw, add, rope, scale, sum_squares, swiglu, swiglu_backward};
pub use weight::{
    PACKED_ROWS, PackedWeight, Q8_0_BYTES, Q8_0_VALUES, Weight, dequantize, quantize_q8_0,
};
