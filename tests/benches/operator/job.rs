//! One TrainingJob from create to complete: its writes, each by name. And the static agent as a
//! process of its own, enrolled by an operator, while its task does nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use petaflop_agent_api::clock::Clock;
use petaflop_fake_provider::agent::{AgentEnd, AgentRunner, Boot};
use petaflop_harness::eventually;
use petaflop_providers::machine::env;

use crate::figures::{Figure, Figures};
use crate::operator::{Cluster, is, tiny};
use crate::{Args, process};

pub(crate) async fn measure(args: &Args, figures: &mut Figures) -> Result<()> {
    writes(figures).await?;
    agent(args, figures).await
}

async fn writes(figures: &mut Figures) -> Result<()> {
    let cluster = Cluster::start("bench-job").await?;
    let running = cluster.operator().await?;
    let writes = cluster.plane.writes().await?;
    cluster.create(&tiny("tiny")?).await?;
    cluster
        .until("tiny", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
        })
        .await?;
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    let mut all = writes.all().await?;
    all.retain(|write| write.was_taken() && write.object.namespace == cluster.namespace);
    let events = all.iter().filter(|write| write.is_event()).count();
    let kinds = ["trainingjobs", "computeclaims"];
    all.retain(|write| kinds.contains(&write.object.resource.as_str()));
    for (number, write) in all.iter().enumerate() {
        println!("    {number:2} {} {}", write.verb, write.object);
    }
    // The first is the user's own `create`.
    let ours = count(all.len().saturating_sub(1));
    let what = "writes of custom objects and status, create to complete";
    figures.add(Figure::new(what, "writes", vec![ours]).aim("≤ 12"));
    figures.add(Figure::new("events beside them", "events", vec![count(events)]));
    Ok(())
}

async fn agent(args: &Args, figures: &mut Figures) -> Result<()> {
    let program = args.agent.clone();
    let program = program.map_or_else(|| petaflop_tests::static_binary("petaflop-agent"), Ok)?;
    let pids: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let folder = tempfile::tempdir()?;
    let runner = runner(program, folder.path(), pids.clone());
    let cluster = Cluster::start_with("bench-agent", Clock::system(), Some(runner)).await?;
    // A task that does nothing, for as long as it is let.
    let task = folder.path().join("task");
    std::fs::write(&task, "#!/bin/sh\nexec sleep 3600\n")?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&task, executable)?;
    let _running =
        cluster.operator_with(|settings| settings.runtime = task.display().to_string()).await?;
    cluster.create(&tiny("tiny")?).await?;
    let pid = eventually("the agent's task runs", Duration::from_secs(120), || async {
        let pids = pids.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = *pids.values().next().ok_or("no agent")?;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let begun = children.is_ok_and(|children| !children.trim().is_empty());
        if begun { Ok(pid) } else { Err("no task".to_owned()) }
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = process::processor(pid)?;
    let began = std::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(args.agent_seconds)).await;
    let used = process::processor(pid)? - before;
    let share = used / began.elapsed().as_secs_f64() * 100.0;
    let memory = process::memory(pid)?;
    let mib = |bytes: f64| vec![bytes / f64::from(1 << 20)];
    figures.add(Figure::new("agent with an idle task: RSS", "MiB", mib(memory.rss)).aim("≤ 25"));
    figures.add(Figure::new("agent with an idle task: peak", "MiB", mib(memory.peak)));
    figures.add(Figure::new("agent with an idle task", "% of a core", vec![share]).aim("≤ 0.5"));
    Ok(())
}

/// Machines with the static agent on them, as a process.
fn runner(program: PathBuf, folder: &Path, pids: Arc<Mutex<BTreeMap<String, u32>>>) -> AgentRunner {
    let folder = folder.to_owned();
    Arc::new(move |boot| {
        let (program, work, pids) = (program.clone(), folder.join(&boot.instance), pids.clone());
        Box::pin(async move {
            match run(&program, &work, &boot, &pids).await {
                Ok(code) => AgentEnd::MachineEnded { code },
                Err(error) => {
                    eprintln!("agent: {error:#}");
                    AgentEnd::Exited { code: 1 }
                }
            }
        })
    })
}

async fn run(
    program: &Path,
    work: &Path,
    boot: &Boot,
    pids: &Mutex<BTreeMap<String, u32>>,
) -> Result<i32> {
    std::fs::create_dir_all(work)?;
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut agent = tokio::process::Command::new(program)
        .arg("supervise")
        .envs(&boot.env)
        .env(env::IDENTITY, &boot.identity)
        .env(env::PORT, address.port().to_string())
        .env(env::WORK, work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let pid = agent.id().context("it runs")?;
    pids.lock().unwrap_or_else(PoisonError::into_inner).insert(boot.instance.clone(), pid);
    boot.reachable_at(address);
    Ok(agent.wait().await?.code().unwrap_or(1))
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
pub(crate) fn count(many: usize) -> f64 {
    many as f64
}
