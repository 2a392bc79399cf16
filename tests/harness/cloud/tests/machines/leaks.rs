//! Nothing is left, however a test ends.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use petaflop_cloud_box::host::Host;

use crate::fixture::{ALPINE, machines, says, shell, start, until};

const CHILD: &str = "PETAFLOP_BOX_TEST_CHILD";
/// What is in no other process's command line.
const MARK: &str = "sleep 86399";

/// Everything of the box on this host: cables, cgroups, folders, mounts, and marked processes.
fn traces(mark: &str) -> BTreeSet<String> {
    let names = |folder: &str, prefix: &str| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path().display().to_string());
        paths.filter(|path| path.contains(&format!("/{prefix}"))).collect()
    };
    let temporary = std::env::temp_dir().display().to_string();
    let mut found = names("/sys/class/net", "pfbox");
    found.extend(names(&temporary, "petaflop-box-"));
    for kind in ["", "cpu", "memory"] {
        found.extend(names(&format!("/sys/fs/cgroup/{kind}"), "pfbox"));
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    found.extend(mounts.lines().filter(|l| l.contains("petaflop-box-")).map(str::to_owned));
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    for process in processes {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(mark) {
            found.push(format!("{} {line}", process.path().display()));
        }
    }
    found.into_iter().collect()
}

/// What the test below kills: it is no test by itself.
#[test]
fn child_that_is_killed() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let machines = machines().unwrap();
    for name in ["one", "two"] {
        let mut boot = shell(ALPINE, &format!("echo up; {MARK}"));
        boot.memory = 64 << 20;
        start(&machines, name, &boot);
        says(&machines, name, "up");
    }
    writeln!(std::io::stdout(), "\nready").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3600));
}

#[test]
fn nothing_is_left_of_a_test_that_was_killed() {
    if machines().is_none() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leaks::child_that_is_killed", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).find(|line| line == "ready");
    assert!(ready.is_some(), "{:?}", child.wait());
    // Other tests run beside this one: what is its own is what goes with it.
    let own = own_traces(child.id());
    assert!(own.iter().any(|trace| trace.contains("/pfbox")), "{own:?}");
    assert!(own.iter().filter(|trace| trace.contains(MARK)).count() >= 2, "{own:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    until("nothing is left", || {
        let left: Vec<String> = own.intersection(&traces(MARK)).cloned().collect();
        left.is_empty().then_some(())
    });
}

/// Traces that belong to the world of this process: by the name of its cable, its folder, its mark.
fn own_traces(test: u32) -> BTreeSet<String> {
    let children = std::fs::read_dir(format!("/proc/{test}/task")).unwrap().flatten();
    let children = children.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let children: Vec<String> = children
        .flat_map(|c| c.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let line = |pid: &String| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok();
    let world = children.iter().filter_map(line).find(|line| line.contains("\0world\0")).unwrap();
    let folder = world.trim_end_matches('\0').rsplit('\0').next().unwrap().to_owned();
    let cable = children.iter().find_map(|pid| cable(pid)).unwrap();
    let ours = |trace: &String| {
        trace.contains(&folder) || trace.ends_with(&format!("/{cable}")) || trace.contains(MARK)
    };
    traces(MARK).into_iter().filter(ours).collect()
}

/// The host's end of the cable of the switch that this process is in.
fn cable(pid: &str) -> Option<String> {
    let words = [&format!("--net=/proc/{pid}/ns/net"), "--", "ip", "-o", "link", "show", "uplink"];
    let output = Command::new("nsenter").args(words).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // uplink@if17: the other end's number on the host.
    let number = text.split("uplink@if").nth(1)?.split(':').next()?.to_owned();
    let links = std::fs::read_dir("/sys/class/net").ok()?.flatten();
    let index = |entry: &std::fs::DirEntry| std::fs::read_to_string(entry.path().join("ifindex"));
    let found = |entry: &std::fs::DirEntry| index(entry).is_ok_and(|text| text.trim() == number);
    let mut links = links.filter(found).map(|entry| entry.file_name().display().to_string());
    links.next()
}

#[test]
fn nothing_is_left_of_machines_that_are_dropped() {
    let Some(mut machines) = machines() else { return };
    let mark = format!("sleep {}", 80_000 + std::process::id() % 1000);
    let mut boot = shell(ALPINE, &format!("echo up; {mark}"));
    boot.memory = 64 << 20;
    start(&machines, "dropped", &boot);
    says(&machines, "dropped", "up");
    assert!(machines.alive("dropped"));
    let here = |trace: &String| trace.contains(&mark);
    assert!(traces(&mark).iter().any(here));
    drop(machines);
    assert!(!traces(&mark).iter().any(here), "{:?}", traces(&mark));
}
