//! The task's process: its environment, its start in a process group of its own,
//! signals to that group, and its end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, PipeReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use petaflop_agent_api::task::Task;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Config};

/// A running command.
#[derive(Debug)]
pub(crate) struct Running {
    /// Of the command, and of the process group that it leads.
    pid: Pid,
    /// Reap what else is left to this process.
    reap_all: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

/// Starts the task in `work`. Its output comes out of the pipe.
pub(crate) fn start(
    task: &Task,
    work: &Path,
    config: &Config,
) -> Result<(Running, PipeReader), String> {
    let folder = task.dir.as_ref().map_or_else(|| work.to_owned(), |dir| work.join(dir));
    let first = task.argv.first().ok_or("argv is empty")?;
    let found = find(first, &task.env, &folder)?;
    let mut command = match &config.program {
        Some(program) => {
            let mut command = Command::new(program);
            command.arg(EXEC).arg(std::process::id().to_string()).arg(&found).args(&task.argv);
            command
        }
        None => {
            let mut command = Command::new(&found);
            command.arg0(first).args(&task.argv[1..]);
            command
        }
    };
    let pipe = || -> io::Result<_> {
        let (reader, writer) = io::pipe()?;
        Ok((reader, writer.try_clone()?, writer))
    };
    let (reader, stdout, stderr) = pipe().map_err(|e| format!("cannot make a pipe: {e}"))?;
    let secrets = task.secrets.iter().map(|(name, value)| (name, value.expose()));
    command
        .current_dir(&folder)
        .envs(&task.env)
        .envs(secrets)
        .env(config::WORK, work)
        .env(config::INPUTS, &config.inputs)
        .env(config::IDENTITY, &config.identity)
        .env_remove(config::TOKEN)
        .env_remove(config::OPERATOR_KEY)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0);
    let child = command.spawn().map_err(|e| format!("cannot start `{first}`: {e}"))?;
    // The command holds the pipe's write ends; ours go here, so that its end shows.
    drop(command);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("the system gave no process id")?;
    Ok((Running { pid, reap_all: config.alone }, reader))
}

/// The hidden command by which this program starts a task.
pub const EXEC: &str = "exec";

/// Becomes the task, after making sure that it dies with the agent. Returns only where that
/// fails. Arguments: process id of the agent, file to run, argv.
pub fn exec(mut arguments: impl Iterator<Item = OsString>) -> String {
    let agent = arguments.next().and_then(|a| a.to_str()?.parse::<i32>().ok());
    let (Some(agent), Some(file), Some(name)) = (agent, arguments.next(), arguments.next()) else {
        return format!("{EXEC}: expected a process id, a file and argv");
    };
    if let Err(e) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return format!("cannot be bound to the agent's life: {e}");
    }
    // It may have died before the line above.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(agent) {
        return "the agent is gone".into();
    }
    let error = Command::new(&file).arg0(&name).args(arguments).exec();
    format!("cannot start `{}`: {error}", file.display())
}

impl Running {
    /// To every process of the group; one that is gone already is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(self.pid, signal);
    }

    /// Waits for the command's end, and reaps on the way what else is left to us.
    pub(crate) async fn ended(&self) -> io::Result<Ended> {
        let mut children = signal(SignalKind::child())?;
        loop {
            if let Some(ended) = self.look()? {
                // Nothing of the group outlives its leader.
                self.signal(Signal::KILL);
                return Ok(ended);
            }
            children.recv().await;
        }
    }

    fn look(&self) -> io::Result<Option<Ended>> {
        if !self.reap_all {
            let seen = rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG)?;
            return Ok(seen.map(|(_, status)| Ended::of(status)));
        }
        let mut mine = None;
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.pid => mine = Some(Ended::of(status)),
                Ok(Some(_)) => {}
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(mine),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Ended {
    fn of(status: WaitStatus) -> Self {
        Self { code: status.exit_status(), signal: status.terminating_signal() }
    }
}

/// The file that the command's first word names, so that a missing one is said by name.
fn find(word: &str, env: &BTreeMap<String, String>, folder: &Path) -> Result<PathBuf, String> {
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if word.contains('/') {
        let path = folder.join(word);
        return if runs(&path) {
            Ok(path)
        } else {
            Err(format!("`{word}`: no such file that can be run"))
        };
    }
    let path = env
        .get("PATH")
        .map(OsString::from)
        .or_else(|| std::env::var_os("PATH"))
        .unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|part| folder.join(part).join(word))
        .find(|candidate| runs(candidate))
        .ok_or_else(|| format!("`{word}`: not found in PATH={}", path.display()))
}
