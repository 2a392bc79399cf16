//! J. Users change their minds: whatever was written in between, the end is that of the last word.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_fake_provider::Manners;
use serde_json::{Value, json};

use crate::oracles::end;
use crate::world::{Seen, World, alone, on_each};

/// The end of a job that was like this from the beginning.
fn fresh(spec: &Value) -> Result<Value> {
    let mut found = Value::Null;
    alone("j-fresh", Manners::runpod(), &[], async |world| {
        world.create(spec.clone()).await?;
        found = comparable(&world.until_complete().await?);
        Ok(())
    })?;
    Ok(found)
}

/// Generations count the changes themselves.
fn comparable(seen: &Seen) -> Value {
    let mut text = end(seen).to_string();
    for generation in 1..9 {
        text = text
            .replace(&format!("\"observedGeneration\":{generation}"), "\"observedGeneration\":0");
    }
    serde_json::from_str(&text).unwrap_or_default()
}

/// Each field of a job's spec that may be changed, with another value than it has from the beginning.
fn others() -> Vec<(&'static str, Value)> {
    vec![
        ("backoffLimit", json!(7)),
        ("budgetRef", json!({ "name": "another" })),
        ("cache", json!("Never")),
        ("checkpoint", json!({ "intervalSeconds": 60 })),
        ("deadline", json!({ "within": "9h" })),
        ("imagePullSecrets", json!([{ "name": "another" }])),
        ("maxTotalCost", json!("40")),
        ("output", json!({ "uri": "s3://bucket/another" })),
        ("placement", json!({ "maxHourlyPrice": "90" })),
        ("ports", json!([{ "name": "http", "port": 8000 }])),
        ("resources", json!({ "memory": "9Gi" })),
        ("secrets", json!([{ "name": "another", "env": true }])),
        ("serviceAccountName", json!("another")),
        ("ttlSecondsAfterFinished", json!(100_000)),
        ("volumes", json!([{ "name": "another", "mountPath": "/data", "emptyDir": {} }])),
    ]
}

/// By the API itself: what says that it is immutable is tried where it is refused, and what suspends a
/// job has tests of its own.
#[test]
fn j_every_field_that_may_be_changed_is_tried() -> Result<()> {
    let all = petaflop_crds::crds::all();
    let job = all.iter().find(|crd| crd.spec.names.kind == "TrainingJob").context("the kind")?;
    let schema = job.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
    let spec = schema.and_then(|schema| schema.properties.as_ref()?.get("spec"));
    let fields = spec.and_then(|spec| spec.properties.as_ref()).context("a spec")?;
    let is_mutable = |says: &Option<String>| !says.as_deref().unwrap_or("").contains("Immutable.");
    let mutable: Vec<&str> = fields
        .iter()
        .filter(|(name, field)| is_mutable(&field.description) && *name != "suspend")
        .map(|(name, _)| name.as_str())
        .collect();
    let tried: Vec<&str> = others().into_iter().map(|(field, _)| field).collect();
    ensure!(mutable == tried, "{mutable:?} may be changed, {tried:?} are");
    Ok(())
}

#[test]
fn j_a_field_that_is_changed_and_changed_back_leaves_no_trace() -> Result<()> {
    let usual = fresh(&json!({}))?;
    let mut traces = Vec::new();
    for (field, other) in others() {
        let there_and_back = alone("j-back", Manners::runpod(), &[], async |world| {
            world.create(json!({})).await?;
            world.until("launching", |seen| !seen.billed.is_empty()).await?;
            world.patch(json!({ field: other })).await?;
            world.pass(Duration::from_secs(15)).await?;
            // By default it may not read its users' Secrets, and says so.
            if field == "secrets" {
                world.calls.forgive("k8s.get.secrets");
            }
            // What is left out is what it was.
            world.patch(json!({ field: null })).await?;
            let found = comparable(&world.until_complete().await?);
            ensure!(found == usual, "{found:#}\ninstead of\n{usual:#}");
            ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
            Ok(())
        });
        if let Err(error) = there_and_back {
            traces.push(format!("{field}: {error:?}"));
        }
    }
    ensure!(traces.is_empty(), "{}", traces.join("\n"));
    Ok(())
}

#[test]
fn j_what_cannot_work_says_so_and_works_once_it_is_mended() -> Result<()> {
    let usual = fresh(&json!({}))?;
    for (wrong, right) in [
        (
            json!({ "placement": { "maxHourlyPrice": "0.01" } }),
            json!({ "placement": { "maxHourlyPrice": null } }),
        ),
        (
            json!({ "placement": { "providers": ["nobody"] } }),
            json!({ "placement": { "providers": null } }),
        ),
        (json!({ "resources": { "memory": "9Ti" } }), json!({ "resources": { "memory": null } })),
    ] {
        alone("j-wrong", Manners::runpod(), &[], async |world| {
            world.create(wrong.clone()).await?;
            world.until("said to be stalled", |seen| seen.is("Stalled")).await?;
            // Time changes nothing, and nothing is written while it passes.
            world.pass(Duration::from_secs(60)).await?;
            let idle = world.pass(Duration::from_secs(300)).await?;
            let writes: Vec<_> = idle.iter().filter(|call| call.writes()).collect();
            ensure!(writes.is_empty(), "{wrong}: {writes:?}");
            world.patch(right.clone()).await?;
            let found = comparable(&world.until_complete().await?);
            ensure!(found == usual, "{wrong}: {found:#}\ninstead of\n{usual:#}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn j_a_job_that_is_created_suspended_costs_nothing_until_it_is_resumed() -> Result<()> {
    let usual = fresh(&json!({}))?;
    alone("j-held", Manners::runpod(), &[], async |world| {
        world.create(json!({ "suspend": true })).await?;
        world.until("suspended", |seen| seen.is("Suspended") && seen.is("Ready")).await?;
        world.pass(Duration::from_secs(60)).await?;
        let idle = world.pass(Duration::from_secs(300)).await?;
        let writes: Vec<_> = idle.iter().filter(|call| call.writes()).collect();
        ensure!(writes.is_empty() && world.cloud.created() == 0, "{writes:?}");
        world.suspend(false).await?;
        let mut found = comparable(&world.until_complete().await?);
        // That it was suspended once, it goes on to say.
        ensure!(found["job"]["Suspended"]["reason"] == "Resumed", "{found:#}");
        found["job"].as_object_mut().context("a status")?.remove("Suspended");
        ensure!(found == usual, "{found:#}\ninstead of\n{usual:#}");
        Ok(())
    })
}

#[test]
fn j_a_job_suspended_in_any_phase_and_changed_meanwhile_goes_on() -> Result<()> {
    type Phase = (&'static str, fn(&Seen) -> bool);
    let phases: [Phase; 4] = [
        ("created", |_| true),
        ("claimed", |seen| !seen.claims.is_empty()),
        ("bought", |seen| !seen.billed.is_empty()),
        ("running", |seen| seen.is("Running")),
    ];
    for (phase, is) in phases {
        on_each("j-suspend", &[], async |world| {
            world.create(json!({})).await?;
            world.until(phase, is).await?;
            world.suspend(true).await?;
            suspended(world).await?;
            world.patch(json!({ "backoffLimit": 1 })).await?;
            world.pass(Duration::from_secs(60)).await?;
            suspended(world).await?;
            world.suspend(false).await?;
            let seen = world.until_complete().await?;
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!(status.interruptions == 0 && status.failures == 0, "{phase}: {status:#?}");
            ensure!(world.cloud.created() <= 2, "{phase}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn j_a_job_suspended_while_its_machine_is_taken_away_goes_on() -> Result<()> {
    for (phase, notice) in [("draining", Some(Duration::from_secs(120))), ("interrupted", None)] {
        on_each("j-taken", &[], async |world| {
            world.create(json!({})).await?;
            let seen = world.until("running", |seen| seen.is("Running")).await?;
            world.cloud.interrupt(&seen.billed[0].id, notice);
            // Where a cloud forgets it, it is booked until it was missed.
            world.outlived = Duration::from_secs(150);
            world.suspend(true).await?;
            suspended(world).await?;
            world.suspend(false).await?;
            let seen = world.until_complete().await?;
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!(status.failures == 0, "{phase}: {status:#?}");
            ensure!(world.cloud.created() <= 2, "{phase}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn j_a_job_that_is_over_is_neither_suspended_nor_resumed() -> Result<()> {
    on_each("j-over", &[], async |world| {
        world.create(json!({})).await?;
        world.until_complete().await?;
        for suspend in [true, false] {
            world.suspend(suspend).await?;
            world.pass(Duration::from_secs(60)).await?;
            let seen = world.settle().await?;
            ensure!(seen.is("Complete") && !seen.is("Suspended"), "{:#}", seen.status());
            ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        }
        Ok(())
    })
}

async fn suspended(world: &mut World<'_>) -> Result<()> {
    world.until("suspended", |seen| seen.is("Suspended") && seen.claims.is_empty()).await?;
    ensure!(world.cloud.billed_now().is_empty(), "{:?}", world.cloud.billed_now());
    Ok(())
}
