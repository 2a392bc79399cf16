//! What the machine is, and the memory that kernels work in.
//!
//! | module | holds |
//! |---|---|
//! | [`memory`] | [`HostBuffer`], [`MappedFile`] |

#![allow(unsafe_code)] // Memory and drivers; every block states its reason.

pub mod memory;

pub use memory::{HostBuffer, MappedFile, OutOfMemory};
