//! Which device a command computes on: the one it names, or the best there is.

use std::fmt;
use std::str::FromStr;

use petaflop_plan::machine::{Backend, Machine};

#[cfg(feature = "wgpu")]
use crate::webgpu::WebGpu;
use crate::{backend, device::Device, driver::Gpu};

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first in probing order that passes its canary; the processor is the last of them.
    Auto,
    /// The processor.
    Cpu,
    /// NVIDIA's driver.
    Cuda,
    /// AMD's driver.
    Hip,
    /// Any device with a Vulkan driver.
    Vulkan,
    /// Apple's devices.
    Metal,
}

impl Choice {
    const ALL: [Self; 6] =
        [Self::Auto, Self::Cpu, Self::Vulkan, Self::Cuda, Self::Hip, Self::Metal];
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Hip => "hip",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
        })
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|choice| choice.to_string() == text);
        known.ok_or_else(|| format!("expected {}", Self::ALL.map(|c| c.to_string()).join(", ")))
    }
}

/// What a command computes on, proven by its canary.
pub enum Chosen {
    /// The processor.
    Cpu,
    /// A device behind CUDA's or HIP's driver.
    Gpu(Gpu),
    /// A device behind Vulkan or Metal.
    #[cfg(feature = "wgpu")]
    WebGpu(WebGpu),
}

/// Nothing of what was asked for can be computed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no device to compute on: {0}")]
pub struct NoDevice(pub String);

/// Goes through the backends of `machine` in their order, and takes the first that was asked for
/// and passes. `tell` hears one line for each, why it was taken or left. `emulated`: also a
/// device that this processor emulates, which nobody wants who did not ask for it.
///
/// # Errors
/// The reasons of all that were asked for. What was named is never replaced by something else.
pub fn choose(
    choice: Choice,
    emulated: bool,
    machine: &Machine,
    mut tell: impl FnMut(&str),
) -> Result<Chosen, NoDevice> {
    let mut left = Vec::new();
    let wanted = |b: &&Backend| choice == Choice::Auto || b.name == choice.to_string();
    for backend in machine.backends.iter().filter(wanted) {
        match open(backend, emulated, machine) {
            Ok((chosen, why)) => {
                tell(&format!("{} {why}", backend.name));
                return Ok(chosen);
            }
            Err(why) => {
                let line = format!("{} {why}", backend.name);
                tell(&line);
                left.push(line);
            }
        }
    }
    if left.is_empty() {
        left.push(format!("{choice} is not on {}", machine.os));
    }
    Err(NoDevice(left.join("; ")))
}

/// A backend ready to use and why it was taken, or why it was left.
#[cfg_attr(not(feature = "wgpu"), expect(unused_variables, reason = "they are for Vulkan"))]
fn open(backend: &Backend, emulated: bool, machine: &Machine) -> Result<(Chosen, String), String> {
    let left = |problem| format!("left: {problem}");
    match &*backend.name {
        "cpu" if backend.usable => Ok((Chosen::Cpu, backend.reason.clone())),
        "cuda" if backend.usable => proven(backend::cuda().map_err(left)?, Chosen::Gpu),
        "hip" if backend.usable => {
            proven(backend::hip(&machine.accelerators).map_err(left)?, Chosen::Gpu)
        }
        #[cfg(feature = "wgpu")]
        "vulkan" | "metal" if backend.usable || emulated => {
            let available = machine.memory.available;
            let gpu = backend::shaders(emulated, &machine.accelerators, available);
            proven(gpu.map_err(left)?, Chosen::WebGpu)
        }
        _ => Err(backend.reason.clone()),
    }
}

fn proven<D: Device>(
    device: D,
    chosen: impl FnOnce(D) -> Chosen,
) -> Result<(Chosen, String), String> {
    let why = format!("taken: the canary passed on {}", device.name());
    Ok((chosen(device), why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Roots, detect};

    /// A machine without drivers.
    fn bare() -> Machine {
        detect(&Roots::files_under("/nowhere"))
    }

    fn chosen(choice: Choice, machine: &Machine) -> (Option<NoDevice>, Vec<String>) {
        let mut lines = Vec::new();
        let chosen = choose(choice, false, machine, |line| lines.push(line.to_owned()));
        (chosen.err(), lines)
    }

    #[test]
    fn the_processor_is_what_is_left_where_any_device_will_do() {
        let (error, lines) = chosen(Choice::Auto, &bare());
        assert_eq!(error, None);
        let names: Vec<&str> = lines.iter().filter_map(|l| l.split(' ').next()).collect();
        assert_eq!(names, ["cuda", "hip", "vulkan", "cpu"]);
        assert!(lines[0].contains("left: no device seen"), "{lines:?}");
        assert!(lines[3].contains("taken: "), "{lines:?}");
    }

    #[test]
    fn a_device_that_was_named_is_never_replaced() {
        for (choice, why) in [
            (Choice::Cuda, "cuda left: no device seen"),
            (Choice::Hip, "hip left: no device seen"),
            (Choice::Metal, "metal is not on linux"),
        ] {
            let error = chosen(choice, &bare()).0.expect("there is none");
            assert!(error.0.contains(why), "{error}");
        }
        let mut broken = bare();
        let cpu = broken.backends.last_mut().expect("the processor comes last");
        (cpu.usable, cpu.reason) = (false, "left: its canary gave 1".to_owned());
        for choice in [Choice::Cpu, Choice::Auto] {
            let error = chosen(choice, &broken).0.expect("its answers are wrong");
            assert!(error.0.contains("cpu left: its canary gave 1"), "{error}");
        }
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in Choice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let refused = "gpu".parse::<Choice>().expect_err("no such backend");
        assert_eq!(refused, "expected auto, cpu, vulkan, cuda, hip, metal");
    }
}
