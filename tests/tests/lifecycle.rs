//! The operator on a real API server, machines bought from a cloud in a box, real agents and the
//! real runtime on them: a TrainingJob from `create` to `Complete`, and what it leaves behind.

mod operator;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use operator::{Cluster, tiny};
use petaflop_crds::ComputeClaim;

/// What `examples/tiny.yaml` must give wherever it is trained.
fn golden() -> Result<serde_json::Value> {
    Ok(serde_json::from_str(include_str!("../golden/tiny.json"))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_trained_to_the_same_hash_and_nothing_is_left() -> Result<()> {
    let cluster = Cluster::start("lifecycle").await?;
    let running = cluster.operator().await?;
    let writes = cluster.plane.writes().await?;
    cluster.create(&tiny("tiny")?).await?;
    let job = cluster
        .until("tiny", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Complete"))
        })
        .await?;
    let status = job.status.clone().context("a status")?;
    ensure!(status.artifact.as_deref() == golden()?["artifact"].as_str(), "{status:#?}");
    ensure!(status.key.as_deref() == golden()?["key"].as_str(), "{status:#?}");

    // The machine goes, its claim after it, and the last sum is written.
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    let job = cluster.job("tiny").await?;
    let cost = job.status.and_then(|s| s.cost).and_then(|c| c.total).context("a cost")?;
    ensure!(cluster.cloud.created() == 1, "{} machines", cluster.cloud.created());
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    let booked = cluster.booked().await?;
    ensure!(booked > 0 && cost.micro_dollars()? == booked, "{cost:?} {booked}");

    // Custom objects and status: at most twelve writes from create to complete.
    let all = writes.all().await?;
    let ours: Vec<String> = all
        .iter()
        .filter(|w| w.was_taken() && !w.is_event() && w.object.namespace == cluster.namespace)
        .filter(|w| ["trainingjobs", "computeclaims"].contains(&w.object.resource.as_str()))
        .map(|w| format!("{} {}", w.verb, w.object))
        .collect();
    eprintln!("{} writes:\n{}", ours.len(), ours.join("\n"));
    // One of them is the user's own `create`.
    ensure!(ours.len() <= 12 + 1, "{} writes:\n{}", ours.len(), ours.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_deleted_while_it_runs_leaves_no_machine() -> Result<()> {
    let cluster = Cluster::start("deleted").await?;
    let running = cluster.operator().await?;
    cluster.create(&tiny("gone")?).await?;
    cluster
        .until("gone", "Running", Duration::from_secs(120), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Running"))
        })
        .await?;
    let claims = cluster.claims().await?;
    ensure!(
        claims.len() == 1,
        "{:?}",
        claims.iter().map(ComputeClaim::name_any).collect::<Vec<_>>()
    );
    cluster.delete("gone").await?;
    cluster.until_gone("gone").await?;
    cluster.quiet(&running).await?;
    ensure!(cluster.claims().await?.is_empty());
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    ensure!(cluster.booked().await? > 0);
    Ok(())
}
