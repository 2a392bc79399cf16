//! A job's result is one hash: the same at any thread count, on every kernel
//! variant, after a kill and a rerun, and it is the hash that is committed here.
//!
//! Raise `NUMERICS_VERSION` before you change `golden/tiny.json`: the two move together.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use petaflop_tests::binary;
use serde_json::Value;
use tempfile::TempDir;

const GOLDEN: &str = include_str!("../golden/tiny.json");

/// Kernel variants of this processor, by the runtime's own word.
fn variants() -> Result<Vec<String>> {
    let detected = Command::new(binary("petaflop-runtime")?).args(["detect", "--json"]).output()?;
    let machine: Value = serde_json::from_slice(&detected.stdout).context("detect --json")?;
    Ok(serde_json::from_value(machine["cpu"]["variants"].clone())?)
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/tiny.yaml")
}

fn petaflop(home: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("petaflop")?);
    command
        .env("PETAFLOP_HOME", home)
        .env_remove("PETAFLOP_ISA")
        .env_remove("PETAFLOP_THREADS")
        .args(["run", "--json", "-f"])
        .arg(tiny())
        .args(arguments);
    Ok(command)
}

/// The object that `petaflop run --json` prints.
fn run(home: &Path, arguments: &[&str]) -> Result<Value> {
    let output = petaflop(home, arguments)?.output()?;
    ensure!(
        output.status.success(),
        "petaflop run {arguments:?} ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout)
        .context("stdout of petaflop run --json is not one JSON object")
}

fn golden() -> Result<Value> {
    let golden: Value = serde_json::from_str(GOLDEN)?;
    ensure!(
        golden["numerics_version"] == petaflop_plan::NUMERICS_VERSION,
        "golden/tiny.json is of numerics version {}, the code of {}: renew the golden hash together with the version",
        golden["numerics_version"],
        petaflop_plan::NUMERICS_VERSION
    );
    Ok(golden)
}

fn assert_golden(report: &Value, how: &str) -> Result<()> {
    let golden = golden()?;
    for name in ["key", "artifact"] {
        assert_eq!(
            report[name], golden[name],
            "{how}: {name} differs from golden/tiny.json. If a result's bits were meant to change, raise NUMERICS_VERSION"
        );
    }
    Ok(())
}

#[test]
fn threads_and_kernel_variants_do_not_change_the_hash() -> Result<()> {
    for isa in variants()? {
        // The portable variant multiplies and adds in software: minutes, so once.
        let threads: &[&str] = if isa == "portable" { &["2"] } else { &["1", "2"] };
        for threads in threads {
            let home = TempDir::new()?;
            let report = run(home.path(), &["--isa", &isa, "--threads", threads])?;
            assert_eq!(report["cached"], false);
            assert_golden(&report, &format!("{isa}, {threads} threads"))?;
        }
    }
    Ok(())
}

#[test]
fn the_same_job_again_is_a_cache_hit_that_costs_nothing() -> Result<()> {
    let home = TempDir::new()?;
    let first = run(home.path(), &[])?;
    let ledger = |home: &Path| -> Result<Value> {
        let output = Command::new(binary("petaflop")?)
            .env("PETAFLOP_HOME", home)
            .args(["costs", "--json"])
            .output()?;
        serde_json::from_slice(&output.stdout).context("costs --json")
    };
    let spent = ledger(home.path())?;
    let again = run(home.path(), &[])?;
    assert_eq!(again["cached"], true);
    assert_eq!(again["artifact"], first["artifact"]);
    assert_eq!(ledger(home.path())?, spent, "a cache hit added to the ledger");
    Ok(())
}

#[test]
fn killed_without_warning_and_run_again_the_hash_is_the_same() -> Result<()> {
    let home = TempDir::new()?;
    let mut first =
        petaflop(home.path(), &[])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for_steps(home.path(), 4)?;
    for pid in processes_of(home.path())? {
        Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    }
    first.wait()?;
    let report = run(home.path(), &[])?;
    assert_eq!(report["cached"], false, "the job finished before it could be killed");
    assert_golden(&report, "after kill -9")
}

#[test]
fn two_homes_never_touch_each_other() -> Result<()> {
    let (one, other) = (TempDir::new()?, TempDir::new()?);
    let first = run(one.path(), &[])?;
    let before = names_below(one.path())?;
    let second = run(other.path(), &[])?;
    assert_eq!(second["cached"], false, "the second home saw the first one's artifacts");
    assert_eq!(first["artifact"], second["artifact"]);
    assert_eq!(names_below(one.path())?, before);
    Ok(())
}

/// Waits until some progress file below `home` tells of `steps` steps.
fn wait_for_steps(home: &Path, steps: u64) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(120) {
        for path in names_below(home)? {
            if !path.to_string_lossy().contains("progress") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            let reached = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter_map(|line| line["step"].as_u64())
                .any(|step| step >= steps);
            if reached {
                return Ok(());
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("no progress file below {} told of step {steps} within two minutes", home.display())
}

/// Processes that were started with this home: the command, its supervisor, the runtime.
fn processes_of(home: &Path) -> Result<Vec<u32>> {
    let wanted = format!("PETAFLOP_HOME={}", home.display());
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|&byte| byte == 0).any(|pair| pair == wanted.as_bytes()) {
            pids.push(pid);
        }
    }
    ensure!(!pids.is_empty(), "no process runs with {wanted}");
    Ok(pids)
}

fn names_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
