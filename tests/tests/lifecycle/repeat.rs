//! A job's own command that ran to its end and need not run again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_crds::{TrainingJob, TrainingJobStatus};
use serde_json::json;

use crate::command;
use crate::operator::{self, Cluster};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_cache_is_always_runs_once_and_another_one_again() -> Result<()> {
    let cluster = Cluster::start("repeated").await?;
    let _running = cluster.operator().await?;
    let job = |script: &str| -> Result<TrainingJob> {
        let mut job = command("nightly", script, &json!({ "cache": "Always" }))?;
        let container = job.spec.container.as_mut().context("a container")?;
        container.image = format!("docker.io/library/busybox@sha256:{}", "0".repeat(64));
        Ok(job)
    };
    // Created, over, and deleted, as a pipeline does it each night.
    let night = async |script: &str| -> Result<TrainingJobStatus> {
        cluster.create(&job(script)?).await?;
        let complete = |job: &TrainingJob| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Complete"))
        };
        let patience = Duration::from_secs(180);
        let job = cluster.until("nightly", "Complete", patience, complete).await?;
        cluster.delete("nightly").await?;
        cluster.until_gone("nightly").await?;
        cluster.until_no_claims().await?;
        job.status.context("a status")
    };
    let first = night("true").await?;
    ensure!((first.cached, cluster.cloud.created()) == (Some(false), 1), "{first:#?}");
    let second = night("true").await?;
    ensure!((second.cached, cluster.cloud.created()) == (Some(true), 1), "{second:#?}");
    ensure!(second.key.is_some() && second.key == first.key, "{second:#?}");
    ensure!(second.placement.is_none(), "it has no machine: {second:#?}");
    let other = night("true; true").await?;
    ensure!((other.cached, cluster.cloud.created()) == (Some(false), 2), "{other:#?}");
    ensure!(other.key != first.key, "{other:#?}");
    Ok(())
}
