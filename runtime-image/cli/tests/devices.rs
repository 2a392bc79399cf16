//! Which device a job computes on, and what becomes of it when that fails.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use std::sync::atomic::AtomicBool;

use common::{Bench, runtime};
use petaflop_device::failing::{Failing, Fault};
use petaflop_device::interpreted::Interpreter;
use petaflop_kernel::Cpu;
use petaflop_model::place::Place;
use petaflop_train::{Class, Error, Options, Outcome, input::Builtins};

/// The job on this device, in this process.
fn train(bench: &Bench, device: impl Place + 'static) -> Result<Outcome, Error> {
    let options = Options {
        builtins: &Builtins::new(),
        progress: None,
        cpu: Cpu::new(None, 1).unwrap(),
        device: Some(Box::new(device)),
        memory: None,
        fresh: true,
        stop: &AtomicBool::new(false),
    };
    petaflop_train::run(&bench.job, options)
}

fn artifact(outcome: Outcome) -> String {
    match outcome {
        Outcome::Finished { artifact, .. } => artifact.to_string(),
        Outcome::Stopped { step } => panic!("stopped at step {step}"),
    }
}

#[test]
fn a_job_on_a_device_of_the_same_arithmetic_has_the_processors_artifact_also_after_a_loss() {
    let mut bench = Bench::new(3);
    bench.job.recipe.sequence_len = 8;
    let (expected, _) = bench.train(&[]).artifact();
    bench.fresh("interpreted");
    assert_eq!(artifact(train(&bench, Interpreter).unwrap()), expected);

    // It disappears in the second of three steps, each with its checkpoint.
    bench.fresh("lost");
    bench.job.checkpoint_interval_seconds = 0;
    let mut launches = 0;
    let lost = loop {
        launches += 200;
        let device = Failing::new(Interpreter, Fault::Lost { after: launches });
        let error = train(&bench, device).unwrap_err();
        let checkpoints = std::fs::read_dir(&bench.job.checkpoints).unwrap().flatten();
        if checkpoints.into_iter().any(|c| c.file_name().to_string_lossy().starts_with("step-")) {
            break error;
        }
    };
    assert_eq!(lost.class(), Class::Retry);
    let message = lost.to_string();
    assert!(
        message.contains("the device was lost") && message.contains("checkpoint is intact"),
        "{message}"
    );
    assert_eq!(bench.artifacts(), 0, "nothing was made of it");
    assert_eq!(artifact(train(&bench, Interpreter).unwrap()), expected);
}

#[test]
fn a_device_that_is_too_small_or_refuses_a_kernel_is_said_to_be() {
    let bench = Bench::new(1);
    let small = train(&bench, Failing::new(Interpreter, Fault::Memory(1000))).unwrap_err();
    assert_eq!(small.class(), Class::DoesNotFit);
    assert!(small.to_string().contains("bytes of device memory are needed"), "{small}");
    let old = train(&bench, Failing::new(Interpreter, Fault::Compile("rms_norm"))).unwrap_err();
    assert_eq!(old.class(), Class::NoDevice);
    assert!(old.to_string().contains("does not compile on this driver"), "{old}");
}

#[test]
fn a_device_that_is_not_there_ends_the_command_and_is_never_replaced() {
    let bench = Bench::new(1);
    for device in ["cuda", "hip", "metal"] {
        let ended = bench.train(&["--device", device]);
        assert!(ended.failure(4).starts_with("no device to compute on: "), "{ended:?}");
        let served = runtime(&["serve", "--folder", "x", "--device", device]).output().unwrap();
        assert_eq!(served.status.code(), Some(4), "{device}");
        let checked = runtime(&["check", "--device", device]).output().unwrap();
        assert_eq!(checked.status.code(), Some(4), "{device}");
    }
    let checked = runtime(&["check", "--device", "cpu"]).output().unwrap();
    assert_eq!(checked.status.code(), Some(2), "it is what devices are held against");
    assert_eq!(bench.train(&["--device", "gpu"]).code, Some(2));
}

#[cfg(not(feature = "wgpu"))]
#[test]
fn any_device_is_the_processor_where_nothing_else_can_be_computed_on() {
    let mut bench = Bench::new(1);
    let (expected, _) = bench.train(&[]).artifact();
    bench.fresh("auto");
    let ended = bench.train(&["--device", "auto"]);
    for line in ["cuda left: ", "hip left: ", "vulkan left: ", "cpu taken: "] {
        assert!(ended.stderr.contains(line), "{ended:?}");
    }
    assert_eq!(ended.artifact(), (expected, false));
}

/// Where a driver emulates one, which `make kernels` sees to.
#[cfg(feature = "wgpu")]
#[test]
fn a_job_trains_on_vulkan_and_its_result_has_a_key_of_its_own() {
    let mut bench = Bench::new(2);
    let (on_cpu, _) = bench.train(&[]).artifact();
    let ended = bench.train(&["--device", "vulkan", "--emulated"]);
    assert!(ended.stderr.contains("vulkan taken: the canary passed on "), "{ended:?}");
    let (on_vulkan, cached) = ended.artifact();
    assert!(!cached && on_vulkan != on_cpu, "{on_vulkan}");
    let again = bench.train(&["--device", "vulkan", "--emulated"]);
    assert_eq!(again.artifact(), (on_vulkan, true));
    bench.fresh("unasked");
    let emulated = bench.train(&["--device", "vulkan"]);
    assert!(emulated.failure(4).contains("emulating a device"), "{emulated:?}");
}

#[cfg(feature = "wgpu")]
#[test]
fn every_kernel_is_right_on_vulkan_and_products_are_measured() {
    let checked = runtime(&["check", "--device", "vulkan", "--emulated"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{stderr}");
    let found: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(found["right"], true, "{stderr}");
    assert_eq!(found["kernels"].as_array().unwrap().len(), petaflop_kernel::ir::catalogue().len());
    assert!(found["gemm"][0]["gflops"].as_f64().unwrap() > 0.0, "{found}");
}
