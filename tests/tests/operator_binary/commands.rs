//! The commands that the chart runs beside the operator, each with its own rights: `audit`, `guard`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_harness::eventually;
use petaflop_providers::nodes::labels;
use serde_json::{Value, json};

use crate::world::{SOON, World, said};

/// The Pod of a claim that never was: as the operator makes them, but nobody's.
fn nobodys(pod: &Pod) -> Result<Pod> {
    let mut pod = pod.clone();
    let meta = &mut pod.metadata;
    meta.name = Some("nobodys".into());
    (meta.uid, meta.resource_version, meta.owner_references) = (None, None, None);
    let labels = meta.labels.as_mut().context("labels")?;
    labels.insert(labels::CLAIM_UID.into(), "11111111-2222-3333-4444-555555555555".into());
    let annotations = meta.annotations.as_mut().context("annotations")?;
    let identity = annotations.get(labels::IDENTITY).context("an identity")?;
    let mut parts: Vec<&str> = identity.split('/').collect();
    (parts[2], parts[3]) = ("trj-nobody-00000000-1-0", "11111111-2222-3333-4444-555555555555");
    let identity = parts.join("/");
    annotations.insert(labels::IDENTITY.into(), identity);
    pod.status = None;
    Ok(pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_finds_and_ends_what_no_claim_knows_without_an_operator() -> Result<()> {
    let world = World::new("audited").await?;
    let before = world.command("-audit", &["audit"]).await?;
    ensure!(
        !before.status.success() && said(&before).contains("no installation"),
        "{}",
        said(&before)
    );

    world.provide_nodes().await?;
    let program = world.start().await?;
    let pod = world.job_runs(&program, "tiny").await?;
    program.kill();
    let arguments = ["audit", "--json", "--provider-labels=test=audited"];
    let well = world.command("-audit", &arguments).await?;
    ensure!(well.status.success(), "{}", said(&well));
    let found: Value = serde_json::from_slice(&well.stdout)?;
    ensure!(found["machines"] == 1 && found["unclaimed"] == json!([]), "{found}");
    ensure!(found["surplus"] == json!([]) && found["lapsed"] == json!([]), "{found}");

    world.api::<Pod>().create(&PostParams::default(), &nobodys(&pod)?).await?;
    // Too young at first; then a finding, with its price, and no word that all is well.
    let found = eventually("a finding", SOON, || async {
        let output = world.command("-audit", &arguments).await.map_err(|e| e.to_string())?;
        let found: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
        match found["unclaimed"][0]["fate"].as_str() {
            Some("goesOn") if !output.status.success() => Ok(found),
            _ => Err(said(&output)),
        }
    })
    .await?;
    let machine = &found["unclaimed"][0];
    ensure!(machine["claim"] == "trj-nobody-00000000-1-0", "{found}");
    ensure!(machine["hourlyPrice"].is_string() && machine["cost"].is_string(), "{found}");

    let ledger = format!("--ledger-uri={}", world.uri("store/ledger"));
    let terminate = ["audit", "--terminate", "--provider-labels=test=audited", &ledger];
    let ended = world.command("-audit", &terminate).await?;
    ensure!(ended.status.success() && said(&ended).contains("ended"), "{}", said(&ended));
    let orphan = |row: &Value| row["kind"] == "orphan" && row["claim"] == "trj-nobody-00000000-1-0";
    ensure!(world.ledger()?.iter().any(orphan), "{:#?}", world.ledger()?);
    eventually("it is gone, and the claimed one is not", SOON, || async {
        let names: Vec<String> =
            world.all::<Pod>().await?.iter().map(ResourceExt::name_any).collect();
        if names == [pod.name_any()] { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await?;
    world.nothing_refused().await
}

/// The claim's own machine, and one more with its identity; then nobody has led for so long that the
/// lease of every machine has lapsed.
#[tokio::test(flavor = "multi_thread")]
async fn audit_finds_and_ends_a_second_machine_and_those_whose_lease_has_lapsed() -> Result<()> {
    let world = World::new("lapsed").await?;
    world.provide_nodes().await?;
    let program = world.start().await?;
    let pod = world.job_runs(&program, "tiny").await?;
    program.kill();
    let mut twin = Pod { status: None, ..pod.clone() };
    twin.metadata.name = Some("twin".into());
    (twin.metadata.uid, twin.metadata.resource_version) = (None, None);
    world.api::<Pod>().create(&PostParams::default(), &twin).await?;

    let arguments = ["audit", "--json", "--provider-labels=test=lapsed"];
    let until = async |what: &str, list: &str, machine: &str| {
        eventually(what, SOON, || async {
            let output = world.command("-audit", &arguments).await.map_err(|e| e.to_string())?;
            let found: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
            let first = &found[list][0];
            let named = first["machine"].as_str().is_some_and(|name| name.contains(machine));
            match first["fate"].as_str() {
                Some("goesOn") if named && !output.status.success() => Ok(found),
                _ => Err(said(&output)),
            }
        })
        .await
    };
    let found = until("a second machine", "surplus", "twin").await?;
    ensure!(found["unclaimed"] == json!([]) && found["lapsed"] == json!([]), "{found}");

    world.nobody_led_for(SignedDuration::from_mins(41)).await?;
    let found = until("a lapsed lease", "lapsed", &pod.name_any()).await?;
    ensure!(found["surplus"][0]["machine"].as_str().is_some(), "{found}");
    let terminate = ["audit", "--terminate", "--provider-labels=test=lapsed"];
    let ended = world.command("-audit", &terminate).await?;
    ensure!(ended.status.success() && said(&ended).contains("ended"), "{}", said(&ended));
    eventually("both are gone", SOON, || async {
        let pods = world.all::<Pod>().await?;
        let left: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await?;
    world.nothing_refused().await
}

#[tokio::test(flavor = "multi_thread")]
async fn guard_refuses_while_a_claim_lives_and_drains_when_asked() -> Result<()> {
    let world = World::new("guarded").await?;
    world.provide_nodes().await?;
    let program = world.start().await?;
    world.job_runs(&program, "tiny").await?;
    let claims = world.all::<ComputeClaim>().await.map_err(anyhow::Error::msg)?;

    let own = "--provider-labels=test=guarded";
    let refused = world.command("-guard", &["guard", "--on-running-claims=Fail", own]).await?;
    let words = said(&refused);
    ensure!(!refused.status.success(), "{words}");
    ensure!(words.contains(&claims[0].name_any()) && words.contains("trainingjob/tiny"), "{words}");
    ensure!(words.contains("uninstall.onRunningClaims=Drain"), "{words}");

    let drain = ["guard", "--on-running-claims=Drain", "--timeout-seconds=90", own];
    let drained = world.command("-guard", &drain).await?;
    ensure!(drained.status.success(), "{}\n{}", said(&drained), program.log_tail());
    let left = world.all::<ComputeClaim>().await.map_err(anyhow::Error::msg)?;
    ensure!(left.is_empty(), "{left:#?}");
    let job = world.api::<TrainingJob>().get("tiny").await?;
    ensure!(job.spec.suspend, "{:?}", job.spec);

    // The operator rests, so that what is resumed meanwhile gets no machine; and without one, what is
    // left can be deleted.
    let resume = Patch::Merge(json!({ "spec": { "suspend": false } }));
    let jobs = world.api::<TrainingJob>();
    jobs.patch("tiny", &PatchParams::default(), &resume).await?;
    let holder = world.holder().await.map_err(anyhow::Error::msg)?;
    ensure!(holder.as_deref() == Some("uninstallation"), "{holder:?}");
    program.stop(Duration::from_secs(30));
    let left = world.all::<ComputeClaim>().await.map_err(anyhow::Error::msg)?;
    ensure!(left.is_empty(), "{left:#?}");
    world.api::<TrainingJob>().delete("tiny", &DeleteParams::default()).await?;
    eventually("the job is gone", SOON, || async {
        match world.api::<TrainingJob>().get_opt("tiny").await.map_err(|e| e.to_string())? {
            None => Ok(()),
            Some(job) => Err(format!("{:?}", job.finalizers())),
        }
    })
    .await?;
    world.nothing_refused().await
}
