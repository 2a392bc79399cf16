//! The job file, and the flags that say how to compute without changing what is computed.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use petaflop_device::{Choice, Chosen};
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
}

impl Compute {
    /// The processor of this machine to compute on.
    pub(crate) fn cpu(&self, machine: &Machine) -> Result<Cpu, Failure> {
        let threads = self.threads.map_or_else(|| petaflop_device::threads(machine), usize::from);
        Cpu::new(self.isa, threads).map_err(Failure::bad_input)
    }
}

/// Which device a model computes on.
#[derive(clap::Args, Debug)]
pub(crate) struct On {
    /// Device: auto, cpu, vulkan, cuda, hip or metal. auto takes the first of cuda, hip, vulkan or metal, cpu that gives
    /// the right answer to a canary kernel; another is never replaced. A result of vulkan or metal has a key of its own
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
        let tell = |line: &str| {
            if self.device != Choice::Cpu {
                // A closed stderr is no reason to end.
                let _ = writeln!(io::stderr(), "{line}");
            }
        };
        match petaflop_device::choose(self.device, self.emulated, machine, tell) {
            Ok(Chosen::Cpu) => Ok(None),
            #[cfg(feature = "wgpu")]
            Ok(Chosen::WebGpu(gpu)) => Ok(Some(Box::new(gpu))),
            Err(error) => Err(Failure { code: Code::NoDevice, message: error.to_string() }),
        }
    }
}
