//! Where our runtime runs: the engine's support table.
//!
//! Bytes alone do not make a fit. A backend counts as verified for an operation only when this
//! project has run it there; what was compiled and never run needs `allowUnverified`.

use serde::{Deserialize, Serialize};

use crate::offer::Arch;
use crate::workload::Precision;

/// A way to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The processor.
    Cpu,
    /// NVIDIA.
    Cuda,
    /// AMD.
    Hip,
    /// Vulkan on anything.
    Vulkan,
    /// Apple.
    Metal,
}

impl Backend {
    /// As the runtime prints it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
            Backend::Hip => "hip",
            Backend::Vulkan => "vulkan",
            Backend::Metal => "metal",
        }
    }

    /// The backend that uses a software stack of the accelerator catalogue.
    pub fn of_stack(stack: &str) -> Option<Backend> {
        match stack {
            "cuda" => Some(Backend::Cuda),
            "rocm" => Some(Backend::Hip),
            "vulkan" => Some(Backend::Vulkan),
            "metal" => Some(Backend::Metal),
            _ => None,
        }
    }
}

/// What the engine is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Forward, backward, optimiser.
    Train,
    /// Prefill and decode.
    Serve,
}

impl Operation {
    /// In lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::Train => "train",
            Operation::Serve => "serve",
        }
    }
}

/// How far the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// Not at all.
    None,
    /// Built for it, never run on it.
    CompiledOnly,
    /// Run on it, under the tests.
    Verified,
}

/// One row: where one operation runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SupportRow {
    /// The way to compute.
    pub backend: Backend,
    /// Architectures: of the host for [`Backend::Cpu`] (`x86_64`), else the device's ISA (`sm_90`).
    pub isas: Vec<String>,
    /// What is done.
    pub operation: Operation,
    /// Number format.
    pub precision: Precision,
    /// Most devices that share one job.
    pub max_devices: u32,
    /// How far it is.
    pub level: Level,
}

/// The table; what it does not name is not supported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SupportTable {
    /// Its rows.
    pub rows: Vec<SupportRow>,
}

impl Default for SupportTable {
    /// What the runtime of this version can do: on x86-64 processors every kernel variant
    /// (AVX-512, AVX2, portable) is under the tests; on 64-bit Arm NEON is compiled and was never run.
    fn default() -> SupportTable {
        let cpu = |arch: Arch, operation, level| SupportRow {
            backend: Backend::Cpu,
            isas: vec![arch.as_str().to_owned()],
            operation,
            precision: Precision::F32,
            max_devices: 1,
            level,
        };
        SupportTable {
            rows: vec![
                cpu(Arch::X86_64, Operation::Train, Level::Verified),
                cpu(Arch::X86_64, Operation::Serve, Level::Verified),
                cpu(Arch::Aarch64, Operation::Train, Level::CompiledOnly),
                cpu(Arch::Aarch64, Operation::Serve, Level::CompiledOnly),
            ],
        }
    }
}

impl SupportTable {
    /// How far the engine is with an operation on an architecture, and on how many devices at once.
    pub fn level(
        &self,
        backend: Backend,
        isa: &str,
        operation: Operation,
        precision: Precision,
    ) -> (Level, u32) {
        self.rows
            .iter()
            .filter(|row| {
                row.backend == backend
                    && row.operation == operation
                    && row.precision == precision
                    && row.isas.iter().any(|known| known == isa)
            })
            .map(|row| (row.level, row.max_devices))
            .max()
            .unwrap_or((Level::None, 0))
    }
}
