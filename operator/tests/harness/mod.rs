//! A home of its own and the real binaries.
#![allow(dead_code, reason = "each test file uses its own share")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A home, a folder for manifests, and commands that use them. Whatever still runs when
/// it goes is killed.
pub(crate) struct Sandbox {
    folder: tempfile::TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        ensure_runtime();
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn petaflop(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_petaflop"));
        command.args(arguments).env("PETAFLOP_HOME", self.home()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.petaflop(arguments).output().expect("petaflop starts")
    }

    /// Takes a folder out of this home, in one step: tasks may be writing in it.
    pub(crate) fn lose(&self, folder: &str) {
        let home = self.home();
        std::fs::rename(home.join(folder), home.with_file_name(folder)).expect("moved away");
    }

    /// The claims that are left in this home.
    pub(crate) fn claims(&self) -> usize {
        let Ok(namespaces) = std::fs::read_dir(self.home().join("claims")) else {
            return 0;
        };
        namespaces
            .filter_map(|entry| std::fs::read_dir(entry.expect("an entry").path()).ok())
            .flatten()
            .filter(|entry| {
                let path = entry.as_ref().expect("an entry").path();
                path.extension().is_some_and(|extension| extension == "json")
            })
            .count()
    }

    /// Processes whose environment names this home or an instance of it.
    pub(crate) fn processes(&self, needle: &str) -> Vec<i32> {
        let home = self.home().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let ours =
                command.contains(&home) || String::from_utf8_lossy(&environment).contains(&home);
            if ours && command.contains(needle) && pid != std::process::id() as i32 {
                found.push(pid);
            }
        }
        found
    }

    /// SIGKILL to each of them.
    pub(crate) fn kill(&self, needle: &str) {
        for pid in self.processes(needle) {
            let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
            // Gone already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.kill("");
    }
}

/// What was printed to stdout: exactly one JSON object.
pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}\n{}", text(&output.stdout), text(&output.stderr)))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits for something to become true.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < limit, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A job of a very small model.
pub(crate) fn job(name: &str, steps: u64, more: &str) -> String {
    format!(
        "apiVersion: petaflop.dev/v1alpha1\nkind: TrainingJob\nmetadata: {{name: {name}}}\nspec:\n  recipe:\n    \
         model: {{dim: 16, layers: 1, heads: 2, vocab: 300}}\n    datasets: [{{path: builtin:petaflop}}]\n    \
         sequence_len: 16\n    micro_batch_size: 2\n    max_steps: {steps}\n    learning_rate: 0.01\n  \
         checkpoint: {{intervalSeconds: 1}}\n{more}"
    )
}

/// The runtime lies beside `petaflop`; where it was not built yet it is built here.
fn ensure_runtime() {
    static BUILDING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let petaflop = Path::new(env!("CARGO_BIN_EXE_petaflop"));
    let runtime = petaflop.with_file_name("petaflop-runtime");
    if runtime.exists() {
        return;
    }
    let target = petaflop.ancestors().nth(2).expect("a target folder");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--bin", "petaflop-runtime", "--target-dir"])
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cargo starts");
    assert!(built.success() && runtime.exists(), "petaflop-runtime could not be built");
}
