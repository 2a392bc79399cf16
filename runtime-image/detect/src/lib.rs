//! What this machine is, by what its system and drivers say: nothing is computed here.
//!
//! | module | holds |
//! |---|---|
//! | `processor`, `cgroup` | processors and bytes that this process may use |
//! | `nvidia`, `amd`, `vulkan` | who sees which accelerators; `accelerators` joins them, `catalogue` knows their rows |
//! | `roots` | [`Roots`]: where the system's files are looked for |

#![allow(unsafe_code)] // Vulkan's loader; every block states its reason.

mod accelerators;
mod amd;
mod catalogue;
mod cgroup;
mod nvidia;
mod processor;
mod roots;
mod vulkan;

use petaflop_plan::machine::{Accelerator, Cpu, Memory};

pub use roots::Roots;

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The processor, without kernel variants and rates.
    pub cpu: Cpu,
    /// Bytes, as this process may use them.
    pub memory: Memory,
    /// Every accelerator once, whoever saw it.
    pub accelerators: Vec<Accelerator>,
    /// What kept NVIDIA's, AMD's and Vulkan's side from seeing more, a line each.
    pub notes: [Vec<String>; 3],
}

/// Looks at the machine. Whatever is missing, forbidden or garbled reads as not there: this never
/// fails, and says in the notes what it met.
pub fn look(roots: &Roots) -> Found {
    let limits = cgroup::Limits::read(roots);
    let mut seen = nvidia::look(roots);
    let nvidia = std::mem::take(&mut seen.notes);
    seen.merge(amd::look(roots));
    let amd = std::mem::take(&mut seen.notes);
    seen.merge(vulkan::look(roots));
    let vulkan = std::mem::take(&mut seen.notes);
    Found {
        cpu: processor::cpu(roots, &limits),
        memory: processor::memory(roots, &limits),
        accelerators: seen.devices.into_iter().map(|device| device.accelerator).collect(),
        notes: [nvidia, amd, vulkan],
    }
}
