//! A job leaves the machine it has for a cheaper one and loses nothing by it; one that has time waits for spot rather than pay
//! for on-demand, and what was decided can be decided again.

mod operator;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use operator::{Cluster, tiny};
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Advised, Decision, Outcome};
use petaflop_arbiter::offer::{Capacity, Offer, OfferId};
use petaflop_arbiter::world::Recorded;
use petaflop_fake_provider::Kind;
use petaflop_fake_provider::cloud::small_offer;
use petaflop_fake_provider::fault::Fault;
use petaflop_harness::eventually;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_job_moves_to_a_cheaper_place_and_ends_with_the_same_hash() -> Result<()> {
    let cluster = Cluster::start("moves").await?;
    // So dear that a start elsewhere is worth it for a single step: how fast its own steps are, the job knows.
    let first = small_offer(&cluster.provider, "400".parse()?);
    cluster.cloud.set_price(&first.id, first.price);
    let second = Offer {
        id: OfferId(format!("{}/r/other", cluster.provider)),
        instance_type: "other".into(),
        price: "800".parse()?,
        ..first.clone()
    };
    cluster.cloud.sell(second.clone());
    let running = cluster.operator().await?;
    let mut job = tiny("tiny")?;
    job.spec.placement.interruption.min_hold_seconds = 0;
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    cluster.create(&job).await?;
    cluster
        .until("tiny", "Running", SOON, |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Running"))
        })
        .await?;
    // It rests, so that it is not over before anybody looks at prices.
    let at_rest = cluster.at_rest()?;
    let claims = cluster.claims().await?;
    let left = claims.first().context("a claim")?;
    ensure!(left.spec.offer.instance_type == "small", "{:?}", left.spec.offer);

    cluster.cloud.set_price(&second.id, "0.04".parse()?);
    eventually("its machine is given up", SOON, || async {
        let claims = cluster.claims().await.map_err(|error| error.to_string())?;
        match claims.iter().find(|claim| claim.name_any() == left.name_any()) {
            Some(claim) if claim.metadata.deletion_timestamp.is_none() => {
                Err(format!("{:?}", claim.status))
            }
            _ => Ok(()),
        }
    })
    .await?;
    at_rest.go_on()?;

    let job = cluster
        .until("tiny", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Complete"))
        })
        .await?;
    let status = job.status.clone().context("a status")?;
    let golden: Value = serde_json::from_str(include_str!("../golden/tiny.json"))?;
    ensure!(status.artifact.as_deref() == golden["artifact"].as_str(), "{status:#?}");
    ensure!(status.interruptions == 0 && status.failures == 0, "a move is no loss: {status:#?}");
    ensure!(status.moves == 1, "{status:#?}");
    let place = status.placement.as_ref().and_then(|place| place.instance_type.clone());
    ensure!(place.as_deref() == Some("other"), "{status:#?}");
    let told = cluster.events("tiny").await?;
    let moved = told.iter().find(|(reason, _)| reason == "CheaperOfferMigration");
    let (_, note) = moved.with_context(|| format!("{told:?}"))?;
    ensure!(note.contains(&first.id.0) && note.contains(&second.id.0), "{note}");

    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    ensure!(cluster.cloud.created() == 2, "{} machines", cluster.cloud.created());
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    let rows = cluster.rows().await?;
    let paid = |kind: &str| rows.iter().any(|row| row.instance_type == kind);
    ensure!(paid("small") && paid("other"), "{rows:#?}");
    Ok(())
}

/// The decisions about a job that were recorded, each decided again from its world, with its hash.
fn replayed(worlds: &Path, job: &str) -> Result<Vec<Decision>> {
    let mut replayed = Vec::new();
    for entry in fs::read_dir(worlds)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let seen: Recorded = serde_json::from_slice(&fs::read(&path)?)?;
        let hash = seen.hash();
        ensure!(path.file_stem().is_some_and(|stem| *stem == *hash), "{}", path.display());
        let decisions = decide(&seen.world, seen.now).decisions.into_iter();
        let own = decisions.filter(|decision| decision.workload.name == job);
        replayed.extend(own.map(|own| Decision { world: Some(hash.clone()), ..own }));
    }
    Ok(replayed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_deadline_waits_for_spot_while_there_is_time() -> Result<()> {
    let cluster = Cluster::start("waits-for-spot").await?;
    let on_demand = small_offer(&cluster.provider, "0.40".parse()?);
    let spot = |zone: &str| -> Result<Offer> {
        Ok(Offer {
            id: OfferId(format!("{}/{zone}/spot", cluster.provider)),
            zone: zone.to_owned(),
            capacity: Capacity::Spot,
            price: "0.10".parse()?,
            ..on_demand.clone()
        })
    };
    cluster.cloud.sell(spot("r-1")?);
    // Its only place for spot has none.
    cluster.cloud.misbehave_after(Kind::Create, 0, Fault::NoCapacity);
    let worlds = tempfile::tempdir()?;
    let folder = worlds.path().to_owned();
    let running = cluster.operator_with(|settings| settings.record_worlds = Some(folder)).await?;
    let mut job = tiny("tiny")?;
    job.spec.deadline = serde_json::from_value(serde_json::json!({ "within": "12h" }))?;
    cluster.create(&job).await?;
    let uid = cluster.job("tiny").await?.uid().context("a uid")?;
    let said = || running.operator.placement.said(&uid).and_then(|said| said.decision.clone());
    eventually("it waits for spot", SOON, || async {
        match said() {
            Some(decision)
                if decision.advice.as_ref().is_some_and(|it| it.says == Advised::Wait) =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let waits = said().context("a decision")?;
    ensure!(matches!(waits.outcome, Outcome::Waiting { .. }), "{waits:?}");
    let replays = replayed(worlds.path(), "tiny")?;
    ensure!(replays.contains(&waits), "{waits:?} is none of {replays:?}");

    // Another place has some. On-demand is never touched.
    cluster.cloud.sell(spot("r-2")?);
    let job = cluster
        .until("tiny", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Complete"))
        })
        .await?;
    let zone = job.status.and_then(|status| status.placement?.zone);
    ensure!(zone.as_deref() == Some("r-2"), "{zone:?}");
    cluster.until_no_claims().await?;
    ensure!(cluster.cloud.created() == 1, "{} machines", cluster.cloud.created());
    let placed = |decision: &Decision| matches!(decision.outcome, Outcome::Placed { .. });
    let replays = replayed(worlds.path(), "tiny")?;
    ensure!(replays.iter().filter(|decision| placed(decision)).count() == 2, "{replays:?}");
    Ok(())
}
