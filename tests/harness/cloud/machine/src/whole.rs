//! Process 1 of a machine that runs containers: runs user-data as root, keeps containers, collects
//! whatever has ended, and turns the machine off. Everything is asked of it over one socket.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use petaflop_box_machine::{PROGRAM, Whole};
use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use serde::{Deserialize, Serialize};

use crate::containers::{Containers, Run};
use crate::{Result, of, root};

/// Where process 1 is asked.
pub(crate) const SOCKET: &str = "/run/petaflop-box.sock";

/// Names by which this program is called on a machine, and where: at their usual places, and at the first of the
/// path, for an image may bring a docker of its own, without anything behind it.
const NAMES: [(&str, [&str; 2]); 3] = [
    ("docker", ["/usr/bin", FIRST]),
    ("systemctl", ["/usr/bin", FIRST]),
    ("shutdown", ["/usr/sbin", FIRST]),
];
const FIRST: &str = "/usr/local/sbin";
/// As cloud-init names it.
const USER_DATA: &str = "/var/lib/cloud/instance/scripts/part-001";
/// How long a container, and then everything else, may take to end when the machine is turned off.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Turn the machine off.
    PowerOff,
    /// Turn it off in so many seconds, instead of whenever was said before.
    PowerOffIn(u64),
    /// Do not turn it off.
    Cancel,
    /// Is there such an image?
    Pull(String),
    /// Start a container; its name.
    Run(Box<Run>),
    /// Wait for a container's end; its code.
    Wait(String),
    /// The file with what a container wrote.
    Log(String),
    /// SIGTERM to a container, and SIGKILL after so many seconds.
    Stop(String, u64),
    /// SIGKILL.
    Kill(String),
    /// Forget a container; one that runs only by force.
    Remove(String, bool),
    /// Names of containers that run; or of all.
    List(bool),
}

/// Asks the machine's process 1.
pub(crate) fn ask(request: &Request) -> Result<String> {
    ask_at(SOCKET, request)
}

pub(crate) fn ask_at(socket: &str, request: &Request) -> Result<String> {
    let text = serde_json::to_vec(request).map_err(of("request"))?;
    let exchange = || -> io::Result<Vec<u8>> {
        let mut line = UnixStream::connect(socket)?;
        line.write_all(&text)?;
        line.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        line.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(of(socket))?;
    serde_json::from_slice::<Result<String>>(&answer).map_err(of(socket))?
}

/// Never returns: the machine is off when the process is gone.
pub(crate) fn boot(machine: Whole) -> Result<u8> {
    for (name, folders) in NAMES {
        for folder in folders {
            let name = Path::new(folder).join(name);
            fs::create_dir_all(folder).map_err(of(folder))?;
            let _ = fs::remove_file(&name);
            symlink(PROGRAM, &name).map_err(of(name.display()))?;
        }
    }
    let listener = UnixListener::bind(SOCKET).map_err(of(SOCKET))?;
    if machine.user_data.starts_with(b"#!") {
        run_user_data(&machine.user_data)?;
    }
    let power = Arc::new(Power {
        containers: Containers::new(machine.images, machine.environment),
        planned: AtomicU64::new(0),
    });
    let server = power.clone();
    thread::spawn(move || {
        for line in listener.incoming().flatten() {
            let power = server.clone();
            thread::spawn(move || power.serve(line));
        }
    });
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let code = status.exit_status();
                let signal = status.terminating_signal().unwrap_or_default();
                power.containers.reaped(pid, code.unwrap_or(128 + signal));
            }
            // There is no child right now.
            _ => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// As cloud-init does: by root, with a path and no home.
fn run_user_data(script: &[u8]) -> Result<()> {
    let path = Path::new(USER_DATA);
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(of(folder.display()))?;
    fs::write(path, script).map_err(of(USER_DATA))?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(of(USER_DATA))?;
    let started =
        Command::new(path).env_clear().env("PATH", root::PATH).stdin(Stdio::null()).spawn();
    // A machine whose user-data is no program runs all the same.
    if let Err(why) = started {
        let _ = writeln!(io::stderr(), "cloud-init: {USER_DATA}: {why}");
    }
    Ok(())
}

struct Power {
    containers: Containers,
    /// Number of the plan that counts; earlier ones are void.
    planned: AtomicU64,
}

impl Power {
    fn serve(self: &Arc<Self>, mut line: UnixStream) {
        let mut text = Vec::new();
        if line.read_to_end(&mut text).is_err() {
            return;
        }
        let request = serde_json::from_slice(&text).map_err(of("request"));
        // Answered before it is done: afterwards there is nobody to answer.
        let at_once = matches!(request, Ok(Request::PowerOff));
        let answer = request.and_then(|request| self.answer(request));
        if let Ok(text) = serde_json::to_vec(&answer) {
            let _ = line.write_all(&text);
        }
        drop(line);
        if at_once {
            self.plan(Duration::ZERO);
        }
    }

    fn answer(self: &Arc<Self>, request: Request) -> Result<String> {
        let containers = &self.containers;
        match request {
            Request::PowerOff => {}
            Request::PowerOffIn(seconds) => self.plan(Duration::from_secs(seconds)),
            Request::Cancel => {
                self.planned.fetch_add(1, Ordering::SeqCst);
            }
            Request::Pull(image) => return containers.image(&image).map(|_| String::new()),
            Request::Run(run) => return containers.run(*run),
            Request::Wait(name) => return containers.wait(&name).map(|code| code.to_string()),
            Request::Log(name) => return containers.log(&name),
            Request::Stop(name, grace) => containers.stop(&name, Duration::from_secs(grace))?,
            Request::Kill(name) => containers.kill(&name)?,
            Request::Remove(name, force) => containers.remove(&name, force)?,
            Request::List(all) => return Ok(containers.list(all).join("\n")),
        }
        Ok(String::new())
    }

    fn plan(self: &Arc<Self>, after: Duration) {
        let number = self.planned.fetch_add(1, Ordering::SeqCst) + 1;
        let power = self.clone();
        thread::spawn(move || {
            thread::sleep(after);
            if power.planned.load(Ordering::SeqCst) == number {
                power.off();
            }
        });
    }

    /// As systemd does: containers first, then everybody else, then whoever is left by force.
    fn off(&self) -> ! {
        for name in self.containers.list(false) {
            let _ = self.containers.stop(&name, PATIENCE);
        }
        for other in others() {
            let _ = kill_process(other, Signal::TERM);
        }
        let told = Instant::now();
        while !others().is_empty() && told.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
        }
        // The kernel kills the rest.
        process::exit(0)
    }
}

/// Every process of the machine but this one.
fn others() -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    processes.filter_map(number).filter(|pid| *pid != 1).filter_map(Pid::from_raw).collect()
}
