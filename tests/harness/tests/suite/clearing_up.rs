//! Nothing is left of a cluster whose process was killed.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use petaflop_harness::tools;

#[test]
fn a_killed_test_process_leaves_no_server_and_no_folder() {
    let started = Instant::now();
    let with_node = tools::is_root();
    let mut process = Command::new(env!("CARGO_BIN_EXE_petaflop-harness"))
        .arg("up")
        .args(with_node.then_some("--node"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("export KUBECONFIG="), "{line} after {:?}", started.elapsed());

    // Whatever belongs to it is a descendant of the process now.
    let descendants = descendants(process.id());
    let folders: BTreeSet<PathBuf> =
        descendants.iter().filter_map(|pid| state_folder(*pid)).collect();
    let servers = if with_node { 4 + 3 } else { 4 };
    assert!(descendants.len() > servers, "{descendants:?}");
    assert_eq!(folders.len(), if with_node { 2 } else { 1 }, "{folders:?}");
    let groups: BTreeSet<_> = folders.iter().flat_map(|folder| control_groups(folder)).collect();
    assert_eq!(groups.iter().filter(|path| path.exists()).count() > 0, with_node, "{groups:?}");

    process.kill().unwrap();
    process.wait().unwrap();
    let killed = Instant::now();
    let left = || {
        let running = descendants.iter().filter(|pid| runs(**pid)).map(u32::to_string);
        let folders = folders.iter().filter(|path| path.exists());
        let groups = groups.iter().filter(|path| path.exists());
        let paths = folders.chain(groups).map(|path| path.display().to_string());
        running.chain(paths).collect::<Vec<_>>()
    };
    while !left().is_empty() {
        assert!(killed.elapsed() < Duration::from_secs(60), "still there: {:?}", left());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Children, their children, and so on; also in process namespaces of their own.
pub(crate) fn descendants(process: u32) -> Vec<u32> {
    let mut found = vec![process];
    let mut at = 0;
    while let Some(parent) = found.get(at) {
        for thread in std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten() {
            let list = thread.unwrap().path().join("children");
            let children = std::fs::read_to_string(list).unwrap_or_default();
            found.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        at += 1;
    }
    found.remove(0);
    found
}

/// The state folder that a server was started in.
fn state_folder(pid: u32) -> Option<PathBuf> {
    let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    folder.file_name()?.to_str()?.starts_with("petaflop-").then_some(folder)
}

/// The control groups that this folder's node has entered for removal.
fn control_groups(folder: &Path) -> BTreeSet<PathBuf> {
    let undo = std::fs::read_to_string(folder.join("undo")).unwrap_or_default();
    let groups = undo.split_whitespace().filter(|word| word.starts_with("/sys/fs/cgroup/"));
    groups.map(PathBuf::from).collect()
}

/// Ended but not yet noticed by its parent is not running.
fn runs(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}
