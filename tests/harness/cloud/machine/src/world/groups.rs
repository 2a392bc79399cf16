//! Cgroups of machines that have limits, of whichever version the host has.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::{Result, of};

const ROOT: &str = "/sys/fs/cgroup";
/// Of a processor's time.
const PERIOD_MICROS: u64 = 100_000;

pub(super) struct Groups {
    /// Of this world: one folder, or with version 1 one for each kind of limit.
    folders: Vec<PathBuf>,
    unified: bool,
}

impl Groups {
    pub(super) fn new(name: &str) -> Self {
        let unified = Path::new(ROOT).join("cgroup.controllers").exists();
        let kinds: &[&str] = if unified { &["."] } else { &["cpu", "memory"] };
        let folders = kinds.iter().map(|kind| Path::new(ROOT).join(kind).join(name)).collect();
        Self { folders, unified }
    }

    /// Files that take a process into the machine's own; none where it has no limit.
    pub(super) fn make(&self, machine: u32, cpu_millis: u32, memory: u64) -> Result<Vec<PathBuf>> {
        if cpu_millis == 0 && memory == 0 {
            return Ok(Vec::new());
        }
        let quota = u64::from(cpu_millis) * PERIOD_MICROS / 1000;
        let mut joins = Vec::new();
        for folder in &self.folders {
            let own = folder.join(machine.to_string());
            fs::create_dir_all(folder).map_err(of(folder.display()))?;
            if self.unified {
                write(&folder.join("cgroup.subtree_control"), "+cpu +memory")?;
            }
            fs::create_dir(&own).map_err(of(own.display()))?;
            let limits = if self.unified {
                [
                    ("cpu.max", format!("{quota} {PERIOD_MICROS}")),
                    ("memory.max", memory.to_string()),
                ]
            } else {
                [
                    ("cpu.cfs_quota_us", quota.to_string()),
                    ("memory.limit_in_bytes", memory.to_string()),
                ]
            };
            let wanted = [cpu_millis > 0, memory > 0];
            for ((name, value), _) in limits.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
                let path = own.join(name);
                // With version 1 the other limit is in the other folder.
                if self.unified || path.exists() {
                    write(&path, value)?;
                }
            }
            joins.push(own.join("cgroup.procs"));
        }
        Ok(joins)
    }

    /// Once nothing runs in it; a process may be dead for a moment before its cgroup knows.
    pub(super) fn remove_one(&self, machine: u32) {
        for folder in &self.folders {
            let own = folder.join(machine.to_string());
            for _ in 0..100 {
                if !own.exists() || fs::remove_dir(&own).is_ok() {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    pub(super) fn remove(&self) {
        for folder in &self.folders {
            // It is there only if a machine had limits.
            let _ = fs::remove_dir(folder);
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(of(path.display()))
}
