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

#[test]
fn j_a_field_that_is_changed_and_changed_back_leaves_no_trace() -> Result<()> {
    let usual = fresh(&json!({}))?;
    for (field, other, first) in [
        ("backoffLimit", json!(7), json!(3)),
        ("ttlSecondsAfterFinished", json!(100_000), Value::Null),
        ("maxTotalCost", json!("40"), Value::Null),
        ("deadline", json!({ "within": "9h" }), Value::Null),
        ("placement", json!({ "maxHourlyPrice": "90" }), json!({ "maxHourlyPrice": null })),
        ("checkpoint", json!({ "intervalSeconds": 60 }), json!({ "intervalSeconds": 600 })),
    ] {
        alone("j-back", Manners::runpod(), &[], async |world| {
            world.create(json!({})).await?;
            world.until("launching", |seen| !seen.billed.is_empty()).await?;
            world.patch(json!({ field: other })).await?;
            world.pass(Duration::from_secs(15)).await?;
            world.patch(json!({ field: first })).await?;
            let found = comparable(&world.until_complete().await?);
            ensure!(found == usual, "{field}: {found:#}\ninstead of\n{usual:#}");
            ensure!(world.cloud.created() == 1, "{field}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
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

async fn suspended(world: &mut World<'_>) -> Result<()> {
    world.until("suspended", |seen| seen.is("Suspended") && seen.claims.is_empty()).await?;
    ensure!(world.cloud.billed_now().is_empty(), "{:?}", world.cloud.billed_now());
    Ok(())
}
