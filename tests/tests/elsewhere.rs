//! `petaflop run` without a cluster, on machines that are rented: RunPod in a box, whose pods are
//! real machines with the real agent and the real runtime, and a bucket that both sides reach.

mod market;
#[path = "elsewhere/moves.rs"]
mod moves;
mod operator;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use market::{IMAGE, Market, RUNTIME};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::estimate::{Correction, launch_key};
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::engine::machine::{Life, Machine};
use petaflop_cloud_box::runpod::{PACE, RunPod};
use petaflop_harness::eventually;
use petaflop_tests::binary;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(120);

/// A home, its bucket, and the account.
struct World {
    folder: TempDir,
    market: Market,
    runpod: RunPod,
}

impl World {
    async fn start() -> Result<Option<Self>> {
        let Some(market) = Market::open().await? else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let quick = Duration::from_millis(300);
        let pace = Pace { provision: quick, start: quick, ..PACE };
        let runpod = market.runpod(Clock::system(), "key", pace)?;
        let world = Self { folder, market, runpod };
        fs::create_dir_all(world.home())?;
        let petaflop_providers::machine::AgentDownload { url, sha256 } = &world.market.agent;
        let config = format!(
            "rented:\n  store: s3://bucket/store\n  runtimeImage: {IMAGE}\n  runtime: {RUNTIME}\n  agent:\n    url: {url}\n    sha256: {sha256}\n",
        );
        fs::write(world.home().join("config.yaml"), config)?;
        Ok(Some(world))
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// `tiny`, of the text that is in the runtime, on this provider alone.
    fn manifest(&self, provider: &str) -> Result<PathBuf> {
        let tiny = include_str!("../../examples/tiny.yaml");
        let job = tiny.replace("../LICENSE", "builtin:petaflop");
        ensure!(job.contains("path: builtin:petaflop"), "another example: {job}");
        let file = self.folder.path().join(format!("{provider}.yaml"));
        fs::write(&file, format!("{job}  placement:\n    providers: [{provider}]\n"))?;
        Ok(file)
    }

    fn petaflop(&self, home: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("petaflop")?);
        command
            .args(arguments)
            .env("PETAFLOP_HOME", home)
            .env("RUNPOD_API_KEY", "key")
            .env("RUNPOD_API_BASE_URL", self.runpod.url())
            .envs(self.market.store.credentials())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    async fn run(&self, home: &Path, provider: &str) -> Result<Value> {
        let manifest = self.manifest(provider)?.display().to_string();
        let output = self.petaflop(home, &["run", "--json", "-f", &manifest])?.output().await?;
        result(&output)
    }

    /// What the same job gives on this machine, undisturbed.
    async fn undisturbed(&self) -> Result<Value> {
        self.run(&self.folder.path().join("alone"), "host").await
    }

    fn pods(&self) -> Vec<Machine> {
        self.runpod.engine(|engine| engine.machines().to_vec())
    }

    /// The home that rented it knows it. Elsewhere it is found by its installation's uid, as where the
    /// home is lost: just bought, it is too young to be ended.
    async fn is_audited(&self, pod: &str) -> Result<()> {
        let found = async |home: &Path, more: &[&str]| {
            let words = [&["audit", "--local", "--json"][..], more].concat();
            result(&self.petaflop(home, &words)?.output().await?)
        };
        let own = found(&self.home(), &[]).await?;
        ensure!(own["machines"] == 1 && own["unclaimed"] == json!([]), "{own:#}");
        let uid = fs::read_to_string(self.home().join("installation"))?;
        let other = self.folder.path().join("other");
        let lost = found(&other, &["--terminate", "--installation", uid.trim()]).await?;
        let is = |key: &str, value: &str| lost["unclaimed"][0][key] == value;
        ensure!(is("machine", pod) && is("provider", "runpod") && is("fate", "young"), "{lost:#}");
        let nobodys = found(&other, &[]).await?;
        ensure!(nobodys["machines"] == 0, "{nobodys:#}");
        Ok(())
    }

    /// No pod is there any more, and each has its rows in the ledger.
    async fn is_settled(&self) -> Result<()> {
        let pods = self.pods();
        ensure!(pods.iter().all(|pod| pod.life == Life::Terminated), "{pods:#?}");
        let asked = ["costs", "--json", "--by", "provider"];
        let told = self.petaflop(&self.home(), &asked)?.output().await?;
        let costs = result(&told)?;
        let rows = costs["rows"].as_array().context("rows")?;
        let ours = rows.iter().filter(|row| row["provider"] == "runpod");
        let claims: BTreeSet<&str> = ours.filter_map(|row| row["claimUid"].as_str()).collect();
        ensure!(claims.len() == pods.len(), "{} pods, {costs:#}", pods.len());
        let booked: f64 = costs["groups"]["runpod"].as_str().context("a sum")?.parse()?;
        ensure!(booked > 0.0, "{costs:#}");
        Ok(())
    }
}

fn result(output: &Output) -> Result<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}:\n{said}", output.status);
    serde_json::from_slice(&output.stdout).context("one JSON object")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_on_a_pod_and_its_result_comes_home() -> Result<()> {
    let Some(world) = World::start().await? else { return Ok(()) };
    let here = world.undisturbed().await?;
    let away = world.run(&world.home(), "runpod").await?;
    ensure!(away["jobs"][0]["artifact"] == here["jobs"][0]["artifact"], "{away} {here}");
    ensure!(away["jobs"][0]["artifact"].is_string(), "{away}");
    ensure!(world.pods().len() == 1, "{:#?}", world.pods());
    world.is_settled().await?;
    let artifact = away["jobs"][0]["artifact"].as_str().unwrap_or_default();
    let kept = world.home().join(format!("store/artifacts/{artifact}.json"));
    ensure!(kept.exists(), "{} is not there", kept.display());
    // What was decided is decided again from what was known.
    let folder = world.home().join("jobs/default/tiny");
    let decided: Value = serde_json::from_slice(&fs::read(folder.join("decision.json"))?)?;
    let recorded = folder.join("world.json").display().to_string();
    let explain = ["explain", "--world", recorded.as_str(), "--json"];
    let explained = result(&world.petaflop(&world.home(), &explain)?.output().await?)?;
    ensure!(explained["decision"] == decided, "{explained}\n{decided}");
    // How long it took until it worked there counts for the next one.
    let learned = fs::read_to_string(world.home().join("corrections.json"))?;
    let learned: Vec<Correction> = serde_json::from_str(&learned)?;
    let launch = learned.iter().find(|one| one.key == launch_key("runpod"));
    let launch = launch.with_context(|| format!("{learned:?}"))?;
    ensure!(launch.runs == 1 && launch.sum_ln_ratio < 0.0, "no pod here takes minutes: {launch:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_taken_away_is_replaced_and_the_hash_is_the_same() -> Result<()> {
    let Some(world) = World::start().await? else { return Ok(()) };
    let here = world.undisturbed().await?;
    let manifest = world.manifest("runpod")?.display().to_string();
    let run = world.petaflop(&world.home(), &["run", "--json", "-f", &manifest])?;
    let run = tokio::spawn(async move {
        let mut run = run;
        run.output().await
    });
    let pod = eventually("a pod that runs", SOON, || async {
        let pods = world.pods();
        let running = pods.iter().find(|pod| pod.life == Life::Running);
        running.map(|pod| pod.id.clone()).ok_or(format!("{pods:?}"))
    })
    .await?;
    world.is_audited(&pod).await?;
    world.runpod.engine(|engine| engine.evict(&pod, None))?;
    let away = result(&run.await??)?;
    ensure!(away["jobs"][0]["artifact"] == here["jobs"][0]["artifact"], "{away} {here}");
    ensure!(world.pods().len() == 2, "{:#?}", world.pods());
    world.is_settled().await
}
