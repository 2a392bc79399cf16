//! The folder of one cluster, and who clears up after it.
//!
//! A guardian, a small shell beside the test process, waits for the end of its
//! standard input. That comes when [`State`] is dropped and just as well when
//! the test process is killed: statics are not dropped, and SIGKILL runs
//! nothing. Then it kills what is still entered under `pids/`, runs the undo
//! script, and removes the folder. Clearing up is this one way only.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::error::{Error, Result};

/// `$1` is the folder. Killed processes are awaited (10 s at most), since one
/// that still writes would refill the folder while it is being removed; one
/// that has ended and only its parent has not noticed (Z) writes no more.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
alive=
for entry in "$1"/pids/*; do
  if [ -e "$entry" ] && kill -KILL "${entry##*/}" 2> /dev/null; then alive="$alive ${entry##*/}"; fi
done
for pid in $alive; do
  tries=100
  while [ $tries -gt 0 ] && grep -qs '^State:.[^ZX]' "/proc/$pid/status"; do sleep 0.1; tries=$((tries - 1)); done
done
if [ -e "$1/undo" ]; then sh "$1/undo" > /dev/null 2>&1; fi
rm -rf "$1" 2> /dev/null || { sleep 1; rm -rf "$1"; }
"#;

/// A state folder that vanishes with its processes.
#[derive(Debug)]
pub(crate) struct State {
    dir: PathBuf,
    guardian: Child,
    /// Closing it sets the guardian to work.
    line: Option<ChildStdin>,
}

/// Where the folder lies.
#[derive(Clone, Copy)]
pub(crate) enum Medium {
    /// In memory where there is a tmpfs: etcd's writes then cost nothing.
    Memory,
    /// On disk: container images are big. In memory all the same where the
    /// disk is an overlay itself, on which no container can be laid.
    Disk,
}

impl State {
    pub(crate) fn new(medium: Medium) -> Result<Self> {
        let parent = medium.folder();
        let dir = tempfile::Builder::new()
            .prefix("petaflop-")
            .tempdir_in(&parent)
            .map_err(Error::io(format!("making a folder in {}", parent.display())))?
            .keep();
        for inside in ["pids", "log", "pki"] {
            let inside = dir.join(inside);
            std::fs::create_dir(&inside).map_err(Error::io(inside.display().to_string()))?;
        }
        let mut guardian = Command::new("/bin/sh")
            .args(["-c", GUARDIAN, "petaflop-guardian"])
            .arg(&dir)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::io("starting /bin/sh"))?;
        let line = guardian.stdin.take();
        Ok(Self { dir, guardian, line })
    }

    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.dir.join(inside)
    }

    /// Writes a file of the folder and gives its path.
    pub(crate) fn write(
        &self,
        inside: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
    ) -> Result<PathBuf> {
        let path = self.path(inside);
        std::fs::write(&path, content).map_err(Error::io(path.display().to_string()))?;
        Ok(path)
    }

    /// Enters a process that must not outlive the folder.
    pub(crate) fn enter(&self, pid: u32) -> Result<()> {
        self.write(Path::new("pids").join(pid.to_string()), "").map(drop)
    }

    /// Strikes out a process that has ended: its number may come again.
    pub(crate) fn strike(&self, pid: u32) {
        let _ = std::fs::remove_file(self.path("pids").join(pid.to_string()));
    }

    /// Adds a line of shell to what is undone after the processes are gone.
    pub(crate) fn undo(&self, line: &str) -> Result<()> {
        let path = self.path("undo");
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{line}"))
            .map_err(Error::io(path.display().to_string()))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        drop(self.line.take());
        let _ = self.guardian.wait();
    }
}

impl Medium {
    fn folder(self) -> PathBuf {
        let temporary = std::env::temp_dir();
        let memory = Path::new("/dev/shm");
        let writable = || tempfile::tempfile_in(memory).is_ok();
        let in_memory = match self {
            Self::Memory => true,
            Self::Disk => is_overlay(&temporary),
        };
        if in_memory && writable() { memory.into() } else { temporary }
    }
}

/// Whether a folder lies on an overlay file system, as in most containers.
fn is_overlay(folder: &Path) -> bool {
    // OVERLAYFS_SUPER_MAGIC of linux/magic.h; its type differs by platform.
    rustix::fs::statfs(folder).is_ok_and(|stat| stat.f_type == 0x794c_7630)
}
