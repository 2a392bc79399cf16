//! The kernels of the runtime and their CPU instance.
#![allow(unsafe_code)]

pub mod bench;
mod cpu;
mod first;
pub use cpu::{Cpu, Isa, ParseIsaError, UnsupportedIsa};
pub use first::*;
