//! What a machine is: the one report that `petaflop-runtime detect --json`
//! prints, and that the host provider, the agent and the nodes provider read.

use serde::{Deserialize, Serialize};

/// A machine, as the process that asked may use it (limits of its cgroup included).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// `linux`, `macos`.
    pub os: String,
    /// The processor.
    pub cpu: Cpu,
    /// Memory this process may use.
    pub memory: Memory,
    /// Accelerators that were seen, whether or not the runtime can use them.
    pub accelerators: Vec<Accelerator>,
    /// Backends in the order they were probed, and why each was taken or left.
    pub backends: Vec<Backend>,
    /// Version of the runtime that looked.
    pub runtime_version: String,
}

/// The processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// As the system names it.
    pub model: String,
    /// Logical processors of the machine.
    pub logical: u32,
    /// Processors this process may use: the least of affinity and cgroup quota, in thousandths.
    pub allowed_milli: u32,
    /// Kernel variants this processor can run, best first: `avx512`, `avx2`, `neon`, `portable`.
    pub variants: Vec<String>,
    /// Feature flags that matter to kernels, sorted.
    pub features: Vec<String>,
    /// Rates measured here, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<CpuRates>,
}

/// What the processor was seen to do, on all allowed processors together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuRates {
    /// f32 matrix product, 10⁹ operations a second (a fused multiply-add counts two).
    pub gemm_gflops: f64,
    /// Reading memory, 10⁹ bytes a second.
    pub read_gb_s: f64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Fitted to the machine.
    pub total: u64,
    /// Limit of the cgroup, where one is set.
    pub limit: Option<u64>,
    /// Free for a new process now: the least of what the system and the cgroup have left.
    pub available: u64,
    /// Which file the limit was read from, for messages.
    pub limit_source: Option<String>,
}

/// One accelerator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accelerator {
    /// As the driver names it.
    pub name: String,
    /// `nvidia`, `amd`, `apple`, `intel`, or `other`.
    pub vendor: String,
    /// Its row in the accelerator catalogue, where one matches.
    pub catalogue: Option<String>,
    /// Device memory, in bytes; 0 where no source told.
    pub memory: u64,
    /// Architecture in the vendor's words: `sm_90`, `gfx942`.
    pub isa: Option<String>,
    /// Board power limit, in watts.
    pub power_watts: Option<f64>,
    /// Stable identity (UUID, or PCI address).
    pub id: String,
    /// `nvml`, `sysfs`, `vulkan`, `proc`.
    pub seen_by: String,
}

/// One backend of the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `cuda`, `hip`, `vulkan`, `metal`, `cpu`.
    pub name: String,
    /// Whether the runtime would use it here.
    pub usable: bool,
    /// One line: why it was taken or left.
    pub reason: String,
}
