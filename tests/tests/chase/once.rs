//! One chase. The job starts in the cheapest zone of EC2, on a spot instance, which is taken away with
//! two minutes' notice; goes on at RunPod Community, which has become cheaper meanwhile, on a host that
//! dies without a word; and finishes where it is cheapest then.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use jiff::SignedDuration;
use petaflop_arbiter::ledger::Row;
use petaflop_cloud_box::ec2;
use petaflop_cloud_box::engine::machine::{Life, Machine, Why};
use petaflop_harness::eventually;
use petaflop_providers::host::process;

use crate::ONE_AT_A_TIME;
use crate::clouds::{Clouds, LONG, ZONES, lines};
use crate::market::Market;
use crate::operator::is;
use crate::world::{JOB, Size, World};

/// Long enough to be interrupted twice, on a machine with nothing else to do.
const SIZE: Size = Size { steps: 240, small: false };

/// How much later than it ended by itself a spot instance's request says so: docs/money.md.
const UNTOLD: SignedDuration = SignedDuration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_chased_over_three_places_and_ends_with_the_undisturbed_hash() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(market) = Market::open().await? else { return Ok(()) };
    let world = World::start(Arc::new(market), "chase", 1, 0).await?;
    let undisturbed = SIZE.undisturbed().await?;
    let (cluster, clouds) = (&world.cluster, &world.clouds);
    let running = world.operator().await?;
    cluster.create(&world.job(SIZE)?).await?;

    world.runs(1).await?;
    ensure!(clouds.instances().len() == 1 && clouds.pods().is_empty(), "not the cheapest place");
    // A cheaper place appears, and is known after the next quote.
    clouds.community(9);
    let quoted = cluster.clock.now() + SignedDuration::from_mins(3);
    eventually("new prices", LONG, || async {
        let now = cluster.clock.now();
        (now >= quoted).then_some(()).ok_or_else(|| format!("{now}"))
    })
    .await?;
    // The machine hears of it in its own time: two minutes are two minutes.
    world.ticking.every(1000);
    take_the_first(clouds).await?;
    world.ticking.every(50);

    world.runs(2).await?;
    kill_the_second(clouds)?;

    let job = cluster
        .until(JOB, "Complete", LONG, |job| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
        })
        .await?;
    let status = job.status.context("a status")?;
    ensure!(status.artifact.as_ref() == Some(&undisturbed), "{status:#?} is not {undisturbed}");
    ensure!(status.interruptions == 2 && status.failures == 0, "{status:#?}");
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;

    all_went_as_planned(clouds)?;
    clouds.all_are_gone().await?;
    is_booked(clouds, &cluster.rows().await?, 0)?;
    let cost = cluster.job(JOB).await?.status.and_then(|s| s.cost).and_then(|c| c.total);
    ensure!(cost.context("a cost")?.micro_dollars()? == cluster.booked().await?, "its cost");
    let ours = format!("/{}/", cluster.namespace);
    let left = process::members()?.into_iter().filter(|one| one.identity.contains(&ours)).count();
    ensure!(left == 0, "{left} processes of machines are left");
    Ok(())
}

/// EC2 wants it back in two minutes. Returns once the machine has saved what it had, and is given
/// back before it is taken.
async fn take_the_first(clouds: &Clouds) -> Result<()> {
    let id = clouds.instances().first().context("an instance")?.id.clone();
    clouds.ec2.engine(|engine| engine.evict(&id, Some(ec2::PACE.notice)))?;
    eventually("the first machine is given back", LONG, || async {
        match clouds.instances().first() {
            Some(first) if matches!(first.life, Life::Ending | Life::Terminated) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let instances = clouds.instances();
    let first = instances.first().context("an instance")?;
    let why = first.leaving.or(first.stopped).map(|(_, why)| why);
    ensure!(matches!(why, Some(Why::User | Why::Process)), "it was taken: {first:?}");
    Ok(())
}

/// The pod's host dies, and nobody has another of the kind.
fn kill_the_second(clouds: &Clouds) -> Result<()> {
    let pods = clouds.pods();
    let pod = pods.first().context("a pod")?;
    ensure!(pod.life == Life::Running, "{pod:?}");
    clouds.community(0);
    clouds.market.machines.kill(&pod.id);
    Ok(())
}

/// What was bought, what bills, and where: exactly what was planned.
fn all_went_as_planned(clouds: &Clouds) -> Result<()> {
    let (instances, pods) = (clouds.instances(), clouds.pods());
    ensure!(instances.len() == 2 && pods.len() == 1, "{instances:#?} {pods:#?}");
    let zones: Vec<_> = clouds.ec2.engine(|engine| {
        let zone = |machine: &Machine| engine.product(machine.order.product).zone.clone();
        instances.iter().filter_map(zone).collect()
    });
    ensure!(zones.first().is_some_and(|zone| zone == ZONES[0].0), "{zones:?}");
    let pool = clouds.runpod.engine(|engine| engine.product(pods[0].order.product).pool.clone());
    ensure!(pool == "COMMUNITY", "{pool}");
    let open = clouds.open_lines();
    ensure!(open.is_empty(), "{open:?} still bill");
    Ok(())
}

/// Each machine's rows against its lines. `seconds`: how far the two may look at a machine's life
/// apart.
fn is_booked(clouds: &Clouds, rows: &[Row], seconds: i64) -> Result<()> {
    let (instances, pods) = (clouds.instances(), clouds.pods());
    let of_instances = clouds.ec2.engine(|engine| lines(engine, &instances));
    let of_pods = clouds.runpod.engine(|engine| lines(engine, &pods));
    for (provider, machines, invoiced) in
        [("aws", instances, of_instances), ("runpod", pods, of_pods)]
    {
        let claims = claims(rows, provider);
        ensure!(claims.len() == machines.len(), "{claims:#?} {machines:#?}");
        for ((machine, invoiced), claim) in machines.iter().zip(invoiced).zip(claims) {
            let booked: i64 = claim.iter().map(|row| row.amount.micros()).sum();
            let (first, last) = (claim[0], claim[claim.len() - 1]);
            // AWS tells when it was asked to end one, and not when one ended by itself: then it
            // is booked until that was noticed.
            let untold = machine.stopped.filter(|(_, why)| *why == Why::Process);
            let untold = untold.filter(|_| provider == "aws");
            let untold = untold.map_or(SignedDuration::ZERO, |(at, _)| last.to.duration_since(at));
            ensure!(untold <= UNTOLD, "{} is booked for {untold:#} too long", machine.id);
            let untold = first.rate.for_millis(untold.as_millis() as i64).micros();
            let within = first.rate.for_millis(seconds * 1000).micros();
            let within = if untold > 0 { within.max(1) } else { within };
            eprintln!(
                "{provider} {}: booked {booked}, invoiced {invoiced}, untold {untold}",
                machine.id
            );
            ensure!(
                booked > 0 && (booked - untold - invoiced).abs() <= within,
                "booked {booked}, invoiced {invoiced}, untold {untold}: {claim:#?} {machine:#?}"
            );
        }
    }
    Ok(())
}

/// The rows of each claim at a provider whose name begins so, in order of time.
fn claims<'a>(rows: &'a [Row], provider: &str) -> Vec<Vec<&'a Row>> {
    let mut claims: Vec<Vec<&Row>> = Vec::new();
    let mut rows: Vec<&Row> =
        rows.iter().filter(|row| row.provider.starts_with(provider)).collect();
    rows.sort_by(|a, b| (a.from, &a.key).cmp(&(b.from, &b.key)));
    for row in rows {
        match claims.iter_mut().find(|claim| claim[0].claim_uid == row.claim_uid) {
            Some(claim) => claim.push(row),
            None => claims.push(vec![row]),
        }
    }
    claims
}
