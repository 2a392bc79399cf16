//! `petaflop-runtime detect`: what this machine is. The host provider and the
//! agent read the same report.

use std::{io::Write, time::Duration};

use petaflop_device::Roots;
use petaflop_kernel::Cpu;

use crate::{
    bytes::human,
    exit::{Code, Failure, print},
};

/// How long `--measure` takes.
const MEASURE: Duration = Duration::from_secs(1);

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Also measure the processor's arithmetic and memory (about a second)
    #[arg(long)]
    measure: bool,
}

pub(crate) fn run(args: &Args) -> Result<Code, Failure> {
    let mut machine = petaflop_device::detect(&Roots::system());
    if args.measure {
        let cpu = Cpu::new(None, petaflop_device::threads(&machine)).map_err(Failure::failed)?;
        machine.cpu.measured =
            Some(petaflop_device::measure(&cpu, machine.memory.available, MEASURE));
    }
    if args.json {
        print(serde_json::to_string(&machine).map_err(Failure::failed)?)?;
        return Ok(Code::Done);
    }
    let mut out = std::io::stdout().lock();
    let cpu = &machine.cpu;
    writeln!(out, "{} {}: {}", machine.os, machine.arch, cpu.model)?;
    writeln!(
        out,
        "processors   {} of {}, kernels: {}",
        f64::from(cpu.allowed_milli) / 1000.0,
        cpu.logical,
        cpu.variants.join(", ")
    )?;
    if let Some(rates) = &cpu.measured {
        writeln!(
            out,
            "measured     gemm {:.1} GFLOP/s, read {:.1} GB/s",
            rates.gemm_gflops, rates.read_gb_s
        )?;
    }
    let memory = &machine.memory;
    let limit = match (memory.limit, &memory.limit_source) {
        (Some(limit), Some(source)) => format!(", limit {} ({source})", human(limit)),
        _ => String::new(),
    };
    writeln!(
        out,
        "memory       {} free of {}{limit}",
        human(memory.available),
        human(memory.total)
    )?;
    for device in &machine.accelerators {
        writeln!(
            out,
            "accelerator  {} ({}), {}, by {}",
            device.name,
            device.vendor,
            human(device.memory),
            device.seen_by
        )?;
    }
    for backend in &machine.backends {
        writeln!(out, "{:<12} {}", backend.name, backend.reason)?;
    }
    Ok(Code::Done)
}
