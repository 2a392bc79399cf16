//! `petaflop-agent`: see the library. Nothing is printed on stdout but the task's output.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use petaflop_agent::{Agent, Config, config, exit, trust};
use tokio::signal::unix::{SignalKind, signal};

/// The runtime says what the machine is well before that.
const DETECTED_WITHIN: Duration = Duration::from_secs(60);

const HELP: &str = "\
Runs one task on a claimed machine, reports how it goes, and ends when nobody wants it.

Usage: petaflop-agent install <DIR>    copy this program to <DIR>/petaflop-agent,
                                       and the certificates that its image trusts
       petaflop-agent supervise        be the machine's main process
       petaflop-agent end-pod <URL>    end the pod of RunPod's that this is, by its API there

supervise is told by the environment:
    PETAFLOP_IDENTITY       the claim: installation/namespace/claim/claim uid/attempt
    PETAFLOP_OPERATOR_KEY   whom to obey: a public key, base64
    PETAFLOP_TOKEN          the one-time enrolment token
    PETAFLOP_PORT           where to listen, or
    PETAFLOP_ENDPOINT       where to dial instead: http(s)://host[:port]
    PETAFLOP_WORK           a writable folder for the task [default: /petaflop/work]
    PETAFLOP_NOTICE_FILE    a file whose appearance means that the machine goes away;
                            it may hold the seconds that are left
    PETAFLOP_METADATA       address of EC2's metadata service, which gives notice
    PETAFLOP_LEASE_FILE     where the host's timer finds until when the lease reaches,
                            in seconds since boot
    PETAFLOP_LOG            which of its own messages it writes to stderr [default: warn]
";

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let command = arguments.next();
    match command.as_ref().and_then(|command| command.to_str()) {
        Some("supervise") => supervise(),
        Some("install") => match arguments.next() {
            Some(folder) => match install(Path::new(&folder)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => fail(exit::BROKEN, &format!("{}: {e}", folder.display())),
            },
            None => fail(exit::BAD_BOOTSTRAP, "install: name a folder"),
        },
        Some("end-pod") => match arguments.next().and_then(|url| url.into_string().ok()) {
            Some(url) => match end_pod(&url) {
                Ok(()) => ExitCode::SUCCESS,
                Err(message) => fail(exit::BROKEN, &message),
            },
            None => fail(exit::BAD_BOOTSTRAP, "end-pod: name the address of the API"),
        },
        Some(petaflop_agent::EXEC) => fail(exit::NOT_STARTED, &petaflop_agent::exec(arguments)),
        Some("--version") => {
            let _ = writeln!(io::stdout(), "petaflop-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("--help") => {
            let _ = write!(io::stdout(), "{HELP}\n{}\n", exit::HELP);
            ExitCode::SUCCESS
        }
        _ => fail(
            exit::BAD_BOOTSTRAP,
            "expected `install <DIR>`, `supervise` or `end-pod <URL>`; see --help",
        ),
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "petaflop-agent: {message}");
    ExitCode::from(code)
}

/// Copies this program; whoever sees it there sees all of it, and the certificates that its image has.
fn install(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    if Path::new(trust::OURS).exists() {
        fs::copy(trust::OURS, folder.join(trust::BROUGHT))?;
    }
    let target = folder.join("petaflop-agent");
    let partial = folder.join(".petaflop-agent.partial");
    fs::copy("/proc/self/exe", &partial)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    fs::rename(&partial, &target)
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PETAFLOP_LOG");
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(filter.unwrap_or_else(|_| "warn".into()))
        .init();
}

fn end_pod(url: &str) -> Result<(), String> {
    log();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(petaflop_agent::end_pod(url))
}

fn supervise() -> ExitCode {
    log();
    let token = match token() {
        Ok(token) => token,
        Err(e) => return fail(exit::BROKEN, &format!("cannot hand over the token: {e}")),
    };
    if token.is_empty() {
        let missing = config::ConfigError::Missing(config::TOKEN);
        return fail(exit::BAD_BOOTSTRAP, &missing.to_string());
    }
    let config = match Config::from_env(&token) {
        Ok(config) => Config {
            facts: facts(),
            program: Some(PathBuf::from("/proc/self/exe")),
            alone: true,
            ..config
        },
        Err(e) => return fail(exit::BAD_BOOTSTRAP, &e.to_string()),
    };
    // What the task leaves behind becomes ours to reap, also where we are not process 1.
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(error = %e, "orphans of the task are reaped by somebody else");
    }
    // One thread: the task is bound to the life of the thread that starts it.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(exit::BROKEN, &e.to_string()),
    };
    let ended = runtime.block_on(async {
        let agent = Agent::start(config).await.map_err(|e| e.to_string())?;
        let stopper = agent.stopper();
        let listen = |kind| signal(kind).map_err(|e| e.to_string());
        let (mut terminate, mut interrupt) =
            (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                stopper.drain();
            }
        });
        Ok::<_, String>(agent.run().await)
    });
    runtime.shutdown_background();
    match ended {
        Ok(ended) => {
            let code = exit::code(&ended);
            if code != 0 {
                let _ = writeln!(io::stderr(), "petaflop-agent: {}", ended.message);
            }
            ExitCode::from(code)
        }
        Err(message) => fail(exit::BROKEN, &message),
    }
}

/// The token, which is then in no environment any more: where it is in ours, this
/// process becomes itself again without it, and reads it from its standard input.
fn token() -> io::Result<String> {
    let Some(token) = env::var_os(config::TOKEN) else {
        let mut token = String::new();
        io::stdin().take(128).read_to_string(&mut token)?;
        return Ok(token);
    };
    let (reader, mut writer) = io::pipe()?;
    // Far below what a pipe holds, so that this cannot block.
    let bytes = token.as_encoded_bytes();
    writer.write_all(&bytes[..bytes.len().min(128)])?;
    drop(writer);
    let mut again = Command::new("/proc/self/exe");
    again.args(env::args_os().skip(1)).env_remove(config::TOKEN).stdin(Stdio::from(reader));
    if let Some(file) = env::current_exe()?.parent().and_then(trust::brought) {
        again.env(trust::VARIABLE, file);
    }
    Err(again.exec())
}

/// What the machine is, where the runtime that can tell is at hand, and tells soon: a driver that
/// hangs must not keep the agent from saying so.
fn facts() -> serde_json::Value {
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let output = Command::new("petaflop-runtime")
            .args(["detect", "--json"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let output = output.ok().filter(|output| output.status.success());
        // Nobody listens any more, or it is heard.
        let _ = said.send(output.and_then(|output| serde_json::from_slice(&output.stdout).ok()));
    });
    heard.recv_timeout(DETECTED_WITHIN).ok().flatten().unwrap_or_default()
}
