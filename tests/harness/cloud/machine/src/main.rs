//! `petaflop-box-machine`: see the library.

mod containers;
mod docker;
mod enter;
mod relay;
mod root;
mod system;
mod whole;
mod world;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// What failed, in words.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let mut words = std::env::args();
    let called = words.next().unwrap_or_default();
    let name = called.rsplit('/').next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match (name, words.as_slice()) {
        ("docker", words) => docker::run(words),
        ("shutdown", words) => system::shutdown(words),
        ("systemctl", words) => system::systemctl(words),
        (_, ["world", folder]) => world::run(Path::new(folder)),
        (_, ["enter", spec]) => enter::enter(Path::new(spec)),
        (_, ["wire", spec]) => enter::wire(Path::new(spec)),
        (_, ["shim", spec]) => enter::shim(Path::new(spec)),
        (_, ["init", spec]) => enter::init(Path::new(spec)),
        (_, ["relay", socket, hops]) => relay::run(Path::new(socket), hops),
        _ => Err("for the cloud in a box; see its documentation".to_owned()),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            let _ = writeln!(io::stderr(), "{name}: {why}");
            // What docker says when it is docker itself that failed.
            ExitCode::from(125)
        }
    }
}

/// For `map_err`.
fn of<E: Display>(what: impl Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Runs a program to its end; what it wrote.
fn run<S: AsRef<std::ffi::OsStr>>(program: &str, words: &[S]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    finish(command, None)
}

/// Commands for `ip`, all of which must succeed; in the network of a process, or here.
fn ip(of_process: Option<u32>, lines: &str) -> Result<String> {
    let mut command = match of_process {
        Some(process) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{process}/ns/net")).args(["--", "ip"]);
            command
        }
        None => Command::new("ip"),
    };
    command.args(["-batch", "-"]).stdin(Stdio::piped());
    finish(command, Some(lines))
}

fn finish(mut command: Command, input: Option<&str>) -> Result<String> {
    let shown = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(of(&shown))?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        pipe.write_all(input.as_bytes()).map_err(of(&shown))?;
    }
    let output = child.wait_with_output().map_err(of(&shown))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{shown} {}: {said} {}", output.status, input.unwrap_or_default()))
}
