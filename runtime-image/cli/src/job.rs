//! The job file, and the flags that say how to compute without changing what is computed.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use petaflop_device::{Choice, Chosen, autotune};
use petaflop_kernel::{Cpu, Isa};
use petaflop_model::place::Place;
use petaflop_plan::{machine::Machine, recipe::JobSpec};

use crate::exit::{Code, Failure};

/// Reads a job file (JSON of [`JobSpec`]).
pub(crate) fn read(path: &Path) -> Result<JobSpec, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::bad_input(format!("{}: {error}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::bad_input(format!("{}: {error}", path.display())))
}

/// How to compute. None of it changes a bit of any result, but for a device whose arithmetic is not
/// the processor's.
#[derive(clap::Args, Debug)]
pub(crate) struct Compute {
    /// Threads to compute with [default: the processors this process may use]
    #[arg(long, env = "PETAFLOP_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Kernel variant: avx512, avx2, neon or portable [default: the best this processor has]
    #[arg(long, env = "PETAFLOP_ISA", value_name = "ISA")]
    isa: Option<Isa>,
    /// Do not measure which tiles of matrix products are the fastest here: take the usual ones
    #[arg(long, env = "PETAFLOP_NO_AUTOTUNE")]
    no_autotune: bool,
    /// Folder that keeps what was measured [default: petaflop/autotune in the user's caches]
    #[arg(long, env = "PETAFLOP_AUTOTUNE_CACHE", value_name = "FOLDER")]
    autotune_cache: Option<PathBuf>,
}

impl Compute {
    /// The processor of this machine to compute on.
    pub(crate) fn cpu(&self, machine: &Machine) -> Result<Cpu, Failure> {
        let threads = self.threads.map_or_else(|| petaflop_device::threads(machine), usize::from);
        let cpu = Cpu::new(self.isa, threads).map_err(Failure::bad_input)?;
        if self.no_autotune {
            return Ok(cpu);
        }
        let folder = self.autotune_cache.clone().or_else(autotune::folder);
        Ok(autotune::autotuned(cpu, &machine.cpu.model, folder.as_deref()))
    }
}

/// Which device a model computes on.
#[derive(clap::Args, Debug)]
pub(crate) struct On {
    /// Device: auto, cpu, vulkan, cuda, hip or metal. auto takes the first of cuda, hip, vulkan or metal, cpu that gives
    /// the right answer to a canary kernel; another is never replaced. A result of any but cpu has a key of its own
    #[arg(long, env = "PETAFLOP_DEVICE", value_name = "DEVICE", default_value_t = Choice::Cpu)]
    device: Choice,
    /// Also take a device that this processor emulates
    #[arg(long, env = "PETAFLOP_EMULATED")]
    emulated: bool,
}

impl On {
    /// The device; none where it is the processor. Says on stderr why each was taken or left,
    /// where more than the processor was asked for.
    pub(crate) fn device(&self, machine: &Machine) -> Result<Option<Box<dyn Place>>, Failure> {
        Ok(match self.choose(machine)? {
            Chosen::Cpu => None,
            Chosen::Gpu(gpu) => Some(Box::new(gpu)),
            #[cfg(feature = "wgpu")]
            Chosen::WebGpu(gpu) => Some(Box::new(gpu)),
        })
    }

    /// The same, before it is known what for.
    pub(crate) fn choose(&self, machine: &Machine) -> Result<Chosen, Failure> {
        let tell = |line: &str| {
            if self.device != Choice::Cpu {
                // A closed stderr is no reason to end.
                let _ = writeln!(io::stderr(), "{line}");
            }
        };
        petaflop_device::choose(self.device, self.emulated, machine, tell)
            .map_err(|error| Failure { code: Code::NoDevice, message: error.to_string() })
    }
}
