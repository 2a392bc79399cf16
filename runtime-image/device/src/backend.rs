//! Which backend runs here: probed in the order cuda → hip → vulkan (or metal) →
//! cpu, each taken only after a canary kernel gave the right answer.

use petaflop_kernel::{Cpu, Dims, Epilogue, Isa, Weight, linear};
use petaflop_plan::machine::{Accelerator, Backend};

use crate::device::{self, Device};
use crate::driver::Gpu;
#[cfg(feature = "wgpu")]
use crate::webgpu::WebGpu;
use crate::{cuda, hip};

/// No kernel variant may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no usable backend: {0}")]
pub struct NoBackend(pub String);

/// The processor as a backend: `variant`, or the best that passes its canary, on `threads` threads.
///
/// # Errors
/// [`NoBackend`]: the processor cannot run `variant`, or it gave wrong answers. What was
/// asked for by name is never replaced by something else.
pub fn cpu(variant: Option<Isa>, threads: usize) -> Result<Cpu, NoBackend> {
    if let Some(isa) = variant {
        canary(isa).map_err(|problem| NoBackend(format!("cpu: {isa}: {problem}")))?;
        return Cpu::new(Some(isa), threads).map_err(|e| NoBackend(e.to_string()));
    }
    let (passed, failed) = canaries();
    let Some(best) = passed.first() else {
        return Err(NoBackend(format!("cpu: {}", failed.join("; "))));
    };
    for failure in &failed {
        tracing::error!(failure, "kernel variant left out");
    }
    Cpu::new(Some(*best), threads).map_err(|e| NoBackend(e.to_string()))
}

/// The variants that gave the right answer, best first, and what was wrong with the others.
pub(crate) fn canaries() -> (Vec<Isa>, Vec<String>) {
    let mut passed = Vec::new();
    let mut failed = Vec::new();
    for isa in Isa::available() {
        match canary(isa) {
            Ok(()) => passed.push(isa),
            Err(problem) => failed.push(format!("{isa} left: {problem}")),
        }
    }
    (passed, failed)
}

/// What came of opening a backend's device: its name, for its canary passed, or why there is none.
pub(crate) type Opened = Result<String, String>;

/// All backends in probing order with one line each. `notes`: what kept cuda, hip and vulkan
/// from seeing devices. `opened`: of cuda, hip, and vulkan or metal; `None` where it was not tried.
pub(crate) fn backends(
    accelerators: &[Accelerator],
    notes: [&[String]; 3],
    opened: [Option<&Opened>; 3],
    canaries: &(Vec<Isa>, Vec<String>),
) -> Vec<Backend> {
    let of = |vendor: &str| -> Vec<&Accelerator> {
        accelerators.iter().filter(|a| a.vendor == vendor).collect()
    };
    let [nvidia, amd, vulkan] = notes;
    let [cuda, hip, graphics] = opened;
    let everything: Vec<&Accelerator> = accelerators.iter().collect();
    let mut backends = Vec::new();
    if cfg!(target_os = "macos") {
        backends.push(device("metal", graphics, &everything, &[]));
    } else {
        backends.push(device("cuda", cuda, &of("nvidia"), nvidia));
        backends.push(device("hip", hip, &of("amd"), amd));
        backends.push(device("vulkan", graphics, &everything, vulkan));
    }
    let (passed, failed) = canaries;
    let mut reason = match passed.first() {
        Some(best) => format!("taken: {best} kernels passed their canary"),
        None => "left: no kernel variant passed its canary".into(),
    };
    for failure in failed {
        reason.push_str("; ");
        reason.push_str(failure);
    }
    backends.push(Backend { name: "cpu".into(), usable: !passed.is_empty(), reason });
    backends
}

/// A backend of devices: what came of opening one, which were seen, and what else was noted.
fn device(
    name: &str,
    opened: Option<&Opened>,
    devices: &[&Accelerator],
    notes: &[String],
) -> Backend {
    let seen = match devices {
        [] => "no device seen".to_owned(),
        [one] => format!("{} seen", one.name),
        [first, ..] => format!("{} devices seen ({}, …)", devices.len(), first.name),
    };
    let left = match opened {
        Some(Ok(device)) => {
            let reason = format!("taken: the canary passed on {device}");
            return Backend { name: name.into(), usable: true, reason };
        }
        Some(Err(problem)) => format!("left: {seen}; {problem}"),
        None if devices.is_empty() => format!("left: {seen}"),
        None => format!("left: {seen}, but this runtime does not compute there"),
    };
    let reason = notes.iter().fold(left, |reason, note| format!("{reason}; {note}"));
    Backend { name: name.into(), usable: false, reason }
}

/// The first device of NVIDIA's driver, proven.
pub(crate) fn cuda() -> Result<Gpu, String> {
    cuda::open().map_err(|problem| problem.to_string()).and_then(proven)
}

/// The first device of AMD's driver, proven.
pub(crate) fn hip(accelerators: &[Accelerator]) -> Result<Gpu, String> {
    let architecture = |address: &str| {
        let of = accelerators.iter().find(|a| a.id.split('#').next() == Some(address))?;
        of.isa.clone()
    };
    hip::open(architecture).map_err(|problem| problem.to_string()).and_then(proven)
}

/// The device, if its canary kernel gives the right answer on it.
///
/// # Errors
/// What went wrong, with the device's name.
pub fn proven<D: Device>(device: D) -> Result<D, String> {
    let mut problem = None;
    let result = check(|x, w, y, Dims { t, k, n }| {
        problem = device::product(&device, (x, w, y), (t as u32, k as u32, n as u32)).err();
    });
    let problem = problem.map(|problem| problem.to_string()).or(result.err());
    match problem {
        None => Ok(device),
        Some(problem) => Err(format!("{}: {problem}", device.name())),
    }
}

/// The first device behind Vulkan or Metal, proven. `emulated`: also one that this processor
/// emulates, in memory of which `available` bytes are free.
#[cfg(feature = "wgpu")]
pub(crate) fn shaders(
    emulated: bool,
    accelerators: &[Accelerator],
    available: u64,
) -> Result<WebGpu, String> {
    let memory = |name: &str, emulated: bool| {
        let known = accelerators.iter().find(|a| a.name == name && a.memory > 0);
        if emulated { Some(available) } else { known.map(|a| a.memory) }
    };
    WebGpu::open(emulated, memory).map_err(|problem| problem.to_string()).and_then(proven)
}

/// A small product on the kernels of `isa`, compared with plain loops in f64.
///
/// # Errors
/// What was wrong, with the first wrong figure.
fn canary(isa: Isa) -> Result<(), String> {
    let cpu = Cpu::new(Some(isa), 1).map_err(|e| e.to_string())?;
    check(|x, w, y, dims| linear(&cpu, x, Weight::F32(w), y, dims, Epilogue::NONE))
}

/// Runs `product(x[t,k], w[n,k], y[t,n])` and checks every figure of `y`.
fn check(product: impl FnOnce(&[f32], &[f32], &mut [f32], Dims)) -> Result<(), String> {
    // No multiple of any vector length, so that every remainder runs, too.
    let dims = Dims { t: 7, k: 83, n: 37 };
    // Quarters from -2 to 2: their products are sixteenths, and sums of 83 of them
    // stay below 2^10, so f32 holds them exactly in whatever order they are added.
    let figure = |i: usize| ((i * 7919 + 31) % 17) as f32 / 4.0 - 2.0;
    let x: Vec<f32> = (0..dims.t * dims.k).map(figure).collect();
    let w: Vec<f32> = (0..dims.n * dims.k).map(|i| figure(i * 3 + 1)).collect();
    let mut y = vec![f32::NAN; dims.t * dims.n];
    product(&x, &w, &mut y, dims);
    for (i, &got) in y.iter().enumerate() {
        let (row, column) = (i / dims.n, i % dims.n);
        let expected: f64 = (0..dims.k)
            .map(|k| f64::from(x[row * dims.k + k]) * f64::from(w[column * dims.k + k]))
            .sum();
        if f64::from(got) != expected {
            return Err(format!("canary gave {got} at row {row}, column {column}, not {expected}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failing::{Failing, Fault};
    use crate::interpreted::Interpreter;

    fn honest(x: &[f32], w: &[f32], y: &mut [f32], Dims { k, n, .. }: Dims) {
        for (i, y) in y.iter_mut().enumerate() {
            let (row, column) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            *y = row.iter().zip(column).map(|(a, b)| a * b).sum();
        }
    }

    #[test]
    fn kernels_that_give_wrong_answers_are_not_used() {
        assert_eq!(check(honest), Ok(()));
        // Nothing written; one figure off, first or last; transposed.
        assert!(check(|_, _, _, _| {}).is_err());
        for wrong in [0, 7 * 37 - 1] {
            let problem = check(|x, w, y, dims| {
                honest(x, w, y, dims);
                y[wrong] += 1.0 / 16.0;
            });
            assert!(problem.is_err_and(|p| p.contains("canary gave")));
        }
        let transposed = check(|x, w, y, dims| {
            let mut right = y.to_vec();
            honest(x, w, &mut right, dims);
            for (i, y) in y.iter_mut().enumerate() {
                *y = right[i % dims.t * dims.n + i / dims.t];
            }
        });
        assert!(transposed.is_err());
    }

    #[test]
    fn a_device_with_a_fault_is_not_used() {
        assert!(proven(Interpreter).is_ok());
        for (fault, why) in [
            (Fault::Wrong, "canary gave"),
            (Fault::Lost { after: 0 }, "the device was lost"),
            (Fault::Compile("linear_f32"), "linear_f32 does not compile on this driver"),
        ] {
            let problem = proven(Failing::new(Interpreter, fault)).expect_err("it has a fault");
            assert!(problem.contains(why), "{problem}");
        }
    }

    #[test]
    fn a_processor_whose_kernels_all_fail_is_no_backend() {
        let failed = (vec![], vec!["portable left: canary gave 1".to_owned()]);
        let backends = backends(&[], [&[], &[], &[]], [None; 3], &failed);
        let cpu = backends.last().expect("the processor comes last");
        assert!(!cpu.usable);
        assert!(cpu.reason.contains("portable left: canary gave 1"));
        assert!(backends.iter().all(|b| !b.usable));
    }

    #[test]
    fn every_variant_that_this_processor_has_can_be_asked_for_by_name() {
        for isa in Isa::available() {
            let cpu = cpu(Some(isa), 1).expect("it passes its canary");
            assert_eq!(cpu.isa(), isa);
        }
        assert_eq!(cpu(None, 2).expect("some variant").threads(), 2);
        let foreign = if cfg!(target_arch = "x86_64") { Isa::Neon } else { Isa::Avx2 };
        let refused = cpu(Some(foreign), 1).expect_err("another processor's");
        assert!(refused.0.contains(&foreign.to_string()), "{refused}");
    }
}
