//! Nodes of this cluster under the operator as a library, on a clock that only the test moves: what is
//! decided in one pass, and what is learned though no time passes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use object_store::memory::InMemory;
use petaflop_agent_api::clock::Clock;
use petaflop_crds::compute_claim::ComputeClaimPhase;
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_harness::eventually;
use petaflop_operator::cluster::make::Make;
use petaflop_operator::cluster::operate::{Parts, Running, start};
use petaflop_operator::cluster::settings::{Settings, StoreAt};
use petaflop_operator::installation::Installation;
use petaflop_operator::ledger::Ledger;
use serde_json::json;

use crate::operator::tiny;
use crate::world::{SOON, World};

/// The operator in this process, with the chart's rights.
async fn operator(world: &World, clock: &Clock) -> Result<Running> {
    let mut config = world.account("").await?.config().await?;
    config.default_retry = false;
    let client = Client::try_from(config)?;
    let namespace = world.namespace.name();
    let uid = Installation::of(&client, namespace).await?.uid;
    let settings = Settings {
        namespace: namespace.to_owned(),
        replica: "test".into(),
        watch_namespaces: world.watched.clone(),
        provider_labels: Some(format!("test={}", world.test)),
        store: StoreAt { uri: world.uri("store"), ..StoreAt::default() },
        ledger: StoreAt::default(),
        agent_image: "localhost/agent:1".into(),
        agent_download: None,
        agent_arm_download: None,
        agent_calls: None,
        runtime_image: "localhost/runtime:1".into(),
        runtime: "petaflop-runtime".into(),
        lease: petaflop_operator::agents::LEASE,
        http_address: ([127, 0, 0, 1], 0).into(),
        public_metrics: false,
        gateway_image: "localhost/petaflop:1".into(),
        service_account: "petaflop".into(),
        secret_reader: "petaflop-secret-reader".into(),
        record_worlds: None,
        leader_elect: false,
    };
    let make = Make::new(client.clone(), clock.clone(), &uid, &settings.watch_namespaces);
    let parts = Parts {
        client,
        clock: clock.clone(),
        ledger: Ledger::over(Arc::new(InMemory::new()), "the test's ledger"),
        make: Arc::new(make),
    };
    Ok(start(settings, parts).await?)
}

/// Waits, and lets time pass for the operator meanwhile.
async fn passing<T>(
    clock: &Clock,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T> {
    let until = std::time::Instant::now() + SOON;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(missing) => ensure!(std::time::Instant::now() < until, "{what}: {missing}"),
        }
        clock.advance(Duration::from_millis(200));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The claims of this test whose Pods run.
async fn running(world: &World, count: usize) -> Result<Vec<ComputeClaim>, String> {
    let runs = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    let pods = world.all::<Pod>().await?.iter().filter(|pod| runs(pod)).count();
    let claims = world.all::<ComputeClaim>().await?;
    let launched =
        |claim: &ComputeClaim| claim.status.as_ref().is_some_and(|s| s.provider_id.is_some());
    match (pods, claims.iter().filter(|claim| launched(claim)).count()) {
        (pods, launched) if pods == count && launched == count => Ok(claims),
        other => Err(format!("Pods and launched claims: {other:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_taken_away_is_missed_though_no_time_passes() -> Result<()> {
    let world = World::new("taken").await?;
    world.provide_nodes().await?;
    let clock = Clock::manual(Timestamp::now());
    let operator = operator(&world, &clock).await?;
    let jobs = world.api::<TrainingJob>();
    jobs.create(&PostParams::default(), &tiny("tiny")?).await?;
    passing(&clock, "a Pod runs", async || running(&world, 1).await).await?;
    // Older than a machine that may not be listed yet. From here on whoever waits for his turn waits
    // for ever: neither the sweep nor a look at a silent agent's Pod tells.
    clock.advance(Duration::from_secs(10));
    eventually("nothing is left to do now", SOON, || async {
        match operator.queues.claims.is_quiet(Duration::from_millis(1)) {
            true => Ok(()),
            false => Err("a claim is looked at".to_owned()),
        }
    })
    .await?;
    let pods = world.all::<Pod>().await.map_err(anyhow::Error::msg)?;
    world
        .api::<Pod>()
        .delete(&pods[0].name_any(), &DeleteParams::default().grace_period(0))
        .await?;
    eventually("its end is written down", SOON, || async {
        let claims = world.all::<ComputeClaim>().await?;
        let phase = claims.first().and_then(|claim| claim.status.as_ref()?.phase);
        match phase {
            Some(ComputeClaimPhase::Ending) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    passing(&clock, "the interruption is counted", async || {
        let job = jobs.get("tiny").await.map_err(|error| error.to_string())?;
        match job.status.as_ref().map(|status| status.interruptions) {
            Some(1) => Ok(()),
            _ => Err(format!("{:?}", job.status)),
        }
    })
    .await?;
    jobs.delete("tiny", &DeleteParams::default()).await?;
    passing(&clock, "nothing is left", async || match world.all::<TrainingJob>().await?.len() {
        0 => Ok(()),
        _ => Err("the job is there".to_owned()),
    })
    .await?;
    world.nothing_refused().await
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_want_more_than_half_of_a_node_each_are_not_placed_on_it_in_one_pass()
-> Result<()> {
    let world = World::new("filled").await?;
    world.provide_nodes().await?;
    let jobs = world.api::<TrainingJob>();
    // Of eight processors. Which of them comes into the first pass is left open.
    for (name, cpu) in [("four", "4"), ("five", "5")] {
        let mut job = tiny(name)?;
        job.spec.resources = serde_json::from_value(json!({ "cpu": cpu }))?;
        jobs.create(&PostParams::default(), &job).await?;
    }
    let clock = Clock::manual(Timestamp::now());
    let operator = operator(&world, &clock).await?;
    let runs = async || {
        let claims = running(&world, 1).await?;
        Ok(claims[0].spec.owner.name.clone())
    };
    let one = passing(&clock, "one runs", runs).await?;
    let other = if one == "four" { "five" } else { "four" };
    let waits = async || {
        let job = jobs.get(other).await.map_err(|error| error.to_string())?;
        let conditions = job.status.unwrap_or_default().conditions;
        let found = conditions.iter().find(|c| c.type_ == "OfferSelected" && c.status == "False");
        found.cloned().ok_or_else(|| format!("{conditions:#?}"))
    };
    let condition = passing(&clock, "the other waits", waits).await?;
    ensure!(condition.reason == "InsufficientCapacity", "{condition:?}");
    ensure!(condition.message.contains("of filled/cpu"), "{condition:?}");
    let seen = petaflop_operator::cluster::placement::recorded(&operator.operator);
    ensure!(seen.world.workloads.len() == 2);

    // The node is free again, and its turn has come.
    jobs.delete(&one, &DeleteParams::default()).await?;
    passing(&clock, "the other runs", async || match runs().await?.as_str() {
        name if name == other => Ok(()),
        name => Err(format!("{name} has the node")),
    })
    .await?;
    jobs.delete(other, &DeleteParams::default()).await?;
    passing(&clock, "nothing is left", async || match world.all::<TrainingJob>().await?.len() {
        0 => Ok(()),
        _ => Err("the job is there".to_owned()),
    })
    .await?;
    world.nothing_refused().await
}
