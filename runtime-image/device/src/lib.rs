//! Which backend runs on this machine, and the memory that kernels work in. What the machine is, petaflop-detect knows.
//!
//! | module | holds |
//! |---|---|
//! | [`detect`] | [`detect()`]: the one report of a machine; [`measure`]: what its processor does |
//! | [`backend`] | probing cuda → hip → vulkan/metal → cpu; [`backend::cpu`], proven by its canary |
//! | [`autotune`] | [`autotune::autotuned`]: a processor with the tiles that were the fastest, kept on disk |
//! | [`choice`] | [`choice::choose`]: the device that a command named, or the best there is |
//! | [`device`] | [`device::Device`]: memory and launches of any device |
//! | [`interpreted`] | [`interpreted::Interpreter`]: a device that every machine has, for tests |
//! | [`driver`] | what the next two share: memory, launches, kernels compiled when they are first launched |
//! | [`cuda`], [`hip`] | NVIDIA's and AMD's drivers, loaded where they are installed |
//! | `webgpu` | Vulkan and Metal, with the feature `wgpu` |
//! | [`failing`] | [`failing::Failing`]: a device with a fault, for tests |
//! | [`memory`] | [`HostBuffer`], [`MappedFile`] |

#![allow(unsafe_code)] // Memory and drivers; every block states its reason.

pub mod autotune;
pub mod backend;
pub mod choice;
pub mod cuda;
pub mod detect;
pub mod device;
pub mod driver;
pub mod failing;
pub mod hip;
pub mod interpreted;
pub mod memory;
#[cfg(feature = "wgpu")]
pub mod webgpu;

pub use choice::{Choice, Chosen, NoDevice, choose};
pub use detect::{detect, measure, threads};
pub use memory::{HostBuffer, MappedFile, OutOfMemory};
pub use petaflop_detect::Roots;
