//! The Secret with the account's key, which comes late, is wrong, and goes away while a pod runs.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use serde_json::json;

use crate::market::PLAIN;
use crate::operator::is;
use crate::{CANARY, World, job};

const SOON: Duration = Duration::from_secs(120);
/// For which the key is away, each time: longer than between two rows of a claim's.
const AWAY: Duration = Duration::from_secs(15 * 60);

/// A command that goes on until a file of the test's, which its machine has there, says that it may end.
fn waits(world: &World, name: &str) -> Result<TrainingJob> {
    let command = "until test -s /dev/until; do sleep 0.2; done";
    Ok(serde_json::from_value(json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": { "name": name },
        "spec": {
            "container": { "image": PLAIN, "command": ["/bin/sh", "-c", command] },
            "resources": { "cpu": "1" },
            "placement": { "providers": [world.account.name] },
            "backoffLimit": 0,
        },
    }))?)
}

fn says(job: &TrainingJob, condition: &str) -> bool {
    job.status.as_ref().is_some_and(|status| is(&status.conditions, condition))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_goes_away_while_a_pod_runs_costs_neither_the_pod_nor_its_job() -> Result<()> {
    let Some(world) = World::start("runpod-gone").await? else { return Ok(()) };
    let cluster = &world.cluster;
    let mut until = tempfile::NamedTempFile::new()?;
    world.market.machines.equip(0, until.path(), "/dev/until");
    world.key(CANARY).await?;
    let running = world.operator(true).await?;
    world.account.until("Ready", "True", "Ok").await?;
    cluster.create(&waits(&world, "long")?).await?;
    cluster.until("long", "Running", SOON, |job| says(job, "Running")).await?;

    // Its Secret is emptied, and the operator goes on; then it is gone, and another one begins.
    world.key("").await?;
    world.account.until("CredentialsValid", "False", "SecretNotFound").await?;
    world.ticking.pass(AWAY, 3).await;
    drop(running);
    world.account.no_keys().await?;
    let running = world.operator(true).await?;
    let stalled = eventually("what is missing is said", SOON, || async {
        let said = world.account.until("Stalled", "True", "SecretNotFound").await;
        let message = said.map_err(|error| error.to_string())?.message;
        message.contains("there is no Secret runpod").then_some(()).ok_or(message)
    });
    stalled.await?;
    cluster.create(&waits(&world, "next")?).await?;
    world.ticking.pass(AWAY, 3).await;

    // Nothing is forgotten, ended or bought.
    let kept = cluster.job("long").await?;
    let status = kept.status.clone().context("a status")?;
    ensure!(says(&kept, "Running") && status.interruptions == 0, "{status:#?}");
    let pods = world.runpod.engine(|engine| engine.machines().to_vec());
    ensure!(pods.len() == 1 && world.billing() == 1, "{pods:#?}");
    let claims = cluster.claims().await?;
    ensure!(claims.len() == 1, "{claims:#?}");
    let waiting = format!("{:?}", cluster.job("next").await?.status);
    let named = format!("nothing can be asked now of {}", world.account.name);
    ensure!(waiting.contains("ProviderUnavailable") && waiting.contains(&named), "{waiting}");

    // All goes on once it is back, to the micro-dollar.
    world.key(CANARY).await?;
    world.account.until("Ready", "True", "Ok").await?;
    until.write_all(b"now")?;
    for name in ["long", "next"] {
        let over = cluster.until(name, "Complete", SOON, |job| says(job, "Complete")).await?;
        let status = over.status.context("a status")?;
        ensure!((status.failures, status.interruptions) == (0, 0), "{name}: {status:#?}");
    }
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    let pods = world.runpod.engine(|engine| engine.machines().len());
    ensure!(pods == 2 && world.billing() == 0, "{pods} pods");
    let (booked, invoiced) = (cluster.booked().await?, world.invoiced());
    eprintln!("booked {booked}, invoiced {invoiced} micro-dollars");
    // Each of its four lines is rounded by itself.
    ensure!(booked > 0 && (booked - invoiced).abs() <= 2, "booked {booked}, invoiced {invoiced}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_counts_as_soon_as_its_secret_has_it_and_what_is_missing_is_said() -> Result<()> {
    let Some(world) = World::start("runpod-keys").await? else { return Ok(()) };
    let _running = world.operator(false).await?;
    let missing = world.account.until("Stalled", "True", "SecretNotFound").await?;
    let namespace = &world.cluster.namespace;
    let wanted = format!("there is no Secret runpod in namespace {namespace}; create it");
    ensure!(missing.message.contains(&wanted), "{missing:?}");
    world.account.until("CredentialsValid", "False", "SecretNotFound").await?;
    world.key(" ").await?;
    let eventually_said = eventually("the key is missed", Duration::from_secs(60), || async {
        let found = world.account.until("Stalled", "True", "SecretNotFound").await;
        let message = found.map_err(|error| error.to_string())?.message;
        match message.contains("no text under the key RUNPOD_API_KEY") {
            true => Ok(()),
            false => Err(message),
        }
    });
    eventually_said.await?;
    world.key("somebody-elses").await?;
    world.account.until("CredentialsValid", "False", "Unauthorized").await?;
    world.key(CANARY).await?;
    world.account.until("Ready", "True", "Ok").await?;
    let offers = world.account.object().await?.status.unwrap_or_default().offers;
    ensure!(offers.as_ref().is_some_and(|offers| offers.count > 5), "{offers:?}");

    // The store is a folder, which no pod reaches: nothing is bought, and it is said why.
    world.cluster.create(&job(&world, "tied")?).await?;
    let tied = world
        .cluster
        .until("tied", "told why it waits", Duration::from_secs(60), |job| {
            let said = format!("{:?}", job.status);
            said.contains("NoMatchingOffer") && said.contains("cannot reach the store")
        })
        .await?;
    ensure!(tied.name_any() == "tied" && world.cluster.claims().await?.is_empty(), "{tied:?}");
    ensure!(world.runpod.engine(|engine| engine.machines().is_empty()), "a pod was bought");
    Ok(())
}
