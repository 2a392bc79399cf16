//! `petaflop-runtime check`: the kernels on this machine's device, each beside the interpreter, and how
//! fast products are. It needs nothing but this binary and a driver.

use std::{
    io::{self, Write},
    time::Instant,
};

use petaflop_device::device::{Device, DeviceError};
use petaflop_device::{Chosen, Roots};
use petaflop_kernel::ir::interpret::interpret;
use petaflop_kernel::ir::kernel::{Archetype, Type};
use petaflop_kernel::ir::{Kernel, Launch, Memory, catalogue};
use petaflop_plan::Numerics;
use serde_json::json;

use crate::{
    exit::{Code, Failure, print},
    job::On,
};

/// |found − interpreter's| ÷ (1 + |interpreter's|) of a result, at most: of the least exact kernel in WGSL, attention's
/// gradients (docs/kernels.md). What rounds as IEEE 754 says has to have the interpreter's bits.
const TOLERANCE: f64 = 3.2e-4;

/// Products are timed at these sizes, up to the last that takes no more than [`LONG`].
const SIZES: [u32; 4] = [512, 1024, 2048, 4096];
/// Seconds that may go by at one size before no more is timed.
const LONG: f64 = 2.0;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    on: On,
}

pub(crate) fn run(args: &Args) -> Result<Code, Failure> {
    let machine = petaflop_device::detect(&Roots::system());
    match args.on.choose(&machine)? {
        Chosen::Cpu => Err(Failure::bad_input(
            "the processor's kernels are what devices are held against: give --device vulkan, cuda, hip or metal",
        )),
        Chosen::Gpu(gpu) => check(&gpu),
        #[cfg(feature = "wgpu")]
        Chosen::WebGpu(gpu) => check(&gpu),
    }
}

/// Prints an object with everything that was found, and on stderr a line each.
fn check<D: Device>(device: &D) -> Result<Code, Failure> {
    let exact = device.numerics() != Numerics::Wgsl;
    let (mut kernels, mut wrong) = (Vec::new(), Vec::new());
    for kernel in catalogue() {
        let Compared { error, equal, of } = compare(device, &kernel).map_err(failure)?;
        let right = if exact { equal == of } else { error <= TOLERANCE };
        say(&format!(
            "{:24} {} error {error:.1e}, {equal} of {of} results have the interpreter's bits",
            kernel.name,
            if right { "right" } else { "WRONG" },
        ));
        if !right {
            wrong.push(kernel.name.clone());
        }
        kernels.push(json!({
            "kernel": kernel.name, "right": right, "error": error, "equal": equal, "results": of,
        }));
    }
    let mut products = Vec::new();
    for size in SIZES {
        let seconds = time(device, [size; 3]).map_err(failure)?;
        let gflops = 2.0 * f64::from(size).powi(3) / seconds / 1e9;
        say(&format!("gemm f32 {size}³: {gflops:.1} GFLOP/s"));
        products.push(json!({"size": size, "gflops": gflops}));
        if seconds * 8.0 > LONG {
            break;
        }
    }
    // One row against a matrix larger than caches: its time is that of reading the matrix.
    let (n, depth) = (8192, 2048);
    let seconds = time(device, [1, n, depth]).map_err(failure)?;
    let gb_s = f64::from(n) * f64::from(depth) * 4.0 / seconds / 1e9;
    say(&format!("gemv f32 {n}·{depth}: {gb_s:.2} GB/s"));
    print(json!({
        "device": device.name(), "numerics": device.numerics().to_string(),
        "right": wrong.is_empty(), "kernels": kernels, "gemm": products, "gemv_gb_s": gb_s,
    }))?;
    if wrong.is_empty() {
        return Ok(Code::Done);
    }
    let message = format!("wrong results on {}: {}", device.name(), wrong.join(", "));
    Err(Failure { code: Code::NoDevice, message })
}

fn failure(error: DeviceError) -> Failure {
    Failure { code: Code::NoDevice, message: error.to_string() }
}

fn say(line: &str) {
    // A closed stderr is no reason to end.
    let _ = writeln!(io::stderr(), "{line}");
}

/// How near a kernel's results are to the interpreter's.
struct Compared {
    /// The largest |found − interpreter's| ÷ (1 + |interpreter's|).
    error: f64,
    /// Results with the very bits.
    equal: usize,
    /// All results.
    of: usize,
}

/// The kernel on a small, odd shape, here and in the interpreter.
fn compare<D: Device>(device: &D, kernel: &Kernel) -> Result<Compared, DeviceError> {
    let launch = launch(kernel);
    let before = memory(kernel, &launch)?;
    let mut want = before.clone();
    interpret(kernel, &launch, &mut want)?;
    let found = on_device(device, kernel, &launch, &before)?;
    let (mut error, mut equal, mut of) = (0.0f64, 0, 0);
    for (name, ..) in kernel.buffers() {
        if want[name] == before[name] && found[name] == before[name] {
            continue;
        }
        for (&want, &found) in want[name].iter().zip(&found[name]) {
            of += 1;
            let (exact, near) = (f64::from(f32::from_bits(want)), f64::from(f32::from_bits(found)));
            if want == found || (exact.is_nan() && near.is_nan()) {
                equal += 1;
                continue;
            }
            let apart = (near - exact).abs() / (1.0 + exact.abs());
            // Neither is comparable with a NaN: that is as wrong as can be.
            error = if apart.is_nan() { f64::INFINITY } else { error.max(apart) };
        }
    }
    Ok(Compared { error, equal, of })
}

/// Sizes that no vector length divides; of blocks where the kernel has such.
fn launch(kernel: &Kernel) -> Launch {
    let blocks = kernel.fields.iter().any(|field| field.ty == Type::I8);
    let long = if blocks { 96 } else { 131 };
    let columns = matches!(kernel.archetype, Archetype::Gemm { .. });
    let size =
        |name: &str| match name {
            "rows" | "seq" => 70,
            "n" if columns => 67,
            "n" | "depth" => long,
            "m" => 37,
            "count" => 1030,
            "batch" | "kv_heads" | "heads" if kernel.dims.contains(&"head_dim") => {
                if name == "heads" { 4 } else { 2 }
            }
            "heads" => 2,
            "head_dim" => 24,
            "segments" => 70,
            "table_rows" | "positions_known" => 71,
            // The generator's seeds.
            _ => 7,
        };
    Launch {
        dims: kernel.dims.iter().map(|&name| (name, size(name))).collect(),
        numbers: kernel.numbers.iter().map(|&name| (name, 0.25)).collect(),
    }
}

/// What the kernel works on: made-up numbers, and lists that lead into what they index.
fn memory(kernel: &Kernel, launch: &Launch) -> Result<Memory, DeviceError> {
    let mut memory = Memory::new();
    for (seed, (name, ty, len)) in kernel.buffers().into_iter().enumerate() {
        let len = kernel.size(len, launch)? as usize;
        let word = |i: usize| word_of(seed as u32, i as u32);
        let words: Vec<u32> = match ty {
            // Where segments begin rises; all other lists may lead anywhere, and here lead backwards.
            None if name == "starts" => (0..len as u32).collect(),
            None => (0..len as u32).rev().collect(),
            Some(Type::Bf16) => (0..len.div_ceil(2)).map(|i| bf16_pair(word(i))).collect(),
            Some(Type::I8) => (0..len.div_ceil(4)).map(word).collect(),
            Some(_) => (0..len).map(|i| sensible(name, number(word(i))).to_bits()).collect(),
        };
        memory.insert(name, words);
    }
    Ok(memory)
}

/// Of a number in (−1, 1) one that the buffer may hold: second moments and norms' factors are never negative, and
/// a scale is a block's largest number over the largest byte.
fn sensible(name: &str, number: f32) -> f32 {
    match name {
        "v" | "rstd" => number.abs(),
        _ if name.ends_with("scales") => number / 127.0,
        _ => number,
    }
}

/// Some word, of each seed and place another (the finaliser of MurmurHash3).
fn word_of(seed: u32, at: u32) -> u32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9) ^ at.wrapping_add(1).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// In (−1, 1).
fn number(word: u32) -> f32 {
    (word >> 8) as f32 / (1u32 << 23) as f32 - 1.0
}

/// Two numbers in (−1, 1), cut to bfloat16.
fn bf16_pair(word: u32) -> u32 {
    let [low, high] = [word, word.rotate_left(16)].map(|word| number(word).to_bits() >> 16);
    low | high << 16
}

/// What is in memory after a launch on the device.
fn on_device<D: Device>(
    device: &D,
    kernel: &Kernel,
    launch: &Launch,
    memory: &Memory,
) -> Result<Memory, DeviceError> {
    let mut buffers = Vec::new();
    for (&name, words) in memory {
        let mut buffer = device.buffer(words.len())?;
        device.write(&mut buffer, 0, words)?;
        buffers.push((name, buffer));
    }
    let named: Vec<_> = buffers.iter().map(|(name, b)| (*name, device.whole(b))).collect();
    let mut stream = device.stream();
    device.launch(&mut stream, kernel, launch, &named)?;
    device.finish(stream)?;
    named.iter().map(|(name, view)| Ok((*name, device.read(*view)?))).collect()
}

/// Seconds of a product of these sizes (m, n, depth), of the best of at most twenty.
fn time<D: Device>(device: &D, [m, n, depth]: [u32; 3]) -> Result<f64, DeviceError> {
    let missing = || DeviceError::None("linear_f32 is not in the catalogue".into());
    let kernel = catalogue::kernel("linear_f32").ok_or_else(missing)?;
    let launch = Launch { dims: vec![("m", m), ("n", n), ("depth", depth)], numbers: vec![] };
    let sizes = [m * depth, n * depth, m * n];
    let [x, w, y] = sizes.map(|words| device.buffer(words as usize));
    let (x, w, y) = (x?, w?, y?);
    let operands = [("x", device.whole(&x)), ("w", device.whole(&w)), ("y", device.whole(&y))];
    let mut best = f64::INFINITY;
    let begun = Instant::now();
    for _ in 0..20 {
        let mut stream = device.stream();
        device.launch(&mut stream, &kernel, &launch, &operands)?;
        let start = Instant::now();
        device.finish(stream)?;
        best = best.min(start.elapsed().as_secs_f64());
        if begun.elapsed().as_secs_f64() > LONG {
            break;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use petaflop_device::failing::{Failing, Fault};
    use petaflop_device::interpreted::Interpreter;

    #[test]
    fn every_kernel_is_compared_and_one_wrong_bit_is_found() {
        for kernel in catalogue() {
            let honest = compare(&Interpreter, &kernel).expect("it fits the kernel");
            assert!(honest.of > 0 && honest.equal == honest.of, "{}", kernel.name);
            let wrong = Failing::new(Interpreter, Fault::Wrong);
            let wrong = compare(&wrong, &kernel).expect("it fits the kernel");
            assert!(wrong.equal < wrong.of, "{}", kernel.name);
        }
    }
}
