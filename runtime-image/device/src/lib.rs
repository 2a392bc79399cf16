//! What the machine is, which backend runs on it, and the memory that kernels work in.
//!
//! | module | holds |
//! |---|---|
//! | [`detect`] | [`detect()`]: the one report of a machine; [`measure`]: what its processor does |
//! | [`backend`] | probing cuda → hip → vulkan/metal → cpu; [`backend::cpu`], proven by its canary |
//! | [`choice`] | [`choice::choose`]: the device that a command named, or the best there is |
//! | [`device`] | [`device::Device`]: memory and launches of any device |
//! | [`interpreted`] | [`interpreted::Interpreter`]: a device that every machine has, for tests |
//! | `webgpu` | Vulkan and Metal, with the feature `wgpu` |
//! | [`failing`] | [`failing::Failing`]: a device with a fault, for tests |
//! | [`memory`] | [`HostBuffer`], [`MappedFile`] |
//! | `processor`, `cgroup` | processors and bytes that this process may use |
//! | `nvidia`, `amd`, `vulkan` | who sees which accelerators; `accelerators` joins them, `catalogue` knows their rows |
//! | `roots` | [`Roots`]: where the system's files are looked for |

#![allow(unsafe_code)] // Memory and drivers; every block states its reason.

mod accelerators;
mod amd;
pub mod backend;
mod catalogue;
mod cgroup;
pub mod choice;
pub mod detect;
pub mod device;
pub mod failing;
pub mod interpreted;
pub mod memory;
mod nvidia;
mod processor;
mod roots;
mod vulkan;
#[cfg(feature = "wgpu")]
pub mod webgpu;

pub use choice::{Choice, Chosen, NoDevice, choose};
pub use detect::{detect, measure, threads};
pub use memory::{HostBuffer, MappedFile, OutOfMemory};
pub use roots::Roots;
