//! The program killed as the kernel kills, from create to complete. When, is counted and not timed: at
//! the n-th change of the job, its claim or its Pod that the API server tells of. The test plays the
//! kubelet: in each Pod a real agent runs a real task.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_fake_provider::real;
use petaflop_harness::kwok::EXIT_CODE;
use petaflop_harness::{Component, eventually};
use petaflop_providers::machine::env;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::operator::{is, tiny};
use crate::world::World;

/// Until a job is complete, on a busy machine.
const COMPLETE: Duration = Duration::from_secs(240);

/// Label of all that a job's machines are made of.
const OWNER: &str = "petaflop.dev/owner";

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_buys_one_machine_and_ends_as_if_nothing_had_been() -> Result<()> {
    let world = Arc::new(World::new("killed").await?);
    world.provide_nodes().await?;
    let _kubelet = kubelet(&world);
    let runtime = petaflop_tests::binary("petaflop-runtime")?;
    let program = world.start_with([&*format!("--runtime={}", runtime.display())]).await?;

    let (undisturbed, changes) = run(&world, &program, 0, None).await?;
    eprintln!("undisturbed: {changes} changes, ends as {undisturbed}");
    let everything = std::env::var("PETAFLOP_FAULTS").is_ok_and(|value| value == "all");
    let kills = if everything { 40 } else { 6 };
    let mut wrong = Vec::new();
    for kill in 1..=kills {
        // One in each part of the run, not always at the same place of it.
        let at = 1 + ((kill - 1) * changes + (kill * 7 + 3) % changes) / kills;
        let before = wrong.len();
        match run(&world, &program, kill, Some(at)).await {
            Ok((end, _)) if end == undisturbed => {}
            Ok((end, _)) => wrong.push(format!("killed at change {at}: it ends as {end}")),
            Err(error) => wrong.push(format!("killed at change {at}: {error:?}")),
        }
        for made in ["computeclaims", "pods"] {
            let count = world.created(made).await?;
            if count != kill + 1 + before {
                wrong.push(format!("killed at change {at}: {count} {made} for {} jobs", kill + 1));
            }
        }
        ensure!(wrong.is_empty(), "{wrong:#?}\n{}", program.log_tail());
    }
    world.nothing_left(&program).await?;
    let rows = world.ledger()?;
    let last = rows.iter().filter(|row| row["kind"] == "final").count();
    ensure!(last == kills + 1, "{last} last rows for {} machines: {rows:#?}", kills + 1);
    world.nothing_refused().await?;
    eprintln!("{}", json!({ "kills": kills }));
    if let Ok(path) = std::env::var("PETAFLOP_FAULTS_SUMMARY") {
        // The sweep adds its own.
        std::fs::write(path, json!({ "kills": kills }).to_string())?;
    }
    Ok(())
}

/// One job from create to complete and its deletion, the program killed at a change of its, and another
/// started at once. How it ended, and how many changes there were until then.
async fn run(
    world: &Arc<World>,
    program: &Component,
    number: usize,
    kill: Option<usize>,
) -> Result<(Value, usize)> {
    let name = format!("job-{number}");
    let mut changes = changes(world, &name);
    let mut job = tiny(&name)?;
    // Each makes something that is not in the store yet.
    job.spec.recipe.as_mut().context("a recipe")?.seed = 100 + u64::try_from(number)?;
    let jobs = world.api::<TrainingJob>();
    jobs.create(&PostParams::default(), &job).await?;
    if let Some(at) = kill {
        let struck = changes.seen.wait_for(|seen| *seen >= at);
        tokio::time::timeout(COMPLETE, struck).await.context("so many changes")??;
        program.kill();
        program.restart()?;
    }
    let selected = ListParams::default().labels(&format!("{OWNER}={name}"));
    let done = eventually("complete, and no machine", COMPLETE, || async {
        let text = |error: kube::Error| error.to_string();
        let job = jobs.get(&name).await.map_err(text)?;
        let claims = world.api::<ComputeClaim>().list(&selected).await.map_err(text)?.items.len();
        let pods = world.api::<Pod>().list(&selected).await.map_err(text)?.items.len();
        let status = job.status.as_ref();
        match status.is_some_and(|s| is(&s.conditions, "Complete")) && claims + pods == 0 {
            true => Ok(job),
            false => {
                Err(format!("{claims} claims, {pods} Pods, {status:?}\n{}", program.log_tail()))
            }
        }
    });
    let done = done.await?;
    let seen = *changes.seen.borrow();
    jobs.delete(&name, &DeleteParams::background()).await?;
    Ok((end(&done), seen))
}

/// What must be the same whatever happened meanwhile.
fn end(job: &TrainingJob) -> Value {
    let Some(status) = &job.status else { return Value::Null };
    let conditions: BTreeMap<_, _> = (status.conditions.iter())
        .map(|c| (c.type_.clone(), format!("{} {}", c.status, c.reason)))
        .collect();
    let placement = status.placement.as_ref();
    json!({
        "phase": status.phase,
        "conditions": conditions,
        "counters": [status.interruptions, status.restarts, status.failures],
        "placement": placement.map(|p| (p.number, p.settled)),
        "artifact": status.artifact.is_some(),
        "cost": status.cost.is_some(),
    })
}

/// Changes of a job, its claims and its Pods that the API server has told of so far.
struct Changes {
    seen: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

fn changes(world: &World, name: &str) -> Changes {
    let (count, seen) = watch::channel(0);
    let (count, mut tasks) = (Arc::new(count), JoinSet::new());
    let field = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let label = watcher::Config::default().labels(&format!("{OWNER}={name}"));
    tasks.spawn(follow(world.api::<TrainingJob>(), field, count.clone()));
    tasks.spawn(follow(world.api::<ComputeClaim>(), label.clone(), count.clone()));
    tasks.spawn(follow(world.api::<Pod>(), label, count));
    Changes { seen, _tasks: tasks }
}

async fn follow<K>(api: Api<K>, config: watcher::Config, count: Arc<watch::Sender<usize>>)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut events = std::pin::pin!(watcher(api, config));
    while let Some(event) = events.next().await {
        if matches!(event, Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_))) {
            count.send_modify(|count| *count += 1);
        }
    }
}

/// Runs the agent of each Pod at the Pod's address; ends the Pod with it, and it with the Pod.
/// What runs there runs on while the API server does not say which Pods there are.
pub(crate) fn kubelet(world: &Arc<World>) -> JoinSet<()> {
    let (pods, world) = (world.api::<Pod>(), world.clone());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut running: BTreeMap<String, JoinSet<()>> = BTreeMap::new();
        loop {
            let Ok(there) = pods.list(&ListParams::default()).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let there = there.items;
            running.retain(|uid, _| there.iter().any(|pod| pod.uid().as_ref() == Some(uid)));
            for pod in there {
                let uid = pod.uid().unwrap_or_default();
                if let (Some(at), false) = (address(&pod), running.contains_key(&uid)) {
                    let work = world.path("machines").join(&uid);
                    let mut agent = JoinSet::new();
                    agent.spawn(work_in(pods.clone(), pod, at, work));
                    running.insert(uid, agent);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    task
}

/// Where its agent listens, once it runs.
fn address(pod: &Pod) -> Option<SocketAddr> {
    let status = pod.status.as_ref()?;
    let ip = status.pod_ip.as_ref().filter(|_| status.phase.as_deref() == Some("Running"))?;
    let port = pod.spec.as_ref()?.containers.first()?.ports.as_ref()?.first()?.container_port;
    format!("{ip}:{port}").parse().ok()
}

/// All that runs in a Pod.
struct Machine(Option<tokio::runtime::Runtime>);

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(threads) = self.0.take() {
            threads.shutdown_background();
        }
    }
}

async fn work_in(pods: Api<Pod>, pod: Pod, at: SocketAddr, work: std::path::PathBuf) {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    let mut environment: BTreeMap<String, String> = (container.and_then(|c| c.env.clone()))
        .into_iter()
        .flatten()
        .filter_map(|variable| Some((variable.name, variable.value?)))
        .collect();
    environment.insert(env::WORK.to_owned(), work.display().to_string());
    // Its connections die with it: another Pod may have its address at once.
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let Ok(threads) = threads else { return };
    let agent = threads.spawn(async move { real::pod(&environment, at, work).await });
    let _machine = Machine(Some(threads));
    let Ok(code) = agent.await else { return };
    let ended = Patch::Merge(json!({
        "metadata": { "annotations": { EXIT_CODE: code.to_string() } },
    }));
    let _ = pods.patch(&pod.name_any(), &PatchParams::default(), &ended).await;
}
