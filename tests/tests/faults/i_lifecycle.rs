//! I. What tools around us see of an object in each phase of a real run.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Resource;
use kube::api::DeleteParams;
use petaflop_fake_provider::manners::Style;
use serde::Serialize;
use serde_json::{Value, json};

use crate::kstatus::kstatus;
use crate::world::{Seen, on_each};

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
