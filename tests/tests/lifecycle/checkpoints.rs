//! Checkpoints of a job whose owner leaves their interval to us: real runs, on two places that are
//! expected to be lost at very different rates.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_agent_api::task::PROGRESS_FILE;
use petaflop_arbiter::checkpoint::SHORTEST_SECONDS;
use petaflop_arbiter::offer::{Capacity, Offer, OfferId};
use petaflop_fake_provider::cloud::small_offer;
use petaflop_harness::eventually;
use petaflop_plan::recipe::JobSpec;
use petaflop_store::report::Progress;

use super::operator::{Cluster, is, tiny};

const SOON: Duration = Duration::from_secs(240);

/// A file that a machine of the cloud has, by the file's name.
fn file(machines: &Path, machine: &str, name: &str) -> Result<String> {
    let mut folders = vec![machines.join(machine)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.ends_with(name) {
                return Ok(std::fs::read_to_string(&path)?);
            }
            folders.extend(path.is_dir().then_some(path));
        }
    }
    anyhow::bail!("{machine} has no {name}")
}

/// What a machine was told to run.
fn told(machines: &Path, machine: &str) -> Result<JobSpec> {
    Ok(serde_json::from_str(&file(machines, machine, "job.json")?)?)
}

/// Checkpoints that a machine's runtime has said are durable.
fn saved(machines: &Path, machine: &str) -> usize {
    let said = file(machines, machine, PROGRESS_FILE).unwrap_or_default();
    let lines = said.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line| matches!(line, Progress::Checkpoint { .. })).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_come_as_often_as_the_place_asks_and_another_place_asks_for_others()
-> Result<()> {
    let cluster = Cluster::start("intervals").await?;
    // So cheap that it is taken though it is expected to be gone in a minute.
    let spot = Offer {
        id: OfferId(format!("{}/r/spot", cluster.provider)),
        instance_type: "spot".into(),
        capacity: Capacity::Spot,
        interruptions_per_hour: Some(60.0),
        ..small_offer(&cluster.provider, "0.001".parse()?)
    };
    cluster.cloud.sell(spot.clone());
    let _running = cluster.operator().await?;
    let mut job = tiny("saves")?;
    job.spec.recipe.as_mut().context("a recipe")?.max_steps = Some(100_000);
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    ensure!(job.spec.checkpoint.interval_seconds.is_none(), "the example says how often");
    cluster.create(&job).await?;

    cluster
        .until("saves", "running", SOON, |job| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, "Running"))
        })
        .await?;
    let claims = cluster.claims().await?;
    ensure!(claims.len() == 1 && claims[0].spec.offer.id == spot.id.0, "{claims:#?}");
    let uid = claims[0].metadata.uid.clone().context("a uid")?;
    let machine = cluster.cloud.machines_of(&uid).pop().context("a machine")?;
    eventually("a second checkpoint", SOON, || async {
        let saved = saved(&cluster.machines(), &machine);
        (saved > 1).then_some(()).ok_or(format!("{saved}"))
    })
    .await?;
    let often = told(&cluster.machines(), &machine)?.checkpoint_interval_seconds;
    // Seldom enough to be no hour, and no more often than is ever asked for.
    ensure!((SHORTEST_SECONDS.into()..60).contains(&often), "{often}");
    ensure!(claims[0].spec.checkpoint_interval_seconds.map(u64::from) == Some(often));

    cluster.cloud.withdraw(&spot.id);
    cluster.cloud.interrupt(&machine, None);
    cluster
        .until("saves", "running elsewhere", SOON, |job| {
            job.status.as_ref().is_some_and(|status| {
                let number = status.placement.as_ref().and_then(|place| place.number);
                is(&status.conditions, "Running") && number == Some(2)
            })
        })
        .await?;
    let claims = cluster.claims().await?;
    let claim = claims.iter().find(|claim| claim.spec.placement == 2).context("a second claim")?;
    let machine =
        claim.metadata.uid.as_deref().and_then(|uid| cluster.cloud.machines_of(uid).pop());
    let seldom = told(&cluster.machines(), &machine.context("a machine")?)?;
    let seldom = seldom.checkpoint_interval_seconds;
    ensure!(claim.spec.checkpoint_interval_seconds.map(u64::from) == Some(seldom), "{claim:#?}");
    // Of an on-demand machine one loss in months is expected.
    ensure!(seldom > 2 * often, "{seldom} is as often as {often}");

    cluster.delete("saves").await?;
    cluster.until_gone("saves").await?;
    cluster.until_no_claims().await
}
