//! A program in `KUBEBUILDER_ASSETS` wins over the build, by itself: all others are the build's.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use petaflop_harness::ControlPlane;

use crate::clearing_up::descendants;

/// The programs of what a process has started, each as often as it runs.
fn programs(process: u32) -> Vec<PathBuf> {
    let exe = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    descendants(process).into_iter().filter_map(exe).collect()
}

#[tokio::test]
async fn a_program_of_the_field_s_tools_is_taken_and_the_others_are_built() {
    let _built = ControlPlane::shared().await;
    let is_built = |program: &PathBuf| program.ends_with("kubernetes");
    let built = programs(std::process::id()).into_iter().find(is_built).unwrap();
    let assets = tempfile::tempdir().unwrap();
    // It says that it was started, and is what the build has.
    let scheduler = assets.path().join("kube-scheduler");
    let started = assets.path().join("started");
    let (built_at, started_at) = (built.display(), started.display());
    let script =
        format!("#!/bin/sh\necho one >> '{started_at}'\nexec '{built_at}' kube-scheduler \"$@\"\n");
    fs::write(&scheduler, script).unwrap();
    fs::set_permissions(&scheduler, fs::Permissions::from_mode(0o755)).unwrap();

    let mut process = Command::new(env!("CARGO_BIN_EXE_petaflop-harness"))
        .arg("up")
        .env("KUBEBUILDER_ASSETS", assets.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let runs = programs(process.id());
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(line.starts_with("export KUBECONFIG="), "{line}");
    assert_eq!(fs::read_to_string(&started).unwrap(), "one\n");
    // etcd, the API server and the controllers beside it.
    assert_eq!(runs.iter().filter(|program| **program == built).count(), 4, "{runs:?}");
}
