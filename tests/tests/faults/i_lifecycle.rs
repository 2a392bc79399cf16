//! I. What tools around us see of an object in each phase of a real run.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Resource};
use petaflop_crds::ComputeProvider;
use petaflop_fake_provider::manners::Style;
use petaflop_fake_provider::{Fault as Misbehaviour, Manners};
use serde::Serialize;
use serde_json::{Value, json};

use crate::calls::Point;
use crate::kstatus::kstatus;
use crate::world::{Seen, World, alone, on_each};

/// Phases, and what was made of them.
#[derive(Default)]
struct Notes {
    jobs: BTreeSet<(String, &'static str)>,
    claims: BTreeSet<(String, &'static str)>,
    wrong: Vec<String>,
}

impl Notes {
    fn take(&mut self, seen: &Seen) {
        if let Some(job) = &seen.job {
            // Nobody has written to it yet: a moment that reads as done.
            if job.status.is_some() {
                let expected = |object: &Value| match object["status"]["phase"].as_str() {
                    // Until its machine is gone.
                    Some("Running") if object["spec"]["suspend"] == true => "InProgress",
                    Some("Running" | "Suspended" | "Complete") => "Current",
                    Some("Failed") => "Failed",
                    Some("Pending") if says(object, "Stalled") => "Failed",
                    _ => "InProgress",
                };
                note(job, expected, &mut self.jobs, &mut self.wrong);
            }
        }
        for claim in seen.claims.iter().filter(|claim| claim.status.is_some()) {
            let expected = |object: &Value| match says(object, "Ready") {
                true => "Current",
                false => "InProgress",
            };
            note(claim, expected, &mut self.claims, &mut self.wrong);
        }
    }
}

fn says(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == condition && c["status"] == "True")
}

fn note<K: Resource + Serialize>(
    object: &K,
    expected: impl Fn(&Value) -> &'static str,
    notes: &mut BTreeSet<(String, &'static str)>,
    wrong: &mut Vec<String>,
) {
    let object = json!(object);
    let observed = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    let expected = match object["metadata"]["deletionTimestamp"].is_null() {
        false => "Terminating",
        true if !observed => "InProgress",
        true => expected(&object),
    };
    let found = kstatus(&object);
    if found != expected {
        wrong.push(format!("{found}, not {expected}: {}", object["status"]));
    }
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    notes.insert((phase.to_owned(), found));
}

#[test]
fn i8_helm_and_flux_understand_every_phase_of_a_run() -> Result<()> {
    on_each("i8", &[], async |world| {
        // One cloud does not say when it took the machine away.
        if world.manners.style == Style::RunPod {
            world.outlived = Duration::from_secs(150);
        }
        let mut notes = Notes::default();
        world.create(json!({ "placement": { "maxHourlyPrice": "0.01" } })).await?;
        world
            .until("stalled", |seen| {
                notes.take(seen);
                seen.is("Stalled")
            })
            .await?;
        world.patch(json!({ "placement": { "maxHourlyPrice": null } })).await?;
        world
            .until("running", |seen| {
                notes.take(seen);
                seen.is("Running")
            })
            .await?;
        let machine = world.cloud.billed_now().first().context("a machine")?.id.clone();
        world.cloud.interrupt(&machine, None);
        world
            .until("interrupted", |seen| {
                notes.take(seen);
                seen.is("Interrupted")
            })
            .await?;
        world
            .until("running", |seen| {
                notes.take(seen);
                seen.is("Running")
            })
            .await?;
        world.suspend(true).await?;
        world
            .until("suspended", |seen| {
                notes.take(seen);
                seen.is("Suspended") && seen.claims.is_empty()
            })
            .await?;
        world.suspend(false).await?;
        world
            .until("complete", |seen| {
                notes.take(seen);
                seen.is("Complete")
            })
            .await?;
        // Held, so that it is seen on its way out.
        world.job = "i8-goes".to_owned();
        world.create(json!({})).await?;
        world
            .until("running", |seen| {
                notes.take(seen);
                seen.is("Running")
            })
            .await?;
        let jobs = world.lane.jobs();
        jobs.delete(&world.job, &DeleteParams::background()).await?;
        world
            .until("gone", |seen| {
                notes.take(seen);
                seen.job.is_none()
            })
            .await?;
        ensure!(notes.wrong.is_empty(), "{:#?}", notes.wrong);
        for wanted in [
            ("Pending", "Failed"),
            ("Launching", "InProgress"),
            ("Running", "Current"),
            ("Interrupted", "InProgress"),
            ("Suspended", "Current"),
            ("Complete", "Current"),
            ("Running", "Terminating"),
        ] {
            let wanted = (wanted.0.to_owned(), wanted.1);
            ensure!(notes.jobs.contains(&wanted), "no {wanted:?} in {:?}", notes.jobs);
        }
        for wanted in ["InProgress", "Current", "Terminating"] {
            let seen = notes.claims.iter().any(|(_, found)| *found == wanted);
            ensure!(seen, "no claim is {wanted}: {:?}", notes.claims);
        }
        Ok(())
    })
}

/// The one claim's status as kstatus sees it.
fn claim_is(seen: &Seen) -> Option<&'static str> {
    seen.claims.first().map(|claim| kstatus(&json!(claim)))
}

/// Reasons of the events that tell of claims, in their order.
async fn told_of_claims(world: &World<'_>) -> Result<Vec<String>> {
    let events: Api<Event> = Api::namespaced(world.lane.client.clone(), &world.lane.jobs_in);
    let all = events.list(&ListParams::default()).await?.items;
    let ours = all.into_iter().filter(|event| {
        let about = event.regarding.as_ref();
        let name = about.and_then(|about| about.name.clone()).unwrap_or_default();
        name.starts_with(&format!("trj-{}-", world.job))
    });
    Ok(ours.filter_map(|event| event.reason).collect())
}

#[test]
fn a_claim_says_that_its_machine_will_be_taken_away_and_works_until_then() -> Result<()> {
    on_each("notice", &[], async |world| {
        world.create(json!({})).await?;
        world.until("running", |seen| seen.is("Running")).await?;
        let machine = world.cloud.billed_now().first().context("a machine")?.id.clone();
        world.cloud.interrupt(&machine, Some(Duration::from_secs(120)));
        let says = |seen: &Seen| seen.claim_says("Interrupting") == Some("SpotInterrupted");
        let seen = world.until("said", says).await?;
        ensure!(claim_is(&seen) == Some("Current"), "{:#?}", seen.claims);
        let told = told_of_claims(world).await?;
        ensure!(told.iter().filter(|told| *told == "SpotInterrupted").count() == 1, "{told:?}");
        let seen = world.until_complete().await?;
        let status = seen.job.context("the job")?.status.context("a status")?;
        ensure!((status.interruptions, status.failures) == (1, 0), "{status:#?}");
        Ok(())
    })
}

#[test]
fn a_claim_that_is_left_for_a_better_place_says_so_while_it_drains() -> Result<()> {
    alone("leaves", Manners::runpod(), &[], async |world| {
        let at_once = json!({ "placement": { "interruption": { "minHoldSeconds": 0 } } });
        world.create(at_once).await?;
        world.until("running", |seen| seen.is("Running")).await?;
        world.undersell()?;
        let says = |seen: &Seen| seen.claim_says("Interrupting") == Some("CheaperOfferMigration");
        let seen = world.until("said", says).await?;
        ensure!(claim_is(&seen) == Some("Terminating"), "{:#?}", seen.claims);
        let seen = world.until_complete().await?;
        let status = seen.job.context("the job")?.status.context("a status")?;
        ensure!(status.interruptions == 0, "{status:#?}");
        Ok(())
    })
}

#[test]
fn a_claim_says_once_that_its_machine_costs_another_price_and_takes_it_back() -> Result<()> {
    alone("drifts", Manners::runpod(), &[], async |world| {
        world.create(json!({})).await?;
        world.until("running", |seen| seen.is("Running")).await?;
        world.cloud.misbehave(Misbehaviour::PriceTold(50));
        let says = |seen: &Seen| seen.claim_says("Drifted") == Some("PriceChanged");
        let seen = world.until("said", says).await?;
        ensure!(claim_is(&seen) == Some("Current"), "{:#?}", seen.claims);
        let later = world.pass(Duration::from_secs(60)).await?;
        let writes = |call: &&Point| call.writes() && call.to_string().contains("computeclaims");
        let writes: Vec<_> = later.iter().filter(writes).collect();
        ensure!(writes.is_empty(), "{writes:?}");
        world.cloud.behave("price-told");
        let back = |seen: &Seen| !seen.claims.is_empty() && seen.claim_says("Drifted").is_none();
        world.until("taken back", back).await?;
        world.until_complete().await?;
        Ok(())
    })
}

#[test]
fn i8_a_provider_that_does_not_answer_says_so_and_later_that_its_offers_are_too_old() -> Result<()>
{
    alone("stale", Manners::runpod(), &[], async |world| {
        let providers: Api<ComputeProvider> = Api::all(world.lane.client.clone());
        // Truth and reason of a condition, and what kstatus makes of it all.
        let says = async |world: &mut World<'_>, condition: &str| -> Result<_> {
            world.pass(Duration::from_secs(60)).await?;
            let provider = json!(providers.get(&world.lane.provider).await?);
            let all = provider["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let known = all.into_iter().find(|c| c["type"] == condition).context("no condition")?;
            Ok(format!("{} {} {}", known["status"], known["reason"], kstatus(&provider)))
        };
        let fresh = r#""True" "Ok" Current"#;
        ensure!(says(world, "OffersFresh").await? == fresh);
        world.cloud.misbehave(Misbehaviour::ServerError);
        let away = says(world, "Ready").await?;
        ensure!(away == r#""Unknown" "Unreachable" InProgress"#, "{away}");
        let still = says(world, "OffersFresh").await?;
        ensure!(still == r#""True" "Ok" InProgress"#, "{still}");
        // What the cloud offers may be bought for an hour.
        world.clock.advance(Duration::from_secs(3600));
        let stale = says(world, "OffersFresh").await?;
        ensure!(stale == r#""False" "Stale" InProgress"#, "{stale}");
        world.cloud.behave_entirely();
        let back = says(world, "OffersFresh").await?;
        ensure!(back == fresh, "{back}");
        Ok(())
    })
}

#[test]
fn a_job_that_another_manages_is_left_alone() -> Result<()> {
    alone("managed", Manners::runpod(), &[], async |world| {
        world.create(json!({ "managedBy": "example.com/queue" })).await?;
        let calls = world.pass(Duration::from_secs(300)).await?;
        let touches =
            |call: &&Point| call.writes() && !call.to_string().contains("computeproviders");
        let writes: Vec<_> = calls.iter().filter(touches).collect();
        ensure!(writes.is_empty(), "{writes:?}");
        let seen = world.settle().await?;
        let job = seen.job.context("the job")?;
        ensure!(job.status.is_none() && job.metadata.finalizers.is_none(), "{job:#?}");
        ensure!(seen.claims.is_empty() && world.cloud.created() == 0);
        Ok(())
    })
}
