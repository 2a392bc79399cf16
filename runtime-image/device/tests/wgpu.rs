//! The kernels' cases on a device behind Vulkan: lavapipe, where there is no other. Near the
//! plain f64 loops, and said how many have the processor's very bits.
//!
//! `make kernels` runs it (`--features wgpu`, and a Vulkan driver).

#![allow(clippy::print_stdout)] // which device, and how near it came

#[path = "../../kernel/tests/common/mod.rs"]
mod common;

use common::cases::{cases, floats};
use common::near;
use petaflop_device::device::{Device, DeviceError};
use petaflop_device::webgpu::WebGpu;
use petaflop_kernel::ir::{Kernel, Launch, Memory};

/// Division and square root may be 2.5 and more ulp off, and `fma` may round twice.
const LOOSER: f64 = 8.0;

fn run(device: &WebGpu, kernel: &Kernel, launch: &Launch, memory: &mut Memory) {
    let mut buffers = vec![];
    for (name, words) in memory.iter() {
        let mut buffer = device.buffer(words.len()).expect("a small buffer");
        device.write(&mut buffer, 0, words).expect("as long as it is");
        buffers.push((*name, buffer));
    }
    let named: Vec<_> =
        buffers.iter().map(|(name, buffer)| (*name, device.whole(buffer))).collect();
    let mut stream = device.stream();
    device.launch(&mut stream, kernel, launch, &named).expect("the case fits the kernel");
    device.finish(stream).expect("the device is there");
    for (name, buffer) in &buffers {
        memory.insert(name, device.read(device.whole(buffer)).expect("the device is there"));
    }
}

#[test]
fn every_kernel_is_near_the_plain_loops_on_a_vulkan_device() {
    let device = WebGpu::open(true, |_, _| None)
        .expect("a Vulkan driver: apt-get install mesa-vulkan-drivers");
    println!("on {}", device.name());
    let (mut equal, mut all) = (0, 0);
    let mut worst: Vec<(String, f64)> = vec![];
    for case in cases() {
        let memory = case.run(|kernel, launch, memory| run(&device, kernel, launch, memory));
        for (name, want) in &case.naive {
            let (got, what) = (floats(&memory[name]), format!("{}: {name}", case.name));
            near(&what, &got, want, LOOSER * case.tolerance);
            let error =
                got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).abs() / (1.0 + w.abs()));
            worst.push((case.steps[0].0.into(), error.fold(0.0, f64::max)));
        }
        for (name, want) in &case.cpu {
            all += 1;
            let same =
                floats(&memory[name]).iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
            equal += usize::from(same);
        }
    }
    worst.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    worst.dedup_by(|b, a| a.0 == b.0);
    for (kernel, error) in worst {
        println!("{kernel}: {error:.1e}");
    }
    println!("{equal} of {all} results have the processor's bits");
}

#[test]
fn what_does_not_fit_is_refused_before_it_starts() {
    let device = WebGpu::open(true, |_, _| None)
        .expect("a Vulkan driver: apt-get install mesa-vulkan-drivers");
    let kernel = petaflop_kernel::ir::catalogue::kernel("add").expect("it is in the catalogue");
    let buffer = device.buffer(4).expect("a small buffer");
    let launch = Launch { dims: vec![("count", 5)], numbers: vec![] };
    let mut stream = device.stream();
    let refused = device.launch(
        &mut stream,
        &kernel,
        &launch,
        &[("x", device.whole(&buffer)), ("y", device.whole(&buffer))],
    );
    assert!(matches!(&refused, Err(DeviceError::Launch(e)) if e.problem.contains("4 words of 5")));
    let mut buffer = device.buffer(2).expect("a small buffer");
    assert!(device.write(&mut buffer, 0, &[1, 2, 3]).is_err());
    assert!(matches!(device.buffer(1 << 40), Err(DeviceError::TooLarge { .. })));
    device.finish(stream).expect("nothing to do");
}
