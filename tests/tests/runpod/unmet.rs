//! Pods that are paid for and never get as far as their program.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_cloud_box::faults::{Fault, Operation, When};
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;

use crate::operator::is;
use crate::{CANARY, World, job};

const SOON: Duration = Duration::from_secs(120);
/// How long an offer is left alone the first time.
const ALONE: Duration = Duration::from_secs(30 * 60);
/// The launch timeout, and a look.
const TIMEOUT: Duration = Duration::from_secs(21 * 60);

fn pods(world: &World) -> Vec<(Machine, String)> {
    let kind = |pod: Machine| {
        let kind = world.runpod.engine(|engine| engine.product(pod.order.product).kind.clone());
        (pod, kind)
    };
    let made = world.runpod.engine(|engine| engine.machines().to_vec());
    made.into_iter().map(kind).collect()
}

/// So many pods were made.
async fn made(world: &World, count: usize) -> Result<()> {
    let what = format!("{count} pods");
    Ok(eventually(&what, SOON, || async {
        let pods = pods(world);
        (pods.len() >= count).then_some(()).ok_or(format!("{pods:?}"))
    })
    .await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_whose_machines_never_come_up_is_left_alone_and_counts_until_the_job_fails()
-> Result<()> {
    let Some(world) = World::start("runpod-unmet").await? else { return Ok(()) };
    let cluster = &world.cluster;
    world.key(CANARY).await?;
    world.runpod.faults(|faults| {
        faults.on(Fault::NeverStarts, Some(Operation::Create), When::Call(1));
    });
    let running = world.operator(true).await?;
    world.account.until("Ready", "True", "Ok").await?;
    cluster.create(&job(&world, "moves-on")?).await?;
    made(&world, 1).await?;
    world.ticking.pass(TIMEOUT, 3).await;
    let complete = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
    };
    let there = cluster.until("moves-on", "Complete", 2 * SOON, complete).await?;
    let status = there.status.context("a status")?;
    ensure!((status.failures, status.interruptions) == (1, 0), "{status:#?}");
    let told = cluster.events("moves-on").await?;
    let why = told.iter().find(|(reason, _)| reason == "LaunchTimedOut");
    let why = why.with_context(|| format!("no event: {told:?}"))?;
    ensure!(why.1.contains("its agent was not met"), "{why:?}");
    let [(_, stuck), (_, next)] = &pods(&world)[..] else { anyhow::bail!("{:#?}", pods(&world)) };
    ensure!(stuck != next, "{stuck} was bought again");

    // None comes up: no more is paid for than may fail, each another, and the job says why.
    world.runpod.faults(|faults| {
        faults.on(Fault::NeverStarts, Some(Operation::Create), When::Always);
    });
    let mut hopeless = job(&world, "hopeless")?;
    hopeless.spec.backoff_limit = 1;
    cluster.create(&hopeless).await?;
    made(&world, 3).await?;
    world.ticking.pass(TIMEOUT + ALONE, 3).await;
    made(&world, 4).await?;
    world.ticking.pass(TIMEOUT, 3).await;
    let failed = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Failed"))
    };
    let there = cluster.until("hopeless", "Failed", SOON, failed).await?;
    let said = format!("{:?}", there.status);
    ensure!(said.contains("BackoffLimitExceeded") && said.contains("was not met"), "{said}");
    ensure!(said.contains("whether its image can be fetched"), "no mend: {said}");
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    let pods = pods(&world);
    ensure!(pods.len() == 4, "{pods:#?}");
    // No kind is bought again before it was left alone for its time.
    for (at, (stuck, kind)) in pods.iter().enumerate().filter(|(_, (pod, _))| pod.stuck) {
        let again = pods[at + 1..].iter().filter(|(_, other)| other == kind);
        for (again, _) in again {
            let between = Duration::try_from(again.created.duration_since(stuck.created))?;
            ensure!(between >= Duration::from_secs(20 * 60) + ALONE, "{kind}: {between:?}");
        }
    }
    ensure!(world.billing() == 0, "it bills");
    let (booked, invoiced) = (cluster.booked().await?, world.invoiced());
    ensure!(booked > 0 && (booked - invoiced).abs() <= 4, "booked {booked}, invoiced {invoiced}");
    Ok(())
}
