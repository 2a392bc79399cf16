//! Which backend runs here: probed in the order cuda → hip → vulkan (or metal) →
//! cpu, each taken only after a canary kernel gave the right answer.

use petaflop_kernel::{Cpu, Dims, Epilogue, Isa, Weight, linear};
use petaflop_plan::machine::{Accelerator, Backend};

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

/// All backends in probing order with one line each. `notes`: what kept cuda, hip and vulkan
/// from seeing devices.
pub(crate) fn backends(
    accelerators: &[Accelerator],
    notes: [&[String]; 3],
    canaries: &(Vec<Isa>, Vec<String>),
) -> Vec<Backend> {
    let of = |vendor: &str| -> Vec<&Accelerator> {
        accelerators.iter().filter(|a| a.vendor == vendor).collect()
    };
    let [nvidia, amd, vulkan] = notes;
    let everything: Vec<&Accelerator> = accelerators.iter().collect();
    let mut backends = Vec::new();
    if cfg!(target_os = "macos") {
        backends.push(left("metal", &everything, &[]));
    } else {
        backends.push(left("cuda", &of("nvidia"), nvidia));
        backends.push(left("hip", &of("amd"), amd));
        backends.push(left("vulkan", &everything, vulkan));
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
    backends.push(Backend {
        name: "cpu".into(),
        usable: !passed.is_empty(),
        reason,
    });
    backends
}

/// A backend whose kernels are not in this runtime: says so, and what it would have run on.
fn left(name: &str, devices: &[&Accelerator], notes: &[String]) -> Backend {
    let mut reason = match devices {
        [] => "left: no device seen".to_owned(),
        [one] => format!("left: {} seen, but not built: {CPU_ONLY}", one.name),
        [first, ..] => format!(
            "left: {} devices seen ({}, …), but not built: {CPU_ONLY}",
            devices.len(),
            first.name
        ),
    };
    for note in notes {
        reason.push_str("; ");
        reason.push_str(note);
    }
    Backend {
        name: name.into(),
        usable: false,
        reason,
    }
}

const CPU_ONLY: &str = "this runtime computes on the processor only";

/// A small product with odd sizes, compared with plain loops in f64.
///
/// # Errors
/// What was wrong, with the first wrong figure.
fn canary(isa: Isa) -> Result<(), String> {
    let cpu = Cpu::new(Some(isa), 1).map_err(|e| e.to_string())?;
    // No multiple of any vector length, so that every remainder runs, too.
    let dims = Dims { t: 7, k: 83, n: 37 };
    // Quarters from -2 to 2: products are exact, sums nearly so.
    let figure = |i: usize| ((i * 7919 + 31) % 17) as f32 / 4.0 - 2.0;
    let x: Vec<f32> = (0..dims.t * dims.k).map(figure).collect();
    let w: Vec<f32> = (0..dims.n * dims.k).map(|i| figure(i * 3 + 1)).collect();
    let mut y = vec![f32::NAN; dims.t * dims.n];
    linear(&cpu, &x, Weight::F32(&w), &mut y, dims, Epilogue::NONE);
    for (i, &got) in y.iter().enumerate() {
        let (row, column) = (i / dims.n, i % dims.n);
        let expected: f64 = (0..dims.k)
            .map(|k| f64::from(x[row * dims.k + k]) * f64::from(w[column * dims.k + k]))
            .sum();
        // Sixteenths below 2^10 are exact in f32 in whatever order they are added.
        if f64::from(got) != expected {
            return Err(format!(
                "canary gave {got} at row {row}, column {column}, not {expected}"
            ));
        }
    }
    Ok(())
}
