//! The commands that look without touching.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use common::{Bench, runtime};
use petaflop_plan::machine::Machine;
use serde_json::Value;

fn json(args: &[&str]) -> Value {
    let output = runtime(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_built_in_text_is_found_and_has_one_digest() {
    let mut bench = Bench::new(1);
    bench.job.inputs[0].uri = "builtin:petaflop".into();
    let key = |bench: &Bench| json(&["key", "--job", bench.write_job().to_str().unwrap()]);
    let facts = key(&bench);
    assert!(facts["digests"]["data"].as_str().unwrap().starts_with("blake3:"), "{facts}");
    assert_eq!(facts, key(&bench));
}

#[test]
fn a_plan_says_the_exact_bytes_and_whether_they_fit() {
    let bench = Bench::new(1);
    let job = bench.write_job();
    let job = job.to_str().unwrap();
    let facts = json(&["plan", "--job", job, "--json", "--device", "1GiB"]);
    assert_eq!(facts["fits"], true);
    let arena = facts["arena_bytes"].as_u64().unwrap();
    let sum: u64 =
        facts["segments"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(arena, sum);

    let exactly = json(&["plan", "--job", job, "--json", "--device", &arena.to_string()]);
    assert_eq!(exactly["fits"], true);
    let output = runtime(&["plan", "--job", job, "--json", "--device", &(arena - 1).to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["fits"], false);
    assert!(String::from_utf8_lossy(&output.stderr).contains(": 1 too many"));
}

#[test]
fn a_models_config_is_planned_for_training_and_for_serving() {
    let bench = Bench::new(2);
    let (artifact, _) = bench.train(&[]).artifact();
    let config = bench.path("config.json");
    let store = petaflop_store::blocking::Store::open(&bench.job.store).unwrap();
    std::fs::write(&config, store.read_file(artifact.parse().unwrap(), "config.json").unwrap())
        .unwrap();
    let config = config.to_str().unwrap();
    let training = json(&[
        "plan",
        "--config",
        config,
        "--micro-batch-size",
        "2",
        "--sequence-len",
        "32",
        "--json",
    ]);
    let job = json(&["plan", "--job", bench.write_job().to_str().unwrap(), "--json"]);
    assert_eq!(training, job);
    let serving = json(&["plan", "--config", config, "--serve", "--json"]);
    assert_eq!(serving["parameters"], training["parameters"]);
    assert!(
        serving["segments"]["kv_cache"].as_u64() > Some(0) && serving["backward_flops"] == 0,
        "{serving}"
    );
}

#[test]
fn detect_reports_a_machine_that_others_can_read() {
    let machine: Machine = serde_json::from_value(json(&["detect", "--json"])).unwrap();
    assert!(machine.cpu.allowed_milli > 0 && machine.memory.available > 0);
    assert!(machine.cpu.variants.iter().any(|variant| variant == "portable"), "{machine:?}");
    let cpu = machine.backends.iter().find(|backend| backend.name == "cpu").unwrap();
    assert!(cpu.usable, "{cpu:?}");
}

#[test]
fn benchmarks_print_their_rates() {
    let small = ["--seconds", "0.05", "--json"];
    let args = [
        &[
            "bench", "training", "--layers", "1", "--dim", "32", "--heads", "2", "--seq", "16",
            "--batch", "2",
        ],
        &small[..],
    ]
    .concat();
    let facts = json(&args);
    assert!(facts["tokens_per_second"].as_f64().unwrap() > 0.0, "{facts}");
    assert_eq!(facts["planned_bytes"], facts["arena_bytes"]);
    for (what, rates, size) in [
        ("gemm", &["gflops", "gb_s"][..], &["--size", "64"][..]),
        ("gemv", &["gflops", "gb_s"], &["--rows", "96", "--width", "64"]),
        ("attention", &["gflops", "gb_s"], &["--seq", "32", "--heads", "4", "--kv-heads", "2"]),
        ("norm", &["gflops", "gb_s"], &["--rows", "64", "--width", "48"]),
        ("loss", &["gb_s"], &["--rows", "64", "--width", "48"]),
        ("copy", &["gb_s"], &["--size", "1MiB"]),
        ("read", &["gb_s"], &["--size", "1MiB"]),
        ("fma", &["gflops"], &[]),
        ("prefill", &["gflops", "gb_s"], &["--layers", "1", "--vocab", "300", "--prompt", "20"]),
        ("decode", &["gflops", "gb_s"], &["--layers", "1", "--vocab", "300", "--weights", "f32"]),
    ] {
        let facts = json(&[&["bench", what], size, &small].concat());
        for rate in rates.iter().chain(&["of_roofline", "fma_peak_gflops", "read_gb_s"]) {
            assert!(facts[rate].as_f64().unwrap() > 0.0, "{what}: {rate}: {facts}");
        }
        let known = facts.get("gflops").is_some();
        assert_eq!(known, rates.contains(&"gflops"), "{facts}");
    }
}

#[test]
fn exit_codes_are_documented_and_bad_flags_are_bad_input() {
    let help = runtime(&["--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for line in ["0  done", "1  failed", "2  bad input", "3  does not fit", "75  stopped"] {
        assert!(help.contains(line), "{help}");
    }
    for args in [
        &["train"][..],
        &["train", "--job", "x", "--isa", "mmx"],
        &["plan", "--json"],
        &["plan", "--config", "x", "--device", "big"],
    ] {
        assert_eq!(runtime(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}
