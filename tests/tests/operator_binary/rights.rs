//! The chart's rights are enough for all that the operator does, and it stays within them.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_harness::{ControlPlane, eventually};

use crate::operator::{Cluster, is, tiny};
use crate::world::{SOON, World, nothing_refused, roles};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_from_create_to_complete_takes_no_right_that_the_chart_does_not_give() -> Result<()> {
    let cluster = Cluster::start("rights").await?;
    let (plane, namespace) = (cluster.plane, cluster.namespace.as_str());
    roles(plane, namespace, "rights", &[namespace.to_owned()])?;
    let writes = plane.writes().await?;
    let access = plane.service_account(namespace, "rights").await?;
    let running = cluster.operator_as(&access).await?;
    cluster.create(&tiny("tiny")?).await?;
    cluster
        .until("tiny", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|s| is(&s.conditions, "Complete"))
        })
        .await?;
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    cluster.delete("tiny").await?;
    cluster.until_gone("tiny").await?;
    nothing_refused(&writes, namespace).await?;

    // It would have been seen: this account may not read Secrets.
    let secrets: Api<Secret> = Api::namespaced(access.client().await?, namespace);
    ensure!(secrets.list(&ListParams::default()).await.is_err());
    ensure!(nothing_refused(&writes, namespace).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_rights_in_two_namespaces_it_works_in_both_and_asks_for_no_other() -> Result<()> {
    let plane = ControlPlane::shared().await;
    let (one, two, three) = (
        plane.namespace("one").await?,
        plane.namespace("two").await?,
        plane.namespace("three").await?,
    );
    let own = plane.namespace("own").await?;
    let watched = vec![one.name().to_owned(), two.name().to_owned()];
    let world = World::within(plane, "two", own, watched.clone()).await?;
    world.provide_nodes().await?;
    let program = world.start().await?;
    let elsewhere: Api<TrainingJob> = Api::namespaced(world.client.clone(), three.name());
    elsewhere.create(&PostParams::default(), &tiny("elsewhere")?).await?;
    for namespace in &watched {
        world.job_runs_in(&program, namespace, "tiny").await?;
    }
    // One that is killed finds both again.
    program.kill();
    program.restart()?;
    for namespace in &watched {
        let jobs: Api<TrainingJob> = Api::namespaced(world.client.clone(), namespace);
        jobs.delete("tiny", &DeleteParams::default()).await?;
        let pods: Api<Pod> = Api::namespaced(world.client.clone(), namespace);
        let claims: Api<ComputeClaim> = Api::namespaced(world.client.clone(), namespace);
        let all = ListParams::default();
        eventually("nothing is left", SOON, || async {
            let pods = pods.list(&all).await.map_err(|e| e.to_string())?.items.len();
            let claims = claims.list(&all).await.map_err(|e| e.to_string())?.items.len();
            let job = jobs.get_opt("tiny").await.map_err(|e| e.to_string())?;
            match pods + claims {
                0 if job.is_none() => Ok(()),
                _ => Err(format!("{pods} Pods, {claims} claims\n{}", program.log_tail())),
            }
        })
        .await?;
    }
    let other = elsewhere.get("elsewhere").await?;
    ensure!(other.status.is_none(), "{:?}", other.status);
    world.nothing_refused().await
}
