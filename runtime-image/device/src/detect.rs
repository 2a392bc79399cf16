//! What this machine is, in one report.

use std::time::Duration;

use petaflop_kernel::{Cpu, Isa, bench};
use petaflop_plan::machine::{CpuRates, Machine};

use crate::device::Device;
use crate::{Roots, backend};

/// Looks at the machine. Whatever is missing, forbidden or garbled reads as not
/// there: this never fails, and says in each backend's reason what it met.
pub fn detect(roots: &Roots) -> Machine {
    let petaflop_detect::Found { mut cpu, memory, accelerators, notes } =
        petaflop_detect::look(roots);
    let canaries = backend::canaries();
    cpu.variants = canaries.0.iter().map(Isa::to_string).collect();
    let cuda = roots.drivers().then(|| named(backend::cuda()));
    let hip = roots.drivers().then(|| named(backend::hip(&accelerators)));
    #[cfg(feature = "wgpu")]
    let shaders =
        roots.drivers().then(|| named(backend::shaders(false, &accelerators, memory.available)));
    #[cfg(not(feature = "wgpu"))]
    let shaders = None;

    Machine {
        arch: std::env::consts::ARCH.into(),
        os: std::env::consts::OS.into(),
        cpu,
        memory,
        backends: backend::backends(
            &accelerators,
            notes.each_ref().map(Vec::as_slice),
            [cuda.as_ref(), hip.as_ref(), shaders.as_ref()],
            &canaries,
        ),
        accelerators,
        runtime_version: env!("CARGO_PKG_VERSION").into(),
    }
}

fn named<D: Device>(opened: Result<D, String>) -> backend::Opened {
    opened.map(|device| device.name())
}

/// Threads that a program should use here: the allowed processors, rounded up.
pub fn threads(machine: &Machine) -> usize {
    machine.cpu.allowed_milli.div_ceil(1000).max(1) as usize
}

/// Measures for about `duration` what `cpu` does; `available` bytes of memory may be used, at most 256 MiB are.
pub fn measure(cpu: &Cpu, available: u64, duration: Duration) -> CpuRates {
    let half = u64::try_from(duration.as_millis() / 2).unwrap_or(u64::MAX);
    // Far larger than caches, where there is room; gemm works inside of them.
    let bytes = (available / 4).clamp(1 << 20, 256 << 20) as usize;
    CpuRates {
        gemm_gflops: bench::gemm(cpu, 512, 512, 512, half).gflops(),
        read_gb_s: bench::read(cpu, bytes, half).gb_s(),
    }
}
