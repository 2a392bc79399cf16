//! What this machine is, in one report.

use std::time::Duration;

use petaflop_kernel::{Cpu, Isa, bench};
use petaflop_plan::machine::{CpuRates, Machine};

use crate::{amd, backend, cgroup::Limits, nvidia, processor, roots::Roots, vulkan};

/// Looks at the machine. Whatever is missing, forbidden or garbled reads as not
/// there: this never fails, and says in each backend's reason what it met.
pub fn detect(roots: &Roots) -> Machine {
    let limits = Limits::read(roots);
    let canaries = backend::canaries();
    let mut cpu = processor::cpu(roots, &limits);
    cpu.variants = canaries.0.iter().map(Isa::to_string).collect();

    let mut seen = nvidia::look(roots);
    let nvidia_notes = std::mem::take(&mut seen.notes);
    seen.merge(amd::look(roots));
    let amd_notes = std::mem::take(&mut seen.notes);
    seen.merge(vulkan::look(roots));
    let vulkan_notes = std::mem::take(&mut seen.notes);
    let accelerators: Vec<_> = seen.devices.into_iter().map(|d| d.accelerator).collect();
    let memory = processor::memory(roots, &limits);
    #[cfg(feature = "wgpu")]
    let shaders = roots.drivers().then(|| {
        let device = backend::shaders(false, &accelerators, memory.available);
        device.map(|device| crate::device::Device::name(&device))
    });
    #[cfg(not(feature = "wgpu"))]
    let shaders = None;

    Machine {
        arch: std::env::consts::ARCH.into(),
        os: std::env::consts::OS.into(),
        cpu,
        memory,
        backends: backend::backends(
            &accelerators,
            [&nvidia_notes, &amd_notes, &vulkan_notes],
            shaders.as_ref(),
            &canaries,
        ),
        accelerators,
        runtime_version: env!("CARGO_PKG_VERSION").into(),
    }
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
