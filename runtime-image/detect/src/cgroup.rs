//! The control groups that bound this process: version 1, version 2, and both at once.
//!
//! Limits hold for all below them, so every level from the process's own group up
//! to the top of what is mounted is asked, and the least answer counts.

use std::path::{Path, PathBuf};

use crate::roots::{Roots, number, text, word};

/// What all levels together leave to this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Thousandths of a processor.
    pub cpu_milli: Option<u64>,
    /// The least memory limit, in bytes, and the file that says so.
    pub memory: Option<(u64, String)>,
    /// The least that any level has left, in bytes; page cache that can be dropped counts as left.
    pub memory_left: Option<u64>,
}

/// Version 1 says "no limit" by the largest number of whole pages.
const V1_NO_LIMIT: u64 = 1 << 62;

impl Limits {
    pub(crate) fn read(roots: &Roots) -> Self {
        let mut limits = Self::default();
        for level in levels(roots, "cpu") {
            let milli = match level.version {
                Version::One => v1_cpu(&level.dir),
                Version::Two => word(&level.dir.join("cpu.max")).and_then(|max| v2_cpu(&max)),
            };
            limits.cpu_milli = least(limits.cpu_milli, milli);
        }
        for level in levels(roots, "memory") {
            limits.add_memory(roots, &level);
        }
        limits
    }

    fn add_memory(&mut self, roots: &Roots, level: &Level) {
        let dir = &level.dir;
        // memory.high is a limit to plan by: above it the kernel stalls the process.
        let (files, usage, inactive, active): (&[&str], _, _, _) = match level.version {
            Version::One => (
                &["memory.limit_in_bytes"],
                "memory.usage_in_bytes",
                "total_inactive_file",
                "total_active_file",
            ),
            Version::Two => {
                (&["memory.max", "memory.high"], "memory.current", "inactive_file", "active_file")
            }
        };
        for file in files {
            let file = dir.join(file);
            // "max" is no number: no limit.
            let Some(limit) = number(&file).filter(|limit| *limit < V1_NO_LIMIT) else {
                continue;
            };
            if self.memory.as_ref().is_none_or(|(least, _)| limit < *least) {
                self.memory = Some((limit, roots.shown(&file)));
            }
            let used = number(&dir.join(usage)).unwrap_or(0);
            let stat = text(&dir.join("memory.stat")).unwrap_or_default();
            let field = |name| stat_field(&stat, name).unwrap_or(0);
            // As the kernel's own MemAvailable reckons: of the pages in use it
            // counts about half as droppable.
            let cache = field(inactive).saturating_add(field(active) / 2).min(used);
            let left = limit.saturating_sub(used - cache);
            self.memory_left = least(self.memory_left, Some(left));
        }
    }
}

fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn stat_field(stat: &str, name: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

/// `cpu.cfs_quota_us` is -1 where there is none.
fn v1_cpu(dir: &Path) -> Option<u64> {
    let quota = number(&dir.join("cpu.cfs_quota_us"))?;
    let period = number(&dir.join("cpu.cfs_period_us"))?;
    milli(quota, period)
}

/// `<quota|max> <period>`, in microseconds.
fn v2_cpu(max: &str) -> Option<u64> {
    let (quota, period) = max.split_once(' ').unwrap_or((max, "100000"));
    milli(quota.parse().ok()?, period.trim().parse().ok()?)
}

fn milli(quota: u64, period: u64) -> Option<u64> {
    quota.checked_mul(1000)?.checked_div(period)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// One group on the way from the process's own to the top.
#[derive(Debug)]
struct Level {
    version: Version,
    dir: PathBuf,
}

/// Where a hierarchy is mounted.
struct Mount {
    version: Version,
    /// The group that is seen at `point`.
    root: PathBuf,
    point: PathBuf,
    /// Version 1: its controllers.
    controllers: Vec<String>,
}

/// All groups that can bound `controller`, of either version: in a hybrid system a
/// controller lives in one of them, and the other has no such files.
fn levels(roots: &Roots, controller: &str) -> Vec<Level> {
    let groups = roots.text("/proc/self/cgroup").unwrap_or_default();
    let mut levels = Vec::new();
    for mount in mounts(roots) {
        let wanted = match mount.version {
            Version::One => mount.controllers.iter().any(|c| c == controller),
            Version::Two => true,
        };
        if !wanted {
            continue;
        }
        let group = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = match mount.version {
                Version::One => names.split(',').any(|name| name == controller),
                Version::Two => id == "0" && names.is_empty(),
            };
            ours.then_some(path)
        });
        let top = roots.path(&mount.point);
        let mut dir = top.clone();
        // In a container the path may be the host's, of which only the part
        // below the mount's root is to be seen here.
        if let Some(inside) = group.and_then(|g| Path::new(g).strip_prefix(&mount.root).ok()) {
            let below: PathBuf = inside
                .components()
                .filter(|c| matches!(c, std::path::Component::Normal(_)))
                .collect();
            let outside = inside.components().count() != below.components().count();
            if !outside && top.join(&below).is_dir() {
                dir = top.join(below);
            }
        }
        loop {
            levels.push(Level { version: mount.version, dir: dir.clone() });
            if dir == top || !dir.pop() {
                break;
            }
        }
    }
    levels
}

fn mounts(roots: &Roots) -> Vec<Mount> {
    let info = roots.text("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts: Vec<Mount> = info.lines().filter_map(mount).collect();
    if mounts.is_empty() {
        // The usual places, where the list cannot be read.
        let usual = |version, point: &str, controller: &str| Mount {
            version,
            root: "/".into(),
            point: point.into(),
            controllers: vec![controller.into()],
        };
        mounts.push(usual(Version::Two, "/sys/fs/cgroup", ""));
        mounts.push(usual(Version::One, "/sys/fs/cgroup/memory", "memory"));
        mounts.push(usual(Version::One, "/sys/fs/cgroup/cpu", "cpu"));
    }
    mounts
}

/// One line of mountinfo (proc_pid_mountinfo(5)):
/// `36 35 98:0 <root> <mount point> <options> [<optional>…] - <type> <source> <super options>`.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let version = match right.next()? {
        "cgroup" => Version::One,
        "cgroup2" => Version::Two,
        _ => return None,
    };
    let options = right.nth(1).unwrap_or_default();
    Some(Mount {
        version,
        root: unescape(root),
        point: unescape(point),
        controllers: options.split(',').map(str::to_owned).collect(),
    })
}

/// Blanks in paths are written as `\040`.
fn unescape(path: &str) -> PathBuf {
    PathBuf::from(path.replace("\\040", " "))
}
