//! What opens an account and a store is where it was given, and nowhere else: a job without a cluster,
//! on RunPod in a box, of which every file, word and process is looked through for it.
//! docs/secrets.md says which test looks where else.

#[path = "../../runtime-image/store/tests/common/s3.rs"]
mod s3;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::engine::machine::{Life, Machine};
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{PACE, RunPod, Setup};
use petaflop_harness::eventually;
use petaflop_tests::binary;
use tokio::process::Command;

/// The account's key.
const KEY: &str = "rpa_canary_9a3e_of_the_account";
/// What opens the store, as [`s3::Server`] has it.
const STORE: &str = "secret-canary";
const SOON: Duration = Duration::from_secs(120);

/// What was seen, and where.
type Seen = Vec<(String, Vec<u8>)>;

fn petaflop(home: &Path, runpod: &RunPod, store: &s3::Server) -> Result<Command> {
    let mut command = Command::new(binary("petaflop")?);
    command
        .env("PETAFLOP_HOME", home)
        .env("PETAFLOP_LOG", "debug")
        .env("RUNPOD_API_KEY", KEY)
        .env("RUNPOD_API_BASE_URL", runpod.url())
        .envs(store.credentials())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

fn files(folder: &Path, seen: &mut Seen) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => files(&path, seen)?,
            Ok(meta) if meta.is_file() => {
                // What is gone meanwhile was a lock or a file on its way.
                if let Ok(content) = fs::read(&path) {
                    seen.push((path.display().to_string(), content));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The command lines of all processes of this home.
fn command_lines(home: &Path, seen: &mut Seen) -> Result<()> {
    let ours = format!("PETAFLOP_HOME={}", home.display()).into_bytes();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|one| one == ours)
            && let Ok(line) = fs::read(process.join("cmdline"))
        {
            seen.push((format!("the command line of {}", process.display()), line));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_opens_account_and_store_is_in_no_file_no_output_no_command_line_and_no_pod()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("home");
    let quick = Duration::from_millis(300);
    let runpod = RunPod::start(Setup {
        clock: Clock::system(),
        seed: 1,
        keys: [(KEY.to_owned(), Scope::All)].into(),
        pace: Pace { provision: quick, start: quick, ..PACE },
        deposit: 1_000_000_000,
        limits: Limits::new(1000, 10_000, 100_000),
        page: None,
        host: Box::new(StateOnly::default()),
    })?;
    let store = tokio::task::spawn_blocking(s3::Server::start).await?;
    fs::create_dir_all(&home)?;
    let config = format!(
        "rented:\n  store: s3://bucket/store\n  agent:\n    url: https://example.org/petaflop-agent\n    sha256: {}\n",
        "0".repeat(64)
    );
    fs::write(home.join("config.yaml"), config)?;
    let tiny = include_str!("../../examples/tiny.yaml").replace("../LICENSE", "builtin:petaflop");
    let manifest = folder.path().join("tiny.yaml");
    fs::write(&manifest, format!("{tiny}  placement:\n    providers: [runpod]\n"))?;

    // What it says lies in the folder too, and is looked through with it.
    let said = fs::File::create(folder.path().join("said"))?;
    let mut run = petaflop(&home, &runpod, &store)?
        .args(["run", "-f", &manifest.display().to_string()])
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()?;
    let pods = || -> Vec<Machine> { runpod.engine(|engine| engine.machines().to_vec()) };
    let pod = eventually("a pod that runs", SOON, || async {
        let pods = pods();
        let running = pods.iter().find(|pod| pod.life == Life::Running);
        running.cloned().ok_or(format!("{pods:?}"))
    })
    .await?;
    let token = pod.order.boot.environment.get("PETAFLOP_TOKEN").context("a token")?.clone();

    let mut seen = Seen::new();
    command_lines(&home, &mut seen)?;
    ensure!(!seen.is_empty(), "no process of this home was seen");
    files(folder.path(), &mut seen)?;
    for arguments in [
        &["ps", "--json"][..],
        &["explain", "tiny"],
        &["offers", "--live", "--json"],
        &["audit"],
        &["stop", "tiny"],
        &["logs", "tiny"],
        &["costs", "--json"],
    ] {
        let output = petaflop(&home, &runpod, &store)?.args(arguments).output().await?;
        seen.push((format!("petaflop {arguments:?}"), [output.stdout, output.stderr].concat()));
    }
    eventually("no pod is left", SOON, || async {
        let pods = pods();
        let ended = pods.iter().all(|pod| pod.life == Life::Terminated);
        ended.then_some(()).ok_or(format!("{pods:?}"))
    })
    .await?;
    tokio::time::timeout(SOON, run.wait()).await.context("it goes on for ever")??;
    files(folder.path(), &mut seen)?;
    let rows = seen.iter().filter(|(place, _)| place.contains("ledger")).count();
    ensure!(
        rows > 0,
        "there is no ledger: {:?}",
        seen.iter().map(|(place, _)| place).collect::<Vec<_>>()
    );

    for (place, content) in &seen {
        for secret in [KEY, STORE, &token] {
            let there = content.windows(secret.len()).any(|part| part == secret.as_bytes());
            ensure!(!there, "{secret} is in {place}: {}", String::from_utf8_lossy(content));
        }
    }
    // The one-time token is in the pod's environment, once; the rest is not on the pod at all.
    let mut boot = pod.order.boot.clone();
    boot.environment.remove("PETAFLOP_TOKEN");
    let told = format!("{boot:?}");
    ensure!(told.contains("PETAFLOP_IDENTITY"), "{told}");
    for secret in [KEY, STORE, &token] {
        ensure!(!told.contains(secret), "{secret} is in what a pod is started with: {told}");
    }
    Ok(())
}
