//! D. Leader election: whoever was stopped, cut off or deceived about the time, one buys.

use std::time::Duration;

use anyhow::{Result, ensure};
use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use petaflop_fake_provider::Manners;
use petaflop_operator::cluster::leader::LEASE;
use serde_json::json;

use crate::calls::{Fault, Link, Point};
use crate::world::{alone, on_each};

#[test]
fn d1_a_leader_that_was_stopped_longer_than_its_lease_does_no_harm_when_it_goes_on() -> Result<()> {
    for (call, manners, most) in [
        ("k8s.create.computeclaims", Manners::runpod(), 1),
        ("k8s.create.computeclaims", Manners::aws(), 1),
        ("k8s.get.computeclaims", Manners::runpod(), 1),
        ("k8s.get.computeclaims", Manners::aws(), 1),
        ("provider.find", Manners::runpod(), 1),
        ("provider.find", Manners::aws(), 1),
        ("k8s.update.computeclaims/status", Manners::runpod(), 1),
        ("k8s.update.computeclaims/status", Manners::aws(), 1),
        // The purchase itself is on its way. A token makes it the same machine; without, it is the one
        // extra that is counted, ended and booked.
        ("provider.launch", Manners::aws(), 1),
        ("provider.launch", Manners::runpod(), 2),
    ] {
        let stop = [(Point::new(call, 1), Fault::Stop)];
        alone("d1", manners, &stop, async |world| {
            let [first, _] = world.live_elected().await?;
            world.create(json!({})).await?;
            world.until("stopped", |_| first.link() == Link::Stopped).await?;
            world.until("the other running", |seen| seen.is("Running")).await?;
            world.go_on(&first).await;
            world.until_complete().await?;
            ensure!(world.cloud.created() <= most, "{call}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn d2_a_leader_that_cannot_reach_the_api_server_stops_buying() -> Result<()> {
    on_each("d2", &[], async |world| {
        let [first, _] = world.live_elected().await?;
        first.set_link(Link::Partitioned);
        world.create(json!({})).await?;
        world.until("running", |seen| seen.is("Running")).await?;
        first.set_link(Link::Open);
        world.until_complete().await?;
        ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        Ok(())
    })
}

#[test]
fn d3_clocks_that_differ_by_ten_minutes_change_nothing() -> Result<()> {
    for minutes in [10, -10] {
        on_each("d3", &[], async |world| {
            world.live_elected().await?;
            world.create(json!({})).await?;
            world.until("running", |seen| seen.is("Running")).await?;
            world.step_second(SignedDuration::from_mins(minutes));
            world.until_complete().await?;
            ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn d4_a_lease_that_is_deleted_or_edited_by_hand_costs_no_machine() -> Result<()> {
    on_each("d4", &[], async |world| {
        world.live_elected().await?;
        world.create(json!({})).await?;
        world.until("running", |seen| seen.is("Running")).await?;
        let leases: Api<Lease> =
            Api::namespaced(world.lane.client.clone(), world.lane.namespace.name());
        leases.delete(LEASE, &DeleteParams::default()).await?;
        world.pass(Duration::from_secs(40)).await?;
        let stranger = Patch::Merge(json!({ "spec": { "holderIdentity": "nobody" } }));
        leases.patch(LEASE, &PatchParams::default(), &stranger).await?;
        world.until_complete().await?;
        ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        Ok(())
    })
}

/// The purchase was on its way to be sent: it never is, and the pass says that it was dropped.
#[test]
fn d5_whoever_loses_the_lease_drops_what_it_was_doing() -> Result<()> {
    let late = [(Point::new("provider.launch", 1), Fault::Delay(Duration::from_secs(600)))];
    on_each("d5", &late, async |world| {
        let [first, _] = world.live_elected().await?;
        world.create(json!({})).await?;
        let calls = world.calls.clone();
        let buys = |point: &Point| point.class == "provider.launch";
        world.until("about to buy", |_| calls.made().iter().any(buys)).await?;
        first.set_link(Link::Partitioned);
        world.until("the other running", |seen| seen.is("Running")).await?;
        let (_, metrics) = world.http("/metrics").await?;
        let dropped = r#"petaflop_reconciliations_total{controller="ComputeClaim",outcome="abandoned",reason=""} 1"#;
        ensure!(metrics.contains(dropped), "{metrics}");
        first.set_link(Link::Open);
        world.until_complete().await?;
        ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        Ok(())
    })
}
