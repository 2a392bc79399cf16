//! B. Duplicate launches: whatever is lost, repeated or restored, a claim is one machine.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::PostParams;
use petaflop_fake_provider::{Fault as Misbehaviour, Kind, Manners};
use serde_json::json;

use crate::calls::{Fault, Point};
use crate::world::{World, alone, clouds, on_each};

/// The job runs to its end, on this many machines.
async fn completes_on(world: &mut World<'_>, machines: usize) -> Result<()> {
    world.create(json!({})).await?;
    world.until_complete().await?;
    ensure!(world.cloud.created() == machines, "{} machines", world.cloud.created());
    Ok(())
}

#[test]
fn b1_a_purchase_whose_answer_is_lost_is_found_and_not_repeated() -> Result<()> {
    let lost = [(Point::new("provider.launch", 1), Fault::LoseResponse)];
    on_each("b1", &lost, async |world| completes_on(world, 1).await)
}

#[test]
fn b2_a_machine_that_was_made_although_the_answer_is_500_is_adopted() -> Result<()> {
    on_each("b2", &[], async |world| {
        world.cloud.misbehave_after(Kind::Create, 0, Misbehaviour::CreatedBut500);
        world.listed_late();
        completes_on(world, 1).await
    })
}

#[test]
fn b2_a_machine_that_shows_after_the_window_is_ended_and_in_the_ledger() -> Result<()> {
    alone("b2-late", Manners::runpod(), &[], async |world| {
        world.cloud.misbehave_after(Kind::Create, 0, Misbehaviour::CreatedBut500);
        world.cloud.misbehave(Misbehaviour::ListingLag(Duration::from_secs(90)));
        world.create(json!({})).await?;
        world.until("two machines", |seen| seen.billed.len() == 2).await?;
        // The second one is listed as promised.
        world.cloud.behave("listing-lag");
        let since = world.clock.boottime();
        world.until("one machine again", |seen| seen.billed.len() == 1).await?;
        let extra = world.clock.boottime() - since;
        // The list's delay and one round of the sweep.
        ensure!(extra <= Duration::from_secs(90 + 120 + 10), "two machines for {extra:?}");
        world.until_complete().await?;
        ensure!(world.cloud.created() == 2, "{} machines", world.cloud.created());
        Ok(())
    })
}

#[test]
fn b3_a_watch_that_lags_buys_nothing_twice() -> Result<()> {
    let late = [(Point::new("k8s.watch.computeclaims", 1), Fault::Delay(Duration::from_secs(300)))];
    on_each("b3", &late, async |world| completes_on(world, 1).await)
}

#[test]
fn b4_two_operators_that_know_nothing_of_each_other_buy_one_machine() -> Result<()> {
    on_each("b4", &[], async |world| {
        world.live_twice().await?;
        completes_on(world, 1).await
    })
}

#[test]
fn b5_a_claim_whose_creation_is_answered_badly_is_created_once() -> Result<()> {
    for fault in [Fault::LoseResponse, Fault::Refuse(429), Fault::Refuse(503)] {
        let bad = [(Point::new("k8s.create.computeclaims", 1), fault)];
        on_each("b5", &bad, async |world| completes_on(world, 1).await)?;
    }
    Ok(())
}

/// The machine is adopted. But who was let in on it is forgotten too, and its token is burned: so it is
/// given up when its time to enrol is over, and the job goes on elsewhere.
#[test]
fn b6_an_operator_on_a_restored_backup_never_has_two_machines_at_once() -> Result<()> {
    on_each("b6", &[], async |world| {
        world.create(json!({})).await?;
        let seen = world.until("running", |seen| seen.is("Running")).await?;
        world.die();
        // The claim as it was before anything was asked for.
        let claims = world.lane.claims();
        let name = seen.claims.first().context("a claim")?.name_any();
        let mut claim = claims.get(&name).await?;
        claim.status = None;
        claims.replace_status(&claim.name_any(), &PostParams::default(), &claim).await?;
        world.live().await?;
        let mut most = 0;
        world
            .until("complete", |seen| {
                most = most.max(seen.billed.len());
                seen.is("Complete") && seen.claims.is_empty()
            })
            .await?;
        ensure!(most == 1 && world.cloud.created() <= 2, "{most} at once");
        Ok(())
    })
}

#[test]
fn b7_the_same_name_again_while_the_old_machine_is_ending_has_a_machine_of_its_own() -> Result<()> {
    // It takes a while to end.
    for &manners in clouds() {
        let slow = Manners { shutdown: Duration::from_secs(30), ..manners };
        alone("b7", slow, &[], async |world| {
            world.create(json!({})).await?;
            world.until("running", |seen| seen.is("Running")).await?;
            world.delete().await?;
            world.until("no job", |seen| seen.job.is_none()).await?;
            completes_on(world, 2).await
        })?;
    }
    Ok(())
}
