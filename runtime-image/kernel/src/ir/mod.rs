//! Kernels as data: recorded from [`bodies`](crate::bodies), checked by an interpreter,
//! printed for GPUs.
//!
//! | module | holds |
//! |---|---|
//! | [`ops`] | the table of operations |
//! | [`record`] | the recorder: a body's function in, its program out |
//! | [`kernel`] | a program with its operands, shape of launch and archetype |
//! | [`mod@catalogue`] | every kernel of a transformer and its optimiser |
//! | [`interpret`] | runs a kernel as the operations are defined, slowly |
//! | [`print`] | CUDA-C, HIP-C and WGSL; archetypes and the skeletons of gemm and attention |
//! | [`expression`] | sizes and places, as printed and as computed |

pub mod catalogue;
pub mod expression;
pub mod interpret;
pub mod kernel;
pub mod ops;
pub mod print;
pub mod record;

pub use catalogue::catalogue;
pub use interpret::interpret;
pub use kernel::{Kernel, Launch, Memory, WrongLaunch};
