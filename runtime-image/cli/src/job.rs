//! The job file, and the flags that say how to compute without changing what is computed.

use std::{fs, path::Path};

use petaflop_kernel::{Cpu, Isa};
use petaflop_plan::{machine::Machine, recipe::JobSpec};

use crate::exit::Failure;

/// Reads a job file (JSON of [`JobSpec`]).
pub(crate) fn read(path: &Path) -> Result<JobSpec, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::bad_input(format!("{}: {error}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::bad_input(format!("{}: {error}", path.display())))
}

/// How to compute. Neither changes a bit of any result.
#[derive(clap::Args, Debug)]
pub(crate) struct Compute {
    /// Threads to compute with [default: the processors this process may use]
    #[arg(long, env = "PETAFLOP_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Kernel variant: avx512, avx2, neon or portable [default: the best this processor has]
    #[arg(long, env = "PETAFLOP_ISA", value_name = "ISA")]
    isa: Option<Isa>,
}

impl Compute {
    /// The processor of this machine to compute on.
    pub(crate) fn cpu(&self, machine: &Machine) -> Result<Cpu, Failure> {
        let threads = self.threads.map_or_else(|| petaflop_device::threads(machine), usize::from);
        Cpu::new(self.isa, threads).map_err(Failure::bad_input)
    }
}
