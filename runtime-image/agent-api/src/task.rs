//! What an agent is to run.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::text::base64_bytes;

/// A command to supervise, and what it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Program and arguments; never a secret.
    pub argv: Vec<String>,
    /// Environment beyond the image's own; never a secret.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Environment that is secret.
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
    /// Files to write into the work folder before the command starts.
    #[serde(default)]
    pub files: Vec<TaskFile>,
    /// Folders to make before the command starts, anywhere on the machine.
    #[serde(default)]
    pub folders: Vec<Folder>,
    /// Data to bring before the command starts.
    #[serde(default)]
    pub inputs: Vec<Input>,
    /// Where its result is to be, too, before it is said to be done.
    #[serde(default)]
    pub delivery: Option<Delivery>,
    /// Folder to run in; by default the work folder.
    #[serde(default)]
    pub dir: Option<String>,
    /// Where the command writes its progress lines, relative to the work folder.
    #[serde(default = "default_progress")]
    pub progress: String,
    /// Where output and exit report are kept beyond the machine's life.
    #[serde(default)]
    pub log_sink: Option<LogSink>,
    /// Seconds from the request to end until it is forced.
    pub grace_seconds: u64,
    /// What it serves, where it does and does not say so itself in its progress file.
    #[serde(default)]
    pub server: Option<Server>,
    /// What gateways prove themselves by, whose [streams](crate::relay) go to the port on which the
    /// command says in its progress file that it is `serving`.
    #[serde(default)]
    pub relay: Option<Secret>,
    /// What opens the store for a while, where its keys stay with the operator: the agent serves it to
    /// the command and uses it itself. [`Ask::Open`](crate::message::Ask::Open) replaces it.
    #[serde(default)]
    pub pass: Option<Pass>,
    /// What the machine was bought for: without it the command is not started.
    #[serde(default)]
    pub accelerators: Option<Accelerators>,
}

/// Accelerators that a machine was bought for, as the provider promised them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accelerators {
    /// Their maker, in lower case (`nvidia`), where it is known.
    #[serde(default)]
    pub vendor: Option<String>,
    /// Key in the accelerator catalogue (`H100-SXM`), or the provider's own name.
    pub model: String,
    /// Devices, at the least.
    pub count: u32,
    /// Bytes that each has, where the provider says so.
    #[serde(default)]
    pub memory: Option<u64>,
}

/// What opens a part of a store until it expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// Id of the key, of which everybody may know.
    pub id: String,
    /// The key.
    pub key: Secret,
    /// What must go with it.
    pub token: Secret,
    /// After that it opens nothing.
    pub expires: Timestamp,
    /// Whether the command is told where to ask for it; else the agent alone uses it, for its output.
    pub told: bool,
}

/// [`Task::progress`] where nothing else is said.
pub const PROGRESS_FILE: &str = "progress.jsonl";

fn default_progress() -> String {
    PROGRESS_FILE.into()
}

/// A file of a task.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFile {
    /// Relative to the work folder, inside it.
    pub path: String,
    /// Its content.
    #[serde(with = "base64_bytes")]
    pub bytes: Vec<u8>,
}

impl fmt::Debug for TaskFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskFile({:?}, {} bytes)", self.path, self.bytes.len())
    }
}

impl Drop for TaskFile {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// A folder whose files are in memory and on no disk, for their owner alone to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// Absolute.
    pub path: String,
    /// Each with a name for a path.
    pub files: Vec<TaskFile>,
}

/// Named data, brought to where the command finds it: a file or a folder of this name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// One part of a path.
    pub name: String,
    /// Where it lies: `s3://…`, `https://…`, `artifact:<hash>` of the log sink's store, `file:///…` on the
    /// machine; of [`Input::files`] whatever people call it.
    pub uri: String,
    /// What it must be: `blake3:<hex>`, as an artifact's hash of its files; a file by itself has the empty path.
    #[serde(default)]
    pub digest: Option<String>,
    /// What opens it, as the environment would name it; none: what opens the log sink.
    #[serde(default)]
    pub credentials: BTreeMap<String, Secret>,
    /// The data, where it comes with the task.
    #[serde(default)]
    pub files: Option<Vec<TaskFile>>,
}

/// A store that is to have a task's result: the artifact that its command names as it finishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The store.
    pub to: String,
    /// What opens it, as the environment would name it.
    pub credentials: BTreeMap<String, Secret>,
    /// Stores of which one has the result, opened as the log sink is.
    pub from: Vec<String>,
}

/// Where a task's output is kept: `<uri>/<prefix>/<number>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSink {
    /// The store.
    pub uri: String,
    /// `logs/<namespace>/<owner>/<claim>`.
    pub prefix: String,
    /// What opens it, as the environment would name it (`AWS_ACCESS_KEY_ID`, …).
    #[serde(default)]
    pub credentials: BTreeMap<String, Secret>,
}

/// A command that answers HTTP and knows nothing of us. The agent asks it how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Port on which it takes requests.
    pub port: u16,
    /// Whether it has started: the others wait for it, and it is ended where it does not in time.
    #[serde(default)]
    pub startup: Option<Probe>,
    /// Whether it may be sent requests.
    pub readiness: Probe,
    /// Whether it must be ended.
    #[serde(default)]
    pub liveness: Option<Probe>,
}

/// One health check, on the machine's own loopback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Port of the command.
    pub port: u16,
    /// What a GET of it must be answered by with 200 to 399; begins with `/`. None: a connection that is
    /// taken is enough.
    #[serde(default)]
    pub path: Option<String>,
    /// Seconds before the first check.
    pub initial_delay_seconds: u32,
    /// Seconds between two checks; not 0.
    pub period_seconds: u32,
    /// Seconds that one check may take; not 0.
    pub timeout_seconds: u32,
    /// Failures in a row that count; not 0.
    pub failure_threshold: u32,
}

impl Probe {
    /// What makes it impossible to ask so.
    fn problem(&self) -> Option<String> {
        let Self { port, path, initial_delay_seconds: _, period_seconds, timeout_seconds, .. } =
            self;
        let is_path =
            |path: &String| path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic());
        match path {
            Some(path) if !is_path(path) => {
                Some(format!("the probe's path {path:?} is not a URL's path"))
            }
            _ if *port == 0 => Some("the probe's port is zero".into()),
            _ if *period_seconds == 0 || *timeout_seconds == 0 || self.failure_threshold == 0 => {
                Some("the probe's period, timeout or number of failures is zero".into())
            }
            _ => None,
        }
    }
}

/// A text that is printed nowhere, and wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For where it is needed, and nothing that is logged or kept.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Task {
    /// What makes it impossible to run, or to run safely; empty where nothing does.
    pub fn problem(&self) -> Option<String> {
        let Self {
            argv,
            env,
            secrets,
            files,
            folders,
            inputs,
            delivery: _,
            dir: _,
            progress,
            log_sink,
            grace_seconds: _,
            server,
            relay,
            pass: _,
            accelerators: _,
        } = self;
        if argv.first().is_none_or(String::is_empty) {
            return Some("argv is empty".into());
        }
        if argv.iter().any(|word| word.contains('\0')) {
            return Some("argv holds a NUL byte".into());
        }
        let name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
        if let Some(bad) = env.keys().chain(secrets.keys()).find(|n| name(n)) {
            return Some(format!("{bad:?} is not a name of an environment variable"));
        }
        if let Some((bad, _)) = env.iter().find(|(_, value)| value.contains('\0')) {
            return Some(format!("the environment variable {bad} holds a NUL byte"));
        }
        if let Some((bad, _)) = secrets.iter().find(|(_, value)| value.expose().contains('\0')) {
            return Some(format!("the environment variable {bad} holds a NUL byte"));
        }
        let paths = files.iter().map(|file| &file.path).chain([progress]);
        if let Some(bad) = paths.into_iter().find(|path| !stays_inside(path)) {
            return Some(format!("the path {bad:?} leaves the work folder"));
        }
        let named = |file: &TaskFile| stays_inside(&file.path) && !file.path.contains('/');
        if let Some(bad) = folders.iter().find(|folder| {
            !folder.path.strip_prefix('/').is_some_and(stays_inside)
                || !folder.files.iter().all(named)
        }) {
            return Some(format!(
                "the folder {:?}: expected an absolute path, and names of files",
                bad.path
            ));
        }
        if let Some(bad) = inputs.iter().find(|input| {
            !stays_inside(&input.name)
                || input.name.contains('/')
                || !input.files.iter().flatten().all(named)
        }) {
            return Some(format!("the input {:?}: expected one part of a path", bad.name));
        }
        if log_sink.as_ref().is_some_and(|sink| !stays_inside(&sink.prefix)) {
            return Some("the log sink's prefix is not a relative path".into());
        }
        if relay.as_ref().is_some_and(|key| key.expose().is_empty()) {
            return Some("the relay's key is empty".into());
        }
        let Server { port: _, startup, readiness, liveness } = server.as_ref()?;
        startup.iter().chain([readiness]).chain(liveness).find_map(Probe::problem)
    }
}

/// Relative, below where it starts, and without a part that means something else.
fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
