//! The servers under the program are away for longer than a Lease lasts: paused, killed, and without
//! their store. This waits in real time, for that is what watches, connections and Leases of the real
//! servers go by.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_harness::kwok::{FakeNode, Kwok};
use petaflop_harness::{Component, ControlPlane, Options, eventually};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::killed::kubelet;
use crate::operator::{define, is};
use crate::world::{SOON, World};

/// How long each server is away.
const AWAY: Duration = Duration::from_secs(35);

/// Until all goes on again, on a busy machine.
const AGAIN: Duration = Duration::from_secs(180);

const JOB: &str = "waits";

/// How a server goes away.
#[derive(Clone, Copy, Debug)]
enum Outage {
    /// Connections stay open, nothing answers.
    Paused,
    /// Connections break, and are refused.
    Killed,
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_away_for_half_a_minute_cost_no_machine_and_no_restart() -> Result<()> {
    // Its servers live as long as the test's process, as a `World` wants it.
    static OWN: OnceCell<ControlPlane> = OnceCell::const_new();
    let plane = OWN.get_or_try_init(|| ControlPlane::start(Options::default())).await?;
    define(&plane.client().await?).await?;
    let kwok = Kwok::start(plane).await?;
    kwok.node(&FakeNode::new("away", 8, "32Gi").labels([("test", "away")])).await?;
    let namespace = plane.namespace("away").await?;
    let watched = vec![namespace.name().to_owned()];
    let world = Arc::new(World::over(plane, "away", namespace, watched).await?);
    world.provide_nodes().await?;
    let _kubelet = kubelet(&world);
    let program = world.start().await?;
    let pid = program.pid().context("a process")?;

    let go_on = world.path("go-on");
    let script = format!("until [ -e {} ]; do sleep 0.1; done", go_on.display());
    let spec = json!({
        "container": {
            "image": "docker.io/library/busybox:1.37",
            "command": ["/bin/sh", "-c", script],
        },
        "resources": { "cpu": "1", "memory": "64Mi" },
    });
    let jobs = world.api::<TrainingJob>();
    let job = TrainingJob::new(JOB, serde_json::from_value(spec)?);
    jobs.create(&PostParams::default(), &job).await?;
    job_is(&world, &program, "Running").await?;
    let machine = only_machine(&world).await?;

    let outages = [
        (plane.apiserver(), Outage::Paused),
        (plane.apiserver(), Outage::Killed),
        (plane.etcd(), Outage::Killed),
    ];
    for (number, &(server, outage)) in outages.iter().enumerate() {
        let what = format!("{} {outage:?}", server.name());
        match outage {
            Outage::Paused => server.pause()?,
            Outage::Killed => server.kill(),
        }
        tokio::time::sleep(AWAY).await;
        is_alive(&world).await.with_context(|| what.clone())?;
        match outage {
            Outage::Paused => server.resume()?,
            Outage::Killed => server.restart()?,
        }
        plane.ready().await.with_context(|| what.clone())?;
        // It works again: what its user changes now is seen and answered.
        let patch = Patch::Merge(json!({ "spec": { "backoffLimit": number + 4 } }));
        let changed = jobs.patch(JOB, &PatchParams::default(), &patch).await?;
        eventually(&format!("all goes on after {what}"), AGAIN, || async {
            let job = jobs.get(JOB).await.map_err(|error| error.to_string())?;
            let status = job.status.as_ref();
            match status.is_some_and(|s| s.observed_generation == changed.metadata.generation) {
                true => Ok(()),
                false => Err(format!("{status:?}\n{}", program.log_tail())),
            }
        })
        .await?;
        ensure!(program.pid() == Some(pid) && program.is_up(), "{what}: {}", program.log_tail());
        let now = only_machine(&world).await.with_context(|| what.clone())?;
        ensure!(now == machine, "{what}: {now:?}, and before {machine:?}");
    }

    std::fs::write(&go_on, "")?;
    let status = job_is(&world, &program, "Complete").await?.status.context("a status")?;
    ensure!((status.interruptions, status.restarts) == (0, 0), "{status:#?}");
    for made in ["computeclaims", "pods"] {
        let count = world.created(made).await?;
        ensure!(count == 1, "{count} {made} for one job");
    }
    jobs.delete(JOB, &DeleteParams::background()).await?;
    world.nothing_left(&program).await?;
    let rows = world.ledger()?;
    let last = rows.iter().filter(|row| row["kind"] == "final").count();
    ensure!(last == 1, "{last} last rows for one machine: {rows:#?}");
    ensure!(program.pid() == Some(pid) && program.is_up(), "{}", program.log_tail());
    // Each time it knew that somebody else might lead.
    let lost = std::fs::read_to_string(program.log())?.matches("no longer leading").count();
    ensure!(lost >= outages.len(), "its Lease was lost {lost} times: {}", program.log_tail());
    Ok(())
}

/// What the kubelet asks before it lets the program live on.
async fn is_alive(world: &World) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    client.get(format!("http://{}/healthz", world.http)).send().await?.error_for_status()?;
    Ok(())
}

/// The job, once it says this of itself.
async fn job_is(world: &World, program: &Component, condition: &str) -> Result<TrainingJob> {
    let found = eventually(condition, SOON, || async {
        let job = world.api::<TrainingJob>().get(JOB).await.map_err(|error| error.to_string())?;
        match job.status.as_ref().is_some_and(|status| is(&status.conditions, condition)) {
            true => Ok(job),
            false => Err(format!("{:?}\n{}", job.status, program.log_tail())),
        }
    });
    Ok(found.await?)
}

/// Uids of the claim and the Pod that there are; it is an error if there are others.
async fn only_machine(world: &World) -> Result<(Option<String>, Option<String>)> {
    let claims = world.all::<ComputeClaim>().await.map_err(anyhow::Error::msg)?;
    let pods = world.all::<Pod>().await.map_err(anyhow::Error::msg)?;
    ensure!(claims.len() == 1 && pods.len() == 1, "{claims:#?}\n{pods:#?}");
    Ok((claims[0].uid(), pods[0].uid()))
}
