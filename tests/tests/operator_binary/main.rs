//! The program that the chart starts, as a process against a real API server and with the chart's
//! rights: it begins, works, ends when it is told to, is killed and goes on. Its machines are Pods
//! on nodes that KWOK pretends.

mod away;
mod commands;
mod killed;
mod nodes;
#[path = "../operator/mod.rs"]
mod operator;
mod rights;
mod starts;
mod stopped;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DeleteParams;
use operator::is;
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_harness::eventually;
use serde_json::{Value, json};
use world::{SOON, World, conditions, said};

#[tokio::test(flavor = "multi_thread")]
async fn it_offers_nodes_survives_a_kill_and_gives_its_lease_back() -> Result<()> {
    let world = World::new("begins").await?;
    world.provide_nodes().await?;
    let program = world.start().await?;
    world.provider(&program, "is Ready", |object| is(conditions(object), "Ready")).await?;

    // A job gets a machine: a claim, and one Pod on the only node there is for it.
    let pod = world.job_runs(&program, "tiny").await?;
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    ensure!(node == Some("begins"), "{node:?}");

    // Killed, and another one in its place: the same claim, the same Pod, no other.
    let first = world.holder().await.map_err(anyhow::Error::msg)?.context("somebody leads")?;
    program.kill();
    program.restart()?;
    eventually("another leads", SOON, || async {
        match world.holder().await? {
            Some(holder) if holder != first => Ok(()),
            other => Err(format!("{other:?}\n{}", program.log_tail())),
        }
    })
    .await?;
    let claims = world.all::<ComputeClaim>().await.map_err(anyhow::Error::msg)?;
    ensure!(claims.len() == 1, "{claims:#?}");
    let pods = world.all::<Pod>().await.map_err(anyhow::Error::msg)?;
    ensure!(pods.len() == 1 && pods[0].uid() == pod.uid(), "{pods:#?}");
    world.api::<TrainingJob>().delete("tiny", &DeleteParams::default()).await?;
    world.nothing_left(&program).await?;
    let rows = world.ledger()?;
    ensure!(rows.iter().any(|row| row["kind"] == "final"), "{rows:#?}");

    // Told to end, it leaves the Lease to whoever comes next.
    program.stop(Duration::from_secs(30));
    let holder = world.holder().await.map_err(anyhow::Error::msg)?;
    ensure!(holder.is_none(), "{holder:?}");
    let away = world.selftest()?;
    ensure!(
        !away.status.success() && said(&away).contains("see that the operator runs"),
        "{}",
        said(&away)
    );
    world.nothing_refused().await?;

    // Each line is an object; those of a pass say which, by one id.
    let log = std::fs::read_to_string(program.log())?;
    let mut passes = 0;
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).context(line.to_owned())?;
        ensure!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        if line["span"]["kind"] == "ComputeClaim" {
            let trace = line["span"]["trace_id"].as_str().context("a trace id")?;
            ensure!(trace.len() == 32 && line["span"]["namespace"] == world.namespace.name());
            passes += 1;
        }
    }
    ensure!(passes > 0, "no line of a claim's pass:\n{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_cannot_be_had_here_is_stalled_and_says_what_to_change() -> Result<()> {
    let world = World::new("stalls").await?;
    world.provide(json!({ "host": {} })).await?;
    let program = world.start().await?;
    let object =
        world.provider(&program, "is Stalled", |object| is(conditions(object), "Stalled")).await?;
    let stalled = conditions(&object).iter().find(|c| c.type_ == "Stalled").context("Stalled")?;
    ensure!(stalled.reason == "ProviderUnavailable", "{stalled:?}");
    ensure!(stalled.message.contains("nodes: {}"), "{stalled:?}");
    Ok(())
}
