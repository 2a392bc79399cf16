//! E. Trouble with the API server: nothing is decided on a view that may be old, nothing is bought
//! twice, and all goes on by itself when the server does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_fake_provider::Manners;
use serde_json::json;

use crate::calls::{Fault, Link, Standing};
use crate::world::alone;

const API: &str = "k8s.";

#[test]
fn e1_while_the_server_is_away_nothing_is_bought_and_then_all_goes_on() -> Result<()> {
    for phase in ["before", "launching", "running"] {
        alone("e1", Manners::runpod(), &[], async |world| {
            match phase {
                "before" => drop(world.settle().await?),
                "launching" => {
                    world.create(json!({})).await?;
                    world.until("a machine", |seen| !seen.billed.is_empty()).await?;
                }
                _ => {
                    world.create(json!({})).await?;
                    world.until("running", |seen| seen.is("Running")).await?;
                }
            }
            let before = world.cloud.created();
            world.link(Link::Partitioned);
            if phase == "before" {
                // Somebody else can reach it.
                world.create(json!({})).await?;
            }
            world.pass(Duration::from_secs(300)).await?;
            ensure!(world.cloud.created() == before, "{phase}: bought on an old view");
            ensure!(world.cloud.billed_now().len() == before, "{phase}: ended on an old view");
            world.link(Link::Open);
            let seen = world.until_complete().await?;
            let status = seen.job.context("the job")?.status.context("a status")?;
            ensure!(status.interruptions == 0, "{phase}: {status:#?}");
            // Its agent could not be let in for longer than a launch may take: it is replaced.
            let most = if phase == "launching" { 2 } else { 1 };
            ensure!(world.cloud.created() <= most, "{phase}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn e5_a_server_that_asks_for_patience_gets_it() -> Result<()> {
    for status in [429, 503, 500] {
        alone("e5", Manners::runpod(), &[], async |world| {
            world.calls.stand(Standing { classes: API, every: 3, fault: Fault::Refuse(status) });
            world.create(json!({})).await?;
            world.until_complete().await?;
            world.calls.mend();
            ensure!(world.cloud.created() == 1, "{status}: {} machines", world.cloud.created());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn e6_a_conflict_in_every_second_write_slows_and_harms_nothing() -> Result<()> {
    alone("e6", Manners::runpod(), &[], async |world| {
        for classes in ["k8s.update.", "k8s.patch."] {
            world.calls.stand(Standing { classes, every: 2, fault: Fault::Refuse(409) });
        }
        world.create(json!({})).await?;
        let seen = world.until_complete().await?;
        let status = seen.job.context("the job")?.status.context("a status")?;
        ensure!(status.interruptions == 0 && world.cloud.created() == 1, "{status:#?}");
        world.calls.mend();
        Ok(())
    })
}

#[test]
fn e7_a_slow_server_costs_no_leader_and_no_machine() -> Result<()> {
    alone("e7", Manners::aws(), &[], async |world| {
        world.live_elected().await?;
        let slow = Fault::Delay(Duration::from_secs(2));
        world.calls.stand(Standing { classes: API, every: 1, fault: slow });
        world.create(json!({})).await?;
        world.until_complete().await?;
        world.calls.mend();
        ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        let taken = world.transitions().await?;
        ensure!(taken == 0, "the Lease changed hands {taken} times");
        Ok(())
    })
}
