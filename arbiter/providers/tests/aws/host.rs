//! The lines of shell with which an instance starts, run by a real shell in a folder of their own:
//! `docker`, `curl`, `systemctl` and `shutdown` are stand-ins that write down what they were told.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use petaflop_arbiter::offer::Capacity;
use petaflop_providers::aws::AwsConfig;
use petaflop_providers::machine::AgentDownload;
use petaflop_providers::{EnrolmentToken, Order, Provider, Work};
use tokio::process::{Child, Command};

use super::account::{Account, State, user_data};
use super::{TOKEN, client, config, identity, machine, offer};

/// Stands for the agent.
const AGENT: &str = "the agent";

fn sha256(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A host that booted with the user-data of a purchase.
struct Host {
    folder: tempfile::TempDir,
    shell: Child,
}

impl Host {
    /// `docker` goes on as these lines of shell say.
    async fn boot(sha256: String, allowance: u64, docker: &str) -> Self {
        let account = Account::open(State::default()).await;
        let agent = Some(AgentDownload { url: "https://example.org/agent".into(), sha256 });
        let start_allowance = Duration::from_secs(60);
        let settings = AwsConfig { agent, start_allowance, ..config(&account.server.base) };
        let (provider, _) = client(settings);
        let (identity, machine) = (identity(), machine());
        let offer = offer(&provider, Capacity::Spot).await;
        let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
        let request = provider.prepare(order).await.expect("a request");
        provider.launch(&request, &EnrolmentToken::new(TOKEN)).await.expect("bought");
        let script = user_data(&account.asked("RunInstances")[0]);
        // A test does not wait for minutes.
        let long = "allowance=60 grace=150";
        assert!(script.contains(long), "{script}");
        let script = script.replace(long, &format!("allowance={allowance} grace=0"));

        let folder = tempfile::tempdir().expect("a folder");
        let stub = |name: &str, lines: &str| {
            let path = folder.path().join(name);
            let log = folder.path().join("log");
            let text = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{lines}\n", log.display());
            std::fs::write(&path, text).expect("a stand-in");
            let runs = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, runs).expect("it runs");
        };
        stub("docker", &format!("d='{}'\n{docker}", folder.path().display()));
        stub("systemctl", "exit 1");
        // As the kernel does with everything that runs.
        stub("shutdown", "kill -9 $PPID");
        let save = format!("[ \"$1\" = -o ] && printf '{AGENT}' >\"$2\"");
        stub("curl", &format!("while [ $# -gt 2 ]; do {save}; shift; done"));
        let path =
            format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
        let mut shell = Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(script)
            .env("PATH", path)
            .env("PETAFLOP_FOLDER", folder.path().join("host"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let shell = shell.spawn().expect("a shell");
        Self { folder, shell }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn lease(&self) -> std::path::PathBuf {
        self.folder.path().join("host/lease/deadline")
    }

    async fn until(&self, what: &str, done: impl Fn(&str) -> bool) {
        let limit = tokio::time::Instant::now() + Duration::from_secs(120);
        while !done(&self.log()) {
            assert!(tokio::time::Instant::now() < limit, "still not: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The timer is a process of the same group.
        if let Some(pid) = self.shell.id().and_then(|id| i32::try_from(id).ok()) {
            let group = format!("-{pid}");
            let _ = std::process::Command::new("/bin/kill")
                .args(["-KILL", "--", &group])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("Linux");
    text.split('.').next().expect("seconds").parse().expect("a number")
}

/// A container that runs until it is told: `docker wait` waits for a file.
const RUNS: &str = "case $1 in wait) while [ ! -e \"$d/done\" ]; do sleep 0.1; done;; \
                    run) cp \"$d/host/environment\" \"$d/environment\";; esac";

#[tokio::test]
async fn the_agent_runs_in_one_container_and_its_end_is_the_machines() {
    let host = Host::boot(sha256(AGENT), 3600, RUNS).await;
    host.until("it runs", |log| log.contains("docker wait petaflop")).await;
    let log = host.log();
    let at = host.folder.path().join("host");
    let at = at.display();
    let run = format!(
        "docker run -d --name petaflop --network host --log-driver local --gpus all --ipc host \
         --env-file {at}/environment -v {at}/petaflop-agent:/petaflop/petaflop-agent:ro \
         -v {at}/lease:/petaflop/lease -v {at}/work:/work \
         --entrypoint /petaflop/petaflop-agent ghcr.io/example/job:1 supervise"
    );
    assert!(log.contains(&run), "{log}\nwanted {run}");
    assert!(!log.contains("canary"), "no secret is on a command line: {log}");
    let environment = std::fs::read_to_string(host.folder.path().join("environment"));
    let environment = environment.expect("it was there for the container");
    for line in [
        format!("PETAFLOP_TOKEN={TOKEN}"),
        "PETAFLOP_PORT=7443".to_owned(),
        "PETAFLOP_LEASE_FILE=/petaflop/lease/deadline".to_owned(),
        "PETAFLOP_METADATA=http://169.254.169.254".to_owned(),
    ] {
        assert!(environment.lines().any(|it| it == line), "{line}:\n{environment}");
    }
    assert!(!host.folder.path().join("host/environment").exists(), "it is gone again");
    assert!(!log.contains("shutdown"), "{log}");
    std::fs::write(host.folder.path().join("done"), "").expect("a file");
    host.until("the machine ends", |log| log.contains("shutdown -h now")).await;

    // Where docker cannot hand the devices over, the agent starts without, and says so itself.
    let refuses = format!("case \"$*\" in *--gpus*) exit 125;; esac\n{RUNS}");
    let host = Host::boot(sha256(AGENT), 3600, &refuses).await;
    host.until("it runs", |log| log.contains("docker wait petaflop")).await;
    assert!(host.log().contains("--log-driver local --env-file"), "{}", host.log());
}

#[tokio::test]
async fn an_agent_of_another_hash_is_not_run_and_the_machine_ends() {
    let host = Host::boot(sha256("something else"), 3600, RUNS).await;
    host.until("the machine ends", |log| log.contains("shutdown -h now")).await;
    assert!(!host.log().contains("docker run"), "{}", host.log());
}

#[tokio::test]
async fn the_host_timer_ends_a_machine_that_never_gets_an_agent() {
    // Docker never comes up, say.
    let host = Host::boot(sha256(AGENT), 1, "exit 1").await;
    host.until("the machine ends", |log| log.contains("shutdown -h now")).await;
    assert!(!host.log().contains("docker run"), "{}", host.log());
}

#[tokio::test]
async fn a_machine_that_boots_again_ends() {
    let mut host = Host::boot(sha256(AGENT), 3600, RUNS).await;
    host.until("it runs", |log| log.contains("docker wait petaflop")).await;
    let again = host.folder.path().join("host/scripts/per-boot/petaflop");
    assert!(!host.log().contains("shutdown"), "{}", host.log());
    // The power fails, and cloud-init runs what it finds.
    host.shell.start_kill().expect("it ran");
    let path = host.folder.path().display().to_string();
    let second = Command::new(&again).env("PATH", path).stdin(Stdio::null()).status().await;
    assert!(second.is_ok(), "{second:?}");
    host.until("the machine ends", |log| log.contains("shutdown -h now")).await;
}

#[tokio::test]
async fn the_host_timer_goes_by_the_lease_and_survives_a_hangup() {
    let host = Host::boot(sha256(AGENT), 30, RUNS).await;
    host.until("it runs", |log| log.contains("docker wait petaflop")).await;
    hang_up(host.shell.id().expect("it runs"));
    let deadline = uptime() + 40;
    std::fs::write(host.lease(), format!("{deadline}\n")).expect("a file");
    host.until("the lease is over", |log| log.contains("shutdown -h now")).await;
    assert!(uptime() >= deadline, "the lease had moved the end");
}

#[tokio::test]
async fn what_is_no_time_or_farther_than_any_lease_is_not_believed() {
    let far = (uptime() + 90_000).to_string();
    let ends = ["", "soon", "099", "9 9", "99999999999999999999", &far].map(|odd| async move {
        let host = Host::boot(sha256(AGENT), 8, RUNS).await;
        host.until("it is armed", |log| log.contains("systemctl")).await;
        std::fs::write(host.lease(), format!("{odd}\n")).expect("a file");
        host.until(odd, |log| log.contains("shutdown -h now")).await;
    });
    futures::future::join_all(ends).await;
}

fn hang_up(group: u32) {
    let group = format!("-{group}");
    let status = std::process::Command::new("/bin/kill").args(["-HUP", "--", &group]).status();
    assert!(status.is_ok_and(|status| status.success()), "this test needs /bin/kill");
}
